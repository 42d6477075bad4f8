"""One keep-alive HTTP/1.1 connection, on which one page is asked for at a time.

The client side of nothing but `GET`, over whatever carries bytes: a socket, or a tunnel. The
parser is llhttp (httptools); here is only what becomes of its findings:

    200 and a whole body        the page
    another status, no HTTP,
    too long, compressed        `NoPage`: who listens there is not what we are looking for
    the end before the end      `Interrupted`: on a kept connection worth a second try

A connection that was given up while an answer is due is closed: the next answer would be the last
one's. Compressed pages are not asked for: a server would spend milliseconds on what we would have
to spend a tenth of one to undo.
"""

import asyncio
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser


class NoPage(Exception):
    """There is no page; the message says why, for people."""


class NobodyListens(NoPage):
    """There is nobody at that port who could have a page: dead."""


class Interrupted(NoPage):
    """The connection ended before the page was whole."""


class Http1(asyncio.Protocol):
    """The client side of one connection to `host`, which asks for `path`."""

    def __init__(self, host: str, path: str, limit: int) -> None:
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weir\r\n"
            "Accept: */*\r\nAccept-Encoding: identity\r\n\r\n"
        ).encode()
        self._limit = limit
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[bytes] | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._delimited = False  # the answer says where it ends
        self._in_body = False

    @property
    def open(self) -> bool:
        """Whether another page can be asked for."""
        return self._transport is not None and not self._transport.is_closing()

    async def get(self) -> bytes:
        """Ask and wait. Raises `NoPage`; closes the connection if it is cancelled meanwhile."""
        if self._transport is None or self._transport.is_closing():
            raise Interrupted("the connection is closed")
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self._size = 0
        self._transport.write(self._request)
        try:
            return await waiting
        finally:
            if self._waiting is not None:
                self.close()

    def close(self) -> None:
        self._waiting = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            self.close()  # nobody asked: whatever it is, it is not the answer to what comes next
            return
        self._size += len(data)
        if self._size > self._limit:
            self._fail(NoPage(f"more than {self._limit} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(NoPage(f"no HTTP: {error}"))

    def eof_received(self) -> None:
        if self._in_body and not self._delimited:
            self._succeed()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(Interrupted(f"the connection ended: {error or 'closed by the server'}"))
        self._transport = None

    def on_message_begin(self) -> None:
        if self._waiting is None:
            self.close()  # as above, in the same bytes as the answer before it
        self._delimited = self._in_body = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length" | b"transfer-encoding":
                self._delimited = True
            case b"content-encoding" if value.strip().lower() != b"identity":
                self._fail(NoPage(f"compressed: {value.decode('latin-1')}, which nobody asked for"))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # what is below only announces the answer
            self._in_body = True
            if status != 200:
                self._fail(NoPage(f"status {status}"))

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._in_body:
            self._succeed(keep=self._parser.should_keep_alive())

    def _succeed(self, *, keep: bool = False) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(b"".join(self._parts))
        self._parts.clear()
        if not keep:
            self.close()

    def _fail(self, problem: NoPage) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(problem)
        self._parts.clear()
        self.close()
