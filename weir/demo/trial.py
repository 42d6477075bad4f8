"""One trial: one workload at one rate through one policy, from cold prefix caches.

The first `WARM_UP` requests warm the caches and are not counted. All policies get the same requests
at the same times, so trials of one workload can be compared request by request.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weir.demo import load, machine
from weir.demo.comparison import percentile
from weir.demo.fleet import Fleet
from weir.demo.workload import Request
from xds.pool import Tier

WARM_UP = 100


@dataclass(frozen=True, slots=True)
class Picks:
    """What Envoy's access log says of the endpoint picker's answers."""

    answered: int  # requests that carried a pick
    honoured: int  # of those, served where they were picked for

    def __add__(self, other: "Picks") -> "Picks":
        return Picks(self.answered + other.answered, self.honoured + other.honoured)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one policy made of one workload; times in seconds."""

    workload: str
    load: float  # share of round robin's capacity without reuse
    rate: float  # requests a second
    policy: Tier
    ttft: tuple[float, ...]  # in the order of the requests, warm-up left out
    seconds: tuple[float, ...]
    failures: tuple[str, ...]
    hit_rate: float  # prompt tokens found in the prefix caches
    picks: Picks
    machine_limit: str | None

    @property
    def p50(self) -> float:
        return percentile(self.ttft, 50)

    @property
    def p90(self) -> float:
        return percentile(self.ttft, 90)

    @property
    def p99(self) -> float:
        return percentile(self.ttft, 99)


async def run(  # noqa: PLR0913 - what a trial is
    fleet: Fleet,
    tier: Tier,
    requests: Sequence[Request],
    *,
    workload: str,
    share: float,
    rate: float,
    on_done: Callable[[load.Outcome], None],
) -> Trial:
    """Switch the pool to `tier`, empty the caches, send the requests, read what happened."""
    await fleet.use(tier)
    await fleet.forget_prefixes()
    before, queries, hits = machine.usage(), *await fleet.prefix_tokens()
    log_from = fleet.access_log.stat().st_size
    outcomes = await load.drive(fleet.client, fleet.url(), requests, on_done)
    busy = machine.usage().busy_share_since(before)
    queries_after, hits_after = await fleet.prefix_tokens()
    counted = outcomes[WARM_UP:]
    return Trial(
        workload,
        share,
        rate,
        tier,
        ttft=tuple(outcome.ttft for outcome in counted),
        seconds=tuple(outcome.seconds for outcome in counted),
        failures=tuple(o.failure for o in outcomes if o.failure is not None),
        hit_rate=(hits_after - hits) / max(1.0, queries_after - queries),
        picks=read_picks(fleet.access_log, log_from),
        machine_limit=machine.limit(busy, [outcome.late for outcome in counted]),
    )


def read_picks(path: Path, offset: int) -> Picks:
    """Compare `picked` with `served` in the access log's lines after byte `offset`."""
    answered = honoured = 0
    with path.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            entry = json.loads(line)
            picked = entry.get("picked")
            if picked:
                answered += 1
                honoured += entry.get("served") in picked.split(",")
    return Picks(answered, honoured)
