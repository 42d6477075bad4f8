"""Our two programs and an Envoy, as processes on loopback, around a directory of manifests.

The demo, the benchmarks and the tests against a real Envoy all run this. Envoy's bootstrap knows
nothing but where `weir serve` is. Every process logs into the stack's directory and is stopped by
its PID.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from weir import ports
from weir.envoy import envoy_binary
from weir.processes import Child, start, weir
from xds.standalone import bootstrap

SETTLE_SECONDS = 15.0


@dataclass(slots=True, kw_only=True)
class Stack:
    """The running processes, and how to reach them."""

    directory: Path
    client: aiohttp.ClientSession
    options: tuple[str, ...] = ()  # further ones of `weir serve`
    envoy_port: int = field(default_factory=ports.free)
    envoy_admin: int = field(default_factory=ports.free)
    xds_port: int = field(default_factory=ports.free)
    status_port: int = field(default_factory=ports.free)
    picker_port: int = field(default_factory=ports.free)
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """Where the manifests are."""
        return self.directory / "config"

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    def url(self, path: str = "/v1/completions") -> str:
        return f"http://127.0.0.1:{self.envoy_port}{path}"

    async def status(self) -> dict[str, Any]:
        """The control plane's `/status`."""
        url = f"http://127.0.0.1:{self.status_port}/status"
        async with self.client.get(url) as response:
            status: dict[str, Any] = await response.json()
            return status

    async def stats(self, pattern: str) -> dict[str, int]:
        """Envoy's counters and gauges whose names match."""
        url = f"http://127.0.0.1:{self.envoy_admin}/stats?filter={pattern}"
        async with self.client.get(url) as response:
            lines = (await response.text()).splitlines()
        pairs = (line.rpartition(": ") for line in lines)
        return {name: int(value) for name, _, value in pairs if value.isdecimal()}

    async def rejected(self) -> int:
        """Configurations that Envoy refused since it started."""
        return sum((await self.stats("update_rejected")).values())

    async def settled(self, *, clients: int = 2) -> bool:
        """Have at least so many clients accepted all there is, and is no cluster warming?"""
        try:
            status = await self.status()
            warming = await self.stats("warming")
        except (aiohttp.ClientError, TimeoutError):
            return False
        return (
            len(status["clients"]) >= clients
            and all(client["synced"] for client in status["clients"])
            and bool(warming)
            and not any(warming.values())
        )

    async def start_serve(self) -> Child:
        command = weir(
            "serve",
            *("--config", str(self.config)),
            "--plaintext",
            *("--listen", f"127.0.0.1:{self.xds_port}"),
            *("--status", f"127.0.0.1:{self.status_port}"),
            *("--proxy-listen", f"127.0.0.1:{self.envoy_port}"),
            *("--picker", f"127.0.0.1:{self.picker_port}"),
            *("--access-log", str(self.access_log)),
            *self.options,
        )
        return await self._start("serve", "weir serve", command)

    async def start_picker(self) -> Child:
        command = weir(
            "picker",
            *("--xds", f"127.0.0.1:{self.xds_port}"),
            *("--listen", f"127.0.0.1:{self.picker_port}"),
        )
        return await self._start("picker", "weir picker", command)

    async def start_envoy(self) -> Child:
        path = self.directory / "envoy.yaml"
        path.write_text(bootstrap(f"127.0.0.1:{self.xds_port}", self.envoy_admin, "weir-envoy"))
        command = [
            str(envoy_binary()),
            *("--config-path", str(path)),
            *("--concurrency", "1"),
            "--use-dynamic-base-id",
            *("--log-level", "warning"),
            *("--file-flush-interval-msec", "100"),  # of the access log; 10 s by default
        ]
        return await self._start("envoy", "envoy", command)

    async def start(self, *, picker: bool = True) -> None:
        """Start everything and wait until every part is in touch."""
        self.access_log.touch()
        serve = await self.start_serve()
        if picker:
            await self.start_picker()
        await self.start_envoy()

        async def in_touch() -> bool:
            return await self.settled(clients=1 + picker)

        await serve.until(in_touch, what="Envoy and the picker were served")

    async def stop(self) -> None:
        for name in ("envoy", "picker", "serve"):
            if child := self.children.get(name):
                await child.stop()

    async def _start(self, name: str, title: str, command: list[str]) -> Child:
        self.children[name] = await start(title, command, self.directory / f"{name}.log")
        return self.children[name]


@asynccontextmanager
async def stack(
    directory: Path, client: aiohttp.ClientSession, *options: str, picker: bool = True
) -> AsyncIterator[Stack]:
    """Run a stack around the manifests in `directory`/config."""
    running = Stack(directory=directory, client=client, options=options)
    try:
        await running.start(picker=picker)
        yield running
    finally:
        await running.stop()


async def wait_until(
    condition: Callable[[], Awaitable[bool]], *, seconds: float = SETTLE_SECONDS
) -> None:
    """Poll an async condition. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
