"""Everything that the demo runs, as separate processes on loopback.

    client ─► Envoy ─► model servers (127.0.1.1, 127.0.1.2, … on one port, one process)
                │ └── ext_proc ─► weir picker ──┐
                └──── ADS ──────► weir serve ◄──┘ ─► /metrics of the model servers

Envoy's bootstrap knows nothing but where `weir serve` is. The fleet's directory holds the manifests
that `weir serve` watches and a log for every process.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from weir.demo import load, manifests, ports
from weir.envoy import envoy_binary
from weir.processes import Child, start, weir
from xds import exposition
from xds.pool import Tier
from xds.standalone import bootstrap

SETTLE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Servers:
    """The model servers: how many, how fast, how much memory."""

    speeds: tuple[float, ...]
    blocks: int  # 16 tokens each
    adapters: tuple[str, ...] = ()
    max_loras: int = 4
    stream_interval: int = 8
    seed: int = 1

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.1.{index + 1}" for index in range(len(self.speeds))]


@dataclass(slots=True)
class Fleet:
    """The running processes, and how to reach them."""

    directory: Path
    servers: Servers
    model_port: int
    envoy_port: int
    envoy_admin: int
    xds_port: int
    status_port: int
    picker_port: int
    client: aiohttp.ClientSession
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.envoy_port}/v1/completions"

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    async def status(self) -> dict[str, Any]:
        """The control plane's `/status`."""
        url = f"http://127.0.0.1:{self.status_port}/status"
        async with self.client.get(url) as response:
            status: dict[str, Any] = await response.json()
            return status

    async def use(self, tier: Tier) -> None:
        """Annotate the pool, and wait until Envoy and the picker have what follows from it."""
        manifests.write(self.directory / "config", tier, self.servers.addresses, self.model_port)
        async with asyncio.timeout(SETTLE_SECONDS):
            while not await self._settled(tier):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.05)

    async def _settled(self, tier: Tier) -> bool:
        status = await self.status()
        pool = status["pools"].get(manifests.POOL_NAME)
        clients = status["clients"]
        return (
            pool is not None
            and pool["policy"] == tier.value
            and len(clients) == 2
            and all(client["synced"] for client in clients)
            and await self._warm()
        )

    async def _warm(self) -> bool:
        url = f"http://127.0.0.1:{self.envoy_admin}/stats?filter=warming"
        async with self.client.get(url) as response:
            lines = (await response.text()).splitlines()
        return bool(lines) and all(line.endswith(" 0") for line in lines)

    async def forget_prefixes(self) -> None:
        """Empty the model servers' prefix caches, so that no run profits from the one before."""
        for address in self.servers.addresses:
            url = f"http://{address}:{self.model_port}/reset_prefix_cache"
            async with self.client.post(url) as response:
                response.raise_for_status()

    async def start_picker(self) -> Child:
        child = await start("weir picker", self.picker_command(), self.directory / "picker.log")
        self.children["picker"] = child
        return child

    async def start_serve(self) -> Child:
        child = await start("weir serve", self.serve_command(), self.directory / "serve.log")
        self.children["serve"] = child
        return child

    async def stop(self) -> None:
        """Stop every child, the model servers last."""
        for name in ("envoy", "picker", "serve", "model servers"):
            if child := self.children.get(name):
                await child.stop()

    async def prefix_tokens(self) -> tuple[float, float]:
        """Prompt tokens looked up in the prefix caches, and found there, since the start."""
        queries = hits = 0.0
        for address in self.servers.addresses:
            url = f"http://{address}:{self.model_port}/metrics"
            async with self.client.get(url) as response:
                page = exposition.read(await response.read(), "vllm", at=0.0)
            queries += page.prefix_queries or 0.0
            hits += page.prefix_hits or 0.0
        return queries, hits

    async def _models_listen(self) -> bool:
        for address in self.servers.addresses:
            try:
                async with self.client.get(f"http://{address}:{self.model_port}/health"):
                    pass
            except aiohttp.ClientError:
                return False
        return True

    async def _in_touch(self) -> bool:
        try:
            return await self._settled(Tier.ROUND_ROBIN)
        except aiohttp.ClientError:
            return False

    def envoy_command(self) -> list[str]:
        path = self.directory / "envoy.yaml"
        path.write_text(
            bootstrap(f"127.0.0.1:{self.xds_port}", self.envoy_admin, "weir-demo-envoy")
        )
        return [
            str(envoy_binary()),
            *("--config-path", str(path)),
            *("--concurrency", "1"),
            "--use-dynamic-base-id",
            *("--log-level", "warning"),
        ]

    def picker_command(self) -> list[str]:
        return weir(
            "picker",
            *("--xds", f"127.0.0.1:{self.xds_port}"),
            *("--listen", f"127.0.0.1:{self.picker_port}"),
        )

    def serve_command(self) -> list[str]:
        return weir(
            "serve",
            *("--config", str(self.directory / "config")),
            *("--listen", f"127.0.0.1:{self.xds_port}"),
            *("--status", f"127.0.0.1:{self.status_port}"),
            *("--proxy-listen", f"127.0.0.1:{self.envoy_port}"),
            *("--picker", f"127.0.0.1:{self.picker_port}"),
            *("--access-log", str(self.access_log)),
        )

    def sim_command(self) -> list[str]:
        servers = self.servers
        listen = (("--listen", f"{address}:{self.model_port}") for address in servers.addresses)
        speeds = (("--speed", str(speed)) for speed in servers.speeds)
        adapters = (("--adapter", adapter) for adapter in servers.adapters)
        return weir(
            "inference-sim",
            *(word for pair in (*listen, *speeds, *adapters) for word in pair),
            *("--model", "base"),
            *("--blocks", str(servers.blocks)),
            *("--max-loras", str(servers.max_loras)),
            *("--stream-interval", str(servers.stream_interval)),
            *("--seed", str(servers.seed)),
        )


@asynccontextmanager
async def fleet(directory: Path, servers: Servers) -> AsyncIterator[Fleet]:
    """Start everything, wait until every part is in touch, and stop everything on the way out."""
    config = directory / "config"
    config.mkdir(parents=True)
    (directory / "access.log").touch()
    async with AsyncExitStack() as stack:
        self = Fleet(
            directory,
            servers,
            model_port=ports.common(servers.addresses),
            envoy_port=ports.free(),
            envoy_admin=ports.free(),
            xds_port=ports.free(),
            status_port=ports.free(),
            picker_port=ports.free(),
            client=await stack.enter_async_context(load.session()),
        )
        manifests.write(config, Tier.ROUND_ROBIN, servers.addresses, self.model_port)
        stack.push_async_callback(self.stop)
        self.children["model servers"] = await start(
            "weir inference-sim", self.sim_command(), directory / "inference-sim.log"
        )
        await self.start_serve()
        await self.start_picker()
        self.children["envoy"] = await start("envoy", self.envoy_command(), directory / "envoy.log")
        await self.children["model servers"].until(self._models_listen, what="it listened")
        await self.children["serve"].until(self._in_touch, what="Envoy and the picker were served")
        yield self
