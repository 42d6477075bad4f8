"""Requests through the shape, and load in the background whose failures are counted."""

import asyncio
import itertools
import math
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from integration.mesh.pods import SERVED

KEY = "x-test-key"
UNANSWERED = "no answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `status` is the error where nothing did."""

    status: int | str
    served: str = ""  # by which Pod
    body: bytes = b""


@dataclass(slots=True)
class Load:
    """Requests that were sent, who served them, and failures by status."""

    sent: int = 0
    served: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)

    def add(self, answer):
        self.sent += 1
        if answer.status == 200:
            self.served[answer.served] += 1
        else:
            self.failures[answer.status] += 1


def follows(served, weights, sigmas=5.0):
    """Did who served follow the weights, as far as chance lets it?

    Keys are thrown like dice, and a maglev table is uneven by half a per cent or so.
    """
    count, total = served.total(), sum(weights.values())
    for name, weight in weights.items():
        share = weight / total
        slack = sigmas * math.sqrt(count * share * (1 - share)) + 0.01 * count
        if abs(served[name] - count * share) > slack:
            return False
    return served.keys() <= weights.keys()


class Traffic:
    """A client at `url`, on connections that it keeps or on new ones.

    A key is what affinity comes from: it is the prompt, and in `key_header` for filters that take
    it from there. Every request without a key of the test's has one of its own.
    """

    def __init__(self, url, key_header=KEY):
        self.url = url
        self._key_header = key_header
        self._keys = itertools.count()
        self._kept = self._new = None

    @asynccontextmanager
    async def running(self):
        new = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession() as self._kept,
            aiohttp.ClientSession(connector=new) as self._new,
        ):
            yield self

    async def request(
        self, *, key=None, kept=True, headers=None, method="POST", path=None, patience=30, **body
    ):
        """One request; `json` or `data` is its body. Who waits `patience` seconds gives up."""
        key = f"key-{next(self._keys)}" if key is None else key
        session = self._kept if kept else self._new
        url = f"{self.url}{path or '/v1/completions'}"
        if not body and method == "POST":
            body = {"json": {"model": "m", "prompt": key}}
        headers = {self._key_header: key, **(headers or {})}
        try:
            timeout = aiohttp.ClientTimeout(total=patience)
            async with session.request(
                method, url, headers=headers, timeout=timeout, **body
            ) as response:
                content = await response.read()
                return Answer(response.status, response.headers.get(SERVED, ""), content)
        except TimeoutError:
            return Answer(UNANSWERED)
        except aiohttp.ClientError as error:
            return Answer(repr(error))

    async def served(self, count, *, at_once=4, **options):
        """Who served `count` requests; all must be answered with 200."""
        load = Load()
        await self.send(load, count, at_once=at_once, **{"kept": True, **options})
        assert load.failures == {}, load.failures
        return load.served

    async def send(self, load, count, *, at_once=4, **options):
        """`count` requests more in a load; every other one on a new connection unless told."""

        async def some(share):
            for number in range(share):
                load.add(await self.request(**{"kept": number % 2 == 0, **options}))

        lots = [count // at_once + (n < count % at_once) for n in range(at_once)]
        await asyncio.gather(*map(some, lots))

    @asynccontextmanager
    async def under_load(self, rate=50, **options):
        """A `Load` all the while, every other request on a new connection."""
        load, tasks, stop = Load(), [], asyncio.Event()

        async def one(kept):
            load.add(await self.request(**{"kept": kept, **options}))

        async def drive():
            loop = asyncio.get_running_loop()
            began = loop.time()
            while not stop.is_set():
                tasks.append(asyncio.create_task(one(len(tasks) % 2 == 0)))
                await asyncio.sleep(began + len(tasks) / rate - loop.time())
            await asyncio.gather(*tasks)

        driving = asyncio.create_task(drive())
        try:
            yield load
        finally:
            stop.set()
            await driving
