"""What the control plane costs: a thousand Pods in fifty pools, each asked once a second.

`weir serve --kubernetes` runs as an operator would run it. Beside it one process plays the cluster,
API server and model servers (`weir.bench.cluster`), and one the clients: a proxy for each pool's
cluster, as istiod names it, and a picker that takes everything (`control_plane_clients`).

CPU and memory are the kernel's, of the plain program. Whose CPU it is comes from a second run, of
the same program under a sampler (`control_plane_server`); that run is left out of all else.
"""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from weir.bench import objects
from weir.bench.apiserver import kubeconfig
from weir.bench.helper import Helper, helping
from weir.bench.picker import python, session
from weir.bench.sampling import PARSE, PARTS, PUSH, WEIGH
from weir.ports import free
from weir.processes import Child, running, weir
from xds.istio.assignment import pool_cluster

DOMAIN = "cluster.local"
START_BAR_SECONDS, CPU_BAR_CORES, WORK_BAR_MS, MEMORY_BAR_MIB = 5.0, 0.7, 0.2, 300.0
# llm-d router ebab687, idle, 100 endpoints with a like page at 1 s, on a like machine: 0.27 core.
PEER, PEER_CORES_A_POD = "llm-d router, elsewhere", 0.0027


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is, and how long it is looked at."""

    pods: int = 1_000
    pools: int = 50
    interval: str = "1s"  # of scrapes
    starts: int = 3
    settle_seconds: float = 30.0  # Weir writes the status of pools meanwhile, slowly
    window_seconds: float = 20.0
    windows: int = 3
    replaced_a_second: int = 10


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in a while, a second."""

    cores: float
    scrapes: float
    assignments: float  # responses to proxies
    loads: float  # PoolLoads to the picker
    replaced: float  # Pods


@dataclass(frozen=True, slots=True)
class Shares:
    """Cores by part, and the scrapes a second that they were for."""

    cores: Mapping[str, float]
    scrapes: float

    @property
    def total(self) -> float:
        return sum(self.cores.values())

    def ms_a_scrape(self, *parts: str) -> float:
        return sum(self.cores[each] for each in parts) / self.scrapes * 1e3


@dataclass(frozen=True, slots=True)
class Row:
    """One part's, of a sampled run."""

    name: str
    cores: float
    share: float  # of the whole
    ms_a_scrape: float
    replacing: float  # cores while Pods are replaced


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must not be above."""

    name: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


@dataclass(slots=True)
class Figures:
    """A run's."""

    size: Size
    starts: list[float] = field(default_factory=list)  # seconds
    steady: list[Window] = field(default_factory=list)
    replacing: list[Window] = field(default_factory=list)
    memory_mib: float = 0.0  # the most that was resident
    shares: dict[str, Shares] = field(default_factory=dict)  # steady, replacing

    @property
    def cores(self) -> float:
        return statistics.median(each.cores for each in self.steady)

    @property
    def parts(self) -> list[Row]:
        steady, replacing = self.shares["steady"], self.shares["replacing"]
        return [
            Row(
                part,
                cores,
                cores / steady.total,
                steady.ms_a_scrape(part),
                replacing.cores[part],
            )
            for part, cores in steady.cores.items()
        ]

    @property
    def bars(self) -> list[Bar]:
        work = self.shares["steady"].ms_a_scrape(PARSE, WEIGH, PUSH)
        return [
            Bar("start to the first complete snapshot, s", max(self.starts), START_BAR_SECONDS),
            Bar("steady CPU, cores", self.cores, CPU_BAR_CORES),
            Bar("parse, weigh and push, ms a scrape", work, WORK_BAR_MS),
            Bar("memory, MiB", self.memory_mib, MEMORY_BAR_MIB),
        ]


def notes(figures: Figures) -> list[str]:
    """What the bars are made of, and what else was seen."""
    steady, replacing = figures.steady, figures.replacing
    starts = f"starts, s: {_each(figures.starts)}"
    cpu = (
        f"CPU, cores, by window: {_each(each.cores for each in steady)}; while "
        f"{_mean(replacing, 'replaced'):.1f} Pods a second are replaced: "
        f"{_each(each.cores for each in replacing)}"
    )
    rates = (
        f"a second: {_mean(steady, 'scrapes'):.0f} scrapes, "
        f"{_mean(steady, 'assignments'):.1f} assignments to proxies, "
        f"{_mean(steady, 'loads'):.0f} PoolLoads to the picker"
    )
    peer = (
        f"{PEER}: {PEER_CORES_A_POD * figures.size.pods:.2f} core, by its 0.27 for 100 Pods at 1s"
    )
    return [starts, cpu, rates, peer]


