"""What a model server counts, for its metrics page.

Fed after every step, as vLLM's loggers are: between steps the page shows what was true at the end
of the last one, so a request that arrives during a long step shows when that step is over.

vLLM counts a request when it finishes, its prompt at its first token, and no abort. The adapters on
the page are those of sequences that have shown a token; one that only waits is not among them.
"""

from bisect import bisect_left
from collections.abc import Sequence as Values

from weir.inference_sim.engine import Engine
from weir.inference_sim.sequence import Sequence

LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
           7680)  # fmt: skip
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5,
               10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
INTER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
               20, 40, 80)  # fmt: skip
LATENESS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
REMEMBERED_ADAPTER_SETS = 32  # vLLM's page keeps every set it ever showed; the newest matter


class Histogram:
    """Counts of values at or below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum", "version")

    def __init__(self, bounds: Values[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last is above every bound
        self.sum = 0.0
        self.version = 0  # changes with every observation

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.version += 1


def one_two_five(highest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, … up to `highest`: vLLM's bounds for numbers of tokens."""
    bounds: list[int] = []
    scale = 1
    while scale <= highest:
        bounds += [step * scale for step in (1, 2, 5) if step * scale <= highest]
        scale *= 10
    return tuple(bounds)


class Statistics:
    """One server's counters, gauges and histograms; the attributes are named as vLLM's series."""

    def __init__(self, max_model_len: int) -> None:
        lengths = one_two_five(max_model_len)
        self.num_requests_running = 0
        self.num_requests_waiting = 0
        self.waiting_deferred = 0
        self.kv_cache_usage_perc = 0.0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.num_preemptions = 0
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
        self.request_success = 0  # all of them end at their length
        self.admission_rejections = 0
        self.adapter_sets: dict[str, float] = {}  # comma-separated names → Unix time last seen
        self.time_to_first_token_seconds = Histogram(FIRST_TOKEN)
        self.inter_token_latency_seconds = Histogram(INTER_TOKEN)
        self.request_time_per_output_token_seconds = Histogram(INTER_TOKEN)
        self.e2e_request_latency_seconds = Histogram(LATENCY)
        self.request_queue_time_seconds = Histogram(LATENCY)
        self.request_inference_time_seconds = Histogram(LATENCY)
        self.request_prefill_time_seconds = Histogram(LATENCY)
        self.request_decode_time_seconds = Histogram(LATENCY)
        self.request_prompt_tokens = Histogram(lengths)
        self.request_generation_tokens = Histogram(lengths)
        self.request_max_num_generation_tokens = Histogram(lengths)
        self.request_params_max_tokens = Histogram(lengths)
        self.request_prefill_kv_computed_tokens = Histogram(lengths)
        self.request_params_n = Histogram((1, 2, 5, 10, 20))
        self.request_num_preemptions = Histogram((1, 2, 3, 4, 5, 10, 20))
        self.iteration_tokens_total = Histogram(tuple(2**n for n in (0, *range(3, 15))))
        self.step_lateness_seconds = Histogram(LATENESS)

    def stepped(self, engine: Engine, advanced: Values[Sequence], unix: float) -> None:
        """A step ended; these sequences gained a token. `unix` is the time of day."""
        self.settled(engine)
        prompts = 0
        gap, gaps = 0.0, 0  # most sequences waited for exactly the same step
        for sequence in advanced:
            now, previous = sequence.last_token_at, sequence.previous_token_at
            if previous is None:
                prompts += self._began(sequence)
            elif now is not None:
                if now - previous != gap:
                    self._gaps(gap, gaps)
                    gap, gaps = now - previous, 0
                gaps += 1
            if sequence.done:
                self._finished(sequence)
        self._gaps(gap, gaps)
        self.generation_tokens += len(advanced)
        self.iteration_tokens_total.observe(prompts + len(advanced))
        if engine.config.max_loras:
            self._adapters(",".join(sorted(engine.answering)), unix)

    def settled(self, engine: Engine) -> None:
        """Take the gauges over: after a step, and when there is nothing left to step for."""
        self.num_requests_running = engine.running
        self.num_requests_waiting = engine.waiting
        self.waiting_deferred = engine.deferred
        self.kv_cache_usage_perc = engine.blocks.usage
        self.prefix_cache_queries = engine.prefix_queries
        self.prefix_cache_hits = engine.prefix_hits
        self.num_preemptions = engine.preemptions

    def _gaps(self, seconds: float, times: int) -> None:
        if times:
            self.inter_token_latency_seconds.observe(seconds, times)

    def _began(self, sequence: Sequence) -> int:
        """Count a first token; tokens of its prompt."""
        prompt = sequence.request.prompt_tokens
        self.prompt_tokens += prompt
        self.prompt_tokens_cached += sequence.cached_tokens
        if sequence.first_token_at is not None:
            self.time_to_first_token_seconds.observe(
                sequence.first_token_at - sequence.submitted_at
            )
        return prompt

    def _finished(self, sequence: Sequence) -> None:
        begun, first, last = sequence.scheduled_at, sequence.first_token_at, sequence.last_token_at
        if begun is None or first is None or last is None:
            raise RuntimeError(f"{sequence.request.id!r} is finished, yet was never served")
        generated = sequence.generated
        self.request_success += 1
        self.e2e_request_latency_seconds.observe(last - sequence.submitted_at)
        self.request_queue_time_seconds.observe(max(0.0, begun - sequence.submitted_at))
        self.request_inference_time_seconds.observe(last - begun)
        self.request_prefill_time_seconds.observe(first - begun)
        self.request_decode_time_seconds.observe(last - first)
        if generated > 1:
            self.request_time_per_output_token_seconds.observe((last - first) / (generated - 1))
        self.request_prompt_tokens.observe(sequence.request.prompt_tokens)
        self.request_generation_tokens.observe(generated)
        self.request_max_num_generation_tokens.observe(generated)
        self.request_params_max_tokens.observe(sequence.request.output_tokens)
        self.request_params_n.observe(1)
        self.request_num_preemptions.observe(sequence.preemptions)
        computed = sequence.request.prompt_tokens - sequence.cached_tokens
        self.request_prefill_kv_computed_tokens.observe(computed)

    def _adapters(self, names: str, unix: float) -> None:
        self.adapter_sets.pop(names, None)  # the newest is the last
        self.adapter_sets[names] = unix
        while len(self.adapter_sets) > REMEMBERED_ADAPTER_SETS:
            del self.adapter_sets[next(iter(self.adapter_sets))]
