"""TLS between a transport and a protocol, with small buffers.

The loops' own TLS keeps 256 KiB of buffers for every connection, and asyncio and uvloop differ in
what they tell of a failure. Here bytes pass through OpenSSL in slices, and whatever ends the
connection is what `connection_lost` gets: the far end's alert too, and ours reaches the far end.
"""

import asyncio
import ssl
from typing import cast

SLICE = 16_384  # a TLS record


class Tls(asyncio.Protocol):
    """The client side. To its protocol it is the transport."""

    def __init__(self, context: ssl.SSLContext, protocol: "Secured") -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._shaken = False
        self._error: Exception | None = None
        self.tls = context.wrap_bio(self._incoming, self._outgoing)

    def write(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._read()

    def data_received(self, data: bytes) -> None:
        parts: list[bytes] = []
        for at in range(0, len(data), SLICE):
            self._incoming.write(data[at : at + SLICE])
            parts += self._read()
        if parts:
            self._protocol.data_received(b"".join(parts))

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(self._error or error)

    def _read(self) -> list[bytes]:
        """What OpenSSL has deciphered by now."""
        parts: list[bytes] = []
        try:
            if not self._shaken:
                self.tls.do_handshake()
                self._shaken = True
                # What it writes goes out with the end of the handshake. On its own it could meet
                # a far end that has hung up, and nobody would read the alert that says why.
                self._protocol.secured(self)
            while part := self.tls.read(SLICE):
                parts.append(part)
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._error = self._error or error
            self._flush()
            self.abort()
        return parts

    def _flush(self) -> None:
        if self._transport is not None and (data := self._outgoing.read()):
            self._transport.write(data)


class Secured(asyncio.Protocol):
    """A protocol on `Tls`."""

    def secured(self, tls: Tls) -> None:
        """The handshake is done, as far as this side can tell."""
        raise NotImplementedError
