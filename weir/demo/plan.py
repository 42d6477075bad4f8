"""What the demo runs: which workloads, over which servers, at which loads, held to which bars."""

import math
import random
from dataclasses import dataclass

from weir.demo import workload
from weir.demo.comparison import Bar
from weir.demo.workload import Shape
from weir.inference_sim import sequence, virtual
from weir.inference_sim.engine import Engine, EngineConfig
from weir.inference_sim.timing import Timing
from xds.pool import Tier

LOADS = (0.60, 0.85)  # shares of round robin's capacity without reuse
BLOCKS = 1200  # of 16 tokens: a server holds a good third of the shared prefixes
EQUAL = (0.6,) * 12  # of the timing model's speed
UNEQUAL = (0.84,) * 6 + (0.36,) * 6
ALL = (Tier.ROUND_ROBIN, Tier.LEAST_REQUEST, Tier.WEIGHTS, Tier.AFFINITY, Tier.PICK)


@dataclass(frozen=True, slots=True)
class Stage:
    """One workload over one set of servers."""

    name: str
    shape: Shape
    speeds: tuple[float, ...]
    bars: tuple[Bar, ...]


def bar(name: str, policy: Tier, baseline: Tier, *, at_most: float, at_least: float = 0.0) -> Bar:
    return Bar(name, policy.value, baseline.value, at_most, at_least)


WEIGHTS_LIKE_ROUND_ROBIN = bar(
    "weights only ÷ round robin", Tier.WEIGHTS, Tier.ROUND_ROBIN, at_most=1.15
)
REUSE_BARS = (
    bar("affinity ÷ weights only", Tier.AFFINITY, Tier.WEIGHTS, at_most=0.5),
    bar("picker ÷ affinity", Tier.PICK, Tier.AFFINITY, at_most=1.1),
    bar("picker ÷ round robin", Tier.PICK, Tier.ROUND_ROBIN, at_most=0.5),
)
NO_REUSE_BARS = (
    bar("picker ÷ least request", Tier.PICK, Tier.LEAST_REQUEST, at_most=1.15),
    bar("affinity ÷ least request", Tier.AFFINITY, Tier.LEAST_REQUEST, at_most=math.inf),
)
WEIGHTS_ON_UNEQUAL = bar("weights only ÷ round robin", Tier.WEIGHTS, Tier.ROUND_ROBIN, at_most=1.0)

QUICK = (
    Stage(
        "shared prefixes",
        workload.SHARED_PREFIXES,
        EQUAL,
        (*REUSE_BARS, WEIGHTS_LIKE_ROUND_ROBIN),
    ),
    Stage("no reuse", workload.NO_REUSE, EQUAL, (*NO_REUSE_BARS, WEIGHTS_LIKE_ROUND_ROBIN)),
)
FULL = (
    *QUICK,
    Stage("adapters", workload.ADAPTERS, EQUAL, ()),
    Stage("bursts", workload.BURSTS, EQUAL, ()),
    Stage("shared prefixes", workload.SHARED_PREFIXES, UNEQUAL, (WEIGHTS_ON_UNEQUAL,)),
    Stage("no reuse", workload.NO_REUSE, UNEQUAL, (WEIGHTS_ON_UNEQUAL,)),
    Stage("adapters", workload.ADAPTERS, UNEQUAL, ()),
    Stage("bursts", workload.BURSTS, UNEQUAL, ()),
)


def capacity(seed: int) -> float:
    """Requests a second that the equal servers complete under round robin without any reuse.

    Simulated: the servers' own engines in virtual time, never out of work.
    """
    shape = workload.NO_REUSE
    tokens = shape.prefix_words + shape.question_words

    def engines() -> list[Engine]:
        return [Engine(EngineConfig(Timing(speed=speed), blocks=BLOCKS)) for speed in EQUAL]

    def sample(_: random.Random, number: int) -> sequence.Request:
        return sequence.Request(f"{number}", tokens, shape.output_tokens)

    return virtual.capacity(engines, sample, random.Random(seed), requests=100)
