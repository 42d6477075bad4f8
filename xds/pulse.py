"""Whether this process stood still: stopped, or starved of CPU. Pure.

What it knows and what it meant to do is then of before, and others may have taken over. It goes on
a while later, when what happened has come in.
"""

STILL_SECONDS = 1.0  # half of what others wait for an answer (`xds.peers`)
CATCH_UP_SECONDS = 2.0
BEAT_SECONDS = 0.25


class Pulse:
    """To be felt more often than every `STILL_SECONDS`; `now` is a clock that never stops."""

    def __init__(self, now: float) -> None:
        self._felt = now
        self._well_from = now

    def feel(self, now: float) -> bool:
        """Whether all is well now, and was for a while."""
        if now - self._felt > STILL_SECONDS:
            self._well_from = now + CATCH_UP_SECONDS
        self._felt = now
        return now >= self._well_from