def _each(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _mean(windows: Iterable[Window], name: str) -> float:
    return statistics.fmean(getattr(each, name) for each in windows)


def measure(size: Size) -> Callable[[Path, Callable[[str], None]], Any]:
    """A run of this size; about five minutes of the usual one."""

    async def run(directory: Path, say: Callable[[str], None]) -> Figures:
        figures = Figures(size)
        async with session() as client, _cluster(directory, size) as cluster:
            bench = _Bench(directory, client, cluster, size, say)
            for number in range(size.starts - 1):
                say(f"start {number + 1}")
                async with bench.serving(weir("serve")) as (_, seconds):
                    figures.starts.append(seconds)
            await bench.plain(figures)
            await bench.sampled(figures)
        return figures

    return run


@asynccontextmanager
async def _cluster(directory: Path, size: Size) -> AsyncIterator[Helper]:
    command = python("weir.bench.cluster", str(size.pods), str(size.pools), size.interval)
    async with helping(command, directory / "cluster.log") as cluster:
        kubeconfig(directory / "kubeconfig", (await cluster.answer())["url"])
        yield cluster


class _Bench:
    def __init__(
        self,
        directory: Path,
        client: aiohttp.ClientSession,
        cluster: Helper,
        size: Size,
        say: Callable[[str], None],
    ) -> None:
        self._directory, self._client, self._cluster = directory, client, cluster
        self._size, self._say = size, say
        self._xds, self._status = free(), free()

    async def plain(self, figures: Figures) -> None:
        """The program as it is: CPU, memory, and one more start."""
        size = self._size
        async with self.serving(weir("serve")) as (child, seconds), self._clients() as clients:
            figures.starts.append(seconds)
            await self._settle(clients)
            for number in range(size.windows):
                self._say(f"steady, window {number + 1}")
                figures.steady.append(await self._window(child, clients))
            async with self._replacing():
                for number in range(size.windows):
                    self._say(f"{size.replaced_a_second} Pods a second replaced, {number + 1}")
                    figures.replacing.append(await self._window(child, clients))
            figures.memory_mib = _peak_mib(child)

    async def sampled(self, figures: Figures) -> None:
        """The same under the sampler, for shares."""
        told = self._directory / "shares.json"
        command = python("weir.bench.control_plane_server", str(told))
        async with self.serving(command) as (child, _), self._clients() as clients:
            await self._settle(clients)
            self._say("steady, sampled")
            figures.shares["steady"] = await self._shares(child, clients, told)
            async with self._replacing():
                self._say("replacing, sampled")
                figures.shares["replacing"] = await self._shares(child, clients, told)

    @asynccontextmanager
    async def serving(self, command: list[str]) -> AsyncIterator[tuple[Child, float]]:
        """`weir serve`, and how long it took to serve everything that the cluster has."""
        options = (
            *("--kubernetes", "--kubeconfig", self._directory / "kubeconfig", "--plaintext"),
            *("--istio-domain", DOMAIN),
            *("--listen", f"127.0.0.1:{self._xds}", "--status", f"127.0.0.1:{self._status}"),
        )
        begun = time.monotonic()
        log = self._directory / "serve.log"
        async with running("weir serve", [*command, *map(str, options)], log) as child:
            await child.until(self._is_ready, what="it was ready")
            seconds = time.monotonic() - begun
            known = [
                each
                for pool in (await self._ask("status"))["pools"].values()
                for each in pool["endpoints"]
                if each["weight"] is not None
            ]
            if len(known) != self._size.pods:
                raise RuntimeError(f"ready with {len(known)} endpoints of {self._size.pods}")
            yield child, seconds

    async def _is_ready(self) -> bool:
        try:
            async with self._client.get(f"http://127.0.0.1:{self._status}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def _ask(self, path: str) -> Any:
        async with self._client.get(f"http://127.0.0.1:{self._status}/{path}") as answer:
            return await answer.json()

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[Helper]:
        names = [
            pool_cluster(objects.NAMESPACE, objects.called(number), DOMAIN).name
            for number in range(self._size.pools)
        ]
        command = python("weir.bench.control_plane_clients", str(self._xds), *names)
        async with helping(command, self._directory / "clients.log") as clients:
            yield clients

    async def _settle(self, clients: Helper) -> None:
        self._say("settling")
        await asyncio.sleep(self._size.settle_seconds)
        came = await clients.ask("count")
        if came["pools"] != self._size.pools or came["assignments"] < self._size.pools:
            raise RuntimeError(f"the clients were not served: {came}")

    async def _window(self, child: Child, clients: Helper) -> Window:
        before, cpu, begun = await self._counts(clients), child.cpu_seconds(), time.monotonic()
        await asyncio.sleep(self._size.window_seconds)
        spent, seconds = child.cpu_seconds() - cpu, time.monotonic() - begun
        after = await self._counts(clients)
        grown = {name: (after[name] - before[name]) / seconds for name in after}
        return Window(
            spent / seconds,
            grown["scrapes"],
            grown["assignments"],
            grown["loads"],
            grown["replaced"],
        )

    async def _counts(self, clients: Helper) -> dict[str, int]:
        return {**await self._cluster.ask("count"), **await clients.ask("count")}

    async def _shares(self, child: Child, clients: Helper, told: Path) -> Shares:
        """Of as much time as all windows are."""
        before, begun = await self._counts(clients), time.monotonic()
        used = await _told(child, told)
        await asyncio.sleep(self._size.window_seconds * self._size.windows)
        after, seconds = await self._counts(clients), time.monotonic() - begun
        now = await _told(child, told)
        return Shares(
            {part: (now[part] - used[part]) / seconds for part in PARTS},
            (after["scrapes"] - before["scrapes"]) / seconds,
        )

    @asynccontextmanager
    async def _replacing(self) -> AsyncIterator[None]:
        await self._cluster.ask(f"replace {self._size.replaced_a_second}")
        try:
            await asyncio.sleep(self._size.settle_seconds / 6)
            yield
        finally:
            await self._cluster.ask("replace 0")


async def _told(child: Child, file: Path) -> dict[str, float]:
    """What the sampler says now."""
    before = _written(file)
    os.kill(child.pid, signal.SIGUSR1)

    async def said() -> bool:
        return _written(file) != before

    await child.until(said, what="it told of its parts")
    return msgspec.json.decode(_written(file), type=dict[str, float])


def _written(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _peak_mib(child: Child) -> float:
    """The most that was resident of a process so far (Linux: VmHWM in /proc/PID/status)."""
    for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmHWM in /proc/{child.pid}/status")
