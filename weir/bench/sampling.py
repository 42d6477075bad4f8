"""Whose CPU time it is: the control plane's, by the parts of its slow line.

The kernel interrupts the process after so much CPU time (ITIMER_PROF, a tick at the finest). What
the main thread has used since the interruption before is booked to the innermost function on its
stack that some part owns, so that parts add up to what the thread has used. What passes before a
callback, in the event loop and in the kernel, goes with the callback; what nobody owns is mostly
timers, of scrapes that are due. The other threads are gRPC's, and push. Nothing of the program
under test is replaced.
"""

import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import FrameType
from typing import NamedTuple, Self

INTERVAL_SECONDS = 0.004
FETCH, PARSE, WEIGH, PUSH, WATCH, REST = "fetch", "parse", "weigh", "push", "watch", "rest"
PARTS = (FETCH, PARSE, WEIGH, PUSH, WATCH, REST)


class Function(NamedTuple):
    module: str
    name: str


# By function where a module has several parts.
FUNCTIONS = {
    Function("xds.app", "_weigh"): WEIGH,
    Function("xds.app", "_publish"): PUSH,
    Function("xds.app", "_reconfigure"): WATCH,
    Function("xds.plane", "configure"): WATCH,
    Function("xds.plane", "observe"): WEIGH,
    Function("xds.plane", "weigh"): WEIGH,
    Function("xds.plane", "take"): WEIGH,
}
# Else by the longest beginning of the module's name.
MODULES = {
    "xds.scraper": FETCH,
    "xds.http1": FETCH,
    "xds.hbone": FETCH,
    "xds.exposition": PARSE,
    "xds.weights": WEIGH,
    "xds.plane": PUSH,
    "xds.assignment": PUSH,
    "xds.istio.assignment": PUSH,
    "xds.wire": PUSH,
    "xds.standalone": PUSH,
    "xds.snapshot": PUSH,
    "xds.scoping": PUSH,
    "xds.roster": PUSH,
    "xds.streams": PUSH,
    "xds.session": PUSH,
    "xds.subscription": PUSH,
    "xds.discovery": PUSH,
    "xds.server": PUSH,
    "grpc": PUSH,
    "xds.trials": WATCH,
    "xds.registry": WATCH,
    "xds.manifests": WATCH,
    "xds.tuning": WATCH,
    "xds.sources": WATCH,
    "kubernetes": WATCH,
    "aiohttp": WATCH,
    "aiohttp.web": REST,  # who asks us for our own metrics
}


@cache
def owner(function: Function) -> str | None:
    """The part that a function belongs to; None where whoever calls it says."""
    if function in FUNCTIONS:
        return FUNCTIONS[function]
    found = [each for each in MODULES if function.module.startswith(each)]
    return MODULES[max(found, key=len)] if found else None


def part(stack: Iterable[Function]) -> str:
    """The part that is at work, of a stack with the innermost function first."""
    return next((found for each in stack if (found := owner(each)) is not None), REST)


class Sampler:
    """One a process, entered in its main thread."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._seen = time.thread_time()
        self._others = time.process_time() - self._seen

    def __enter__(self) -> Self:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def seconds(self) -> Mapping[str, float]:
        """CPU seconds so far, by part; together all that the process has used since it began."""
        others = time.process_time() - time.thread_time() - self._others
        found = {name: self._seconds[name] for name in PARTS}
        return found | {PUSH: found[PUSH] + others}

    def _sample(self, _: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        self._seconds[part(_stack(frame))] += now - self._seen
        self._seen = now


def _stack(frame: FrameType | None) -> Iterator[Function]:
    while frame is not None:
        yield Function(frame.f_globals.get("__name__", ""), frame.f_code.co_name)
        frame = frame.f_back
