"""The xDS server: ADS and the per-type services, state-of-the-world and delta, on one port.

A stream is two halves over one `Session`. The reader applies requests; the writer sends what is
due when a request made it so, or when a snapshot came that concerns the client. Nothing is queued:
a client that does not read costs one outstanding response a type, and gets the newest state when it
reads again; one that takes nothing for `send_timeout_seconds` is cut off. Changes are handed out a
bounded number at a time, and first answers to new streams at a bounded rate, so that neither a push
to thousands nor their coming back at once keeps the others waiting.

A stream ends when the client is gone or the server stops; grpc.aio shows both as the end of the
request iterator, or as `CancelledError`, which passes through. We end one ourselves when it is too
old (so that clients spread over replicas again), when it does not read, and when its client is over
a limit or not who it says; others on the same connection do not notice.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from xds.access import Denied, Grant, Identity, Node, scope_of
from xds.discovery import Outcome, Response, delta_request, sotw_request
from xds.latest import Latest
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.roster import Roster
from xds.scoping import Views
from xds.security import Security, Unauthenticated
from xds.session import Session
from xds.snapshot import Snapshot, TypeUrl
from xds.traffic import Traffic

DRAIN_SECONDS = 1.0
PATIENCE_SECONDS = 0.1  # with streams that are slow to take a push, before others have their turn
AGE_JITTER = 0.1
SERVICES = {
    "envoy.service.discovery.v3.AggregatedDiscoveryService": ("AggregatedResources", None),
    "envoy.service.cluster.v3.ClusterDiscoveryService": ("Clusters", TypeUrl.CLUSTER),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": ("Endpoints", TypeUrl.ENDPOINT),
    "envoy.service.listener.v3.ListenerDiscoveryService": ("Listeners", TypeUrl.LISTENER),
    "envoy.service.route.v3.RouteDiscoveryService": ("Routes", TypeUrl.ROUTE),
}

Requests: TypeAlias = AsyncIterator[Any]
Context: TypeAlias = grpc.aio.ServicerContext[Any, bytes]
Apply: TypeAlias = Callable[[Session, str, Any], tuple[Outcome, str | None, Iterable[str]]]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost the others."""

    streams_per_client: int = 10_000  # of one identity, or of one host on a plaintext port
    names_per_subscription: int = 10_000
    message_bytes: int = 4 << 20
    first_answers_per_second: float = 2_000.0
    pushes_in_preparation: int = 256
    send_timeout_seconds: float = 20.0
    stream_age_seconds: float = 1800.0


