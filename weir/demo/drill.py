"""The failure drill: break each part under load, and count failed requests.

Every phase lasts a few seconds of steady load. Nothing here is allowed to fail a request: a dead
picker leaves affinity, a silent one costs `message_timeout`, a dead or silent control plane leaves
Envoy's last assignment and the picker's last state.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from weir.demo import load, workload
from weir.demo.comparison import percentile
from weir.demo.fleet import Fleet

PHASE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of the drill and what it came to."""

    name: str
    requests: int
    failures: tuple[str, ...]
    ttft_p50: float
    ttft_p99: float


def script(fleet: Fleet) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """What is done at the beginning of each phase."""

    async def nothing() -> None: ...

    async def kill(name: str) -> None:
        await fleet.children[name].kill()

    async def pause(name: str) -> None:
        fleet.children[name].pause()

    async def resume(name: str) -> None:
        fleet.children[name].resume()

    async def start_picker() -> None:
        await fleet.start_picker()

    async def start_serve() -> None:
        await fleet.start_serve()

    return [
        ("all well", nothing),
        ("picker killed", lambda: kill("picker")),
        ("picker restarted", start_picker),
        ("picker paused (SIGSTOP)", lambda: pause("picker")),
        ("picker resumed", lambda: resume("picker")),
        ("control plane killed", lambda: kill("serve")),
        ("control plane restarted", start_serve),
        ("control plane paused (SIGSTOP)", lambda: pause("serve")),
        ("control plane resumed", lambda: resume("serve")),
    ]


async def drill(
    fleet: Fleet, *, rate: float, seed: int, on_phase: Callable[[str], None]
) -> list[Phase]:
    """Run the script under one load; a request belongs to the phase it was sent in."""
    steps = script(fleet)
    count = math.ceil(rate * PHASE_SECONDS * len(steps))
    requests = workload.generate(workload.SHARED_PREFIXES, rate=rate, count=count, seed=seed)
    driving = asyncio.create_task(load.drive(fleet.client, fleet.url(), requests))
    try:
        for name, act in steps:
            on_phase(name)
            await act()
            await asyncio.sleep(PHASE_SECONDS)
        outcomes = await driving
    finally:
        driving.cancel()
    buckets: list[list[load.Outcome]] = [[] for _ in steps]
    for request, outcome in zip(requests, outcomes, strict=True):
        buckets[min(int(request.at / PHASE_SECONDS), len(steps) - 1)].append(outcome)
    return [_phase(name, bucket) for (name, _), bucket in zip(steps, buckets, strict=True)]


def _phase(name: str, outcomes: list[load.Outcome]) -> Phase:
    ttfts = [outcome.ttft for outcome in outcomes if outcome.failure is None]
    return Phase(
        name,
        len(outcomes),
        tuple(outcome.failure for outcome in outcomes if outcome.failure is not None),
        percentile(ttfts, 50),
        percentile(ttfts, 99),
    )
