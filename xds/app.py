"""`weir serve`: the control plane's edges, wired together in one task group.

    source ─► Latest[pools] ─► configure ┐
    scraper ─────────────────► observe   ├─► Plane ─► Latest[Snapshot] ─► xDS server
    clock ───────────────────► weigh     ┘     ▲                             │
                                               └── trials, verdicts ─────────┘

`/status` is served from the first moment, the xDS port once the source is complete: who asks before
that must not hear of half the pools, or of none. Beside the line, where pools come from a cluster,
is what is written into it (`xds.upkeep`).

All of the plane's methods are called from this one loop, so nothing is locked. Snapshots are
published at most every `COALESCE_SECONDS`: a burst of scrapes costs one push. SIGTERM ends the
wait in `serve`, and leaving the blocks drains: the ADS server closes its streams (clients keep what
they have and go to another replica), then the scraper's connections close.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from xds.access import Grant
from xds.court import Verdict
from xds.hbone_tls import MeshCredentials
from xds.keeper import KeeperOptions
from xds.latest import Latest
from xds.loads import LoadReports
from xds.operators import OURS, Service
from xds.peers import PATH
from xds.plane import Plane
from xds.pool import EndpointId, Observation
from xds.report import Metrics, status, waiting
from xds.scraper import scrape
from xds.security import Security
from xds.server import serving
from xds.sources.connection import Cluster, Connection
from xds.sources.files import FileSource
from xds.sources.kinds import ISTIO
from xds.sources.kubernetes import KubernetesSource, Watching
from xds.sources.source import Source
from xds.sources.tokens import TokenReviews
from xds.standalone import Standalone
from xds.status import reporting
from xds.streams import Limits, XdsServer
from xds.tuning import MANAGE, with_flags
from xds.upkeep import Upkeep
from xds.xds_metrics import XdsMetrics

COALESCE_SECONDS = 0.05
WEIGH_SECONDS = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `weir serve` was told on its command line; addresses are "host:port"."""

    source: Path | Watching  # a directory of manifests, or what to watch in a cluster
    address: str
    status_address: str
    standalone: Standalone
    security: Security = field(default_factory=Security)
    limits: Limits = field(default_factory=Limits)
    grants: tuple[Grant, ...] = ()
    istio_domain: str = ""  # of the mesh whose clusters are answered for; none without
    cluster: Cluster = field(default_factory=Cluster)  # where `source` or tokens need one
    audiences: tuple[str, ...] = ()  # of tokens that the API server is to check; none without
    mesh: MeshCredentials | None = None  # with it captured Pods are scraped through HBONE
    service: Service | None = OURS  # our own, in Events and conditions; None: none are written
    keeper: KeeperOptions | None = None  # with it EnvoyFilters of pools that ask for it are kept


async def serve(options: ServeOptions, stopping: asyncio.Event) -> None:
    """Run until `stopping` is set.

    Raises `ManifestError` where the manifests are wrong at the start, `ClusterError` where no API
    server is to be found, `SecurityError` where credentials are wrong, `OSError` where an address
    cannot be bound.
    """
    if options.mesh is not None:
        options.mesh.check()
    host, _, port = options.status_address.rpartition(":")
    async with _opened(options) as (source, security, upkeep):
        view = _View(source, upkeep)
        pages = {PATH: upkeep.acknowledged}
        async with (
            reporting(
                host, int(port), view, view.registry, ready=view.is_ready, pages=pages
            ) as status_port,
            asyncio.TaskGroup() as tasks,
        ):
            following = tasks.create_task(source.run())
            log.info("waiting for the first pools", status=status_port)
            if await _complete(source, stopping):
                line = _Line(options, source)
                async with serving(
                    line.snapshots,
                    options.address,
                    security=security,
                    limits=options.limits,
                    grants=options.grants,
                    reports=line.reports,
                ) as server:
                    view.serve(line, server)
                    await line.run(server, stopping, upkeep.works(server))
            following.cancel()


async def _complete(source: Source, stopping: asyncio.Event) -> bool:
    """Wait for the first pools; false if `stopping` was set before they came."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(source.complete()), tasks.create_task(stopping.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
    return not stopping.is_set()


@asynccontextmanager
async def _opened(options: ServeOptions) -> AsyncIterator[tuple[Source, Security, Upkeep]]:
    """The source, how the port is secured, and what goes on beside; with a cluster, connected."""
    connection, security = Connection(options.cluster), options.security
    if isinstance(options.source, Path) and not options.audiences:
        yield FileSource(options.source, options.istio_domain), security, Upkeep()
        return
    try:
        await connection.open()
        if options.audiences:
            security = replace(security, verifier=TokenReviews(connection, options.audiences))
        if isinstance(options.source, Path):
            yield FileSource(options.source, options.istio_domain), security, Upkeep()
        else:
            watching, knobs = options.source, with_flags(())
            if options.keeper is not None:
                watching = replace(watching, more=(*watching.more, *ISTIO))
                knobs = with_flags((MANAGE,))
            source = KubernetesSource(connection, watching, options.istio_domain, knobs=knobs)
            yield source, security, Upkeep(connection, source, options.service, options.keeper)
    finally:
        await connection.close()


class _View:
    """What is said over HTTP, before and after the xDS port is open."""

    def __init__(self, source: Source, upkeep: Upkeep) -> None:
        self._source, self._upkeep = source, upkeep
        self._clock = asyncio.get_running_loop().time
        self._serving: tuple[_Line, XdsServer] | None = None
        self.registry = CollectorRegistry()
        self.registry.register(Metrics(self))

    def serve(self, line: "_Line", server: XdsServer) -> None:
        self._serving = line, server
        self.registry.register(XdsMetrics(server))

    def is_ready(self) -> bool:
        return self._serving is not None

    def __call__(self) -> dict[str, Any]:
        now = self._clock()
        if self._serving is None:
            return waiting(self._source, now)
        line, server = self._serving
        return status(
            line.plane,
            server,
            line.reports,
            self._source,
            now,
            wiring=self._upkeep.wiring(),
            unwired=self._upkeep.problems(),
        )


class _Line:
    """The slow line and the tasks that drive it."""

    def __init__(self, options: ServeOptions, source: Source) -> None:
        self._mesh = options.mesh
        self.clock = asyncio.get_running_loop().time
        self.pools = source.pools
        self.plane = Plane(options.standalone)
        self.reports = LoadReports()
        self.plane.configure(self.pools.value, self.clock())
        self.snapshots = Latest(self.plane.snapshot(self.clock()))
        self._dirty = asyncio.Event()
        self._configured = asyncio.Event()

    async def run(self, server: XdsServer, stopping: asyncio.Event, beside: list[Any]) -> None:
        """Until `stopping` is set, and with it what runs `beside`."""
        server.on_verdict = self.roll_back
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in (*self._works(server), *beside)]
            log.info("serving", xds=server.port, pools=sorted(self.pools.value))
            await stopping.wait()
            log.info("draining")
            for task in running:
                task.cancel()

    def _works(self, server: XdsServer) -> list[Any]:
        """Coroutines that run until they are cancelled."""
        return [
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
