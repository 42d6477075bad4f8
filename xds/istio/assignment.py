"""Assignments as istiod writes them: its cluster names, tunnel addresses and metadata.

A proxy of Istio's asks for the assignment of a cluster that istiod named. Our answer differs from
istiod's own in weights and priorities alone, so that a proxy can go from one to the other and back.
Sources are files of istio/istio at 86c9f01f:

    names        pilot/pkg/config/kube/gateway/inferencepool_collection.go: InferencePoolServiceName
                 pilot/pkg/model/service.go: BuildSubsetKey, BuildInboundSubsetKey
    addresses    pilot/pkg/xds/endpoints/endpoint_builder.go: buildEnvoyLbEndpoint
    localities   pilot/pkg/serviceregistry/kube/controller/controller.go: getPodLocality
    workloads    pilot/pkg/networking/util: AppendLbEndpointMetadata; name;namespace;canonical
                 name;canonical revision, empty if "latest";cluster

    a Pod that is          has the address                       and metadata
    captured by ztunnel    internal, connect_originate, ip:port  the tunnel's destination; and to an
                                                                 outbound cluster, tunnel: http
    with a sidecar         socket                                tlsMode: istio, unless disabled
    both                   of an outbound cluster as with a sidecar, else as captured, with tlsMode
    neither                socket                                -

A client that opens no tunnels (`xds.access.Node.tunnels`) has sockets everywhere.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from xds.pool import Endpoint, EndpointId, IstioCluster, Mesh, Share
from xds.proto.envoy.config.core.v3 import health_check_pb2
from xds.proto.envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

SHADOW_PORT = 54321
ORIGINATE = "connect_originate"
ORIGINAL_DST = "envoy.filters.listener.original_dst"
SOCKET_MATCH = "envoy.transport_socket_match"
TUNNELLED = {"tunnel": "http"}
OVERPROVISIONING = 140
LATEST = "latest"
CLUSTER_ID = "Kubernetes"  # istiod's own default
NAME_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
REDIRECTION = "ambient.istio.io/redirection"
TUNNEL = "networking.istio.io/tunnel"
TLS_MODE = "security.istio.io/tlsMode"  # the injector writes it; an operator may
LOCALITY = "istio-locality"  # on a Pod: "region.zone.subzone", or with slashes
REGION_LABELS = ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region")
ZONE_LABELS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
SUBZONE_LABELS = ("topology.istio.io/subzone",)


def shadow_service(pool: str) -> str:
    """The Service that istiod makes for an InferencePool of this name; at most 63 characters."""
    return f"{pool[:51]}-ip-{hashlib.sha256(pool.encode()).hexdigest()[:8]}"


def pool_cluster(namespace: str, pool: str, domain: str) -> IstioCluster:
    """The cluster of a pool that an HTTPRoute refers to: all its target ports in one."""
    host = f"{shadow_service(pool)}.{namespace}.svc.{domain}"
    return IstioCluster(f"outbound|{SHADOW_PORT}||{host}")


def service_clusters(
    namespace: str, service: str, port: int, target_port: int, domain: str
) -> tuple[IstioCluster, IstioCluster]:
    """The clusters of a Service's port: what others call, and the waypoint's own of it."""
    host = f"{service}.{namespace}.svc.{domain}"
    return (
        IstioCluster(f"outbound|{port}||{host}", target_port=target_port),
        IstioCluster(f"inbound-vip|{port}|http|{host}", target_port=target_port, vip=True),
    )


def mesh(
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    node: Mapping[str, str] = MappingProxyType({}),
) -> Mesh:
    """What the mesh knows of a Pod; `name` is its workload's, the Pod's own if it has no owner.

    `node` are the labels of its Node, where those are known; newer Kubernetes copies what matters
    of them to the Pod.
    """
    canonical = next((labels[key] for key in NAME_LABELS if labels.get(key)), name)
    revision = next((labels[key] for key in REVISION_LABELS if labels.get(key)), LATEST)
    if revision == LATEST:
        revision = ""
    region, zone, subzone = locality(labels, node)
    return Mesh(
        captured=annotations.get(REDIRECTION) == "enabled" or labels.get(TUNNEL) == "http",
        sidecar=labels.get(TLS_MODE) == "istio",
        workload=f"{name};{namespace};{canonical};{revision};{CLUSTER_ID}",
        region=region,
        zone=zone,
        subzone=subzone,
    )


def locality(pod: Mapping[str, str], node: Mapping[str, str]) -> tuple[str, str, str]:
    """Region, zone and subzone: what the Pod names, else its Node's labels, else its own."""
    if said := pod.get(LOCALITY):
        parts = said.split("/") if "/" in said else said.split(".")
        region, zone, subzone, *_ = *parts, "", ""
        return region, zone, subzone
    for labels in (node, pod):
        found = tuple(
            next((labels[key] for key in keys if labels.get(key)), "")
            for keys in (REGION_LABELS, ZONE_LABELS, SUBZONE_LABELS)
        )
        if any(found):
            return found[0], found[1], found[2]
    return "", "", ""


