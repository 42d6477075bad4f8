"""What a request would cost on an endpoint: the latency that it adds, to itself and to the others.

The form is that of an engine that prefills in chunks and decodes in batches; a step takes
a + b·prefill + c·sequences + d·context + e·prefill·context seconds. It came out ahead of
weighted sums of scores in a simulation study of nine workloads, and its weights hardly mattered;
neither does a coefficient that is off by a factor of four. The coefficients are those published for
an 8 B model on an H100; they are defaults, not measurements of the servers at hand.

The cost is in seconds and only compared between endpoints of one pool. See `endpoint_cost`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Seconds; see the module's formula for a to e."""

    a: float = 7.5e-3
    b: float = 28e-6
    c: float = 40e-6
    d: float = 4.3e-8
    e: float = 0.84e-9
    budget: float = 2048.0  # tokens a step
    adapter_load: float = 1.0
    convex: float = 1.0  # a second: weight of the square of the time to first token
    own_decode: float = 0.3
    imposed: float = 0.3
    memory: float = 0.3


@dataclass(frozen=True, slots=True)
class Work:
    """A request as work: tokens of prompt, and of output as far as one can expect."""

    prompt: float
    output: float


@dataclass(frozen=True, slots=True)
class Standing:
    """An endpoint as the request would find it."""

    decoding: float  # sequences
    waiting: float  # sequences
    pending: float  # uncached prompt tokens queued before it
    context: float  # mean tokens of a decoding sequence
    kv_usage: float  # 0 to 1
    kv_tokens: float  # capacity
    cached: float  # tokens of this prompt
    has_adapter: bool = True
    has_slot: bool = True
    speed: float = 1.0


def step_seconds(at: Standing, k: Coefficients) -> float:
    """A step without any prefill."""
    return k.a + k.c * at.decoding + k.d * at.decoding * at.context


def prefill_seconds(work: Work, at: Standing, k: Coefficients) -> float:
    """From arrival to the first token, behind what is pending there."""
    uncached = max(1.0, work.prompt - at.cached)
    base = step_seconds(at, k)
    a_token = k.b + base / max(1.0, k.budget - at.decoding)
    attention = k.e * uncached * (work.prompt - uncached / 2)
    return (at.pending + uncached) * a_token + base + attention


def endpoint_cost(work: Work, at: Standing, k: Coefficients) -> float:
    """Seconds of marginal latency.

    The sum of: the time to the first token, and its square (the tail counts for more than the
    mean); the request's own decoding; the delay it imposes on those that decode or wait there; the
    price of the memory it takes, rising as the cache fills; and an adapter's load if it has none.
    """
    uncached = max(1.0, work.prompt - at.cached)
    base = step_seconds(at, k)
    first = prefill_seconds(work, at, k)
    if not at.has_adapter:
        first += k.adapter_load * (0.5 if at.has_slot else 1.0)
    used = at.kv_usage * at.kv_tokens
    if (lacking := used + at.pending + uncached - at.kv_tokens) > 0:
        first += lacking / at.kv_tokens * work.output * base  # until so much has been freed
    own = work.output * (base + k.c + k.d * work.prompt)
    others = (at.decoding + at.waiting) * (
        uncached * k.b + work.output * (k.c + k.d * (work.prompt + work.output / 2))
    )
    # The price stops rising at half: near a full cache it would drown the time to the first token,
    # and follow the noise of usage that is 200 ms old.
    room = max(0.5, 1.0 - at.kv_usage)
    share = (uncached + work.output / 2) / at.kv_tokens
    memory = share * work.output * base * at.kv_usage / room
    return (
        first
        + k.convex * first * first
        + k.own_decode * own
        + k.imposed * others
        + k.memory * memory
    ) / at.speed
