"""`weir serve`: the control plane's edges, wired together in one task group.

    file source ─► Latest[pools] ─► configure ┐
    scraper ──────────────────────► observe   ├─► Plane ─► Latest[Snapshot] ─► ADS server
    clock ────────────────────────► weigh     ┘

All of the plane's methods are called from this one loop, so nothing is locked. Snapshots are
published at most every `COALESCE_SECONDS`: a burst of scrapes costs one push. SIGTERM ends the
wait in `serve`, and leaving the blocks drains: the ADS server closes its streams (clients keep what
they have and go to another replica), then the scraper's connections close.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from xds.latest import Latest
from xds.plane import Plane
from xds.pool import EndpointId, Observation, Pool, PoolName
from xds.report import Metrics, status
from xds.scraper import scrape
from xds.server import serving
from xds.sources.files import Directory, watch
from xds.standalone import Standalone
from xds.status import reporting

COALESCE_SECONDS = 0.05
WEIGH_SECONDS = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `weir serve` was told on its command line; addresses are "host:port"."""

    config: Path
    address: str
    status_address: str
    standalone: Standalone


async def serve(options: ServeOptions, stopping: asyncio.Event) -> None:
    """Run until `stopping` is set.

    Raises `ManifestError` where the manifests are wrong at the start, `OSError` where an address
    cannot be bound.
    """
    line = _Line(options)
    async with serving(line.snapshots, options.address) as server:

        def view() -> dict[str, Any]:
            return status(line.plane, server, line.directory.problems, line.clock())

        registry = CollectorRegistry()
        registry.register(Metrics(view))
        host, _, port = options.status_address.rpartition(":")
        async with (
            reporting(host, int(port), view, registry) as status_port,
            asyncio.TaskGroup() as tasks,
        ):
            running = [tasks.create_task(work) for work in line.works()]
            log.info(
                "serving",
                xds=server.port,
                status=status_port,
                pools=sorted(line.pools.value),
                config=str(options.config),
            )
            await stopping.wait()
            log.info("draining")
            for task in running:
                task.cancel()


class _Line:
    """The slow line and the tasks that drive it."""

    def __init__(self, options: ServeOptions) -> None:
        self.clock = asyncio.get_running_loop().time
        self.directory = Directory(options.config)
        self.pools: Latest[Mapping[PoolName, Pool]] = Latest(self.directory.pools)
        self.plane = Plane(options.standalone)
        self.plane.configure(self.pools.value, self.clock())
        self.snapshots = Latest(self.plane.snapshot(self.clock()))
        self._dirty = asyncio.Event()

    def works(self) -> list[Any]:
        """Coroutines that run until they are cancelled."""
        return [
            watch(self.directory, self.pools, self._on_reload),
            scrape(self.pools, self._on_observation),
            self._reconfigure(),
            self._weigh(),
            self._publish(),
        ]

    def _on_observation(self, endpoint: EndpointId, observation: Observation | None) -> None:
        self.plane.observe(endpoint, observation)
        self._dirty.set()

    def _on_reload(self, problems: tuple[str, ...]) -> None:
        for problem in problems:
            log.error("manifest refused; what was good stands", problem=problem)
        log.info("manifests read", pools=sorted(self.directory.pools), problems=len(problems))

    async def _reconfigure(self) -> None:
        async for pools in self.pools.changes():
            self.plane.configure(pools, self.clock())
            self._dirty.set()

    async def _weigh(self) -> None:
        while True:
            await asyncio.sleep(WEIGH_SECONDS)
            self.plane.weigh(self.clock())
            self._dirty.set()

    async def _publish(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self.snapshots.publish(self.plane.snapshot(self.clock()))
            await asyncio.sleep(COALESCE_SECONDS)