def assignment(
    cluster: IstioCluster,
    endpoints: Iterable[Endpoint],
    shares: Mapping[EndpointId, Share],
    *,
    echo: bool = False,
) -> bytes:
    """A serialised ClusterLoadAssignment, one locality for each place and priority.

    A locality weighs what its endpoints weigh together. `echo` as in `xds.assignment`.
    """
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster.name)
    if echo:
        message.policy.overprovisioning_factor.value = OVERPROVISIONING
    for (priority, region, zone, subzone), members in _places(cluster, endpoints, shares):
        locality = message.endpoints.add(priority=priority)
        locality.locality.region, locality.locality.zone = region, zone
        locality.locality.sub_zone = subzone
        locality.locality.SetInParent()
        locality.load_balancing_weight.value = sum(shares[each.id].weight for each in members)
        for endpoint in members:
            item = locality.lb_endpoints.add(health_status=health_check_pb2.HEALTHY)
            item.load_balancing_weight.value = shares[endpoint.id].weight
            _address(item, endpoint, cluster)
    return message.SerializeToString(deterministic=True)


def _places(
    cluster: IstioCluster, endpoints: Iterable[Endpoint], shares: Mapping[EndpointId, Share]
) -> Sequence[tuple[tuple[int, str, str, str], list[Endpoint]]]:
    places: dict[tuple[int, str, str, str], list[Endpoint]] = {}
    used: set[int] = set()
    for endpoint in endpoints:
        if endpoint.id in shares and cluster.target_port in (None, endpoint.port):
            where, priority = endpoint.mesh, shares[endpoint.id].priority
            used.add(priority)
            place = (priority, where.region, where.zone, where.subzone)
            places.setdefault(place, []).append(endpoint)
    # One port of several may have nobody at some priority: they are contiguous in what is sent.
    rank = {priority: number for number, priority in enumerate(sorted(used))}
    return [((rank[place[0]], *place[1:]), found) for place, found in sorted(places.items())]


def _address(
    item: endpoint_components_pb2.LbEndpoint, endpoint: Endpoint, cluster: IstioCluster
) -> None:
    where, metadata = endpoint.mesh, item.metadata.filter_metadata
    match = {"tlsMode": "istio"} if where.sidecar and not where.plaintext else {}
    if where.captured and (cluster.vip or not where.sidecar):
        internal = item.endpoint.address.envoy_internal_address
        internal.server_listener_name, internal.endpoint_id = ORIGINATE, endpoint.id
        metadata[ORIGINAL_DST].update({"local": endpoint.id})
        match = match if cluster.vip else TUNNELLED
    else:
        address = item.endpoint.address.socket_address
        address.address, address.port_value = endpoint.address, endpoint.port
    if match:
        metadata[SOCKET_MATCH].update(match)
    metadata["istio"].update({"workload": where.workload})


def without_tunnels(body: bytes) -> bytes:
    """The same assignment for a client that opens no tunnels: sockets instead of them."""
    message = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    for locality in message.endpoints:
        for item in locality.lb_endpoints:
            address = item.endpoint.address
            if not address.HasField("envoy_internal_address"):
                continue
            host, _, port = address.envoy_internal_address.endpoint_id.rpartition(":")
            address.socket_address.address = host.strip("[]")
            address.socket_address.port_value = int(port)
            metadata = item.metadata.filter_metadata
            del metadata[ORIGINAL_DST]
            if SOCKET_MATCH in metadata and "tunnel" in metadata[SOCKET_MATCH]:
                del metadata[SOCKET_MATCH]
    return message.SerializeToString(deterministic=True)
