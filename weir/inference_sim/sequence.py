"""What is asked of an engine, and how far it has come, in tokens."""

from collections.abc import Sequence as Values
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an engine, in tokens.

    `hashes` are those of the full blocks of prompt and answer together, chained: the answer is
    known beforehand. Fewer are allowed; what has no hash is not cached.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    hashes: Values[int] = ()
    adapter: str | None = None


class Sequence:
    """A request on its way; written by its engine alone. Instants are the driver's `now`."""

    __slots__ = (
        "blocks",
        "cached_tokens",
        "ceiling",
        "computed",
        "deferred",
        "done",
        "first_token_at",
        "generated",
        "last_token_at",
        "preemptions",
        "previous_token_at",
        "registered",
        "request",
        "scheduled_at",
        "submitted_at",
        "tokens",
    )

    def __init__(self, request: Request, now: float) -> None:
        self.request = request
        self.tokens = request.prompt_tokens
        self.computed = 0
        self.generated = 0
        self.cached_tokens = 0  # of the prompt, found at the first admission
        self.preemptions = 0
        self.done = False  # finished or aborted
        self.deferred = False
        self.submitted_at = now
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.previous_token_at: float | None = None
        self.last_token_at: float | None = None
        self.blocks: list[int] = []
        self.ceiling = 0  # tokens that `blocks` hold
        self.registered = 0  # blocks whose hash is known to the pool

    @property
    def finished(self) -> bool:
        """All of its tokens were generated."""
        return self.generated >= self.request.output_tokens
