"""How long to wait before something that failed is tried again. Pure."""

from dataclasses import dataclass
from random import Random

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 300.0


@dataclass(slots=True)
class Pause:
    """Twice as long as the last, with jitter."""

    attempts: int = 0
    until: float = 0.0

    def longer(self, now: float, rng: Random, longest: float = LONGEST_SECONDS) -> None:
        whole = min(longest, FIRST_SECONDS * 2.0 ** min(self.attempts, 20))
        self.attempts += 1
        self.until = now + whole * rng.uniform(0.5, 1.0)
