"""What a busy vLLM server's metrics page says, second after second.

One simulated engine serves requests that arrive at random; its page is written down once a second
of its time. A thousand servers that each begin somewhere else in this history look like a thousand
servers, and cost whoever plays them nothing but sending bytes. At the end of the history a server
begins anew, as if it had been restarted.
"""

from collections.abc import Iterator
from random import Random

from weir.inference_sim import virtual
from weir.inference_sim.engine import Engine, EngineConfig
from weir.inference_sim.metrics import Page
from weir.inference_sim.sequence import Request, Sequence
from weir.inference_sim.statistics import Statistics
from weir.inference_sim.virtual import Arrival

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CONTEXT = 32_768  # tokens
REQUESTS_PER_SECOND = 8.0
PROMPT, ANSWER = 800, 250  # tokens; the mean


def history(seconds: int, seed: int = 1) -> list[bytes]:
    """The page at the end of each second."""
    config, statistics = EngineConfig(), Statistics(CONTEXT)
    engine = Engine(config)
    page = Page(MODEL, config, CONTEXT, created=0.0)
    pages: list[bytes] = []

    def seen(_: int, advanced: list[Sequence], now: float) -> None:
        while len(pages) < min(seconds, int(now)):
            pages.append(page.render(statistics))
        statistics.stepped(engine, advanced, now)

    arrivals = _arrivals(seconds + 1, Random(seed))
    virtual.run([engine], arrivals, lambda _, __, ___: 0, seen=seen)
    while len(pages) < seconds:
        pages.append(page.render(statistics))
    return pages


def _arrivals(seconds: int, rng: Random) -> Iterator[Arrival]:
    now, number = 0.0, 0
    while (now := now + rng.expovariate(REQUESTS_PER_SECOND)) < seconds:
        number += 1
        prompt, answer = (1 + int(rng.expovariate(1 / mean)) for mean in (PROMPT, ANSWER))
        yield Arrival(now, Request(f"r{number}", min(prompt, CONTEXT // 2), min(answer, 4096)))
