"""Shares → ClusterLoadAssignment, as bytes.

What Envoy 1.40 asks for, each seen: weights from 1, priorities contiguous from 0, an address that
is an IP. Ready endpoints only; an endpoint without a share is not in the assignment.
"""

from collections.abc import Iterable, Mapping

from xds.pool import Endpoint, EndpointId, PoolName, Share
from xds.proto.envoy.config.endpoint.v3 import endpoint_pb2

OVERPROVISIONING = 140  # per cent: Envoy's own default


def cluster_load_assignment(
    cluster: PoolName,
    endpoints: Iterable[Endpoint],
    shares: Mapping[EndpointId, Share],
    *,
    echo: bool = False,
) -> bytes:
    """A serialised ClusterLoadAssignment, one locality a priority.

    With `echo` it states a default that it otherwise leaves out: the same assignment in other
    bytes, hence with another version, so that every client takes it once more.
    """
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster)
    if echo:
        message.policy.overprovisioning_factor.value = OVERPROVISIONING
    by_priority: dict[int, list[Endpoint]] = {}
    for endpoint in endpoints:
        if endpoint.id in shares:
            by_priority.setdefault(shares[endpoint.id].priority, []).append(endpoint)
    for priority, members in sorted(by_priority.items()):
        locality = message.endpoints.add(priority=priority)
        for endpoint in members:
            item = locality.lb_endpoints.add()
            item.load_balancing_weight.value = shares[endpoint.id].weight
            address = item.endpoint.address.socket_address
            address.address, address.port_value = endpoint.address, endpoint.port
    return message.SerializeToString(deterministic=True)
