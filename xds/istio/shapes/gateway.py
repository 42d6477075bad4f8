"""The two shapes of a gateway that istiod configures for InferencePools already.

`gateway` patches istiod's cluster of the pool in place, which needs MERGE_AND_REPLACE_LIST: istiod
has put a load balancing policy there, and merging would put ours behind it, where none looks.
`gateway-own-cluster` does without, and adds a cluster.

Filters are shared by all pools of the gateway and stand in an object of their own. Pools that a
rule splits between are wired too: without, the picker's answer for them could not be honoured.
"""

from xds.istio.shapes import clusters, shadows
from xds.istio.shapes.filters import EXT_PROC, bounded_ext_proc, idle_digest_filter
from xds.istio.shapes.manifest import POOL, annotations, envoy_filter, patch, shared
from xds.istio.shapes.routes import gateway_route
from xds.istio.shapes.wiring import Member, Object, Plan, ShapeError, Step, Wiring

CONTEXT = "GATEWAY"
HTTP_MANAGER = "envoy.filters.network.http_connection_manager"


def build(wiring: Wiring) -> Plan:
    """Raises `ShapeError`."""
    if wiring.shape.own_cluster:
        _refuse_splits(wiring)
    member = wiring.member
    first = (*_clusters(wiring), _filters(wiring))
    routes = envoy_filter(
        wiring.proxy,
        (member.namespace, member.name, "routes"),
        [_route_patch(rule.name, gateway_route(wiring, rule)) for rule in wiring.rules],
        annotations(wiring, 2),
    )
    wait = f"wait until every proxy of Gateway {wiring.proxy} has acknowledged Weir's assignment"
    twin = member.cluster(wiring.istio)
    return Plan(
        wiring,
        twin if wiring.shape.own_cluster else f"{clusters.TWIN}{twin}",
        tuple(each.cluster(wiring.istio) for each in wiring.members),
        (
            Step(1, "clusters and filters", first, wait),
            Step(2, "the pool's routes", (routes,)),
        ),
        (*wiring.notes, *wiring.traffic.notes, *_notes(wiring)),
    )


def _refuse_splits(wiring: Wiring) -> None:
    for rule in wiring.rules:
        if rule.splits:
            raise ShapeError(
                f"HTTPRoute {rule.route}: rule {rule.name} splits between several backends, and "
                "before Istio 1.32 a patch cannot keep their weights: give each pool a rule, or "
                "use Istio 1.32 or later"
            )


def _clusters(wiring: Wiring) -> list[Object]:
    return [
        envoy_filter(
            wiring.proxy,
            (member.namespace, member.name),
            _own_cluster(wiring, member)
            if wiring.shape.own_cluster
            else _patched_cluster(wiring, member),
            annotations(wiring, 1) | {POOL: member.pool},
            (wiring.xds, *([member.picker] if member.picks else [])),
        )
        for member in wiring.members
    ]


def _patched_cluster(wiring: Wiring, member: Member) -> list[Object]:
    name = member.cluster(wiring.istio)
    return [
        patch("CLUSTER", {"context": CONTEXT}, "ADD", clusters.twin(name)),
        patch(
            "CLUSTER",
            {"context": CONTEXT, "cluster": {"name": name}},
            "MERGE_AND_REPLACE_LIST",
            clusters.redirected(member.policy, wiring.istio, wiring.xds),
        ),
    ]


def _own_cluster(wiring: Wiring, member: Member) -> list[Object]:
    host = shadows.host_of(member, wiring.istio.domain)
    own = clusters.own_gateway_cluster(member, host, wiring.istio, wiring.xds, wiring.traffic)
    return [patch("CLUSTER", {"context": CONTEXT}, "ADD", own)]


def _filters(wiring: Wiring) -> Object:
    manager = {"name": HTTP_MANAGER, "subFilter": {"name": EXT_PROC}}
    match = {"context": CONTEXT, "listener": {"filterChain": {"filter": manager}}}
    return envoy_filter(
        wiring.proxy,
        (),
        [
            patch("HTTP_FILTER", match, "INSERT_BEFORE", idle_digest_filter()),
            patch("HTTP_FILTER", match, "MERGE", bounded_ext_proc()),
        ],
        shared(wiring.proxy, 1),
    )


def _route_patch(name: str, value: Object) -> Object:
    match = {"context": CONTEXT, "routeConfiguration": {"vhost": {"route": {"name": name}}}}
    return patch("HTTP_ROUTE", match, "MERGE", value)


def _notes(wiring: Wiring) -> list[str]:
    return [
        f"HTTPRoute {rule.route}: rule {rule.name} has a {rule.lost_override} filter, for which "
        "Istio drops the pool's picker; the patch brings it back"
        for rule in wiring.rules
        if rule.lost_override
    ]
