"""What we sent to one endpoint, and how far it should have got.

Between two scrapes every request would see the same loads and run to the same endpoint, and a
closed ext_proc stream shows neither the first token nor the end of what it sent. So a pick
reserves, with the times at which its prefill should begin and end and its last token should come,
as the cost model predicts them: prefills one after the other, in the order of the picks. A scrape
corrects what was predicted: what it should have seen by then is in its numbers, and no more of ours
can be queued than it saw waiting, plus what was sent since.

All four times ascend from pick to pick, so every question is a bisection.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import NamedTuple

ARRIVAL_SECONDS = 0.02  # between a pick and its request's arrival at the model server
EXPIRY_SECONDS = 60.0  # after the predicted end, without any scrape
DEFAULT_ADAPTERS = 4
NEVER = float("-inf")


class Own(NamedTuple):
    """Our part of an endpoint's load, as of now."""

    sent: int  # since the scrape
    finished: int  # since the scrape, of those sent before it
    waiting_then: int  # sent before the scrape, and not begun at it
    waiting: int  # their first token is still to come
    pending: float  # uncached prompt tokens of those


IDLE = Own(0, 0, 0, 0, 0.0)


class InFlight:
    """One endpoint's reservations, and the adapters that it was last sent."""

    __slots__ = ("_at", "_before", "_end", "_first", "_start", "_sum", "adapters")

    def __init__(self) -> None:
        self._at: list[float] = []  # when it was picked
        self._start: list[float] = []  # its prefill should begin
        self._first: list[float] = []  # its first token should come
        self._end: list[float] = []
        self._sum: list[float] = []  # uncached tokens of it and all before it
        self._before = 0.0  # the sum of those that are forgotten
        self.adapters: OrderedDict[str, None] = OrderedDict()

    def reserve(self, now: float, uncached: float, *, prefill: float, decode: float) -> None:
        """A request goes there; `prefill` and `decode` are seconds."""
        start = max(now, self._first[-1]) if self._first else now
        end = start + prefill + decode
        self._at.append(now)
        self._start.append(start)
        self._first.append(start + prefill)
        self._end.append(max(end, self._end[-1]) if self._end else end)
        self._sum.append(uncached + (self._sum[-1] if self._sum else self._before))
        self._forget(bisect_left(self._end, now - EXPIRY_SECONDS))

    def settle(self, scraped_at: float) -> None:
        """A scrape that began then has been read: what had ended before is of no account."""
        arrived = bisect_left(self._at, scraped_at - ARRIVAL_SECONDS)
        self._forget(min(arrived, bisect_left(self._end, scraped_at)))

    def own(self, now: float, scraped_at: float = NEVER) -> Own:
        """How things stand, given the last scrape."""
        total = len(self._at)
        if not total:
            return IDLE
        arrived = bisect_left(self._at, scraped_at - ARRIVAL_SECONDS)
        finished = min(bisect_right(self._end, now), arrived)
        finished_then = min(bisect_right(self._end, scraped_at), arrived)
        begun_then = min(bisect_right(self._start, scraped_at), arrived)
        prefilled = bisect_right(self._first, now)
        before = self._sum[prefilled - 1] if prefilled else self._before
        pending = self._sum[-1] - before
        if prefilled < total and self._start[prefilled] < now:
            span = self._first[prefilled] - self._start[prefilled]
            done = (now - self._start[prefilled]) / span
            pending -= done * (self._sum[prefilled] - before)
        return Own(
            sent=total - arrived,
            finished=finished - finished_then,
            waiting_then=arrived - begun_then,
            waiting=total - prefilled,
            pending=pending,
        )

    def remember(self, adapter: str, slots: int | None) -> None:
        """It was sent this adapter; the last `slots` distinct ones are taken for loaded."""
        self.adapters[adapter] = None
        self.adapters.move_to_end(adapter)
        while len(self.adapters) > (slots or DEFAULT_ADAPTERS):
            self.adapters.popitem(last=False)

    def _forget(self, count: int) -> None:
        if count:
            self._before = self._sum[count - 1]
            for each in (self._at, self._start, self._first, self._end, self._sum):
                del each[:count]
