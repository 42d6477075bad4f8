"""The demo's workloads: seeded, published, the same requests for every policy.

A workload is a list of `Request`s with arrival times from zero, open loop: a request is sent when
its time has come, whether or not earlier ones were answered. One word of the text is four bytes,
three letters and a space, and `weir inference-sim` counts four bytes a token, so lengths below are
in words and in tokens alike.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Request:
    """One POST to /v1/completions."""

    at: float  # seconds after the run's start
    prompt: str
    model: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What the requests of a workload look like."""

    prefixes: int = 0  # how many shared prefixes; 0 is none
    zipf: float = 0.8  # their skew: the k-th most popular has weight k^-zipf
    prefix_words: int = 1536
    question_words: int = 192
    output_tokens: int = 16
    models: tuple[str, ...] = ("base",)
    model_zipf: float = 1.0
    burst: float = 1.0  # the rate in a burst over the mean rate; 1 is Poisson throughout


SHARED_PREFIXES = Shape(prefixes=24)
NO_REUSE = Shape(prefixes=0)
ADAPTERS = Shape(models=tuple(f"adapter-{n}" for n in range(16)), prefix_words=256)
BURSTS = Shape(prefixes=24, burst=2.5)

SHAPES: dict[str, Shape] = {
    "shared prefixes": SHARED_PREFIXES,
    "no reuse": NO_REUSE,
    "adapters": ADAPTERS,
    "bursts": BURSTS,
}

Clock: TypeAlias = Callable[[], float]


def generate(shape: Shape, *, rate: float, count: int, seed: int) -> list[Request]:
    """`count` requests at `rate` a second on average."""
    rng = random.Random(seed)
    times = arrivals(rate, count, shape.burst, rng)
    prefixes = [_text(shape.prefix_words, rng) for _ in range(shape.prefixes)]
    popularity = _zipf(len(prefixes), shape.zipf)
    taste = _zipf(len(shape.models), shape.model_zipf)
    requests = []
    for at in times:
        prefix = (
            rng.choices(prefixes, cum_weights=popularity)[0]
            if prefixes
            else _text(shape.prefix_words, rng)
        )
        (model,) = rng.choices(shape.models, cum_weights=taste)
        question = _text(shape.question_words, rng)
        requests.append(Request(at, prefix + question, model, shape.output_tokens))
    return requests


def arrivals(rate: float, count: int, burst: float, rng: random.Random) -> list[float]:
    """Poisson arrivals; with `burst` above 1, a two-state process: quiet for 1 s on average, then
    a burst of 0.4 s at `burst` times the mean rate, the quiet rate such that the mean holds."""
    if burst <= 1:
        return list(accumulate(rng.expovariate(rate) for _ in range(count)))
    quiet_seconds, burst_seconds = 1.0, 0.4
    share = burst_seconds / (quiet_seconds + burst_seconds)
    quiet = max(0.05, (1 - share * burst) / (1 - share))
    times: list[float] = []
    now, bursting = 0.0, False
    while len(times) < count:
        end = now + rng.expovariate(1 / (burst_seconds if bursting else quiet_seconds))
        while len(times) < count:
            now += rng.expovariate(rate * (burst if bursting else quiet))
            if now > end:
                break
            times.append(now)
        now, bursting = end, not bursting
    return times


def _zipf(count: int, exponent: float) -> Sequence[float]:
    return list(accumulate(rank**-exponent for rank in range(1, count + 1)))


def _text(words: int, rng: random.Random) -> str:
    letters = rng.choices(LETTERS, k=3 * words)
    return "".join(f"{letters[i]}{letters[i + 1]}{letters[i + 2]} " for i in range(0, 3 * words, 3))
