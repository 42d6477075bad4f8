"""Counts of what an xDS server sent and heard, by type; totals since the start.

Kept as plain numbers, as they are touched for every message; `xds.report` shows them to Prometheus.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0)  # seconds


@dataclass(slots=True)
class Histogram:
    """Seconds, in `BUCKETS`; the last count is of what is beyond them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def __add__(self, other: "Histogram") -> "Histogram":
        counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        return Histogram(counts, self.sum + other.sum)


@dataclass(slots=True)
class TypeTraffic:
    """One resource type."""

    pushes: int = 0
    bytes: int = 0
    acks: int = 0
    nacks: int = 0
    convergence: Histogram = field(default_factory=Histogram)  # from publishing to the ACK


@dataclass(slots=True)
class Traffic:
    """The whole server."""

    types: dict[str, TypeTraffic] = field(default_factory=dict)
    out_of_scope: int = 0  # names asked for that belong to somebody else
    turned_away: Counter[str] = field(default_factory=Counter)  # streams, by gRPC status

    def of(self, type_url: str) -> TypeTraffic:
        found = self.types.get(type_url)
        if found is None:
            found = self.types[type_url] = TypeTraffic()
        return found

    @property
    def nacks(self) -> int:
        return sum(each.nacks for each in self.types.values())
