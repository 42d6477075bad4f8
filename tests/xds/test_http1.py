import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.http1 import Http1, Interrupted, NoPage

LIMIT = 10_000


class Transport(asyncio.Transport):
    """Keeps what is written; closes at once."""

    def __init__(self, protocol):
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.closing = False
        protocol.connection_made(self)

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.closing

    def abort(self):
        if not self.closing:
            self.closing = True
            self.protocol.connection_lost(None)


def connection():
    http = Http1("10.0.0.7:8000", "/metrics", LIMIT)
    return http, Transport(http)


async def ask(http, *chunks, eof=False):
    page = asyncio.ensure_future(http.get())
    await asyncio.sleep(0)
    for chunk in chunks:
        http.data_received(chunk)
    if eof:
        http.eof_received()
        http.connection_lost(None)
    return await page


def whole(body, *headers):
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body, size):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    lines = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + lines + b"0\r\n\r\n"


async def test_it_asks_in_plain_words_and_for_nothing_compressed():
    http, transport = connection()
    assert await ask(http, whole(b"page")) == b"page"
    line, *fields = transport.written.decode().rstrip("\r\n").split("\r\n")
    assert line == "GET /metrics HTTP/1.1"
    assert {"Host: 10.0.0.7:8000", "Accept-Encoding: identity"} <= set(fields)


async def test_one_connection_serves_page_after_page():
    http, transport = connection()
    for body in (b"one", b"", b"three"):
        assert await ask(http, whole(body)) == body
        assert await ask(http, chunked(body, 2)) == body
    assert http.open
    assert transport.written.count(b"GET") == 6


@given(st.data(), st.binary(max_size=300), st.integers(1, 50))
def test_a_page_is_the_same_however_it_is_cut(data, body, size):
    answer = data.draw(st.sampled_from([whole(body), chunked(body, size)]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]

    async def run():
        http, _ = connection()
        assert await ask(http, *(piece for piece in pieces if piece)) == body
        assert http.open

    asyncio.run(run())


async def test_what_only_announces_an_answer_is_none():
    http, _ = connection()
    assert await ask(http, b"HTTP/1.1 103 Early Hints\r\n\r\n" + whole(b"page")) == b"page"


async def test_a_page_without_a_length_ends_with_the_connection():
    http, _ = connection()
    assert await ask(http, b"HTTP/1.1 200 OK\r\n\r\npa", b"ge", eof=True) == b"page"
    assert not http.open


async def test_a_server_that_closes_after_its_answer_is_believed():
    http, _ = connection()
    assert await ask(http, whole(b"page", b"connection: close")) == b"page"
    assert not http.open
    with pytest.raises(Interrupted):
        await http.get()


@pytest.mark.parametrize(
    "chunks",
    [
        (),
        (b"HTTP/1.1 200",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npage",),
        (chunked(b"page", 2)[:-5],),
    ],
)
async def test_half_a_page_is_none(chunks):
    http, _ = connection()
    with pytest.raises(Interrupted):
        await ask(http, *chunks, eof=True)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"garbage\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone", "status 404"),
        (whole(b"page", b"content-encoding: gzip"), "compressed: gzip"),
        (whole(bytes(LIMIT)), f"more than {LIMIT} bytes"),
        (b"HTTP/1.1 200 OK\r\nx: " + bytes(LIMIT).replace(b"\0", b"y"), f"more than {LIMIT}"),
        (b"HTTP/1.1 101 Up\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "no HTTP"),
    ],
)
async def test_an_answer_that_is_no_page_says_why_and_ends_the_connection(answer, problem):
    http, _ = connection()
    with pytest.raises(NoPage, match=problem) as caught:
        await ask(http, answer)
    assert not isinstance(caught.value, Interrupted)
    assert not http.open


async def test_bytes_that_nobody_asked_for_are_not_the_next_answer():
    http, _ = connection()
    await ask(http, whole(b"page"))
    http.data_received(whole(b"other"))
    assert not http.open
    http, _ = connection()
    assert await ask(http, whole(b"page") + whole(b"other")) == b"page"
    with pytest.raises(NoPage):
        await ask(http)


async def test_who_gives_up_waiting_closes_the_connection():
    http, _ = connection()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await http.get()
    assert not http.open


@given(st.binary(max_size=100))
def test_no_bytes_do_harm(noise):
    async def run():
        http, _ = connection()
        with contextlib.suppress(NoPage):
            await ask(http, noise, eof=True)
        assert not http.open

    asyncio.run(run())
