"""The xDS port: ADS, the per-type services in both forms, load reports, client status, health.

What happens on a stream is in `xds.streams`. There is no reflection: nobody needs to ask an xDS
server what it can do.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from xds import csds, lrs
from xds.access import Grant
from xds.latest import Latest
from xds.loads import LoadReports
from xds.security import Security
from xds.snapshot import Snapshot, TypeUrl
from xds.streams import DELTA, SOTW, Context, Form, Limits, XdsServer

DRAIN_SECONDS = 1.0
SERVICES = {
    "envoy.service.discovery.v3.AggregatedDiscoveryService": ("AggregatedResources", None),
    "envoy.service.cluster.v3.ClusterDiscoveryService": ("Clusters", TypeUrl.CLUSTER.value),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": ("Endpoints", TypeUrl.ENDPOINT.value),
    "envoy.service.listener.v3.ListenerDiscoveryService": ("Listeners", TypeUrl.LISTENER.value),
    "envoy.service.route.v3.RouteDiscoveryService": ("Routes", TypeUrl.ROUTE.value),
}


def options(limits: Limits) -> list[tuple[str, int]]:
    """gRPC's own settings for the port."""
    return [
        ("grpc.so_reuseport", 0),  # two servers on one port is a mistake, and must look like one
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Connections age a little before our streams do, so that the next stream of a client is on
        # a new connection, perhaps to another replica.
        ("grpc.max_connection_age_ms", round(limits.stream_age_seconds * 800)),
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ]


@asynccontextmanager
async def serving(  # noqa: PLR0913 - each but two has a default
    snapshots: Latest[Snapshot],
    address: str,
    *,
    security: Security | None = None,
    limits: Limits | None = None,
    grants: Sequence[Grant] = (),
    reports: LoadReports | None = None,
) -> AsyncIterator[XdsServer]:
    """Serve `snapshots` on "host:port" until the block ends; port 0 takes a free one.

    Raises `OSError` where the address cannot be bound, `SecurityError` for wrong certificates.
    """
    state = XdsServer(snapshots, security or Security(), limits or Limits(), grants)
    server = grpc.aio.server(options=options(state.limits))
    reports = LoadReports() if reports is None else reports
    server.add_generic_rpc_handlers(
        (*_handlers(state), lrs.handler(state, reports), csds.handler(state))
    )
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        if state.security.plaintext:
            state.security.check()
            state.port = server.add_insecure_port(address)
        else:
            state.port = server.add_secure_port(address, state.security.credentials())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    await server.start()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    working = [asyncio.create_task(work) for work in (state.follow(), state.keep_house())]
    try:
        yield state
    finally:
        await checks.enter_graceful_shutdown()
        for task in working:
            task.cancel()
        await server.stop(DRAIN_SECONDS)


def _handlers(state: XdsServer) -> Iterator[grpc.GenericRpcHandler]:
    for service, (noun, type_url) in SERVICES.items():
        methods: dict[str, Any] = {
            f"Stream{noun}": grpc.stream_stream_rpc_method_handler(_bound(state, SOTW, type_url)),
            f"Delta{noun}": grpc.stream_stream_rpc_method_handler(_bound(state, DELTA, type_url)),
        }
        yield grpc.method_handlers_generic_handler(service, methods)


def _bound(state: XdsServer, form: Form, type_url: str | None) -> Callable[..., Any]:
    async def handle(_: object, context: Context) -> None:
        await state.serve(context, form, type_url)

    return handle
