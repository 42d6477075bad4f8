"""A model server's metrics page → `Load`.

Only the dozen series that matter are looked at: pages have thousands of lines and come several
times a second from every server, and a full parse of one takes milliseconds. One regular expression
an engine finds the wanted samples in one pass. It begins with the end of the line before, which the
matcher looks for at the speed of memory; with `^` it would try every byte. Labels are read only
where somebody asks for them.

Engines name things differently; the names are those that the endpoint picker protocol's reference
knows (gateway-api-inference-extension, model server protocol, proposal 003), vLLM's first. Where a
server runs several engines (data parallel, `engine="0"`, `engine="1"`, …), requests, blocks and
tokens add up and cache usage is the mean.

The text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from msgspec.structs import replace

from xds.pool import Load

ANSWER_WEIGHT = 0.02  # of one answer in the mean length


class MalformedExposition(ValueError):
    """The page has none of the samples that the engine's pages have."""


class Sample(NamedTuple):
    """One line: what stands between its braces, and its value."""

    between: bytes
    value: float

    @property
    def labels(self) -> Mapping[str, str]:
        return _labels(self.between)


@dataclass(frozen=True, slots=True)
class Names:
    """What an engine calls what we want; several names are the newest first. "" has none."""

    waiting: tuple[str, ...]
    running: tuple[str, ...]
    usage: tuple[str, ...]  # 0 to 1
    adapters: str = ""  # a timestamp as value; labels max_lora and running/waiting_lora_adapters
    config: str = ""  # labels block_label and blocks_label
    block_label: str = "block_size"
    blocks_label: str = "num_gpu_blocks"
    block_size: str = ""  # gauges, where config is no label
    blocks: str = ""
    hits: str = ""  # counters of tokens
    queries: str = ""
    decode_gap: str = ""  # histogram: seconds between tokens
    answer: str = ""  # histogram: tokens of an answer
    where: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # name → labels it needs

    @property
    def all(self) -> Iterable[str]:
        """Every sample name, none twice."""
        histograms = (name for name in (self.decode_gap, self.answer) if name)
        means = (f"{name}_{part}" for name in histograms for part in ("sum", "count"))
        single = (self.adapters, self.config, self.block_size, self.blocks)
        counters = (self.hits, self.queries)
        names = (*self.waiting, *self.running, *self.usage, *single, *counters, *means)
        return dict.fromkeys(name.partition("{")[0] for name in names if name)


# A name with {label="value"} is a series of that label alone.
ENGINES: dict[str, Names] = {
    "vllm": Names(
        waiting=("vllm:num_requests_waiting",),
        running=("vllm:num_requests_running",),
        usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        adapters="vllm:lora_requests_info",
        config="vllm:cache_config_info",
        hits="vllm:prefix_cache_hits_total",
        queries="vllm:prefix_cache_queries_total",
        decode_gap="vllm:inter_token_latency_seconds",
        answer="vllm:request_generation_tokens",
    ),
    "sglang": Names(
        waiting=("sglang:num_queue_reqs",),
        running=("sglang:num_running_reqs",),
        usage=("sglang:token_usage",),
        config="sglang:cache_config_info",
        block_label="page_size",
        blocks_label="num_pages",
        decode_gap="sglang:inter_token_latency_seconds",
    ),
    "trtllm-serve": Names(
        waiting=("trtllm_num_requests_waiting",),
        running=("trtllm_num_requests_running",),
        usage=("trtllm_kv_cache_utilization",),
        block_size="trtllm_kv_cache_tokens_per_block",
        blocks="trtllm_kv_cache_max_blocks",
    ),
    "triton-tensorrt-llm": Names(
        waiting=('nv_trt_llm_request_metrics{request_type="waiting"}',),
        running=('nv_trt_llm_request_metrics{request_type="scheduled"}',),
        usage=('nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}',),
        block_size='nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per"}',
        blocks='nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max"}',
    ),
    "triton": Names(waiting=("nv_inference_pending_request_count",), running=(), usage=()),
}

