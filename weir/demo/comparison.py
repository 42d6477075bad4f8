"""Percentiles, their bootstrap intervals, and the bars that the demo holds policies to.

Times to first token of neighbouring requests are correlated (they wait in the same queues), so the
bootstrap resamples blocks of consecutive requests (Künsch 1989), and both sides of a ratio draw the
same blocks, because both sides were sent the same requests at the same times.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

BLOCK = 20  # requests
RESAMPLES = 400


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of two percentiles with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A claim: `policy`'s percentile over `baseline`'s lies at or under `at_most`, and at or over
    `at_least`."""

    name: str
    policy: str
    baseline: str
    at_most: float
    at_least: float = 0.0

    def at(self, workload: str, load: float) -> "Bar":
        """The same claim, named after where it was put to the test."""
        return replace(self, name=f"{self.name}, {workload} at {load:.0%}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was measured. It fails only where the whole interval lies beyond the bar."""

    bar: Bar
    ratio: Interval

    @property
    def met(self) -> bool:
        return self.bar.at_least <= self.ratio.value <= self.bar.at_most

    @property
    def failed(self) -> bool:
        return self.ratio.low > self.bar.at_most or self.ratio.high < self.bar.at_least


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100), linearly interpolated; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio(
    policy: Sequence[float], baseline: Sequence[float], *, q: float, rng: random.Random
) -> Interval:
    """Percentile `q` of `policy` over that of `baseline`; the two are paired by position."""
    count = min(len(policy), len(baseline))
    starts = max(1, count - BLOCK + 1)
    draws = []
    for _ in range(RESAMPLES):
        heads = [rng.randrange(starts) for _ in range(-(-count // BLOCK))]
        chosen = [i for head in heads for i in range(head, min(head + BLOCK, count))]
        draws.append(
            percentile([policy[i] for i in chosen], q)
            / percentile([baseline[i] for i in chosen], q)
        )
    value = percentile(policy, q) / percentile(baseline, q)
    return Interval(value, percentile(draws, 2.5), percentile(draws, 97.5))
