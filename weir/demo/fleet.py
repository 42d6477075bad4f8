"""What the demo runs: a stack, and simulated model servers behind it.

client ─► Envoy ─► model servers (127.0.1.1, 127.0.1.2, … on one port, one process)
            │ └── ext_proc ─► weir picker ──┐
            └──── ADS ──────► weir serve ◄──┘ ─► /metrics of the model servers
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from weir import ports
from weir.demo import load, manifests
from weir.processes import start, weir
from weir.stack import Stack, wait_until
from xds import exposition
from xds.pool import Tier


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


@dataclass(slots=True, kw_only=True)
class Fleet(Stack):
    """A stack whose pool is simulated."""

    servers: Servers
    model_port: int

    async def use(self, tier: Tier) -> None:
        """Annotate the pool, and wait until Envoy and the picker have what follows from it."""
        manifests.write(self.config, tier, self.servers.addresses, self.model_port)

        async def in_use() -> bool:
            pool = (await self.status())["pools"].get(manifests.POOL_NAME)
            return pool is not None and pool["policy"] == tier.value and await self.settled()

        await wait_until(in_use)

    async def forget_prefixes(self) -> None:
        """Empty the model servers' prefix caches, so that no run profits from the one before."""
        for address in self.servers.addresses:
            url = f"http://{address}:{self.model_port}/reset_prefix_cache"
            async with self.client.post(url) as response:
                response.raise_for_status()

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

    async def start_models(self) -> None:
        """Start the model servers and wait until all of them listen."""
        models = await start(
            "weir inference-sim", self._models_command(), self.directory / "inference-sim.log"
        )
        self.children["model servers"] = models
        await models.until(self._models_listen, what="it listened")

    async def _models_listen(self) -> bool:
        for address in self.servers.addresses:
            try:
                async with self.client.get(f"http://{address}:{self.model_port}/health"):
                    pass
            except aiohttp.ClientError:
                return False
        return True

    def _models_command(self) -> list[str]:
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
    async with AsyncExitStack() as parts:
        self = Fleet(
            directory=directory,
            client=await parts.enter_async_context(load.session()),
            servers=servers,
            model_port=ports.common(servers.addresses),
        )
        self.config.mkdir(parents=True)
        manifests.write(self.config, Tier.ROUND_ROBIN, servers.addresses, self.model_port)

        async def stop() -> None:
            await self.stop()
            if models := self.children.get("model servers"):
                await models.stop()

        parts.push_async_callback(stop)
        await self.start_models()
        await self.start()
        yield self
