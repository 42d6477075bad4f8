"""How long one engine step takes.

A step computes a batch: chunks of prompts (prefill) and one token for every sequence that
decodes. Its time is linear in five quantities:

    seconds = a + b·prefill_tokens + c·decode_seqs + d·decode_context_tokens + e·attention_tokens

The form is the one that fits NVIDIA Dynamo's published step profile of an H200 (inter-token
latency within about a tenth); the defaults scale that fit to an 8B model in BF16 on an H100 by
memory bandwidth and precision. Nothing here has been checked against a real H100: ratios between
policies mean something, absolute seconds are an estimate.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """The coefficients of a step, in seconds; `speed` divides the whole."""

    a: float = 7.5e-3  # a step: the weights are read once
    b: float = 28e-6  # a prefilled token
    c: float = 40e-6  # a decoding sequence
    d: float = 4.3e-8  # a token of context that a decode reads
    e: float = 0.84e-9  # a prefilled token times a token that it attends to
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError(f"speed must be above 0, got {self.speed}")
        if not self.a > 0 or min(self.b, self.c, self.d, self.e) < 0:
            raise ValueError(f"a step takes time, and work takes none of it away: {self}")

    def step_seconds(
        self,
        prefill_tokens: int,
        decode_seqs: int,
        decode_context_tokens: int,
        attention_tokens: float,
    ) -> float:
        """Seconds of a step; `attention_tokens` sums, over chunks, tokens times mean context."""
        return (
            self.a
            + self.b * prefill_tokens
            + self.c * decode_seqs
            + self.d * decode_context_tokens
            + self.e * attention_tokens
        ) / self.speed
