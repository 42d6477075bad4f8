"""HBONE's client side as state: HTTP/2 bytes in, what became of the tunnels out.

    open(authority) ─► CONNECT ─┬─► 200: `Opened`, then `Data` both ways, then `Closed`
                                ├─► another status: `Declined`, with what the answer says
                                └─► reset: `Closed`
    the connection: `Ready` with the far end's settings, `Lost` when it goes away

HBONE is HTTP/2 over mutual TLS: every TCP connection is a CONNECT stream whose authority is the
address behind the tunnel. There is no scheme and no path (RFC 9113, 8.5). Frames, flow control
and the states of streams are h2's; here are only the tunnels, and what waits for a window.

After a GOAWAY h2 takes nothing more, so all tunnels are lost with it. A page that was on its way
is asked for again through a new connection, which a far end that drains is waiting for.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.events import Event as H2Event
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

WINDOW = 1 << 20  # of a tunnel: several pages
CONNECTION_WINDOW = 1 << 22
ANSWER_BYTES = 300  # of a refusal's body, for people

StreamId: TypeAlias = int


class TunnelError(Exception):
    """No tunnel can be opened on this connection any more, or now."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The far end speaks HTTP/2."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The far end has connected to where the tunnel leads."""

    stream: StreamId


@dataclass(frozen=True, slots=True)
class Declined:
    """The far end has not; `text` is what its answer says."""

    stream: StreamId
    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes from behind the tunnel."""

    stream: StreamId
    data: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The tunnel is over; without a problem it was closed from behind."""

    stream: StreamId
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection takes no more, and its tunnels are gone."""

    problem: str


Event: TypeAlias = Ready | Opened | Declined | Data | Closed | Lost


@dataclass(slots=True)
class _Tunnel:
    unsent: bytearray = field(default_factory=bytearray)
    status: int | None = None  # of the answer to CONNECT
    answer: bytearray = field(default_factory=bytearray)  # the body of a refusal

    @property
    def opened(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Tunnels:
    """The tunnels of one connection."""

    def __init__(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self._tunnels: dict[StreamId, _Tunnel] = {}
        self._ready = self._lost = False

    def __len__(self) -> int:
        return len(self._tunnels)

    def open(self, authority: str) -> StreamId:
        """Ask for a tunnel. Raises `TunnelError`."""
        if self._lost:
            raise TunnelError("the connection is closed")
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority)])
        except H2Error as error:
            raise TunnelError(str(error) or type(error).__name__) from error
        self._tunnels[stream] = _Tunnel()
        return stream

    def send(self, stream: StreamId, data: bytes) -> None:
        """Into the tunnel, as soon as its windows let it. A tunnel that is gone swallows it."""
        if tunnel := self._tunnels.get(stream):
            tunnel.unsent += data
            self._flush(stream, tunnel)

    def close(self, stream: StreamId) -> None:
        """Give the tunnel up, whatever is still in it."""
        if self._tunnels.pop(stream, None) is not None and not self._lost:
            self._h2.reset_stream(stream, ErrorCodes.CANCEL)

    def ping(self) -> None:
        """Ask the far end for a sign of life."""
        if not self._lost:
            self._h2.ping(b"weir hbo")

    def leave(self) -> None:
        """Say goodbye: there will be no more tunnels, and there are none."""
        if not self._lost:
            self._lost = True
            self._tunnels.clear()
            self._h2.close_connection()

    def receive(self, data: bytes) -> list[Event]:
        """What the far end's bytes come to."""
        if self._lost:
            return []
        try:
            return [event for each in self._h2.receive_data(data) for event in self._on(each)]
        except ProtocolError as error:
            return list(self._lose(f"broken HTTP/2: {error}"))

    def output(self) -> bytes:
        """What the far end is to be sent now."""
        return self._h2.data_to_send()

    def _on(self, event: H2Event) -> Iterator[Event]:
        match event:
            case DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                yield from self._on_data(stream, data, length)
            case ResponseReceived(stream_id=stream, headers=headers):
                yield from self._on_answer(stream, headers)
            case StreamEnded(stream_id=stream):
                yield from self._on_end(stream, "")
                with contextlib.suppress(H2Error):  # both sides have ended
                    self._h2.end_stream(stream)
            case StreamReset(stream_id=stream, error_code=code):
                yield from self._on_end(stream, f"reset by the far end: {_name(code)}")
            case RemoteSettingsChanged():
                self._flush_all()
                if not self._ready:
                    self._ready = True
                    yield Ready()
            case WindowUpdated():
                self._flush_all()
            case ConnectionTerminated(error_code=code):
                yield from self._lose(f"the far end says goodbye: {_name(code)}")
            case _:
                pass  # of no consequence to a tunnel

    def _on_data(self, stream: StreamId, data: bytes, length: int) -> Iterator[Event]:
        with contextlib.suppress(H2Error):  # the end may have come with the same bytes
            self._h2.acknowledge_received_data(length, stream)
        tunnel = self._tunnels.get(stream)
        if tunnel is None:
            return
        if tunnel.opened:
            yield Data(stream, data)
        else:
            tunnel.answer += data[: ANSWER_BYTES - len(tunnel.answer)]

    def _on_answer(
        self, stream: StreamId, headers: Sequence[tuple[bytes | str, bytes | str]]
    ) -> Iterator[Event]:
        if tunnel := self._tunnels.get(stream):
            status = dict(headers).get(b":status", b"")
            tunnel.status = int(status) if status.isdigit() else 0
            if tunnel.opened:
                yield Opened(stream)

    def _on_end(self, stream: StreamId, problem: str) -> Iterator[Event]:
        tunnel = self._tunnels.pop(stream, None)
        if tunnel is None:
            return
        if tunnel.status is None or tunnel.opened:
            yield Closed(stream, problem)
        else:
            yield Declined(stream, tunnel.status, tunnel.answer.decode("utf-8", "replace"))

    def _lose(self, problem: str) -> Iterator[Event]:
        self._lost = True
        self._tunnels.clear()
        yield Lost(problem)

    def _flush_all(self) -> None:
        for stream, tunnel in self._tunnels.items():
            if tunnel.unsent:
                self._flush(stream, tunnel)

    def _flush(self, stream: StreamId, tunnel: _Tunnel) -> None:
        with contextlib.suppress(H2Error):  # as above
            while tunnel.unsent:
                window = self._h2.local_flow_control_window(stream)
                size = min(window, self._h2.max_outbound_frame_size, len(tunnel.unsent))
                if size <= 0:
                    break
                self._h2.send_data(stream, bytes(tunnel.unsent[:size]))
                del tunnel.unsent[:size]


def _name(code: ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"code {code}"
