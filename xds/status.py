"""What the control plane says over HTTP: `/healthz`, `/readyz`, `/status` and `/metrics`.

`/status` is the JSON behind `weir status` and the demo's live table: pools with their endpoints as
the weigher sees them, and the xDS clients with what each of them has accepted or refused. `/readyz`
is 200 once xDS is served. Other pages of JSON are who serves' own business.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


@asynccontextmanager
async def reporting(  # noqa: PLR0913 - where, and what
    host: str,
    port: int,
    status: Callable[[], Any],
    registry: CollectorRegistry,
    *,
    ready: Callable[[], bool] = lambda: True,
    pages: Mapping[str, Callable[[], Any]] | None = None,
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port, which matters when 0 was asked for.

    `pages` are more of JSON, by path.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok\n")
        return web.Response(text="the pools are not known yet\n", status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/status", _json(status)),
            *(web.get(path, _json(page)) for path, page in (pages or {}).items()),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _json(page: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def show(_: web.Request) -> web.Response:
        return web.json_response(page())

    return show
