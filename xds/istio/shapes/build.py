"""A wiring becomes its plan: the one door to the five shapes."""

from xds.istio.shapes import clusters, gateway, waypoint
from xds.istio.shapes.manifest import annotations, envoy_filter, patch
from xds.istio.shapes.wiring import Object, Plan, Wiring


def build(wiring: Wiring) -> Plan:
    """Raises `ShapeError`."""
    return gateway.build(wiring) if wiring.shape.on_gateway else waypoint.build(wiring)


def probe(plan: Plan) -> tuple[Object, ...]:
    """What proves that every proxy has our assignments before anything that is in use is patched.

    For who applies a plan by itself; a person sees it in `weir status`. A cluster that we add is in
    nobody's use and is its own proof.
    """
    if plan.wiring.shape.own_cluster:
        return ()
    wiring, member = plan.wiring, plan.wiring.member
    context = gateway.CONTEXT if wiring.shape.on_gateway else waypoint.INBOUND
    patches = [
        patch("CLUSTER", {"context": context}, "ADD", clusters.probe(name, wiring.xds))
        for name in plan.assignments
    ]
    parts = (member.namespace, member.name, wiring.shape.value, "probe")
    said = annotations(wiring, 0)
    return (envoy_filter(wiring.proxy, parts, patches, said, (wiring.xds,)),)
