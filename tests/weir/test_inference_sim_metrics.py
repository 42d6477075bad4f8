import pytest
from prometheus_client.parser import text_string_to_metric_families

from weir.inference_sim.engine import Engine, EngineConfig
from weir.inference_sim.metrics import Page
from weir.inference_sim.sequence import Request
from weir.inference_sim.statistics import Histogram, Statistics, one_two_five

# As a real vLLM 0.32 with LoRA on exposes them, by type; counters without `_total`.
GAUGES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:engine_sleep_state",
    "vllm:lora_requests_info",
    "vllm:cache_config_info",
}
COUNTERS = {
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:external_prefix_cache_queries",
    "vllm:external_prefix_cache_hits",
    "vllm:mm_cache_queries",
    "vllm:mm_cache_hits",
    "vllm:num_preemptions",
    "vllm:prompt_tokens",
    "vllm:prompt_tokens_by_source",
    "vllm:prompt_tokens_cached",
    "vllm:prompt_tokens_cached_by_source",
    "vllm:generation_tokens",
    "vllm:request_success",
    "vllm:admission_rejections",
    "vllm:estimated_flops_per_gpu",
    "vllm:estimated_read_bytes_per_gpu",
    "vllm:estimated_write_bytes_per_gpu",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:request_num_preemptions",
    "vllm:request_prefill_kv_computed_tokens",
    "vllm:iteration_tokens_total",
}


class Served:
    """An engine, its statistics and its page, driven by hand."""

    def __init__(self, model="m", **config):
        self.config = EngineConfig(**{"max_loras": 2, "lora_load_seconds": 0.0, **config})
        self.engine = Engine(self.config)
        self.statistics = Statistics(1000)
        self.page = Page(model, self.config, 1000, 1.5e9)
        self.now = 0.0

    def step(self, unix=1.6e9):
        self.now += self.engine.schedule(self.now).seconds
        advanced = self.engine.complete(self.now)
        self.statistics.stepped(self.engine, advanced, unix)

    def run(self):
        while self.engine.running or self.engine.waiting:
            self.step()

    def families(self):
        text = self.page.render(self.statistics).decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def samples(self):
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families().values()
            for sample in family.samples
        }

    def value(self, name, **labels):
        base = {} if name.startswith("vllm:lora") else {"engine": "0", "model_name": "m"}
        return self.samples()[name, *sorted({**base, **labels}.items())]


def test_names_and_types_are_those_of_vllm():
    served = Served()
    served.engine.submit(Request("r", 10, 2), 0.0)
    served.run()
    families = served.families()
    by_type = {
        kind: {
            name
            for name, family in families.items()
            if family.type == kind and name.startswith("vllm:") and not name.endswith("_created")
        }
        for kind in ("gauge", "counter", "histogram")
    }
    assert by_type == {"gauge": GAUGES, "counter": COUNTERS, "histogram": HISTOGRAMS}
    created = {name for name in families if name.endswith("_created")}
    expected = {f"{name}_created" for name in COUNTERS | HISTOGRAMS}
    assert {name for name in created if name.startswith("vllm:")} == expected
    ours = {name for name in families if not name.startswith("vllm:")}
    assert ours - created == {"weir_sim_step_lateness_seconds"}


def test_a_page_begins_at_zero_and_without_adapters():
    samples = Served().samples()
    assert ("vllm:num_requests_waiting", ("engine", "0"), ("model_name", "m")) in samples
    assert not any(name.startswith("vllm:lora_requests_info") for name, *_ in samples)
    states = {"vllm:engine_sleep_state", "vllm:cache_config_info"}
    counted = {
        name: value
        for (name, *_), value in samples.items()
        if not name.endswith("_created") and name not in states
    }
    assert set(counted.values()) == {0.0}


def test_a_page_shows_the_queue_and_why_it_waits():
    served = Served(max_loras=1)
    served.engine.submit(Request("a", 160, 9, adapter="a"), 0.0)
    served.engine.submit(Request("b", 160, 9, adapter="b"), 0.0)
    served.step()
    assert served.value("vllm:num_requests_running") == 1
    assert served.value("vllm:num_requests_waiting") == 1
    assert served.value("vllm:num_requests_waiting_by_reason", reason="deferred") == 1
    assert served.value("vllm:num_requests_waiting_by_reason", reason="capacity") == 0
    assert served.value("vllm:kv_cache_usage_perc") == pytest.approx(10 / 26_875)


