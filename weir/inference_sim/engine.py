"""One vLLM engine, without the model: which tokens are computed in which step.

The engine is driven, and has neither clock nor threads. Its driver alternates

    schedule(now) → a Step that takes so many seconds, or None when there is nothing to do
    complete(now) → the sequences that gained a token in that step

and may call `submit` and `abort` in between; what is submitted waits for the next step.

A sequence has `tokens` (prompt, and what was generated), of which `computed` have their keys and
values in the cache. A step computes some of the missing ones; a sequence that misses none gets one
new token. So prefill, chunked prefill, decode and recomputation are one rule. Each step has a
budget of `max_num_batched_tokens`:

1. Running sequences first, oldest first. One that needs a block when none is free preempts the
   newest: that one's blocks are released and it waits again, first in the queue, to be recomputed.
2. Unless something was preempted, the queue, first come first served. A sequence is admitted when
   all of its tokens would fit beside those running; it starts behind its longest cached prefix,
   which never covers its last token. Head-of-line blocking is meant: vLLM has it.
3. A sequence whose adapter finds every slot in use is passed over ("deferred"), others go on.
   Loading an adapter lengthens the step for everybody.

Blocks are found by others from the step that computes them, as in vLLM. The answer's blocks are
cached like the prompt's, so that the next turn of a conversation finds them.
"""

from collections import deque
from dataclasses import dataclass, field

from weir.inference_sim.adapters import AdapterSlots
from weir.inference_sim.blocks import BlockPool
from weir.inference_sim.sequence import Request, Sequence
from weir.inference_sim.timing import Timing

HEADROOM = 0.01  # of the blocks, kept free at admission for the decodes that run


class RequestRefused(ValueError):
    """The engine can never serve this request."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is; the names are vLLM's options."""

    timing: Timing = field(default_factory=Timing)
    blocks: int = 26_876  # num_gpu_blocks: 430,000 tokens and the null block
    block_size: int = 16  # tokens
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_loras: int = 0  # 0: adapters are off
    lora_load_seconds: float = 2.0

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): every sequence decodes in every step"
            )
        if self.max_loras < 0 or self.lora_load_seconds < 0:
            raise ValueError("max_loras and lora_load_seconds cannot be negative")

    @property
    def capacity_tokens(self) -> int:
        """What the cache holds."""
        return (self.blocks - 1) * self.block_size


@dataclass(frozen=True, slots=True)
class Step:
    """What is being computed; `seconds` includes the loading of adapters."""

    seconds: float
    prefill_tokens: int
    decode_seqs: int
    load_seconds: float


class _Plan:
    """A step in the making."""

    __slots__ = ("attention", "budget", "chunks", "context", "decodes", "loads", "prefill")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.chunks: list[tuple[Sequence, int]] = []
        self.prefill = self.decodes = self.context = self.loads = 0
        self.attention = 0.0

    def add(self, sequence: Sequence, count: int) -> None:
        self.chunks.append((sequence, count))
        self.budget -= count
        if count == 1 and sequence.generated and sequence.computed + 1 == sequence.tokens:
            self.decodes += 1
            self.context += sequence.tokens
        else:
            self.prefill += count
            self.attention += count * (sequence.computed + count / 2)


