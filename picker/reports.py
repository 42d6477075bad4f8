"""What the picker tells the control plane of its picks, over the load reporting service.

The control plane says how often; a report has what happened since the one before. The picker sees
where it sent requests and where it could not, not how they ended: the proxy's own reports say that.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc.aio
import structlog

from picker.server import Picker
from xds.client import PLAINTEXT, Credentials
from xds.pool import EndpointId, PoolName
from xds.proto.envoy.service.load_stats.v3 import lrs_pb2

METHOD = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
RETRY_SECONDS = 1.0
# To write to a call that has ended meanwhile is a mistake of state to grpc.aio, not of the call.
INTERRUPTED = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, OSError)

log = structlog.get_logger()


class Ledger:
    """The picker's counts, and what of them was reported. Pure."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._picks: Counter[tuple[PoolName, EndpointId]] = Counter()
        self._unserved: Counter[PoolName] = Counter()

    def report(self, node: str) -> lrs_pb2.LoadStatsRequest:
        """Everything since the last one."""
        picks, unserved = Counter(self._picker.picks), Counter(self._picker.unserved)
        request = lrs_pb2.LoadStatsRequest()
        request.node.id, request.node.user_agent_name = node, "weir-picker"
        request.cluster_stats.extend(_stats(picks - self._picks, unserved - self._unserved))
        self._picks, self._unserved = picks, unserved
        return request


def _stats(
    picks: Counter[tuple[PoolName, EndpointId]], unserved: Counter[PoolName]
) -> Iterator[Any]:
    for pool in sorted({pool for pool, _ in picks} | unserved.keys()):
        here = {endpoint: count for (name, endpoint), count in picks.items() if name == pool}
        stats = lrs_pb2.LoadStatsRequest().cluster_stats.add(cluster_name=pool)
        stats.total_dropped_requests = unserved[pool]
        locality = stats.upstream_locality_stats.add(total_issued_requests=sum(here.values()))
        for endpoint, count in here.items():
            item = locality.upstream_endpoint_stats.add(total_issued_requests=count)
            host, _, port = endpoint.rpartition(":")
            item.address.socket_address.address = host.strip("[]")
            item.address.socket_address.port_value = int(port)
        yield stats


async def report(
    address: str, node: str, picker: Picker, credentials: Credentials = PLAINTEXT
) -> None:
    """Report until cancelled; a control plane that is away, or does not want it, costs a retry."""
    ledger = Ledger(picker)
    while True:
        try:
            async with credentials.channel(address) as channel:
                await channel.channel_ready()
                await _stream(channel, node, ledger, credentials)
        except INTERRUPTED as error:
            log.debug("reports interrupted", reason=str(error))
        await asyncio.sleep(RETRY_SECONDS)


async def _stream(
    channel: grpc.aio.Channel, node: str, ledger: Ledger, credentials: Credentials
) -> None:
    call = channel.stream_stream(
        METHOD,
        request_serializer=lrs_pb2.LoadStatsRequest.SerializeToString,
        response_deserializer=lrs_pb2.LoadStatsResponse.FromString,
    )(metadata=credentials.metadata())
    hello = lrs_pb2.LoadStatsRequest()
    hello.node.id, hello.node.user_agent_name = node, "weir-picker"
    await call.write(hello)
    wanted = await call.read()
    if not isinstance(wanted, lrs_pb2.LoadStatsResponse):
        return
    interval = max(0.1, wanted.load_reporting_interval.ToTimedelta().total_seconds())
    while not call.done():
        await asyncio.sleep(interval)
        await call.write(ledger.report(node))
