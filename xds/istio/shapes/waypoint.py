"""The three shapes of a waypoint, where istiod knows nothing of pickers.

istiod patches little there. A CLUSTER is added in context SIDECAR_INBOUND and merged in
SIDECAR_OUTBOUND, the cluster `inbound-vip` is never merged; filters go into the Service's own chain
of the listener `main_internal`; a route is patched only where the Service has no HTTPRoute and no
VirtualService. So either a route leads to an outbound cluster that is patched, or there is none and
the Service's one route is patched.

`waypoint-inferencepool` also makes istiod's cluster of a pool, ORIGINAL_DST there, an EDS cluster.
Its route is answered with 503 by Istio alone: the HTTPRoute comes after the patches and goes before
them. The cluster is there before the route by the pool's Service (`shadows`).
"""

from xds.istio.shapes import clusters, shadows
from xds.istio.shapes.filters import ext_proc, running_digest_filter
from xds.istio.shapes.gateway import HTTP_MANAGER
from xds.istio.shapes.manifest import (
    MANAGED_BY,
    POOL,
    POOLS,
    annotations,
    envoy_filter,
    patch,
    shared,
)
from xds.istio.shapes.routes import http_route, waypoint_route
from xds.istio.shapes.wiring import (
    Host,
    Object,
    Plan,
    SecondService,
    Shape,
    ShapeError,
    Step,
    Wiring,
)

INBOUND, OUTBOUND = "SIDECAR_INBOUND", "SIDECAR_OUTBOUND"
ROUTER = "envoy.filters.http.router"


def build(wiring: Wiring) -> Plan:
    """Raises `ShapeError`."""
    service = wiring.service
    if service is None:
        raise ShapeError(f"Gateway {wiring.proxy}: a waypoint's shape needs a Service")
    match wiring.shape:
        case Shape.WAYPOINT_INFERENCEPOOL:
            before, twin = _pool_clusters(wiring), wiring.member.cluster(wiring.istio)
            after: list[Object] = [http_route(wiring, service)] if wiring.route_missing else []
        case Shape.WAYPOINT_SECOND_SERVICE:
            second = _second(wiring)
            before, twin = _second_cluster(wiring, service, second), second.host.cluster
            after = [http_route(wiring, service)] if wiring.route_missing else []
        case _:
            before, twin = _own_cluster(wiring, service), service.vip
            after = [_route(wiring, service)]
    added = "" if wiring.shape.own_cluster else clusters.TWIN
    filters = _filters(wiring, service)
    wait = f"wait until every proxy of Gateway {wiring.proxy} has acknowledged Weir's assignment"
    steps = [
        Step(1, "clusters and filters", (*before, *filters), wait),
        Step(2, "the route", tuple(after)),
    ]
    return Plan(
        wiring,
        f"{added}{twin}",
        tuple(_assignments(wiring, service)),
        tuple(step for step in steps if step.objects),
        (*wiring.notes, *wiring.traffic.notes, *_notes(wiring)),
    )


def _pool_clusters(wiring: Wiring) -> list[Object]:
    made = [shadows.service(wiring, shadow) for shadow in wiring.shadows]
    for member in wiring.members:
        name = member.cluster(wiring.istio)
        value = clusters.redirected(member.policy, wiring.istio, wiring.xds)
        value = {"type": "EDS", **value}
        value["eds_cluster_config"]["service_name"] = name
        patches = [_twin(name), _merged(name, value)]
        # Referenced, so that the cluster is in the proxy, and warm, before a route leads there.
        said = annotations(wiring, 1) | {POOL: member.pool}
        hosts = (wiring.xds, shadows.host_of(member, wiring.istio.domain))
        parts = (member.namespace, member.name)
        made.append(envoy_filter(wiring.proxy, parts, patches, said, hosts))
    return made


def _second_cluster(wiring: Wiring, service: Host, second: SecondService) -> list[Object]:
    name = second.host.cluster
    value = clusters.redirected(wiring.member.policy, wiring.istio, wiring.xds)
    value = {"lb_policy": "CLUSTER_PROVIDED", **value}
    made = [_service(wiring, second)] if second.missing else []
    # Referenced, so that the cluster is in the proxy, and warm, before a route leads there.
    hosts = (wiring.xds, second.host)
    patches = [_twin(name), _merged(name, value)]
    parts = (*_parts(service), "cluster")
    return [
        *made,
        envoy_filter(wiring.proxy, parts, patches, annotations(wiring, 1), hosts),
    ]


