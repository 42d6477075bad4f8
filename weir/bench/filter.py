"""`weir bench filter`: what the digest filter costs Envoy.

Two stacks over the same servers, one with the filter and one without, neither asking a picker; the
same traffic goes to one and then to the other, five times, and the median of the ratios counts.
"""

import statistics
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from weir.bench import manifests
from weir.bench.load import Traffic, drive
from weir.bench.picker import servers, session
from weir.stack import stack

PAIRS = 5
RATE = 250.0
REQUESTS = 1000
BARS = {800: 0.20, 16_000: 0.40}  # characters → share of Envoy's CPU without the filter


@dataclass(frozen=True, slots=True)
class Cost:
    """Envoy's ms of CPU a request without and with the filter, a pair of runs each."""

    prompt: int
    pairs: tuple[tuple[float, float], ...]
    bad: int  # answers that failed or differ

    @property
    def added(self) -> float:
        """Median share that the filter adds."""
        return statistics.median(after / before - 1 for before, after in self.pairs)

    @property
    def bar(self) -> float:
        return BARS[self.prompt]

    @property
    def met(self) -> bool:
        return self.added <= self.bar and not self.bad


async def measure(directory: Path, say: Callable[[str], None]) -> list[Cost]:
    """One `Cost` a prompt size."""
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(session())
        endpoints = await parts.enter_async_context(servers(directory))
        stacks = []
        for filters in ("none", "digest"):
            home = directory / filters
            manifests.write(home / "config", endpoints)
            made = stack(home, client, "--filters", filters, picker=False)
            stacks.append(await parts.enter_async_context(made))
        costs = []
        for prompt in BARS:
            pairs, bad = [], 0
            for number in range(PAIRS):
                say(f"{prompt} characters, pair {number + 1} of {PAIRS}")
                spent = []
                for each in stacks:
                    envoy = each.children["envoy"]
                    before = envoy.cpu_seconds()
                    traffic = Traffic(requests=REQUESTS, prompt=prompt, rate=RATE)
                    tally = await drive(client, each.url(), traffic)
                    spent.append((envoy.cpu_seconds() - before) / REQUESTS * 1e3)
                    bad += tally.failed + tally.wrong
                pairs.append((spent[0], spent[1]))
            costs.append(Cost(prompt, tuple(pairs), bad))
        return costs