class Engine:
    """The scheduler and the cache of one model server."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = BlockPool(config.blocks)
        self.adapters = AdapterSlots(config.max_loras)
        self.preemptions = 0
        self.prefix_queries = 0  # tokens
        self.prefix_hits = 0
        self.deferred = 0  # of the waiting: passed over for want of an adapter slot
        self.answering: dict[str, int] = {}  # adapter → sequences that have shown a token
        self._size = config.block_size
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._sequences: dict[str, Sequence] = {}
        self._chunks: list[tuple[Sequence, int]] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> bool:
        """A step has been scheduled and not completed."""
        return self._chunks is not None

    def submit(self, request: Request, now: float) -> Sequence:
        """Queue a request; `RequestRefused` when it could never be served."""
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise RequestRefused("a request has at least one token of prompt and one of output")
        total = request.prompt_tokens + request.output_tokens
        if total > self.config.capacity_tokens:
            raise RequestRefused(
                f"the request needs {total} tokens, the cache holds {self.config.capacity_tokens}"
            )
        if request.adapter is not None and not self.config.max_loras:
            raise RequestRefused(f"adapter {request.adapter!r} asked for, but max_loras is 0")
        if request.id in self._sequences:
            raise RequestRefused(f"request {request.id!r} is already being served")
        sequence = Sequence(request, now)
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)
        return sequence

    def abort(self, request_id: str) -> bool:
        """Drop a request wherever it is; false when it is not there any more."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        sequence.done = True
        if sequence in self._running:
            self._running.remove(sequence)
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
            self.deferred -= sequence.deferred
        self._silence(sequence)
        return True

    def schedule(self, now: float) -> Step | None:
        """Begin the next step; the driver completes it `seconds` later."""
        if self._chunks is not None:
            raise RuntimeError("a step is under way: complete it before the next")
        plan = _Plan(self.config.max_num_batched_tokens)
        before = self.preemptions
        self._continue(plan)
        if self.preemptions == before and self._waiting:
            self._admit(plan, now)
        if not plan.chunks:
            return None
        self._chunks = plan.chunks
        loading = plan.loads * self.config.lora_load_seconds
        computing = self.config.timing.step_seconds(
            plan.prefill, plan.decodes, plan.context, plan.attention
        )
        return Step(computing + loading, plan.prefill, plan.decodes, loading)

    def complete(self, now: float) -> list[Sequence]:
        """End the step: every sequence that gained a token; some are finished."""
        if self._chunks is None:
            raise RuntimeError("no step is under way: schedule one first")
        chunks, self._chunks = self._chunks, None
        advanced: list[Sequence] = []
        ended = False
        for sequence, count in chunks:
            if sequence.done:  # aborted meanwhile
                continue
            sequence.computed += count
            if sequence.computed < sequence.tokens:
                continue
            sequence.tokens += 1
            sequence.generated += 1
            sequence.previous_token_at = sequence.last_token_at
            sequence.last_token_at = now
            if sequence.generated == 1:
                self._first_token(sequence, now)
            advanced.append(sequence)
            if sequence.generated >= sequence.request.output_tokens:
                sequence.done = ended = True
                del self._sequences[sequence.request.id]
                self._stop(sequence)
                self._silence(sequence)
        if ended:
            self._running = [sequence for sequence in self._running if not sequence.done]
        return advanced

    def reset_prefix_cache(self) -> bool:
        """Forget what is cached; refused while sequences run."""
        return self.blocks.reset()

    def _first_token(self, sequence: Sequence, now: float) -> None:
        sequence.first_token_at = now
        adapter = sequence.request.adapter
        if adapter is not None:
            self.answering[adapter] = self.answering.get(adapter, 0) + 1

    def _silence(self, sequence: Sequence) -> None:
        adapter = sequence.request.adapter
        if adapter is not None and sequence.generated:
            self.answering[adapter] -= 1
            if not self.answering[adapter]:
                del self.answering[adapter]

    def _continue(self, plan: _Plan) -> None:
        """Plan the sequences that run; whoever is preempted has not been planned yet."""
        index = 0
        while index < len(self._running) and plan.budget > 0:
            sequence = self._running[index]
            count = min(sequence.tokens - sequence.computed, plan.budget)
            # Only at the end of its last block is there a block to get or to register.
            if sequence.computed + count >= sequence.ceiling and not self._extend(sequence, count):
                return
            plan.add(sequence, count)
            index += 1

    def _extend(self, sequence: Sequence, count: int) -> bool:
        """Give it blocks for `count` more tokens; false when it was preempted itself."""
        lacking = -((sequence.ceiling - sequence.computed - count) // self._size)
        while lacking > self.blocks.free:
            newest = self._running.pop()
            self._preempt(newest)
            if newest is sequence:
                return False
        self._fill(sequence, count, lacking)
        return True

    def _fill(self, sequence: Sequence, count: int, lacking: int) -> None:
        if lacking > 0:
            sequence.blocks += self.blocks.allocate(lacking)
            sequence.ceiling = len(sequence.blocks) * self._size
        hashes = sequence.request.hashes
        full = min((sequence.computed + count) // self._size, len(hashes))
        for index in range(sequence.registered, full):
            self.blocks.register(sequence.blocks[index], hashes[index])
        sequence.registered = max(full, sequence.registered)

    def _admit(self, plan: _Plan, now: float) -> None:
        passed: list[Sequence] = []
        reserve = int(self.blocks.usable * HEADROOM)
        while self._waiting and plan.budget > 0 and len(self._running) < self.config.max_num_seqs:
            sequence = self._waiting[0]
            adapter = sequence.request.adapter
            if adapter is not None and not self.adapters.admits(adapter):
                passed.append(self._waiting.popleft())
                self.deferred += not sequence.deferred
                sequence.deferred = True
                continue
            found = self.blocks.match(sequence.request.hashes, (sequence.tokens - 1) // self._size)
            needed = -(-sequence.tokens // self._size) - len(found)
            needed += self.blocks.unreferenced(found)
            if needed > self.blocks.free - (reserve if self._running else 0):
                break
            self._waiting.popleft()
            self.deferred -= sequence.deferred
            sequence.deferred = False
            if adapter is not None:
                plan.loads += self.adapters.acquire(adapter)
            self._start(sequence, found, now)
            count = min(sequence.tokens - sequence.computed, plan.budget)
            lacking = -((sequence.ceiling - sequence.computed - count) // self._size)
            self._fill(sequence, count, lacking)
            plan.add(sequence, count)
        self._waiting.extendleft(reversed(passed))

    def _start(self, sequence: Sequence, found: list[int], now: float) -> None:
        self.blocks.share(found)
        sequence.blocks = found
        sequence.registered = len(found)
        sequence.computed = sequence.ceiling = len(found) * self._size
        if sequence.scheduled_at is None:  # vLLM counts a preempted sequence's lookup apart
            sequence.scheduled_at = now
            sequence.cached_tokens = sequence.computed
            self.prefix_queries += sequence.tokens
            self.prefix_hits += sequence.computed
        self._running.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(sequence)

    def _stop(self, sequence: Sequence) -> None:
        """Give back what a running sequence holds."""
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.ceiling = sequence.registered = 0
        if sequence.request.adapter is not None:
            self.adapters.release(sequence.request.adapter)
