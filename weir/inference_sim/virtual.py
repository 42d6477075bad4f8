"""Engines in virtual time: a pool simulated as fast as the interpreter goes.

Two kinds of event, arrivals and ends of steps, in the order of time; an end before an arrival at
the same instant. `route` stands where a load balancer would: it is asked once for each arrival, and
may look at the engines as much or as little as the policy under study is allowed to know. `seen`
hears of every step's end, which is how a policy learns.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Values
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import TypeAlias

from weir.inference_sim.engine import Engine
from weir.inference_sim.sequence import Request, Sequence

Route: TypeAlias = Callable[[Request, Values[Engine], float], int]
Seen: TypeAlias = Callable[[int, list[Sequence], float], None]


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float  # seconds
    request: Request


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request. Times are seconds from its arrival."""

    id: str
    engine: int
    arrived: float
    queued: float
    ttft: float
    e2e: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int

    @property
    def tpot(self) -> float:
        """Mean seconds between tokens; 0 for an answer of one token."""
        return (self.e2e - self.ttft) / max(1, self.output_tokens - 1)


def run(
    engines: Values[Engine], arrivals: Iterable[Arrival], route: Route, *, seen: Seen | None = None
) -> list[Result]:
    """Serve every arrival to its end; results in the order of finishing."""
    ends: list[tuple[float, int]] = []
    results: list[Result] = []

    def begin(index: int, now: float) -> None:
        step = engines[index].schedule(now)
        if step is not None:
            heappush(ends, (now + step.seconds, index))

    def finish_until(instant: float) -> None:
        while ends and ends[0][0] <= instant:
            now, index = heappop(ends)
            advanced = engines[index].complete(now)
            results.extend(_result(each, index) for each in advanced if each.done)
            if seen is not None:
                seen(index, advanced, now)
            begin(index, now)

    for arrival in sorted(arrivals, key=lambda arrival: arrival.at):
        finish_until(arrival.at)
        index = route(arrival.request, engines, arrival.at)
        engines[index].submit(arrival.request, arrival.at)
        if not engines[index].busy:
            begin(index, arrival.at)
    finish_until(float("inf"))
    return results


def _result(sequence: Sequence, engine: int) -> Result:
    request, arrived = sequence.request, sequence.submitted_at
    scheduled, first, last = sequence.scheduled_at, sequence.first_token_at, sequence.last_token_at
    if scheduled is None or first is None or last is None:
        raise RuntimeError(f"request {request.id!r} is finished, yet was never served")
    return Result(
        id=request.id,
        engine=engine,
        arrived=arrived,
        queued=scheduled - arrived,
        ttft=first - arrived,
        e2e=last - arrived,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=sequence.cached_tokens,
        output_tokens=request.output_tokens,
        preemptions=sequence.preemptions,
    )


def capacity(
    engines: Callable[[], Values[Engine]],
    sample: Callable[[Random, int], Request],
    rng: Random,
    *,
    requests: int = 400,
) -> float:
    """Requests a second that a pool completes when it never runs out of work.

    `engines()` makes the pool, `sample(rng, n)` its nth request; round robin deals each engine
    `requests` of them. Equal engines saturate at this rate; of unequal ones the slowest saturates
    earlier, at its own `rate`.
    """
    pool = list(engines())
    dealt: list[list[Request]] = [[] for _ in pool]
    for number in range(requests * len(pool)):
        dealt[number % len(pool)].append(sample(rng, number))
    return sum(rate(engine, mine) for engine, mine in zip(pool, dealt, strict=True))


def rate(engine: Engine, requests: Values[Request]) -> float:
    """Requests a second of one engine that has all of them from the start.

    Measured between a quarter and three quarters of the work in tokens, so that neither the filling
    of the batch nor its emptying counts.
    """
    for request in requests:
        engine.submit(request, 0.0)
    total = sum(request.output_tokens for request in requests)
    made, now, began = 0, 0.0, 0.0
    made_then = 0
    while made < 0.75 * total:
        step = engine.schedule(now)
        if step is None:
            raise RuntimeError("the engine stopped with work left")
        now += step.seconds
        made += len(engine.complete(now))
        if made < 0.25 * total:
            began, made_then = now, made
    return (made - made_then) / (now - began) * len(requests) / total
