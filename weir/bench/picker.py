"""`weir bench picker`: CPU a request of the picker, through Envoy, in every mode.

Each mode is a stack of its own: ten servers that answer at once, Envoy, `weir serve`, and either
our picker or, beside it, a bare ext_proc server that does nothing (`weir.bench.bare`). CPU is the
kernel's, of each process, over the requests.
"""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from weir.bench import manifests
from weir.bench.load import Tally, Traffic, drive
from weir.ports import common
from weir.processes import Child, running, start
from weir.stack import Stack

SERVERS = 10
BARE_FACTOR = 1.5
MODES = ("digests", "full-duplex", "buffered", "buffered-partial")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of traffic, and the bar for our picker's CPU, in ms a request, by mode."""

    name: str
    traffic: Traffic
    bars: dict[str, float]


SCENARIOS = (
    Scenario(
        "32 in flight, 800 characters",
        Traffic(requests=5000, prompt=800),
        {"digests": 0.8, "full-duplex": 1.1},
    ),
    Scenario(
        "40 a second, 100 chunks each",
        Traffic(requests=240, prompt=800, chunks=100, gap_ms=10, rate=40),
        {"digests": 2.0, "full-duplex": 2.5},
    ),
    Scenario(
        "40 a second, 400 kB prompts",
        Traffic(requests=160, prompt=400_000, chunks=5, gap_ms=10, rate=40),
        {"digests": 3.0},
    ),
)
COMPARED_ONLY = Scenario("bytes compared, 32 in flight", Traffic(requests=600, prompt=800), {})


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario in one mode: ms of CPU a request, and what came back."""

    scenario: str
    mode: str
    picker_ms: float
    bare_ms: float | None
    envoy_ms: float
    bar_ms: float | None
    tally: Tally

    @property
    def met(self) -> bool:
        """Under the bar, or under 1.5 times a bare server of the same run."""
        if self.tally.wrong or self.tally.failed:
            return False
        if self.bar_ms is None:
            return True
        bare = self.bare_ms
        return self.picker_ms <= self.bar_ms or (
            bare is not None and self.picker_ms <= BARE_FACTOR * bare
        )


@asynccontextmanager
async def servers(directory: Path, *, count: int = SERVERS) -> AsyncIterator[list[str]]:
    """Backends that answer at once, on one port of as many addresses."""
    addresses = [f"127.0.2.{number + 1}" for number in range(count)]
    port = common(addresses)
    endpoints = [f"{address}:{port}" for address in addresses]
    command = python("weir.bench.backend", *endpoints)
    async with running("bench backend", command, directory / "backend.log") as child:
        await child.until_logged("listening")
        yield endpoints


async def measure(directory: Path, say: Callable[[str], None]) -> list[Row]:
    """Every scenario in every mode."""
    rows: list[Row] = []
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(session())
        bench = _Bench(client, await parts.enter_async_context(servers(directory)), say)
        for mode in MODES:
            barred = [each for each in SCENARIOS if mode in each.bars]
            wanted = barred or [COMPARED_ONLY]
            ours = await bench.run(directory / mode, mode, wanted)
            bare = await bench.run(directory / f"{mode}-bare", mode, barred, bare=True)
            for number, scenario in enumerate(wanted):
                picker, envoy, tally = ours[number]
                beside = bare[number][0] if barred else None
                bar = scenario.bars.get(mode)
                rows.append(Row(scenario.name, mode, picker, beside, envoy, bar, tally))
    return rows


@dataclass(frozen=True, slots=True)
class _Bench:
    client: aiohttp.ClientSession
    endpoints: list[str]
    say: Callable[[str], None]

    async def run(
        self, directory: Path, mode: str, scenarios: list[Scenario], *, bare: bool = False
    ) -> list[tuple[float, float, Tally]]:
        """ms of the picker's CPU and of Envoy's a request, for each scenario, in a new stack."""
        if not scenarios:
            return []
        manifests.write(directory / "config", self.endpoints)
        stack = Stack(directory=directory, client=self.client, options=("--body-mode", mode))
        results = []
        try:
            if bare:
                address = f"127.0.0.1:{stack.picker_port}"
                command = python("weir.bench.bare", address, *self.endpoints)
                stack.children["picker"] = await start("bare", command, directory / "picker.log")
                await stack.children["picker"].until_logged("listening")
            await stack.start(picker=not bare)
            picker, envoy = stack.children["picker"], stack.children["envoy"]
            await drive(self.client, stack.url(), Traffic(requests=200, prompt=800))
            for scenario in scenarios:
                self.say(f"{mode}, {'bare server' if bare else 'weir picker'}: {scenario.name}")
                before = picker.cpu_seconds(), envoy.cpu_seconds()
                tally = await drive(self.client, stack.url(), scenario.traffic)
                count = scenario.traffic.requests
                spent = _ms(picker, before[0], count), _ms(envoy, before[1], count)
                results.append((*spent, tally))
        finally:
            await stack.stop()
        return results


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
    )


def python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our modules."""
    return [sys.executable, "-m", module, *arguments]


def _ms(child: Child, before: float, requests: int) -> float:
    return (child.cpu_seconds() - before) / requests * 1e3
