"""The xDS streams of one server: who is served, with what, when, and at whose cost.

A stream is two halves over one `Session`. The reader applies requests; the writer sends what is
due when a request made it so, or when a snapshot came that concerns the client. Nothing is queued:
a client that does not read costs one outstanding response a type, and gets the newest state when it
reads again; one that takes or answers nothing for `send_timeout_seconds` is cut off. Changes are
handed out a bounded number at a time, and first answers to new streams at a bounded rate, so that
neither a push to thousands nor their coming back at once keeps the others waiting.

A stream ends when the client is gone or the server stops; grpc.aio shows both as the end of what
can be read, or as `CancelledError`, which passes through. We end one ourselves when it is too old
(so that clients spread over replicas again), when it does not read, and when its client is over a
limit or not who it says; others on the same connection do not notice.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from xds.access import Denied, Grant, Identity, Node, scope_of
from xds.court import Court, Verdict
from xds.discovery import (
    DeltaRequest,
    Outcome,
    Response,
    SotwRequest,
    delta_request,
    sotw_request,
)
from xds.latest import Latest
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.roster import Roster
from xds.scoping import Views, scoped
from xds.security import Security
from xds.session import Session
from xds.snapshot import Snapshot, TypeUrl
from xds.tls import Unauthenticated
from xds.traffic import Traffic

PATIENCE_SECONDS = 0.1  # with streams that are slow to take a push, before others have their turn
AGE_JITTER = 0.1
TRIAL_SECONDS = 2.0  # for the first client to say what it thinks of a new policy

Context: TypeAlias = grpc.aio.ServicerContext[Any, bytes]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Form:
    """One of the two forms of the protocol."""

    parse: Callable[[bytes], Any]  # raises DecodeError
    request: Callable[[Any], Any]  # the message as a value
    apply: Callable[[Session, str, Any], Outcome]
    encode: Callable[[Response], bytes]


SOTW = Form(
    discovery_pb2.DiscoveryRequest.FromString, sotw_request, Session.sotw, Response.sotw_bytes
)
DELTA = Form(
    discovery_pb2.DeltaDiscoveryRequest.FromString,
    delta_request,
    Session.delta,
    Response.delta_bytes,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost the others."""

    streams_per_client: int = 10_000  # of one identity, or of one host on a plaintext port
    names_per_subscription: int = 10_000
    message_bytes: int = 4 << 20
    first_answers_per_second: float = 2_000.0
    pushes_in_preparation: int = 4_096
    send_timeout_seconds: float = 30.0
    stream_age_seconds: float = 1800.0


