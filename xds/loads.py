"""What proxies and pickers report of the requests they sent: totals, each with its age.

Fed with LoadStatsRequests by `xds.lrs`. A report is about a cluster as one node sees it; counts add
up from one report to the next, gauges are the last ones. A node that went away keeps its row until
`FORGET_SECONDS` have passed: what it sent is still on the model servers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xds.pool import EndpointId, PoolName

FORGET_SECONDS = 600.0


@dataclass(slots=True)
class LoadReport:
    """One cluster, from one node. `at` is when its last report came, in the server's clock."""

    node: str
    pool: PoolName
    at: float
    issued: int = 0
    succeeded: int = 0
    failed: int = 0
    dropped: int = 0
    in_progress: int = 0  # when the last report was written
    endpoints: dict[EndpointId, int] = field(default_factory=dict)  # issued, where it says so


class LoadReports:
    """All reports. One owner; synchronous."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, PoolName], LoadReport] = {}

    def __iter__(self) -> Iterator[LoadReport]:
        return iter(self._rows.values())

    def add(self, node: str, pool: PoolName, stats: Any, now: float) -> None:
        """Book an envoy.config.endpoint.v3.ClusterStats."""
        row = self._rows.setdefault((node, pool), LoadReport(node, pool, now))
        row.at, row.in_progress = now, 0
        row.dropped += stats.total_dropped_requests
        for locality in stats.upstream_locality_stats:
            row.issued += locality.total_issued_requests
            row.succeeded += locality.total_successful_requests
            row.failed += locality.total_error_requests
            row.in_progress += locality.total_requests_in_progress
            for item in locality.upstream_endpoint_stats:
                endpoint = _endpoint(item.address)
                issued = row.endpoints.get(endpoint, 0) + item.total_issued_requests
                row.endpoints[endpoint] = issued

    def expire(self, now: float) -> None:
        """Forget what is too old to say anything."""
        self._rows = {key: row for key, row in self._rows.items() if now - row.at <= FORGET_SECONDS}


def _endpoint(address: Any) -> EndpointId:
    if address.HasField("envoy_internal_address"):
        return str(address.envoy_internal_address.endpoint_id)
    host, port = address.socket_address.address, address.socket_address.port_value
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