# All quantifiers but the last are possessive: what no line of a page is must not cost more.
_BETWEEN = rb'\{([^"}\n]*+(?:"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"[^"}\n]*+)*+)\}'
_SAMPLE = rb"(?=[ \t{])[ \t]*+(?:" + _BETWEEN + rb")?[ \t]*+([^\s{]+)"
_LABEL = re.compile(rb'([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def _patterns(names: Names) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A wanted sample at the very beginning, and after the end of a line."""
    wanted = b"(" + b"|".join(re.escape(name.encode()) for name in names.all) + b")"
    return re.compile(wanted + _SAMPLE), re.compile(rb"\n" + wanted + _SAMPLE)


_PATTERNS = {engine: _patterns(names) for engine, names in ENGINES.items()}


def read(page: bytes, engine: str, *, at: float) -> Load:
    """The load on a page that was asked for at `at`. Raises `MalformedExposition`.

    What the page does not have, or has as NaN, infinite or negative, is `None`.
    """
    names = ENGINES[engine]
    found = samples(page, engine)
    if not found:
        raise MalformedExposition(
            f"none of {', '.join(names.waiting + names.running)} in {len(page)} bytes of metrics; "
            f"is this {engine}? (annotation weir.dev/engine says which)"
        )
    block_size, blocks = _blocks(found, names)
    running_adapters, max_adapters = _adapters(found.get(names.adapters, []))
    usage = _first(found, names.usage)
    return Load(
        at=at,
        waiting=_count(_first(found, names.waiting)),
        running=_count(_first(found, names.running)),
        kv_cache_usage=min(sum(usage) / len(usage), 1.0) if usage else None,
        adapters=running_adapters,
        max_adapters=max_adapters,
        block_size=block_size,
        blocks=blocks,
        prefix_queries=_total(_values(found, names.queries)),
        prefix_hits=_total(_values(found, names.hits)),
        decode_gap_sum=_total(_values(found, f"{names.decode_gap}_sum")),
        decode_gap_count=_total(_values(found, f"{names.decode_gap}_count")),
        answer_sum=_total(_values(found, f"{names.answer}_sum")),
        answer_count=_total(_values(found, f"{names.answer}_count")),
    )


def since(load: Load, before: Load | None) -> Load:
    """`load` with what only two pages tell: mean time between tokens, mean length of an answer."""
    if before is None:
        return load
    gaps = _grown(load.decode_gap_count, before.decode_gap_count)
    seconds = _grown(load.decode_gap_sum, before.decode_gap_sum)
    answers = _grown(load.answer_count, before.answer_count)
    tokens = _grown(load.answer_sum, before.answer_sum)
    step, length = before.decode_step_seconds, before.output_tokens
    if gaps and seconds is not None:
        step = seconds / gaps
    if answers and tokens is not None:
        mean = tokens / answers
        known = mean if length is None else length
        length = mean + (known - mean) * (1 - ANSWER_WEIGHT) ** answers
    return replace(load, decode_step_seconds=step, output_tokens=length)


def samples(page: bytes, engine: str) -> dict[str, list[Sample]]:
    """The engine's wanted samples by name, in the order of the page."""
    first, later = _PATTERNS[engine]
    lines = later.findall(page)
    if match := first.match(page):
        lines.insert(0, match.groups(b""))
    found: dict[str, list[Sample]] = defaultdict(list)
    for name, between, text in lines:
        try:
            value = float(text)
        except ValueError:
            continue
        found[name.decode()].append(Sample(between, value))
    return found


@lru_cache(maxsize=4096)  # every page of a server repeats its configuration
def _labels(between: bytes) -> Mapping[str, str]:
    return {name.decode(): _unescape(text) for name, text in _LABEL.findall(between)}


def _unescape(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text)


def _values(found: Mapping[str, list[Sample]], name: str) -> list[float]:
    """The values of a series that are counts of something."""
    bare, _, label = name.partition("{")
    series = found.get(bare)
    if series is None:
        return []
    if label:
        key, _, value = label.rstrip("}").partition("=")
        series = [each for each in series if each.labels.get(key) == value.strip('"')]
    return [each.value for each in series if 0 <= each.value < math.inf]


def _first(found: Mapping[str, list[Sample]], names: Iterable[str]) -> list[float]:
    return next((values for name in names if (values := _values(found, name))), [])


def _count(values: list[float]) -> int | None:
    return round(sum(values)) if values else None


def _total(values: list[float]) -> float | None:
    return sum(values) if values else None


def _grown(now: float | None, before: float | None) -> float | None:
    """None where a counter went back: the server started anew."""
    return None if now is None or before is None or now < before else now - before


def _blocks(found: Mapping[str, list[Sample]], names: Names) -> tuple[int | None, int | None]:
    """Tokens a KV block, and blocks of all engines."""
    configs = [sample.labels for sample in found.get(names.config, ())]
    sizes = [size for labels in configs if (size := _whole(labels.get(names.block_label)))]
    blocks = [count for labels in configs if (count := _whole(labels.get(names.blocks_label)))]
    sizes += [round(value) for value in _values(found, names.block_size) if value >= 1]
    blocks += [round(value) for value in _values(found, names.blocks) if value >= 1]
    return (sizes[0] if sizes else None), (sum(blocks) if blocks else None)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _adapters(series: list[Sample]) -> tuple[frozenset[str], int | None]:
    """Adapters with a request running or waiting; old series linger, the newest has the say."""
    newest = max(series, key=lambda sample: sample.value, default=None)
    if newest is None:
        return frozenset(), None
    lists = [newest.labels.get(f"{state}_lora_adapters", "") for state in ("running", "waiting")]
    names = (name.strip() for text in lists for name in text.split(","))
    return frozenset(name for name in names if name), _whole(newest.labels.get("max_lora"))
