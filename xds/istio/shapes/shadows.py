"""The Service that istiod makes of an InferencePool, its shadow, as far as a waypoint needs it.

istiod makes it when the first HTTPRoute leads to the pool, and the pool's cluster with it: too late
for a route whose cluster must be patched, and warm, before it comes. And it follows its Namespace:
one that is enrolled in a waypoint enrols the shadow, and the route then leads to a cluster that no
EnvoyFilter reaches (`inbound-vip`, ORIGINAL_DST: 503).

So where either is the case the Service is printed, as istiod will make it, past the waypoint.
istiod takes over what it finds under this name with its own label, and leaves other labels: seen
of 1.32-dev, pilot/pkg/config/kube/gateway/inferencepool_collection.go, reconcileShadowService.
"""

from collections.abc import Iterable, Iterator

from xds.istio.assignment import SHADOW_PORT, shadow_service
from xds.istio.shapes.inventory import USE_WAYPOINT, Inventory, is_ours
from xds.istio.shapes.manifest import MANAGED_BY, annotations
from xds.istio.shapes.question import leads_to
from xds.istio.shapes.wiring import Host, Member, Object, Shadow, Wiring
from xds.manifests import Metadata, Service
from xds.pool import PoolName

POOL_NAME = "istio.io/inferencepool-name"  # by which istiod knows a shadow as its own


def host_of(member: Member, domain: str) -> Host:
    return Host(member.namespace, shadow_service(member.name), SHADOW_PORT, domain)


def missing(inventory: Inventory, members: Iterable[Member]) -> Iterator[Shadow]:
    """Those that are to be printed, the ones that we printed before among them."""
    for member in members:
        name = shadow_service(member.name)
        known = inventory.services.get(f"{member.namespace}/{name}")
        comes = known or Service(Metadata(name, member.namespace))
        absent = known is None and not _is_routed(inventory, member.pool)
        if absent or is_ours(comes) or inventory.waypoint_of(comes) is not None:
            pool = inventory.pools[member.pool].spec
            yield Shadow(
                member,
                tuple(sorted(pool.selector.match_labels.items())),
                tuple(each.number for each in pool.target_ports),
            )


def _is_routed(inventory: Inventory, pool: PoolName) -> bool:
    """Does a route lead to the pool already that is not one that we print?"""
    return any(not is_ours(route) and leads_to(route, pool) for route in inventory.routes.values())


def service(wiring: Wiring, shadow: Shadow) -> Object:
    """The Service, with what istiod leaves as it is."""
    member = shadow.member
    ports: list[Object] = [
        {"name": f"http-{number}", "port": SHADOW_PORT + number, "targetPort": port}
        for number, port in enumerate(shadow.target_ports)
    ]
    if member.http2:
        ports = [{**port, "appProtocol": "kubernetes.io/h2c"} for port in ports]
    labels = {MANAGED_BY: "weir", POOL_NAME: member.name, USE_WAYPOINT: "none"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": shadow_service(member.name),
            "namespace": member.namespace,
            "labels": labels,
            "annotations": annotations(wiring, 1),
        },
        "spec": {"clusterIP": "None", "selector": dict(shadow.selector), "ports": ports},
    }
