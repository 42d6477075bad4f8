"""The load reporting service: Envoys and pickers say how many requests went where.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/load_stats/v3/lrs.proto

A client is asked for all clusters, every `INTERVAL_SECONDS`, with endpoints. What it reports of a
cluster outside its scope is not booked, and counted as out of scope.
"""

from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from xds.access import Denied, Node, Scope, scope_of
from xds.loads import LoadReports
from xds.proto.envoy.service.load_stats.v3 import lrs_pb2
from xds.streams import Context, XdsServer
from xds.tls import Unauthenticated

SERVICE, METHOD = "envoy.service.load_stats.v3.LoadReportingService", "StreamLoadStats"
INTERVAL_SECONDS = 1

log = structlog.get_logger()


def handler(server: XdsServer, reports: LoadReports) -> grpc.GenericRpcHandler:
    """The service, beside `server` on its port, with its security and its scopes."""

    async def stream(_: object, context: Context) -> None:
        try:
            identity = await server.security.identify(context)
        except Unauthenticated as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            return
        node: Node | None = None
        scope = Scope(frozenset())
        while True:
            raw: Any = await context.read()
            if raw is grpc.aio.EOF:
                return
            try:
                request = lrs_pb2.LoadStatsRequest.FromString(raw)
                if node is None:
                    node = Node.of(request.node)
                    scope = scope_of(identity, node, server.grants)
                    await context.write(_ask().SerializeToString())
            except (Denied, DecodeError) as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
                return
            _book(server, reports, node, scope, request)

    method: Any = grpc.stream_stream_rpc_method_handler(stream)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})


def _ask() -> lrs_pb2.LoadStatsResponse:
    answer = lrs_pb2.LoadStatsResponse(send_all_clusters=True, report_endpoint_granularity=True)
    answer.load_reporting_interval.seconds = INTERVAL_SECONDS
    return answer


def _book(
    server: XdsServer,
    reports: LoadReports,
    node: Node,
    scope: Scope,
    request: lrs_pb2.LoadStatsRequest,
) -> None:
    now, owners = server.clock(), server.snapshots.value.owners
    for stats in request.cluster_stats:
        pool = owners.get(stats.cluster_service_name or stats.cluster_name)
        if pool is None:
            continue  # a cluster that is none of ours
        if scope.admits(pool):
            reports.add(node.id, pool, stats, now)
        else:
            server.traffic.out_of_scope += 1
    reports.expire(now)
