"""Route patches: each names the route that it means, and no other route is touched.

istiod calls a route by its rule's `name`, or `<namespace>.<HTTPRoute>.<number of the rule>`. The
override is given even where istiod has written one: a CORS or fault filter on a rule makes istiod
lose its own, and this brings the picker back.
"""

from xds.istio.shapes.clusters import own_gateway_name, own_waypoint_name
from xds.istio.shapes.filters import digest_on_route, ext_proc_on_route
from xds.istio.shapes.manifest import MANAGED_BY, annotations
from xds.istio.shapes.wiring import Host, Object, Rule, Wiring


def gateway_route(wiring: Wiring, rule: Rule) -> Object:
    """What is merged into a gateway's route."""
    members = wiring.of(rule.pools)
    filters: Object = {}
    if any(member.digests for member in members):
        filters |= digest_on_route()
    filters |= ext_proc_on_route([member for member in members if member.picks])
    value: Object = {"typed_per_filter_config": filters}
    if wiring.shape.own_cluster:
        value = {"route": {"cluster": own_gateway_name(wiring.member)}, **value}
    return value


def waypoint_route(service: Host) -> Object:
    """What is merged into the only route of a waypoint's Service that has no HTTPRoute."""
    return {"route": {"cluster": own_waypoint_name(service)}}


def http_route(wiring: Wiring, service: Host) -> Object:
    """The HTTPRoute of a Service to what is wired, for an operator who has none."""
    if wiring.second is not None:
        host = wiring.second.host
        backend: Object = {"name": host.service, "port": host.port}
        name = host.service
    else:
        group = "inference.networking.k8s.io"
        backend = {"group": group, "kind": "InferencePool", "name": wiring.member.name}
        name = f"{service.service}-{wiring.member.name}"
    parent = {"group": "", "kind": "Service", "name": service.service, "port": service.port}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": name,
            "namespace": service.namespace,
            "labels": {MANAGED_BY: "weir"},
            "annotations": annotations(wiring, 2),
        },
        "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]},
    }
