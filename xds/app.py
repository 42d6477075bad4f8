"""`weir serve`: the control plane's edges, wired together in one task group.

    file source ─► Latest[pools] ─► configure ┐
    scraper ──────────────────────► observe   ├─► Plane ─► Latest[Snapshot] ─► xDS server
    clock ────────────────────────► weigh     ┘     ▲                             │
                                                    └── trials, verdicts ─────────┘

All of the plane's methods are called from this one loop, so nothing is locked. Snapshots are
published at most every `COALESCE_SECONDS`: a burst of scrapes costs one push. SIGTERM ends the
wait in `serve`, and leaving the blocks drains: the ADS server closes its streams (clients keep what
they have and go to another replica), then the scraper's connections close.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from xds.access import Grant
from xds.court import Verdict
from xds.hbone_tls import MeshCredentials
from xds.latest import Latest
from xds.loads import LoadReports
from xds.plane import Plane
from xds.pool import EndpointId, Observation, Pool, PoolName
from xds.report import Metrics, status
from xds.scraper import scrape
from xds.security import Security
from xds.server import serving
from xds.sources.files import Directory, watch
from xds.standalone import Standalone
from xds.status import reporting
from xds.streams import Limits, XdsServer
from xds.xds_metrics import XdsMetrics

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
    security: Security = field(default_factory=Security)
    limits: Limits = field(default_factory=Limits)
    grants: tuple[Grant, ...] = ()
    istio_domain: str = ""  # of the mesh whose clusters are answered for; none without
    mesh: MeshCredentials | None = None  # with it captured Pods are scraped through HBONE


async def serve(options: ServeOptions, stopping: asyncio.Event) -> None:
    """Run until `stopping` is set.

    Raises `ManifestError` where the manifests are wrong at the start, `SecurityError` where
    credentials are, `OSError` where an address cannot be bound.
    """
    line = _Line(options)
    async with serving(
        line.snapshots,
        options.address,
        security=options.security,
        limits=options.limits,
        grants=options.grants,
        reports=line.reports,
    ) as server:
        server.on_verdict = line.roll_back

        def view() -> dict[str, Any]:
            return status(line.plane, server, line.reports, line.directory.problems, line.clock())

        registry = CollectorRegistry()
        registry.register(Metrics(view))
        registry.register(XdsMetrics(server))
        host, _, port = options.status_address.rpartition(":")
        async with (
            reporting(host, int(port), view, registry) as status_port,
            asyncio.TaskGroup() as tasks,
        ):
            running = [tasks.create_task(work) for work in line.works(server)]
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
        if options.mesh is not None:
            options.mesh.check()
        self._mesh = options.mesh
        self.clock = asyncio.get_running_loop().time
        self.directory = Directory(options.config, options.istio_domain)
        self.pools: Latest[Mapping[PoolName, Pool]] = Latest(self.directory.pools)
        self.plane = Plane(options.standalone)
        self.reports = LoadReports()
        self.plane.configure(self.pools.value, self.clock())
        self.snapshots = Latest(self.plane.snapshot(self.clock()))
        self._dirty = asyncio.Event()
        self._configured = asyncio.Event()

    def works(self, server: XdsServer) -> list[Any]:
        """Coroutines that run until they are cancelled."""
        return [
            watch(self.directory, self.pools, self._on_reload),
            scrape(self.pools, self._on_observation, self._mesh),
            self._reconfigure(),
            self._weigh(),
            self._publish(),
            self._try_out(server),
        ]

    def roll_back(self, verdict: Verdict) -> None:
        """What most clients refuse is taken back at once."""
        self.plane.roll_back(verdict)
        self._dirty.set()

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
            # At once: who looks at `/status` must not see new pools and clients synced to the old.
            self.snapshots.publish(self.plane.snapshot(self.clock()))
            self._configured.set()

    async def _weigh(self) -> None:
        while True:
            await asyncio.sleep(WEIGH_SECONDS)
            self.plane.weigh(self.clock())
            self._dirty.set()

    async def _try_out(self, server: XdsServer) -> None:
        """Show each new policy to one client before everybody has it."""
        while True:
            await self._configured.wait()
            self._configured.clear()
            while (pool := self.plane.trials.candidate) is not None:
                self.snapshots.publish(self.plane.snapshot(self.clock()))
                reason = await server.try_out(self.plane.trial(), pool)
                if self.plane.trials.candidate != pool:
                    pass  # the operator was faster
                elif reason is None:
                    self.plane.trials.accept()
                else:
                    log.error("policy refused; the one before stands", pool=pool, reason=reason)
                    self.plane.trials.refuse(reason)
                self.snapshots.publish(self.plane.snapshot(self.clock()))
                server.end_trial()

    async def _publish(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self.snapshots.publish(self.plane.snapshot(self.clock()))
            await asyncio.sleep(COALESCE_SECONDS)
