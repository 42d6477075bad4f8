"""One TLS connection to what ends HBONE for a Pod, and the tunnels in it.

It is usable once the far end has shown who it is and sent its HTTP/2 settings: with TLS 1.3 our own
certificate is refused only after the handshake, as we see it. It ends when either side closes it,
when a ping is not answered, and when no tunnel has been in it for a while; every tunnel, and
whoever waits for one, then hears why.

A tunnel is a transport. The protocol on it cannot tell it from a socket's.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from xds.hbone_tls import MeshCredentials, doubts, tls_problem
from xds.hbone_transport import Secured, Tls
from xds.hbone_tunnel import (
    Closed,
    Data,
    Declined,
    Event,
    Lost,
    Opened,
    Ready,
    StreamId,
    TunnelError,
    Tunnels,
)
from xds.http1 import Interrupted, NobodyListens, NoPage

CONNECT_SECONDS = 2.0  # for each of: TCP, TLS and settings; CONNECT
QUIET_SECONDS = 10.0  # from the last byte to a ping, and from that to the end

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(slots=True)
class _Opening:
    """A tunnel that was asked for."""

    authority: str
    factory: Callable[[], asyncio.Protocol]
    protocol: asyncio.Future[asyncio.Protocol]


class Connection(Secured):
    """One TLS connection and the tunnels in it."""

    def __init__(self, where: str, credentials: MeshCredentials, namespace: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._where = where
        self._credentials = credentials
        self._namespace = namespace
        self._transport: Tls | None = None
        self._tunnels = Tunnels()
        self._opening: dict[StreamId, _Opening] = {}
        self._open: dict[StreamId, _Tunnel] = {}
        self._heard = self._pinged = self._unused = False
        self._tick: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.usable = False  # the far end is who it should be, and speaks HTTP/2
        self.over = False

    async def open(self, factory: Callable[[], P], authority: str) -> P:
        """A tunnel. Raises `NoPage`."""
        try:
            stream = self._tunnels.open(authority)
        except TunnelError as error:
            raise Interrupted(f"no tunnel through {self._where}: {error}") from error
        self._unused = False
        opening = _Opening(authority, factory, self._loop.create_future())
        self._opening[stream] = opening
        self._flush()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return cast(P, await opening.protocol)
        except TimeoutError:
            self._give_up(stream)
            raise NoPage(
                f"{self._where} has not answered CONNECT {authority} for {CONNECT_SECONDS:.0f} s"
            ) from None
        except asyncio.CancelledError:
            self._give_up(stream)
            raise

    def send(self, stream: StreamId, data: bytes) -> None:
        self._tunnels.send(stream, data)
        self._flush()

    def shut(self, stream: StreamId) -> None:
        """Close one tunnel."""
        self._open.pop(stream, None)
        self._tunnels.close(stream)
        self._flush()

    def leave(self, problem: str) -> None:
        """Close the connection."""
        if not self.over:
            self._tunnels.leave()
            self._flush()
            self._end(Interrupted(problem))

    def secured(self, tls: Tls) -> None:
        self._transport = tls
        certificate = tls.tls.getpeercert() or {}
        doubt = doubts(certificate, self._namespace, self._credentials.trust_domain)
        if not doubt and tls.tls.selected_alpn_protocol() != "h2":
            doubt = "speaks no HTTP/2: is it ztunnel?"
        if doubt:
            self._end(NoPage(f"{self._where} {doubt}"))
            return
        self._tick = self._loop.call_later(QUIET_SECONDS, self._on_tick)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        for event in self._tunnels.receive(data):
            self._on(event)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        if self.usable:
            self._end(Interrupted(f"{self._where} hangs up: {error or 'without a word'}"))
        else:
            self._end(NoPage(f"{self._where} {tls_problem(error, self._credentials)}"))

    def _on(self, event: Event) -> None:
        match event:
            case Data(stream, data):
                if tunnel := self._open.get(stream):
                    tunnel.protocol.data_received(data)
            case Ready():
                self.usable = True
                if not self.ready.done():
                    self.ready.set_result(None)
            case Opened(stream):
                self._opened(stream)
            case Declined(stream, status, text):
                if (opening := self._opening.pop(stream, None)) and not opening.protocol.done():
                    problem = self._declined(opening.authority, status, text)
                    opening.protocol.set_exception(problem)
            case Closed(stream, problem):
                self._closed(stream, problem)
            case Lost(problem):
                self._end(Interrupted(f"{self._where}: {problem}"))

    def _opened(self, stream: StreamId) -> None:
        opening = self._opening.pop(stream, None)
        if opening is None or opening.protocol.done():
            self._tunnels.close(stream)
            return
        protocol = opening.factory()
        self._open[stream] = tunnel = _Tunnel(self, stream, protocol)
        protocol.connection_made(tunnel)
        opening.protocol.set_result(protocol)

    def _closed(self, stream: StreamId, problem: str) -> None:
        if tunnel := self._open.pop(stream, None):
            tunnel.lost(Interrupted(problem) if problem else None)
        elif (opening := self._opening.pop(stream, None)) and not opening.protocol.done():
            text = problem or "closed unanswered"
            opening.protocol.set_exception(NoPage(f"{self._where}: CONNECT: {text}"))

    def _declined(self, authority: str, status: int, text: str) -> NoPage:
        said = f"{status} {text.strip()}".strip()
        if status == 503:
            return NobodyListens(f"nobody listens on {authority}, says {self._where}: {said}")
        if status in (401, 403):
            return NoPage(
                f"{self._where} keeps us out of {authority} ({said}): let an AuthorizationPolicy "
                f"allow the principal in {self._credentials.certificate}"
            )
        return NoPage(f"{self._where} opens no tunnel to {authority}: {said}")

    def _give_up(self, stream: StreamId) -> None:
        self._opening.pop(stream, None)
        if tunnel := self._open.get(stream):
            tunnel.abort()
        else:
            self.shut(stream)

    def _on_tick(self) -> None:
        empty = len(self._tunnels) == 0
        if empty and self._unused:
            self.leave("unused")
            return
        if not self._heard and self._pinged:
            self.leave(f"{self._where} has not answered a ping for {QUIET_SECONDS:.0f} s")
            return
        if not self._heard:
            self._tunnels.ping()
            self._flush()
        self._pinged, self._heard, self._unused = not self._heard, False, empty
        self._tick = self._loop.call_later(QUIET_SECONDS, self._on_tick)

    def _flush(self) -> None:
        output = self._tunnels.output()
        if output and self._transport is not None and not self.over:
            self._transport.write(output)

    def _end(self, problem: NoPage) -> None:
        """The only way out: whoever waits hears of it, once."""
        if self.over:
            return
        self._flush()
        self.over, self.usable = True, False
        if self._tick is not None:
            self._tick.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(problem)
            self.ready.exception()  # nobody may be waiting yet, or any more
        for opening in self._opening.values():
            if not opening.protocol.done():
                opening.protocol.set_exception(problem)
        tunnels = list(self._open.values())
        self._opening.clear()
        self._open.clear()
        for tunnel in tunnels:
            tunnel.lost(problem)


class _Tunnel(asyncio.Transport):
    """What a protocol sees of its tunnel."""

    def __init__(
        self, connection: Connection, stream: StreamId, protocol: asyncio.Protocol
    ) -> None:
        super().__init__()
        self.protocol = protocol
        self._connection = connection
        self._stream = stream
        self._closing = False

    def write(self, data: Any) -> None:
        self._connection.send(self._stream, bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._connection.shut(self._stream)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def lost(self, problem: Exception | None) -> None:
        """The far end closed it, or it was lost with its connection."""
        if not self._closing:
            self._closing = True
            if problem is None:
                self.protocol.eof_received()
            self.protocol.connection_lost(problem)