@dataclass(slots=True, eq=False)
class _Stream:
    session: Session
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    verdict: tuple[grpc.StatusCode, str] | None = None  # why we end it, if we do

    def end(self, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        self.over = True
        if code is not None and self.verdict is None:
            self.verdict = code, reason
        self.ready.set()


@dataclass(slots=True)
class XdsServer:
    """A running server: its port, its clients, and what passed between them."""

    snapshots: Latest[Snapshot]
    security: Security = field(default_factory=Security)
    limits: Limits = field(default_factory=Limits)
    grants: Sequence[Grant] = ()
    port: int = 0
    roster: Roster = field(default_factory=Roster)
    traffic: Traffic = field(default_factory=Traffic)
    published_at: float = 0.0
    _views: Views = field(default_factory=Views)
    _streams: Counter[str] = field(default_factory=Counter)  # by client
    _in_preparation: set[_Stream] = field(default_factory=set)
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _next_turn: float = 0.0

    @property
    def clients(self) -> list[Session]:
        return list(self.roster.sessions)

    def view(self, session: Session) -> Snapshot:
        """What this client should have."""
        return self._views.view(self.snapshots.value, session.scope)

    async def follow(self) -> None:
        """Hand every new snapshot to those whom it concerns."""
        before = Snapshot({})
        async for snapshot in self.snapshots.changes():
            self.published_at = asyncio.get_running_loop().time()
            news, before = snapshot.changed(before), snapshot
            for session in self.roster.concerned(news):
                if len(self._in_preparation) >= self.limits.pushes_in_preparation:
                    await self._until_room()
                if (wake := self.roster.sessions.get(session)) is not None:
                    wake()
            self._views.keep({session.scope for session in self.roster.sessions})

    async def sotw(self, requests: Requests, context: Context, type_url: str | None) -> None:
        """One state-of-the-world stream."""

        def apply(
            session: Session, kind: str, message: discovery_pb2.DiscoveryRequest
        ) -> tuple[Outcome, str | None, Iterable[str]]:
            request = sotw_request(message)
            return session.sotw(kind, request), request.error, request.names

        await self._stream(requests, context, type_url, apply, Response.sotw_bytes)

    async def delta(self, requests: Requests, context: Context, type_url: str | None) -> None:
        """One delta stream."""

        def apply(
            session: Session, kind: str, message: discovery_pb2.DeltaDiscoveryRequest
        ) -> tuple[Outcome, str | None, Iterable[str]]:
            request = delta_request(message)
            return session.delta(kind, request), request.error, request.subscribe

        await self._stream(requests, context, type_url, apply, Response.delta_bytes)

    async def _stream(
        self,
        requests: Requests,
        context: Context,
        type_url: str | None,
        apply: Apply,
        encode: Callable[[Response], bytes],
    ) -> None:
        try:
            identity = await self.security.identify(context)
        except Unauthenticated as error:
            await self._turn_away(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
            return
        client = str(identity or context.peer().rpartition(":")[0])
        if self._streams[client] >= self.limits.streams_per_client:
            await self._turn_away(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams of one client"
            )
            return
        with self._client(client, context.peer(), identity) as stream:
            reader = asyncio.create_task(self._read(stream, requests, type_url, apply))
            try:
                await self._write(stream, context, encode)
            finally:
                reader.cancel()
            if reader.done() and not reader.cancelled():
                reader.result()  # what went wrong there goes wrong here
        if stream.verdict is not None:
            await self._turn_away(context, *stream.verdict)

    async def _read(
        self, stream: _Stream, requests: Requests, type_url: str | None, apply: Apply
    ) -> None:
        session, first = stream.session, True
        try:
            async for message in requests:
                if first or message.node.id:
                    session.node = Node.of(message.node)
                    session.scope = scope_of(session.identity, session.node, self.grants)
                    first = False
                kind = type_url or message.type_url
                outcome, error, asked = apply(session, kind, message)
                self._note(stream, kind, outcome, error, asked)
                if session.stirred(self.view(session)):
                    stream.ready.set()
        except Denied as error:
            stream.end(grpc.StatusCode.PERMISSION_DENIED, str(error))
        finally:
            stream.end()

    async def _write(
        self, stream: _Stream, context: Context, encode: Callable[[Response], bytes]
    ) -> None:
        session = stream.session
        await stream.ready.wait()
        await self._turn()
        while not stream.over:
            stream.ready.clear()
            for response in session.responses(self.view(session)):
                payload = encode(response)
                self._sent(session, response.type_url, len(payload))
                try:
                    async with asyncio.timeout(self.limits.send_timeout_seconds):
                        await context.write(payload)
                except TimeoutError:
                    stream.end(grpc.StatusCode.DEADLINE_EXCEEDED, "the client does not read")
                    return
            self._prepared(stream)
            await stream.ready.wait()

    def _note(
        self,
        stream: _Stream,
        kind: str,
        outcome: Outcome,
        error: str | None,
        asked: Iterable[str],
    ) -> None:
        """Book what a request came to."""
        session, traffic = stream.session, self.traffic.of(kind)
        self.roster.note(session, kind)
        if outcome is Outcome.ACKED:
            account = session.accounts[kind]
            account.acked_at = asyncio.get_running_loop().time()
            traffic.acks += 1
            if account.published_at is not None:
                traffic.convergence.observe(account.acked_at - account.published_at)
        elif outcome is Outcome.REFUSED:
            traffic.nacks += 1
            log.warning(
                "refused",
                node=session.node.id,
                peer=session.peer,
                type=kind,
                blamed=sorted(session.subscriptions[kind].blamed),
                reason=error,
            )
        elif outcome is Outcome.ASKED:
            self._check(stream, kind, asked)

    def _check(self, stream: _Stream, kind: str, asked: Iterable[str]) -> None:
        session, owners = stream.session, self.snapshots.value.owners
        foreign = [
            name for name in asked if name in owners and not session.scope.admits(owners[name])
        ]
        if foreign:
            self.traffic.out_of_scope += len(foreign)
            log.warning(
                "asked for what is not its own",
                node=session.node.id,
                identity=str(session.identity),
                type=kind,
                names=foreign[:5],
            )
        if len(session.subscriptions[kind].names) > self.limits.names_per_subscription:
            stream.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many names in one subscription")

    def _sent(self, session: Session, kind: str, size: int) -> None:
        account, traffic = session.accounts[kind], self.traffic.of(kind)
        account.sent += 1
        account.bytes += size
        account.sent_at = asyncio.get_running_loop().time()
        account.published_at = self.published_at
        traffic.pushes += 1
        traffic.bytes += size

    @contextmanager
    def _client(self, client: str, peer: str, identity: Identity | None) -> Iterator[_Stream]:
        stream = _Stream(Session(peer, identity=identity))

        def wake() -> None:
            self._in_preparation.add(stream)
            stream.ready.set()

        age = self.limits.stream_age_seconds * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)
        ageing = asyncio.get_running_loop().call_later(age, stream.end)
        self._streams[client] += 1
        self.roster.add(stream.session, wake)
        try:
            yield stream
        finally:
            ageing.cancel()
            self._prepared(stream)
            self.roster.remove(stream.session)
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]

    def _prepared(self, stream: _Stream) -> None:
        if stream in self._in_preparation:
            self._in_preparation.discard(stream)
            self._room.set()

    async def _until_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._room.wait()
        except TimeoutError:
            self._in_preparation.clear()  # they are slow: they stop counting, not being served

    async def _turn(self) -> None:
        """Wait for one's turn among new streams."""
        now = asyncio.get_running_loop().time()
        self._next_turn = max(now, self._next_turn + 1 / self.limits.first_answers_per_second)
        if self._next_turn > now:
            await asyncio.sleep(self._next_turn - now)

    async def _turn_away(self, context: Context, code: grpc.StatusCode, reason: str) -> None:
        self.traffic.turned_away[code.name] += 1
        log.warning("turned away", peer=context.peer(), status=code.name, reason=reason)
        await context.abort(code, reason)


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
        # Its connections age a little before our streams do, so that the next stream of a client
        # is on a new connection, perhaps to another replica.
        ("grpc.max_connection_age_ms", round(limits.stream_age_seconds * 800)),
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ]


@asynccontextmanager
async def serving(
    snapshots: Latest[Snapshot],
    address: str,
    security: Security | None = None,
    limits: Limits | None = None,
    grants: Sequence[Grant] = (),
) -> AsyncIterator[XdsServer]:
    """Serve `snapshots` on "host:port" until the block ends; port 0 takes a free one.

    Raises `OSError` where the address cannot be bound, `SecurityError` for wrong certificates.
    """
    state = XdsServer(snapshots, security or Security(), limits or Limits(), grants)
    server = grpc.aio.server(options=options(state.limits))
    server.add_generic_rpc_handlers(tuple(_handlers(state)))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        if state.security.plaintext:
            state.port = server.add_insecure_port(address)
        else:
            state.port = server.add_secure_port(address, state.security.credentials())
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
