"""The open-loop client: sends every request when its time has come and times the answer.

A request counts as failed unless it was answered 200, every chunk came, and the stream ended with
`[DONE]`. Time to first token runs from the moment the request was due, so that a client that falls
behind shows up as latency instead of hiding it (coordinated omission).
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from weir.demo.workload import Request

DONE = b"data: [DONE]\n\n"
TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; times in seconds from when it was due."""

    ttft: float
    seconds: float
    late: float  # how late the client itself was in sending it
    failure: str | None = None


def session() -> aiohttp.ClientSession:
    """A client without a connection limit, for one run after another."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=False), timeout=TIMEOUT
    )


async def drive(
    client: aiohttp.ClientSession,
    url: str,
    requests: Sequence[Request],
    on_done: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Send all of `requests`; outcomes in their order."""
    clock = asyncio.get_running_loop().time
    start = clock()
    outcomes: list[Outcome | None] = [None] * len(requests)

    async def one(index: int, request: Request) -> None:
        outcome = await send(client, url, request, due=start + request.at)
        outcomes[index] = outcome
        on_done(outcome)

    async with asyncio.TaskGroup() as tasks:
        for index, request in enumerate(requests):
            if (wait := start + request.at - clock()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(index, request))
    return [outcome for outcome in outcomes if outcome is not None]


async def send(client: aiohttp.ClientSession, url: str, request: Request, *, due: float) -> Outcome:
    """One streamed completion."""
    clock = asyncio.get_running_loop().time
    late = clock() - due
    body = json.dumps(
        {
            "model": request.model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "stream": True,
        }
    ).encode()
    first = float("nan")
    try:
        async with client.post(
            url, data=body, headers={"content-type": "application/json"}
        ) as response:
            tail = b""
            async for chunk in response.content.iter_any():
                if first != first:  # noqa: PLR0124 - not a number yet: this is the first chunk
                    first = clock()
                tail = (tail + chunk)[-len(DONE) :]
            failure = _failure(response.status, tail)
    except (aiohttp.ClientError, TimeoutError) as error:
        failure = f"{type(error).__name__}: {error}"
    end = clock()
    return Outcome(first - due, end - due, late, failure)


def _failure(status: int, tail: bytes) -> str | None:
    if status != 200:
        return f"HTTP {status}"
    if tail != DONE:
        return "the stream ended before [DONE]"
    return None
