"""The demo's run, from the first process to the last table.

One fleet a set of servers, all stages over it, and the drill at the end of the first. Progress goes
to the terminal (a live table of the endpoints while it is one, a line a trial where it is not).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from weir.demo import comparison, drill, load, machine, plan, report, trial, workload
from weir.demo.comparison import Verdict
from weir.demo.fleet import Fleet, Servers, fleet
from weir.demo.plan import ALL, LOADS, Stage
from weir.demo.trial import WARM_UP, Trial
from weir.demo.workload import Request
from xds.pool import Tier

DRILL_LOAD = 0.4
IDLE_REQUESTS = 40
REFRESH_SECONDS = 0.5


@dataclass(slots=True)
class Show:
    """One run of `weir demo`."""

    console: Console
    stages: Sequence[Stage]
    requests: int  # measured, a trial
    seed: int
    directory: Path
    _trials: list[Trial] = field(default_factory=list)
    _verdicts: list[Verdict] = field(default_factory=list)
    _phases: list[drill.Phase] = field(default_factory=list)
    _idle: dict[Tier, float] = field(default_factory=dict)
    _nacks: int = 0
    _line: str = ""

    async def run(self) -> report.Outcome:
        """Everything; raises `ProcessEndedEarlyError` where a part does not start."""
        self.console.print(f"machine: {machine.describe()}")
        capacity = plan.capacity(self.seed)
        self.console.print(
            f"round robin's capacity without reuse: {capacity:.0f} requests a second over "
            f"{len(plan.EQUAL)} servers (simulated to saturation); loads: "
            + ", ".join(f"{share:.0%} = {share * capacity:.0f}/s" for share in LOADS)
        )
        for number, (speeds, stages) in enumerate(groupby(self.stages, lambda s: s.speeds)):
            servers = Servers(
                speeds, plan.BLOCKS, adapters=workload.ADAPTERS.models, seed=self.seed
            )
            async with fleet(self.directory / f"fleet-{number}", servers) as parts:
                async with self._live(parts, servers):
                    await self._stages(parts, list(stages), capacity)
                    if number == 0:
                        await self._drill(parts, capacity)
                self._nacks += await nacks(parts)
        return report.Outcome(
            machine=machine.describe(),
            capacity=capacity,
            trials=tuple(self._trials),
            verdicts=tuple(self._verdicts),
            phases=tuple(self._phases),
            idle_added_seconds=self._idle[Tier.PICK] - self._idle[Tier.ROUND_ROBIN],
            nacks=self._nacks,
        )

    async def _stages(self, parts: Fleet, stages: Sequence[Stage], capacity: float) -> None:
        for tier in (Tier.ROUND_ROBIN, Tier.PICK):
            if tier not in self._idle:
                await parts.use(tier)
                self._idle[tier] = await idle_ttft(parts)
        for stage in stages:
            for share in LOADS:
                await self._compare(parts, stage, share, share * capacity)

    async def _compare(self, parts: Fleet, stage: Stage, share: float, rate: float) -> None:
        seed = self.seed + int(share * 1000)
        requests = workload.generate(
            stage.shape, rate=rate, count=self.requests + WARM_UP, seed=seed
        )
        results: dict[str, Trial] = {}
        for tier in ALL:
            title = f"{stage.name} at {share:.0%}, {report.LABELS[tier]}"
            result = await trial.run(
                parts,
                tier,
                requests,
                workload=stage.name,
                share=share,
                rate=rate,
                on_done=self._progress(title, len(requests)),
            )
            results[tier.value] = result
            self._trials.append(result)
            if not self.console.is_terminal:
                self.console.print(report.line(result), highlight=False)
        rng = random.Random(self.seed)
        for bar in stage.bars:
            ratio = comparison.ratio(
                results[bar.policy].ttft, results[bar.baseline].ttft, q=90, rng=rng
            )
            self._verdicts.append(Verdict(bar.at(stage.name, share), ratio))

    async def _drill(self, parts: Fleet, capacity: float) -> None:
        await parts.use(Tier.PICK)

        def on_phase(name: str) -> None:
            self._line = f"failure drill: {name}"

        self._phases = await drill.drill(
            parts, rate=DRILL_LOAD * capacity, seed=self.seed, on_phase=on_phase
        )

    def _progress(self, title: str, total: int) -> Callable[[load.Outcome], None]:
        done = 0

        def on_done(_: load.Outcome) -> None:
            nonlocal done
            done += 1
            self._line = f"{title}: {done} of {total} requests"

        return on_done

    @asynccontextmanager
    async def _live(self, parts: Fleet, servers: Servers) -> AsyncIterator[None]:
        title = f"{len(servers.speeds)} model servers (simulated), speeds " + ", ".join(
            f"{speed:g}" for speed in servers.speeds
        )

        async def refresh(live: Live) -> None:
            while True:
                try:
                    table = report.endpoints(await parts.status(), title)
                    live.update(Group(table, Text(self._line)), refresh=True)
                except (aiohttp.ClientError, TimeoutError):
                    live.update(Text(f"{self._line} (control plane away)"), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            refreshing = asyncio.create_task(refresh(live))
            try:
                yield
            finally:
                refreshing.cancel()


async def idle_ttft(parts: Fleet) -> float:
    """Median time to first token of short requests sent one after the other, in seconds."""
    clock = asyncio.get_running_loop().time
    request = Request(0.0, "ping " * 20, "base", 1)
    outcomes = [
        await load.send(parts.client, parts.url(), request, due=clock())
        for _ in range(IDLE_REQUESTS)
    ]
    return comparison.percentile([outcome.ttft for outcome in outcomes], 50)


async def nacks(parts: Fleet) -> int:
    """Configurations that Envoy refused since it started, and that any client refused lately."""
    status = await parts.status()
    refused: int = status["nacks"]
    return max(refused, await parts.rejected())
