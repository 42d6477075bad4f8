"""Asks every endpoint for its metrics page, again and again.

One keep-alive connection and one task an endpoint. Scrapes are spread evenly over the interval, by
a hash of the endpoint's name: loads then reach the pickers as a stream, not in bursts, and replicas
of the control plane ask at the same instants. A scrape is never overtaken by the next one: vLLM's
page takes seconds when it is busiest, and asking twice would not make it faster.

Slow, garbled or failing is `SILENT`: the last load stands, and ages. Refused is `REFUSED`: nobody
listens there. Both say so while the scrape that will tell is still under way, if that takes long.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
import structlog
from xxhash import xxh3_64_intdigest

from xds import exposition
from xds.exposition import MalformedExposition
from xds.latest import Latest
from xds.pool import Endpoint, EndpointId, Load, Observation, Pool, PoolName, Reachability

TIMEOUT_SECONDS = 10.0
SILENT_AFTER_SECONDS = 1.0
PAGE_BYTES = 8 << 20

OnObservation = Callable[[EndpointId, Observation | None], None]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Target:
    endpoint: Endpoint
    interval: float


async def scrape(pools: Latest[Mapping[PoolName, Pool]], on_observation: OnObservation) -> None:
    """Scrape the endpoints of the newest pools until cancelled.

    `on_observation` gets what each scrape came to, and None for an endpoint that no pool has now.
    """
    running: dict[EndpointId, tuple[_Target, asyncio.Task[None]]] = {}
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=1, keepalive_timeout=75)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, sock_connect=2.0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as tasks,
    ):
        async for now in pools.changes():
            wanted = _targets(now)
            for name, (target, task) in list(running.items()):
                if wanted.get(name) != target:
                    task.cancel()
                    del running[name]
                    if name not in wanted:
                        on_observation(name, None)
            for name, target in wanted.items():
                if name not in running:
                    scraping = _Scraping(session, target, on_observation)
                    task = tasks.create_task(scraping.run(), name=f"scrape {name}")
                    running[name] = (target, task)


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


class _Scraping:
    """One endpoint."""

    def __init__(
        self, session: aiohttp.ClientSession, target: _Target, on_observation: OnObservation
    ) -> None:
        self._session = session
        self._target = target
        self._on_observation = on_observation
        endpoint = target.endpoint
        self._url = f"http://{endpoint.id}/metrics"
        self._last: Load | None = None
        self._problem = ""

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        interval = self._target.interval
        phase = offset(self._target.endpoint.id, interval)
        while True:
            now = clock()
            await asyncio.sleep(interval - (now - phase) % interval)
            await self._once(clock())

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
            load = exposition.read(page, self._target.endpoint.engine, at=at)
        except aiohttp.ClientConnectorError as error:
            dead = isinstance(error.os_error, ConnectionRefusedError)
            self._tell(Reachability.REFUSED if dead else Reachability.SILENT, str(error))
        except (aiohttp.ClientError, TimeoutError, MalformedExposition, ConnectionError) as error:
            self._tell(Reachability.SILENT, str(error) or type(error).__name__)
        else:
            self._last = exposition.since(load, self._last)
            self._tell(Reachability.ANSWERING, "")
        finally:
            overdue.cancel()

    async def _fetch(self) -> bytes:
        async with self._session.get(self._url) as response:
            if response.status != 200:
                raise MalformedExposition(f"status {response.status}")
            page = await response.content.read(PAGE_BYTES)
            while not response.content.at_eof():
                if len(page) >= PAGE_BYTES:
                    raise MalformedExposition(f"more than {PAGE_BYTES} bytes")
                page += await response.content.read(PAGE_BYTES)
            return page

    def _tell(self, reachability: Reachability, problem: str) -> None:
        if bool(problem) != bool(self._problem):
            name = self._target.endpoint.id
            if problem:
                log.warning("scrape failed", endpoint=name, problem=problem)
            else:
                log.info("scrape works again", endpoint=name)
        self._problem = problem
        observation = Observation(self._last, reachability, problem)
        self._on_observation(self._target.endpoint.id, observation)
