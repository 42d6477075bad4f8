"""A model server that answers at once, for benchmarks of what stands before it.

No model, no timing: the chunks that the request's headers ask for, at the gap they ask for, and a
short vLLM metrics page. The bytes follow from the number of chunks alone, so that a client can tell
a chunk that came twice from one that came once.

    python -m weir.bench.backend 127.0.1.1:8000 127.0.1.2:8000 …
"""

import asyncio
import sys

CHUNKS, GAP = "x-bench-chunks", "x-bench-gap-ms"
PAGE = b"""vllm:num_requests_running{engine="0",model_name="base"} 0.0
vllm:num_requests_waiting{engine="0",model_name="base"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.1
vllm:cache_config_info{block_size="16",num_gpu_blocks="4096"} 1.0
"""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n"


def chunk(number: int) -> bytes:
    """The nth chunk of any answer."""
    return b'data: {"choices":[{"text":" word-%06d"}]}\n\n' % number


def expected(chunks: int) -> bytes:
    """A whole answer."""
    return b"".join(map(chunk, range(chunks)))


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *fields = head.split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (field.partition(":") for field in fields if field)
            }
            await _skip_body(reader, headers)
            if line.startswith("GET"):
                length = b"content-length: %d\r\n" % len(PAGE)
                writer.write(HEAD % (b"text/plain", length) + PAGE)
            else:
                gap = float(headers.get(GAP, "0")) / 1000
                await _answer(writer, int(headers.get(CHUNKS, "1")), gap)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _skip_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> None:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        await reader.readexactly(int(headers.get("content-length", "0")))
        return
    # In full duplex Envoy takes the length away: ext_proc might change it.
    while size := int((await reader.readline()).partition(b";")[0], 16):
        await reader.readexactly(size + 2)
    while (await reader.readline()).strip():
        pass  # trailers


async def _answer(writer: asyncio.StreamWriter, chunks: int, gap: float) -> None:
    writer.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n"))
    for number in range(chunks):
        if gap and number:
            await asyncio.sleep(gap)
        data = chunk(number)
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    writer.write(b"0\r\n\r\n")


async def _main(addresses: list[str]) -> None:
    for address in addresses:
        host, _, port = address.rpartition(":")
        await asyncio.start_server(_serve, host, int(port))
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
