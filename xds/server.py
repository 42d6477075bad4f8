"""The xDS server: ADS and the per-type services, state-of-the-world and delta, on one port.

A stream is two halves over one `Session`. The reader applies requests; the writer sends what is
due whenever a request came or the snapshot changed. Nothing is queued: a client that does not read
costs one outstanding response a type, and gets the newest state when it reads again.

A stream ends when the client is gone or the server stops; grpc.aio shows both as the end of the
request iterator, or as `CancelledError`, which passes through.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from xds.discovery import Outcome, Response, delta_request, sotw_request
from xds.latest import Latest
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.session import Session
from xds.snapshot import Snapshot, TypeUrl

OPTIONS = [
    ("grpc.so_reuseport", 0),  # two servers on one port is a mistake, and must look like one
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
]
DRAIN_SECONDS = 1.0
SERVICES = {
    "envoy.service.discovery.v3.AggregatedDiscoveryService": ("AggregatedResources", None),
    "envoy.service.cluster.v3.ClusterDiscoveryService": ("Clusters", TypeUrl.CLUSTER),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": ("Endpoints", TypeUrl.ENDPOINT),
    "envoy.service.listener.v3.ListenerDiscoveryService": ("Listeners", TypeUrl.LISTENER),
    "envoy.service.route.v3.RouteDiscoveryService": ("Routes", TypeUrl.ROUTE),
}

Requests: TypeAlias = AsyncIterator[Any]
Context: TypeAlias = grpc.aio.ServicerContext[Any, bytes]
log = structlog.get_logger()


@dataclass(slots=True)
class XdsServer:
    """What a running server knows: its port, its clients, and what NACKs it has seen."""

    snapshots: Latest[Snapshot]
    port: int = 0
    clients: list[Session] = field(default_factory=list)
    nacks: int = 0  # since the start, of clients that are gone too
    _wakers: set[asyncio.Event] = field(default_factory=set)

    async def follow(self) -> None:
        """Wake every stream when the snapshot changes."""
        async for _ in self.snapshots.changes():
            for waker in self._wakers:
                waker.set()

    async def sotw(self, requests: Requests, context: Context, type_url: str | None) -> None:
        """One state-of-the-world stream."""

        def apply(session: Session, message: discovery_pb2.DiscoveryRequest) -> None:
            request = sotw_request(message)
            kind = type_url or message.type_url
            self._note(session, kind, session.sotw(kind, request), request.error)

        await self._stream(requests, context, apply, Response.sotw_bytes)

    async def delta(self, requests: Requests, context: Context, type_url: str | None) -> None:
        """One delta stream."""

        def apply(session: Session, message: discovery_pb2.DeltaDiscoveryRequest) -> None:
            request = delta_request(message)
            kind = type_url or message.type_url
            self._note(session, kind, session.delta(kind, request), request.error)

        await self._stream(requests, context, apply, Response.delta_bytes)

    async def _stream(
        self,
        requests: Requests,
        context: Context,
        apply: Callable[[Session, Any], None],
        encode: Callable[[Response], bytes],
    ) -> None:
        waker = asyncio.Event()
        ended = False

        async def read() -> None:
            nonlocal ended
            try:
                async for message in requests:
                    if message.HasField("node") and message.node.id:
                        session.node = message.node.id
                    apply(session, message)
                    waker.set()
            finally:
                ended = True
                waker.set()

        with self._client(context.peer(), waker) as session:
            reader = asyncio.create_task(read())
            try:
                while not ended:
                    await waker.wait()
                    waker.clear()
                    for response in session.responses(self.snapshots.value):
                        await context.write(encode(response))
            finally:
                reader.cancel()

    @contextmanager
    def _client(self, peer: str, waker: asyncio.Event) -> Iterator[Session]:
        session = Session(peer)
        self.clients.append(session)
        self._wakers.add(waker)
        try:
            yield session
        finally:
            self._wakers.discard(waker)
            self.clients.remove(session)

    def _note(self, session: Session, kind: str, outcome: Outcome, error: str | None) -> None:
        if outcome is Outcome.REFUSED:
            self.nacks += 1
            log.warning("refused", node=session.node, peer=session.peer, type=kind, reason=error)


@asynccontextmanager
async def serving(snapshots: Latest[Snapshot], address: str) -> AsyncIterator[XdsServer]:
    """Serve `snapshots` on "host:port" until the block ends; port 0 takes a free one.

    Raises `OSError` where the address cannot be bound.
    """
    state = XdsServer(snapshots)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(tuple(_handlers(state)))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        state.port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    await server.start()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    following = asyncio.create_task(state.follow())
    try:
        yield state
    finally:
        await checks.enter_graceful_shutdown()
        following.cancel()
        await server.stop(DRAIN_SECONDS)


def _handlers(state: XdsServer) -> Iterator[grpc.GenericRpcHandler]:
    for service, (noun, type_url) in SERVICES.items():
        yield grpc.method_handlers_generic_handler(
            service,
            {
                f"Stream{noun}": grpc.stream_stream_rpc_method_handler(
                    _bound(state.sotw, type_url),
                    request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                ),
                f"Delta{noun}": grpc.stream_stream_rpc_method_handler(
                    _bound(state.delta, type_url),
                    request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                ),
            },
        )


def _bound(behaviour: Callable[..., Any], type_url: str | None) -> Callable[..., Any]:
    async def handle(requests: Requests, context: Context) -> None:
        await behaviour(requests, context, type_url)

    return handle
