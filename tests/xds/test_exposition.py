import contextlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from xds import exposition
from xds.exposition import ENGINES, MalformedExposition
from xds.pool import Load

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 3.0
vllm:num_requests_waiting{engine="0",model_name="base"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="base"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="base"} 400.0
vllm:prefix_cache_hits_created{engine="0",model_name="base"} 1.7e+09
vllm:inter_token_latency_seconds_sum{engine="0",model_name="base"} 2.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="base"} 100.0
vllm:request_generation_tokens_sum{engine="0",model_name="base"} 640.0
vllm:request_generation_tokens_count{engine="0",model_name="base"} 40.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="1200",engine="0"} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 1.7e9
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.6e9
"""


def read(text, engine="vllm"):
    return exposition.read(text.encode(), engine, at=5.0)


def test_a_page_of_vllm():
    assert read(VLLM) == Load(
        at=5.0,
        waiting=2,
        running=3,
        kv_cache_usage=0.25,
        adapters=frozenset({"a", "b", "c"}),
        max_adapters=4,
        block_size=16,
        blocks=1200,
        prefix_queries=1000.0,
        prefix_hits=400.0,
        decode_gap_sum=2.0,
        decode_gap_count=100.0,
        answer_sum=640.0,
        answer_count=40.0,
    )


@pytest.mark.parametrize(
    ("engine", "page"),
    [
        ("sglang", "sglang:num_queue_reqs 2\nsglang:num_running_reqs 3\nsglang:token_usage 0.25\n"),
        (
            "trtllm-serve",
            (
                "trtllm_num_requests_waiting 2\ntrtllm_num_requests_running 3\n"
                "trtllm_kv_cache_utilization 0.25\n"
            ),
        ),
        (
            "triton-tensorrt-llm",
            (
                'nv_trt_llm_request_metrics{model="m",request_type="waiting"} 2\n'
                'nv_trt_llm_request_metrics{model="m",request_type="scheduled"} 3\n'
                'nv_trt_llm_request_metrics{model="m",request_type="max"} 9\n'
                'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"} 0.25\n'
            ),
        ),
    ],
)
def test_other_engines_say_the_same_in_their_own_words(engine, page):
    load = read(page, engine)
    assert (load.waiting, load.running, load.kv_cache_usage) == (2, 3, 0.25)


def test_blocks_and_sizes_come_as_labels_or_as_gauges():
    page = 'sglang:num_queue_reqs 0\nsglang:cache_config_info{page_size="64",num_pages="10"} 1\n'
    assert (read(page, "sglang").block_size, read(page, "sglang").blocks) == (64, 10)
    page = (
        "trtllm_num_requests_waiting 0\n"
        "trtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 7\n"
    )
    assert (read(page, "trtllm-serve").block_size, read(page, "trtllm-serve").blocks) == (32, 7)


def test_engines_of_one_server_add_up_and_their_cache_usage_is_the_mean():
    second = VLLM.replace('engine="0"', 'engine="1"').replace("perc{", "perc {").replace("25", "75")
    load = read(VLLM + second)
    assert (load.waiting, load.running, load.kv_cache_usage) == (4, 6, 0.5)
    assert load.blocks == 2400


def test_the_older_name_counts_where_the_newer_is_missing():
    assert read("vllm:gpu_cache_usage_perc 0.5\n").kv_cache_usage == 0.5


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "x", ""])
def test_a_value_that_says_nothing_is_unknown_and_not_zero(value):
    page = f"vllm:num_requests_waiting {value}\nvllm:num_requests_running 1\n"
    assert read(page).waiting is None
    assert read(page).running == 1


@pytest.mark.parametrize("page", [b"", b"<html>404</html>", b"\xff\xfe\x00", b"vllm:other 1\n"])
def test_a_page_without_any_known_series_is_refused(page):
    with pytest.raises(MalformedExposition, match="vllm:num_requests_waiting"):
        exposition.read(page, "vllm", at=0.0)


def test_labels_may_hold_braces_quotes_and_newlines():
    page = (
        'vllm:lora_requests_info{max_lora="2",running_lora_adapters="a}{,b\\"c",'
        'waiting_lora_adapters="d\\\\n"} 1\n'
    )
    assert read(page).adapters == {"a}{", 'b"c', "d\\n"}


def test_labels_that_a_page_repeats_are_read_once():
    pages = (f'vllm:num_requests_running{{engine="7"}} {number}\n' for number in (1, 2))
    first, second = (
        exposition.samples(each.encode(), "vllm")["vllm:num_requests_running"][0] for each in pages
    )
    assert (first.value, second.value) == (1, 2)
    assert first.labels is second.labels


def test_the_time_between_tokens_is_of_the_tokens_since_the_page_before():
    def load(seconds, count):
        return Load(at=0.0, decode_gap_sum=seconds, decode_gap_count=count)

    first = exposition.since(load(10.0, 1000.0), None)
    assert first.decode_step_seconds is None
    second = exposition.since(load(10.3, 1010.0), first)
    assert second.decode_step_seconds == pytest.approx(0.03)
    idle = exposition.since(load(10.3, 1010.0), second)
    assert idle.decode_step_seconds == second.decode_step_seconds
    restarted = exposition.since(load(0.1, 2.0), idle)
    assert restarted.decode_step_seconds == second.decode_step_seconds


def test_the_mean_length_of_an_answer_follows_what_finished():
    def load(tokens, answers):
        return Load(at=0.0, answer_sum=tokens, answer_count=answers)

    first = exposition.since(load(1000.0, 10.0), load(0.0, 0.0))
    assert first.output_tokens == pytest.approx(100.0)
    assert exposition.since(load(1000.0, 10.0), first).output_tokens == first.output_tokens
    longer = exposition.since(load(1000.0 + 300.0 * 200, 210.0), first)
    assert longer.output_tokens == pytest.approx(300.0, rel=0.02)


names = st.sampled_from(sorted({name for engine in ENGINES.values() for name in engine.all}))
others = st.sampled_from(["vllm:num_requests_waiting_by_reason", "up", "vllm:num_requests"])
values = st.floats(allow_nan=True, allow_infinity=True, width=32)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=9
)
labels = st.dictionaries(st.sampled_from(["engine", "model_name", "reason"]), texts, max_size=3)


def line(name, pairs, value):
    def escape(text):
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    inner = ",".join(f'{key}="{escape(text)}"' for key, text in pairs.items())
    number = "NaN" if math.isnan(value) else repr(value).replace("inf", "Inf")
    return f"{name}{{{inner}}} {number}" if inner else f"{name} {number}"


@given(st.lists(st.tuples(names | others, labels, values)), st.sampled_from(sorted(ENGINES)))
def test_samples_are_those_that_a_whole_parser_finds(lines, engine):
    page = "".join(line(*each) + "\n" for each in lines)
    wanted = set(ENGINES[engine].all)
    twin = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in wanted
    ]
    found = [
        (name, dict(sample.labels), sample.value)
        for name, series in exposition.samples(page.encode(), engine).items()
        for sample in series
    ]

    def key(item):
        return (item[0], sorted(item[1].items()), repr(item[2]))

    assert sorted(map(key, found)) == sorted(map(key, twin))


def plain_samples(page, engine):
    """The twin: line by line, character by character."""
    found = []
    for text in page.split(b"\n"):
        for name in ENGINES[engine].all:
            rest = text.removeprefix(name.encode())
            if rest == text or rest[:1] not in (b" ", b"\t", b"{"):
                continue
            between, rest = braces(rest.lstrip(b" \t"))
            words = re.split(rb"[ \t\r\f\v{]", rest.lstrip(b" \t"))
            with contextlib.suppress(ValueError):
                found.append((name, between, float(words[0])))
    return found


def braces(text):
    """What stands between the braces at the beginning, and what follows them."""
    quoted = escaped = False
    for at, byte in enumerate(text):
        char = chr(byte)
        if at == 0:
            if char != "{":
                break
        elif escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "}" and not quoted:
            return text[1:at], text[at + 1 :]
    return b"", text


pieces = st.sampled_from(
    [
        *(b"\n", b"\n", b"\n", b" ", b"\t", b"\r\n", b"{", b"}", b'"', b"\\", b",", b"=", b"#"),
        *(b"1", b"2.5", b"NaN", b"-1", b"1e9", b"\xff", b"\0", b'engine="0"', b'x="}{"'),
        *(b"_by_reason", b"_total", b"vllm:", b"# TYPE "),
        *(name.encode() for name in ENGINES["vllm"].all),
        *(name.encode() + b" 3\n" for name in ENGINES["vllm"].all),
        *(name.encode() + b'{engine="0"} 3\n' for name in ENGINES["vllm"].all),
    ]
)


@given(st.lists(pieces, max_size=30).map(b"".join))
def test_samples_of_any_page_are_those_of_a_parser_that_reads_every_line(page):
    found = [
        (name, sample.between, sample.value)
        for name, series in exposition.samples(page, "vllm").items()
        for sample in series
    ]
    assert sorted(map(repr, found)) == sorted(map(repr, plain_samples(page, "vllm")))


@pytest.mark.parametrize(
    "page",
    [
        "vllm:num_requests_running2 7\n",
        "vllm:num_requests_running_ 7\n",
        "x vllm:num_requests_running 7\n",
        "# vllm:num_requests_running 7\n",
        'vllm:num_requests_running{engine="0"\n,x="1"} 7\n',
        'vllm:num_requests_running{engine="0} 7\n',
    ],
)
def test_what_only_looks_like_a_sample_is_none(page):
    assert read("vllm:num_requests_waiting 1\n" + page).running is None


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(page):
    with contextlib.suppress(MalformedExposition):
        exposition.read(b"vllm:num_requests_waiting " + page, "vllm", at=0.0)