def _own_cluster(wiring: Wiring, service: Host) -> list[Object]:
    own = clusters.own_waypoint_cluster(
        wiring.member, service, wiring.istio, wiring.xds, wiring.traffic
    )
    patches = [patch("CLUSTER", {"context": INBOUND}, "ADD", own)]
    parts = (*_parts(service), "cluster")
    said = annotations(wiring, 1)
    return [envoy_filter(wiring.proxy, parts, patches, said, (wiring.xds,))]


def _filters(wiring: Wiring, service: Host) -> list[Object]:
    """In the chain of the Service, shared by all pools that its routes lead to."""
    manager = {"name": HTTP_MANAGER, "subFilter": {"name": ROUTER}}
    chain = {"name": service.vip, "filter": manager}
    match = {"context": INBOUND, "listener": {"name": "main_internal", "filterChain": chain}}
    found = []
    members = sorted(wiring.members, key=lambda member: member.pool)
    if any(member.digests for member in members):
        found.append(running_digest_filter(wiring.only_routes))
    if asking := [member for member in members if member.picks]:
        found.append(ext_proc(asking))
    if not found:
        return []
    patches = [patch("HTTP_FILTER", match, "INSERT_BEFORE", each) for each in found]
    hosts = _pickers(wiring)
    said = {POOLS: ",".join(member.pool for member in members), **shared(wiring.proxy, 1)}
    return [envoy_filter(wiring.proxy, _parts(service), patches, said, hosts)]


def _route(wiring: Wiring, service: Host) -> Object:
    match = {"context": INBOUND, "routeConfiguration": {"name": service.vip}}
    patches = [patch("HTTP_ROUTE", match, "MERGE", waypoint_route(service))]
    parts = (*_parts(service), "route")
    return envoy_filter(wiring.proxy, parts, patches, annotations(wiring, 2))


def _assignments(wiring: Wiring, service: Host) -> list[str]:
    match wiring.shape:
        case Shape.WAYPOINT_INFERENCEPOOL:
            return [member.cluster(wiring.istio) for member in wiring.members]
        case Shape.WAYPOINT_SECOND_SERVICE:
            return [_second(wiring).host.cluster]
        case _:
            return [service.vip]


def _second(wiring: Wiring) -> SecondService:
    if wiring.second is None:
        raise ShapeError(f"Gateway {wiring.proxy}: this shape needs a second Service")
    return wiring.second


def _service(wiring: Wiring, second: SecondService) -> Object:
    """Over the same Pods, and past the waypoint: its own traffic must not come back to it."""
    port = {"name": "http", "port": second.host.port, "targetPort": second.target_port}
    if wiring.service_http2:
        port["appProtocol"] = "kubernetes.io/h2c"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": second.host.service,
            "namespace": second.host.namespace,
            "labels": {MANAGED_BY: "weir", "istio.io/use-waypoint": "none"},
            "annotations": annotations(wiring, 1),
        },
        "spec": {"selector": dict(second.selector), "ports": [port]},
    }


def _twin(name: str) -> Object:
    return patch("CLUSTER", {"context": INBOUND}, "ADD", clusters.twin(name))


def _merged(name: str, value: Object) -> Object:
    return patch("CLUSTER", {"context": OUTBOUND, "cluster": {"name": name}}, "MERGE", value)


def _pickers(wiring: Wiring) -> tuple[Host, ...]:
    return tuple(member.picker for member in wiring.members if member.picks)


def _parts(service: Host) -> tuple[str, ...]:
    return service.namespace, service.service, str(service.port)


def _notes(wiring: Wiring) -> list[str]:
    notes = []
    if wiring.only_routes:
        notes.append(
            "other routes of the Service are asked about too, with headers alone, and their bodies "
            "are let be: a waypoint's filters are the Service's"
        )
    return notes
