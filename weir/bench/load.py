"""The benchmark's client: prompts of a given size, and every byte of every answer compared."""

import asyncio
import json
import random
from dataclasses import dataclass

import aiohttp

from weir.bench.backend import CHUNKS, GAP, expected

PREFIXES = 20


@dataclass(frozen=True, slots=True)
class Traffic:
    """`rate` is requests a second; without one, `in_flight` of them are under way at any time."""

    requests: int
    prompt: int  # characters
    chunks: int = 1
    gap_ms: float = 0.0
    rate: float | None = None
    in_flight: int = 32


@dataclass(slots=True)
class Tally:
    """What came back."""

    right: int = 0
    wrong: int = 0  # bytes differ from what the server sent
    failed: int = 0  # no answer, or not a 200
    seconds: float = 0.0


async def drive(client: aiohttp.ClientSession, url: str, traffic: Traffic) -> Tally:
    """Send the traffic; half of the prompts share one of twenty beginnings."""
    clock = asyncio.get_running_loop().time
    bodies = _bodies(traffic)
    headers = {
        "content-type": "application/json",
        CHUNKS: str(traffic.chunks),
        GAP: str(traffic.gap_ms),
    }
    answer = expected(traffic.chunks)
    tally, start = Tally(), clock()

    async def one(body: bytes) -> None:
        try:
            async with client.post(url, data=body, headers=headers) as response:
                data = await response.read()
        except (aiohttp.ClientError, TimeoutError):
            tally.failed += 1
            return
        if response.status != 200:
            tally.failed += 1
        elif data != answer:
            tally.wrong += 1
        else:
            tally.right += 1

    if traffic.rate is not None:
        async with asyncio.TaskGroup() as tasks:
            for number, body in enumerate(bodies):
                await asyncio.sleep(max(0.0, start + number / traffic.rate - clock()))
                tasks.create_task(one(body))
    else:
        waiting = iter(bodies)

        async def worker() -> None:
            for body in waiting:
                await one(body)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(traffic.in_flight):
                tasks.create_task(worker())
    tally.seconds = clock() - start
    return tally


def _bodies(traffic: Traffic) -> list[bytes]:
    """Messages first and the model last, as many clients send them."""
    rng = random.Random(traffic.requests)
    heads = [_words(rng, traffic.prompt * 3 // 4) for _ in range(PREFIXES)]
    tails = [_words(rng, traffic.prompt // 4) for _ in range(64)]

    def body(number: int) -> bytes:
        head, tail = heads[number % PREFIXES], tails[number % 64]
        # Every other prompt shares its beginning; the rest differ from the first word on.
        prompt = f"{head}{number} {tail}" if number % 2 else f"{number} {head}{tail}"
        messages = [{"role": "user", "content": prompt}]
        return json.dumps({"messages": messages, "model": "base", "stream": True}).encode()

    return [body(number) for number in range(traffic.requests)]


def _words(rng: random.Random, length: int) -> str:
    words = [rng.choice(("weir", "water", "pool", "level", "spill", "gate\n")) for _ in range(99)]
    text = " ".join(words)
    return (text * (length // len(text) + 1))[:length]