@dataclass(slots=True, eq=False)
class _Stream:
    session: Session
    task: "asyncio.Task[Any] | None"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    writing: bool = False
    writing_since: float | None = None  # the last response
    over: bool = False
    verdict: tuple[grpc.StatusCode, str] | None = None  # why we end it, if we do

    def end(self, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        self.over = True
        if code is not None and self.verdict is None:
            self.verdict = code, reason
        self.ready.set()


def _clock() -> Callable[[], float]:
    return asyncio.get_running_loop().time


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
    court: Court = field(default_factory=Court)
    on_verdict: Callable[[Verdict], None] | None = None
    published_at: float = 0.0
    clock: Callable[[], float] = field(default_factory=_clock)
    _views: Views = field(default_factory=Views)
    _streams: set[_Stream] = field(default_factory=set)
    _streams_of: Counter[str] = field(default_factory=Counter)  # by client
    _in_preparation: set[_Stream] = field(default_factory=set)
    _room: asyncio.Event | None = None  # while somebody waits for it
    _next_turn: float = 0.0
    _canary: tuple[Session, Snapshot] | None = None

    @property
    def clients(self) -> list[Session]:
        return list(self.roster.sessions)

    def view(self, session: Session) -> Snapshot:
        """What this client should have."""
        if self._canary is not None and self._canary[0] is session:
            return self._canary[1]
        return self._views.view(self.snapshots.value, session.scope)

    async def follow(self) -> None:
        """Hand every new snapshot to those whom it concerns."""
        before = Snapshot({})
        async for snapshot in self.snapshots.changes():
            self.published_at = self.clock()
            news, before = snapshot.changed(before), snapshot
            for session in self.roster.concerned(news):
                if len(self._in_preparation) >= self.limits.pushes_in_preparation:
                    await self._until_room()
                if (wake := self.roster.sessions.get(session)) is not None:
                    wake()

    async def try_out(self, snapshot: Snapshot, cluster: str) -> str | None:
        """Show a snapshot to one of the cluster's clients; returns its reason if it refuses.

        None if it accepts, goes away or does not say within `TRIAL_SECONDS`, or if there is no such
        client. It stays the only one that sees the snapshot until `end_trial`, which must come
        after the snapshot, or what it is rolled back to, was published.
        """
        clients = self.roster.wanting(TypeUrl.CLUSTER, cluster)
        tidy = [each for each in self.clients if each in clients and not each.refusals]
        if not tidy:
            return None
        session = tidy[0]
        before = {kind: account.refused for kind, account in session.accounts.items()}
        # A view of its own, made once, so that "is there news?" is still one comparison.
        self._canary = session, scoped(snapshot, session.scope)
        self.roster.sessions[session]()
        until = self.clock() + TRIAL_SECONDS
        while session in self.roster.sessions and self.clock() < until:
            for kind, account in session.accounts.items():
                refusal = session.subscriptions[kind].refusal
                if account.refused > before.get(kind, 0) and refusal is not None:
                    return refusal.reason
            if session.synced(self.view(session)):
                break
            await asyncio.sleep(0.01)
        return None

    def end_trial(self) -> None:
        """The client that tried something out is one of many again."""
        if self._canary is not None:
            session, self._canary = self._canary[0], None
            if (wake := self.roster.sessions.get(session)) is not None:
                wake()

    async def keep_house(self) -> None:
        """Now and then: cut off who is stuck, forget the views that nobody has any more."""
        while True:
            await asyncio.sleep(self.limits.send_timeout_seconds / 10)
            self._cut_off()
            self._views.keep({session.scope for session in self.roster.sessions})

    def _cut_off(self) -> None:
        """End the streams of clients that take nothing, or take it and never answer.

        gRPC's buffers hide the one from us until they are full, so both are one to us.
        """
        late = self.clock() - self.limits.send_timeout_seconds
        for stream in self._streams:
            since = stream.writing_since
            if since is None or since > late or stream.task is None:
                continue
            if stream.writing or stream.session.outstanding:
                stream.end(grpc.StatusCode.DEADLINE_EXCEEDED, "the client does not read")
                stream.task.cancel()

    async def serve(self, context: Context, form: Form, type_url: str | None) -> None:
        """One stream, from its first message to its end."""
        try:
            identity = await self.security.identify(context)
        except Unauthenticated as error:
            await self._turn_away(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
            return
        client = str(identity or context.peer().rpartition(":")[0])
        if self._streams_of[client] >= self.limits.streams_per_client:
            await self._turn_away(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams of one client"
            )
            return
        with self._client(client, context.peer(), identity) as stream:
            reader = asyncio.create_task(self._read(stream, context, form, type_url))
            try:
                await self._write(stream, context, form)
            except asyncio.CancelledError:
                # Ours, if there is a verdict: `_cut_off` has no other way to end a stuck write.
                if stream.verdict is None or stream.task is None or stream.task.uncancel() > 0:
                    raise
            finally:
                reader.cancel()
            if reader.done() and not reader.cancelled():
                reader.result()  # what went wrong there goes wrong here
        if stream.verdict is not None:
            await self._turn_away(context, *stream.verdict)

    async def _read(
        self, stream: _Stream, context: Context, form: Form, type_url: str | None
    ) -> None:
        session, first = stream.session, True
        try:
            while (raw := await context.read()) is not grpc.aio.EOF:
                if type_url is not None and session.acknowledge(type_url, raw):
                    self._acked(session, type_url)
                else:
                    self._heard(stream, form, type_url, form.parse(raw), first=first)
                    first = False
                if session.stirred(self.view(session)):
                    stream.ready.set()
        except Denied as error:
            stream.end(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except DecodeError as error:
            stream.end(grpc.StatusCode.INVALID_ARGUMENT, f"not a discovery request: {error}")
        finally:
            stream.end()

    async def _write(self, stream: _Stream, context: Context, form: Form) -> None:
        session = stream.session
        await stream.ready.wait()
        await self._turn()
        while not stream.over:
            stream.ready.clear()
            while (response := session.next(self.view(session))) is not None:
                payload = form.encode(response)
                self._book(session, response.type_url, len(payload))
                stream.writing, stream.writing_since = True, self.clock()
                await context.write(payload)
                stream.writing = False
                if session.alone:
                    break  # one type has one response outstanding, which is this one
            self._prepared(stream)
            await stream.ready.wait()

    def _acked(self, session: Session, kind: str) -> None:
        account, traffic = session.accounts[kind], self.traffic.of(kind)
        account.acked_at = self.clock()
        traffic.acks += 1
        if account.published_at is not None:
            traffic.convergence.observe(account.acked_at - account.published_at)

    def _heard(
        self, stream: _Stream, form: Form, type_url: str | None, message: Any, *, first: bool
    ) -> None:
        """Apply a request, and book what it came to. Raises `Denied`."""
        session = stream.session
        if first or message.HasField("node"):
            session.node = Node.of(message.node)
            session.scope = scope_of(session.identity, session.node, self.grants)
        kind = type_url or message.type_url
        request = form.request(message)
        known = session.subscriptions.get(kind)
        interest = None if known is None else known.interest
        outcome = form.apply(session, kind, request)
        self.roster.note(session, kind)
        if outcome is Outcome.ACKED:
            self._acked(session, kind)
        elif outcome is Outcome.REFUSED:
            self.traffic.of(kind).nacks += 1
            log.warning(
                "refused",
                node=session.node.id,
                peer=session.peer,
                type=kind,
                blamed=sorted(session.subscriptions[kind].blamed),
                reason=_shortened(request.error or ""),
            )
            self._judge(session, kind, request.error or "")
        if session.subscriptions[kind].interest != interest:
            self._check(stream, kind, request)

    def _judge(self, session: Session, kind: str, reason: str) -> None:
        if self._canary is not None and self._canary[0] is session:
            return  # it speaks for itself: nobody else has been asked
        blamed = session.subscriptions[kind].blamed
        for verdict in self.court.hear(self.roster, session, kind, blamed, reason):
            log.error(
                "refused by most of its clients",
                type=kind,
                resource=verdict.name,
                refusing=verdict.refusing,
                clients=verdict.clients,
            )
            if self.on_verdict is not None:
                self.on_verdict(verdict)

    def _check(self, stream: _Stream, kind: str, request: SotwRequest | DeltaRequest) -> None:
        session, owners = stream.session, self.snapshots.value.owners
        foreign = [
            name
            for name in request.asked
            if name in owners and not session.scope.admits(owners[name])
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

    def _book(self, session: Session, kind: str, size: int) -> None:
        account, traffic = session.accounts[kind], self.traffic.of(kind)
        account.sent += 1
        account.bytes += size
        account.published_at = self.published_at
        traffic.pushes += 1
        traffic.bytes += size

    @contextmanager
    def _client(self, client: str, peer: str, identity: Identity | None) -> Iterator[_Stream]:
        stream = _Stream(Session(peer, identity=identity), asyncio.current_task())

        def wake() -> None:
            self._in_preparation.add(stream)
            stream.ready.set()

        age = self.limits.stream_age_seconds * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)
        ageing = asyncio.get_running_loop().call_later(age, stream.end)
        self._streams.add(stream)
        self._streams_of[client] += 1
        self.roster.add(stream.session, wake)
        try:
            yield stream
        finally:
            ageing.cancel()
            self._prepared(stream)
            self.roster.remove(stream.session)
            self.court.forget(stream.session)
            self._streams.discard(stream)
            self._streams_of[client] -= 1
            if not self._streams_of[client]:
                del self._streams_of[client]

    def _prepared(self, stream: _Stream) -> None:
        self._in_preparation.discard(stream)
        # Half the room at once: to wake the hand-out for each place costs more than the push.
        if self._room and len(self._in_preparation) * 2 <= self.limits.pushes_in_preparation:
            self._room.set()

    async def _until_room(self) -> None:
        self._room = asyncio.Event()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._room.wait()
        except TimeoutError:
            self._in_preparation.clear()  # they are slow: they stop counting, not being served
        finally:
            self._room = None

    async def _turn(self) -> None:
        """Wait for one's turn among new streams."""
        now = self.clock()
        self._next_turn = max(now, self._next_turn + 1 / self.limits.first_answers_per_second)
        if self._next_turn > now:
            await asyncio.sleep(self._next_turn - now)

    async def _turn_away(self, context: Context, code: grpc.StatusCode, reason: str) -> None:
        self.traffic.turned_away[code.name] += 1
        log.warning("turned away", peer=context.peer(), status=code.name, reason=reason)
        await context.abort(code, reason)


def _shortened(reason: str) -> str:
    """For a log line: Envoy quotes the whole resource, with what is wrong at the end."""
    words = " ".join(reason.split())
    return words if len(words) <= 400 else f"{words[:100]} […] {words[-300:]}"