def test_gauges_stand_still_between_the_ends_of_steps():
    served = Served()
    served.engine.submit(Request("a", 10, 9), 0.0)
    served.engine.schedule(0.0)
    assert served.value("vllm:num_requests_running") == 0
    served.statistics.stepped(served.engine, served.engine.complete(1.0), 0.0)
    assert served.value("vllm:num_requests_running") == 1


def test_tokens_are_counted_by_where_they_came_from():
    served = Served()
    for name in "ab":
        served.engine.submit(Request(name, 40, 5, hashes=(1, 2)), 0.0)
        served.run()
    assert served.value("vllm:prefix_cache_queries_total") == 80
    assert served.value("vllm:prefix_cache_hits_total") == 32
    assert served.value("vllm:prompt_tokens_total") == 80
    assert served.value("vllm:prompt_tokens_by_source_total", source="local_compute") == 48
    assert served.value("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 32
    assert served.value("vllm:generation_tokens_total") == 10
    assert served.value("vllm:request_success_total", finished_reason="length") == 2
    assert served.value("vllm:request_success_total", finished_reason="abort") == 0


def test_histograms_agree_with_the_sequences():
    served = Served()
    sequences = [
        served.engine.submit(Request(str(n), 100 * n + 1, 3 * n + 1), 0.0) for n in range(5)
    ]
    served.run()
    firsts = [sequence.first_token_at for sequence in sequences]
    lasts = [sequence.last_token_at for sequence in sequences]
    assert served.value("vllm:time_to_first_token_seconds_count") == 5
    assert served.value("vllm:time_to_first_token_seconds_sum") == pytest.approx(sum(firsts))
    assert served.value("vllm:e2e_request_latency_seconds_sum") == pytest.approx(sum(lasts))
    assert served.value("vllm:inter_token_latency_seconds_count") == 30
    assert served.value("vllm:inter_token_latency_seconds_sum") == pytest.approx(
        sum(lasts) - sum(firsts)
    )
    assert served.value("vllm:request_prompt_tokens_bucket", le="200.0") == 2
    assert served.value("vllm:request_prompt_tokens_bucket", le="+Inf") == 5


def test_adapters_show_once_they_answer_and_old_sets_linger():
    served = Served(max_loras=1)
    served.engine.submit(Request("a", 10, 2, adapter="a"), 0.0)
    served.engine.submit(Request("b", 10, 1, adapter="b"), 0.0)

    def shown(names):
        return served.value(
            "vllm:lora_requests_info",
            max_lora="1",
            running_lora_adapters=names,
            waiting_lora_adapters=names,
        )

    served.step(unix=100.0)
    assert shown("a") == 100.0
    served.step(unix=101.0)
    assert shown("") == 101.0
    assert shown("a") == 100.0


def test_a_server_without_adapter_slots_never_shows_adapters():
    served = Served(max_loras=0)
    served.engine.submit(Request("r", 10, 2), 0.0)
    served.run()
    assert "vllm:lora_requests_info" not in served.families()


def test_the_newest_adapter_sets_are_kept():
    served = Served(max_loras=1)
    for number in range(50):
        served.engine.submit(Request(str(number), 4, 2, adapter=f"a{number}"), 0.0)
    while served.engine.running or served.engine.waiting:
        served.step(unix=served.now)
    sets = list(served.statistics.adapter_sets)
    assert len(sets) == 32
    assert sets[-2:] == ["a49", ""]


def test_a_models_name_is_escaped():
    names = {labels["model_name"] for labels in labelled(Served('my "model"\\').families())}
    assert names == {'my "model"\\'}


def labelled(families):
    samples = [sample for family in families.values() for sample in family.samples]
    return [sample.labels for sample in samples if "model_name" in sample.labels]


def test_a_histogram_counts_values_at_its_bounds_below_them():
    histogram = Histogram((1, 2, 5))
    for value, times in ((1, 1), (1.5, 2), (5, 1), (6, 3)):
        histogram.observe(value, times)
    assert histogram.counts == [1, 2, 1, 3]
    assert histogram.sum == 27
    assert one_two_five(120) == (1, 2, 5, 10, 20, 50, 100)
