"""An engine in real time: the clock of its steps, and what each request is told of them.

Steps follow an absolute schedule: while there is work, a step begins where the one before it was
due to end, not when the event loop got round to it. So lateness of the machine delays what a
client sees by that much, once, and does not add up into a slower engine. It is measured at every
step. After a pause of the whole process (`RESTART_AFTER_SECONDS`) the schedule starts afresh.
"""

import asyncio
import time
from collections import deque
from typing import NoReturn

from weir.inference_sim.engine import Engine
from weir.inference_sim.sequence import Request, Sequence
from weir.inference_sim.statistics import Statistics

RESTART_AFTER_SECONDS = 1.0


class Progress:
    """What one request is told: after how many tokens there is something to send."""

    __slots__ = ("_marks", "_told", "_waiter", "sequence", "stride")

    def __init__(self, sequence: Sequence, stride: int) -> None:
        self.sequence = sequence
        self.stride = stride  # tokens between two marks; the first and the last token always are
        self._marks: deque[int] = deque()
        self._told = 0
        self._waiter: asyncio.Future[None] | None = None

    def advance(self) -> None:
        """The sequence gained a token."""
        generated = self.sequence.generated
        if generated == 1 or self.sequence.done or generated - self._told >= self.stride:
            self._told = generated
            self._marks.append(generated)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    async def next(self) -> list[int]:
        """The marks reached since the last call, at least one."""
        if not self._marks:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        marks = list(self._marks)
        self._marks.clear()
        return marks


class Driver:
    """Drives one engine by the event loop's clock; `run` is its only task."""

    def __init__(self, engine: Engine, statistics: Statistics) -> None:
        self.engine = engine
        self.statistics = statistics
        self._progress: dict[str, Progress] = {}
        self._work = asyncio.Event()

    def submit(self, request: Request, *, stride: int) -> Progress:
        """Hand a request to the engine; `RequestRefused` when it can never be served."""
        now = asyncio.get_running_loop().time()
        progress = Progress(self.engine.submit(request, now), stride)
        self._progress[request.id] = progress
        self._work.set()
        return progress

    def release(self, progress: Progress) -> None:
        """Nobody listens any more: what is not finished is aborted."""
        request_id = progress.sequence.request.id
        del self._progress[request_id]
        self.engine.abort(request_id)
        if not self.engine.busy:
            self.statistics.settled(self.engine)

    async def run(self) -> NoReturn:
        """Step for ever, sleeping while there is nothing to do."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            step = self.engine.schedule(begin)
            if step is None:
                self.statistics.settled(self.engine)
                self._work.clear()
                await self._work.wait()
                begin = loop.time()
                continue
            end = begin + step.seconds
            await asyncio.sleep(max(0.0, end - loop.time()))
            lateness = loop.time() - end
            self.statistics.step_lateness_seconds.observe(max(0.0, lateness))
            begin = end if lateness < RESTART_AFTER_SECONDS else end + lateness
            self._complete(begin)

    def _complete(self, now: float) -> None:
        advanced = self.engine.complete(now)
        self.statistics.stepped(self.engine, advanced, time.time())
        for sequence in advanced:
            self._progress[sequence.request.id].advance()
