"""From a changed page of a model server to a changed weight in Envoy, end to end.

Two servers, of which one says that it is busy, and then the other. The time runs from the change of
the page to the first reading of Envoy's `/clusters` in which the busy one weighs less: the scrape
(0.2 s apart), the weigher's step (1 s apart), the push, and Envoy. The weigher is damped, so the
first change is not the last.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from weir.bench import manifests
from weir.bench.picker import session
from weir.ports import common
from weir.stack import Stack, stack

ADDRESSES = ("127.0.4.1", "127.0.4.2")
CHANGES = 12
QUIET_SECONDS = 3.0
LIMIT_SECONDS = 30.0


class Page:
    """A model server's metrics, and nothing else of it."""

    def __init__(self) -> None:
        self.waiting = 0

    async def show(self, _: web.Request) -> web.Response:
        text = f"""vllm:num_requests_waiting{{model_name="m"}} {self.waiting}
vllm:num_requests_running{{model_name="m"}} {1 + self.waiting}
"""
        return web.Response(text=text)


@asynccontextmanager
async def _pages() -> AsyncIterator[tuple[list[Page], list[str]]]:
    port = common(ADDRESSES)
    pages = [Page() for _ in ADDRESSES]
    async with AsyncExitStack() as runners:
        for page, address in zip(pages, ADDRESSES, strict=True):
            app = web.Application()
            app.router.add_get("/metrics", page.show)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            runners.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, address, port).start()
        yield pages, [f"{address}:{port}" for address in ADDRESSES]


async def measure(
    directory: Path, say: Callable[[str], None], changes: int = CHANGES
) -> list[float]:
    """Seconds, one for each change."""
    async with session() as client, _pages() as (pages, endpoints):
        manifests.write(directory / "config", endpoints, policy="weights")
        async with stack(directory, client, picker=False) as parts:
            seconds = []
            for number in range(changes):
                say(f"from page to weight: change {number + 1} of {changes}")
                await asyncio.sleep(QUIET_SECONDS)
                seconds.append(await _change(parts, pages, number % 2))
            return seconds


async def _change(parts: Stack, pages: list[Page], busy: int) -> float:
    loop = asyncio.get_running_loop()
    before = await _weights(parts)
    began = loop.time()
    for number, page in enumerate(pages):
        page.waiting = 60 if number == busy else 0
    async with asyncio.timeout(LIMIT_SECONDS):
        while (await _weights(parts))[busy] >= before[busy]:  # noqa: ASYNC110 - Envoy is another process
            await asyncio.sleep(0.005)
    return loop.time() - began


async def _weights(parts: Stack) -> list[int]:
    """Of the pool's servers, in the order of their addresses."""
    url = f"http://127.0.0.1:{parts.envoy_admin}/clusters"
    async with parts.client.get(url) as response:
        text = await response.text()
    lines = sorted(line for line in text.splitlines() if "::weight::" in line)
    return [int(line.rpartition("::")[2]) for line in lines if line.startswith("bench/pool::")]
