"""Asks every endpoint for its metrics page, again and again.

One keep-alive connection and one task an endpoint: a socket, or, for a Pod that ztunnel captured
and where we have an identity in the mesh, a tunnel (`hbone.py`). Scrapes are spread evenly over the
interval, by a hash of the endpoint's name: loads then reach the pickers as a stream, not in bursts,
and replicas of the control plane ask at the same instants. A scrape is never overtaken by the next
one: vLLM's page takes seconds when it is busiest, and asking twice would not make it faster.

Slow, garbled or failing is `SILENT`: the last load stands, and ages. Refused is `REFUSED`: nobody
listens there. Both say so while the scrape that will tell is still under way, if that takes long.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import structlog
from xxhash import xxh3_64_intdigest

from xds import exposition
from xds.exposition import MalformedExposition
from xds.hbone import Hbone
from xds.hbone_tls import MeshCredentials
from xds.http1 import Http1, Interrupted, NobodyListens, NoPage
from xds.latest import Latest
from xds.pool import Endpoint, EndpointId, Load, Observation, Pool, PoolName, Reachability

TIMEOUT_SECONDS = 10.0
CONNECT_SECONDS = 2.0
SILENT_AFTER_SECONDS = 1.0
PAGE_BYTES = 8 << 20

OnObservation = Callable[[EndpointId, Observation | None], None]
Connect: TypeAlias = Callable[[], Awaitable[Http1]]  # raises `NoPage`

PLAINTEXT_HINT = (
    "; ztunnel captured this Pod and refuses plaintext where mutual TLS is STRICT: give "
    "--mesh-cert, --mesh-key and --mesh-ca, or let PeerAuthentication's portLevelMtls permit it"
)
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Target:
    endpoint: Endpoint
    interval: float


async def scrape(
    pools: Latest[Mapping[PoolName, Pool]],
    on_observation: OnObservation,
    mesh: MeshCredentials | None = None,
) -> None:
    """Scrape the endpoints of the newest pools until cancelled.

    `on_observation` gets what each scrape came to, and None for an endpoint that no pool has now.
    """
    running: dict[EndpointId, tuple[_Scraping, asyncio.Task[None]]] = {}
    ways = _Ways(mesh)
    try:
        async with asyncio.TaskGroup() as tasks:
            async for now in pools.changes():
                wanted = _targets(now)
                for name in running.keys() - wanted.keys():
                    running.pop(name)[1].cancel()
                    on_observation(name, None)
                for name, target in wanted.items():
                    last = None
                    if name in running:
                        before, task = running[name]
                        if before.target == target:
                            continue
                        task.cancel()
                        if before.target.endpoint.pod == target.endpoint.pod:
                            last = before.last
                    scraping = _Scraping(target, ways, on_observation, last)
                    task = tasks.create_task(scraping.run(), name=f"scrape {name}")
                    running[name] = (scraping, task)
    finally:
        ways.close()


def _targets(pools: Mapping[PoolName, Pool]) -> dict[EndpointId, _Target]:
    """Each endpoint once, at the shortest interval that any of its pools asks for."""
    targets: dict[EndpointId, _Target] = {}
    for pool in pools.values():
        interval = pool.policy.scrape_interval_seconds
        for endpoint in pool.endpoints:
            known = targets.get(endpoint.id)
            if known is None or known.interval > interval:
                targets[endpoint.id] = _Target(endpoint, interval)
    return targets


def offset(endpoint: EndpointId, interval: float) -> float:
    """When in the interval an endpoint is asked, in seconds; uniform over endpoints."""
    return xxh3_64_intdigest(endpoint.encode()) / 2**64 * interval


def next_due(last: float, now: float, phase: float, interval: float) -> float:
    """When to ask after `last`; never the same turn twice, though the loop's timers come early."""
    turn = math.floor((max(last, now) - phase) / interval + 0.01)
    return phase + (turn + 1) * interval


class _Ways:
    """How endpoints are reached."""

    def __init__(self, mesh: MeshCredentials | None) -> None:
        self._hbone = Hbone(mesh) if mesh else None

    def to(self, endpoint: Endpoint) -> Connect:
        hbone = self._hbone
        if hbone is None or not endpoint.mesh.captured:
            return lambda: _plain(endpoint)
        return lambda: hbone.connect(lambda: _http(endpoint), endpoint)

    def close(self) -> None:
        if self._hbone is not None:
            self._hbone.close()

    def hint(self, endpoint: Endpoint) -> str:
        """What may be the matter where a server hangs up."""
        return PLAINTEXT_HINT if endpoint.mesh.captured and self._hbone is None else ""


def _http(endpoint: Endpoint) -> Http1:
    return Http1(endpoint.id, "/metrics", PAGE_BYTES)


async def _plain(endpoint: Endpoint) -> Http1:
    """Over a socket. Raises `NoPage`."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, http = await asyncio.get_running_loop().create_connection(
                lambda: _http(endpoint), endpoint.address, endpoint.port
            )
    except ConnectionRefusedError:
        raise NobodyListens(f"nobody listens on {endpoint.id}") from None
    except TimeoutError:
        raise NoPage(f"no connection to {endpoint.id} after {CONNECT_SECONDS:.0f} s") from None
    except OSError as error:
        raise NoPage(f"no connection to {endpoint.id}: {error}") from error
    return http


class _Scraping:
    """One endpoint."""

    def __init__(
        self, target: _Target, ways: _Ways, on_observation: OnObservation, last: Load | None
    ) -> None:
        self.target = target
        self.last = last
        self._connect = ways.to(target.endpoint)
        self._hint = ways.hint(target.endpoint)
        self._on_observation = on_observation
        self._http: Http1 | None = None
        self._problem = ""

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        interval = self.target.interval
        phase = offset(self.target.endpoint.id, interval)
        due = clock()
        try:
            while True:
                due = next_due(due, clock(), phase, interval)
                await asyncio.sleep(due - clock())
                await self._once(clock())
        finally:
            if self._http is not None:
                self._http.close()

    async def _once(self, at: float) -> None:
        loop = asyncio.get_running_loop()
        overdue = loop.call_later(
            SILENT_AFTER_SECONDS,
            self._tell,
            Reachability.SILENT,
            f"no answer for {SILENT_AFTER_SECONDS:.0f} s",
        )
        try:
            page = await self._fetch()
            load = exposition.read(page, self.target.endpoint.engine, at=at)
        except NobodyListens as error:
            self._tell(Reachability.REFUSED, str(error))
        except Interrupted as error:
            self._tell(Reachability.SILENT, f"{error}{self._hint}")
        except (NoPage, MalformedExposition) as error:
            self._tell(Reachability.SILENT, str(error))
        else:
            self.last = exposition.since(load, self.last)
            self._tell(Reachability.ANSWERING, "")
        finally:
            overdue.cancel()

    async def _fetch(self) -> bytes:
        """The page. Raises `NoPage`."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if self._http is not None and self._http.open:
                    try:
                        return await self._http.get()
                    except Interrupted:
                        pass  # servers close connections that they think are idle
                self._http = await self._connect()
                return await self._http.get()
        except TimeoutError:
            raise NoPage(f"no page after {TIMEOUT_SECONDS:.0f} s") from None

    def _tell(self, reachability: Reachability, problem: str) -> None:
        if bool(problem) != bool(self._problem):
            name = self.target.endpoint.id
            if problem:
                log.warning("scrape failed", endpoint=name, problem=problem)
            else:
                log.info("scrape works again", endpoint=name)
        self._problem = problem
        observation = Observation(self.last, reachability, problem)
        self._on_observation(self.target.endpoint.id, observation)
