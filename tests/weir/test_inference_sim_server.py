import asyncio
import io
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from weir.inference_sim import answers, tokens
from weir.inference_sim.answers import Answer
from weir.inference_sim.call import Kind
from weir.inference_sim.config import ServerConfig
from weir.inference_sim.engine import EngineConfig
from weir.inference_sim.server import serve
from weir.inference_sim.timing import Timing

FAST, SLOW = 200.0, 0.01  # of the default; slow takes most of a second a step


def config(speed=FAST, **changes):
    engine = EngineConfig(timing=Timing(speed=speed), max_loras=2, lora_load_seconds=0.0)
    return ServerConfig(**{"model": "base", "engine": engine, **changes})


@asynccontextmanager
async def serving(settings, *, drain_seconds=1.0):
    async with (
        serve([("127.0.0.1", 0)], [settings], drain_seconds=drain_seconds) as (server,),
        aiohttp.ClientSession(server.url) as client,
    ):
        yield server, client


async def post(client, path, body, **headers):
    async with client.post(path, json=body, headers=headers) as response:
        return response.status, json.loads(await response.read()), response.headers


async def page(client):
    async with client.get("/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_completion_is_answered_whole_and_its_repetition_from_the_cache():
    async with serving(config()) as (_, client):
        body = {"model": "base", "prompt": "tell me " * 100, "max_tokens": 12}
        status, first, _ = await post(client, "/v1/completions", body, **{"x-request-id": "one"})
        _, second, _ = await post(client, "/v1/completions", body)
        assert status == 200
        assert first["id"] == "cmpl-one"
        assert second["id"].startswith("cmpl-")
        assert second["id"] != "cmpl-one"
        assert first["choices"] == second["choices"]
        assert first["choices"][0]["text"] == tokens.answer(b"tell me " * 100, "base", 0, 12)
        assert first["usage"]["prompt_tokens"] == 200
        assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 192}
        samples = await page(client)
        labels = (("engine", "0"), ("model_name", "base"))
        assert samples["vllm:prefix_cache_hits_total", *labels] == 192
        assert samples["vllm:generation_tokens_total", *labels] == 24
        assert samples["weir_sim_step_lateness_seconds_count", *labels] == 24


@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize("kind", [Kind.COMPLETION, Kind.CHAT])
async def test_every_byte_of_a_stream_is_foretold(interval, kind):
    settings = config(stream_interval=interval, created=1_700_000_000, seed=5)
    async with serving(settings) as (_, client):
        if kind is Kind.CHAT:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "né"}]}
            prompt = "<|im_start|>user\nné<|im_end|>\n<|im_start|>assistant\n".encode()
        else:
            path, body = "/v1/completions", {"prompt": "né"}
            prompt = "né".encode()
        body |= {"stream": True, "max_tokens": 20}
        async with client.post(path, json=body, headers={"x-request-id": "r"}) as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            received = await response.read()
        answer = Answer(kind, f"{kind.value}-r", 1_700_000_000, "base")
        text = tokens.answer(prompt, "base", 5, 20)
        assert received == answers.transcript(answer, text, interval)


async def test_a_stream_ends_with_usage_where_it_is_asked_for():
    async with serving(config()) as (_, client):
        body = {"prompt": "x" * 40, "stream": True, "stream_options": {"include_usage": True}}
        async with client.post("/v1/completions", json=body) as response:
            *_, usage, done, end = (await response.read()).split(b"\n\n")
        assert (done, end) == (b"data: [DONE]", b"")
        assert json.loads(usage.removeprefix(b"data: "))["usage"]["total_tokens"] == 26


async def test_the_first_event_comes_before_the_last_token_is_made():
    async with serving(config(speed=1.0)) as (server, client):
        body = {"prompt": "x", "stream": True, "max_tokens": 1000}
        async with client.post("/v1/completions", json=body) as response:
            event = await response.content.readuntil(b"\n\n")
            assert json.loads(event.removeprefix(b"data: "))["choices"][0]["finish_reason"] is None
            assert server.driver.engine.running == 1


async def test_a_client_that_goes_away_takes_its_request_with_it():
    async with serving(config(speed=SLOW)) as (server, client):
        engine = server.driver.engine
        response = await client.post(
            "/v1/completions", json={"prompt": "x" * 400, "stream": True, "max_tokens": 1000}
        )
        await until(lambda: engine.running == 1)
        waiting = asyncio.create_task(
            client.post("/v1/completions", json={"prompt": "y", "max_tokens": 1000})
        )
        await until(lambda: engine.waiting == 1)
        response.close()
        waiting.cancel()
        await until(lambda: engine.running == engine.waiting == 0)
        assert engine.blocks.usage == 0
        labels = (("engine", "0"), ("finished_reason", "abort"), ("model_name", "base"))
        assert (await page(client))["vllm:request_success_total", *labels] == 0


@pytest.mark.parametrize(
    ("body", "code", "kind", "words"),
    [
        (
            {"model": "nope", "prompt": "x"},
            404,
            "NotFoundError",
            "The model `nope` does not exist.",
        ),
        ({"prompt": "x" * 400, "max_tokens": 1}, 400, "BadRequestError", "maximum context length"),
        ({"prompt": "x", "max_tokens": 100}, 400, "BadRequestError", "you requested 100 output"),
        ({"prompt": ""}, 400, "BadRequestError", "prompt"),
        ({"prompt": "x", "max_tokens": "many"}, 400, "Bad Request", "$.max_tokens"),
        ({}, 400, "BadRequestError", "prompt"),
    ],
)
async def test_a_bad_request_is_refused_in_vllms_words(body, code, kind, words):
    async with serving(config(max_model_len=100)) as (_, client):
        status, answer, _ = await post(client, "/v1/completions", body)
        assert status == code
        assert answer["error"]["code"] == code
        assert answer["error"]["type"] == kind
        assert words in answer["error"]["message"]
        assert (await post(client, "/v1/completions", {"prompt": "x"}))[0] == 200


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[1]", b'"text"'])
async def test_a_body_that_is_not_a_json_object_is_refused(body):
    async with serving(config()) as (_, client):
        for path in ("/v1/completions", "/v1/chat/completions"):
            headers = {"content-type": "application/json"}
            async with client.post(path, data=body, headers=headers) as response:
                assert response.status == 400
                assert (await response.json())["error"]["type"] == "Bad Request"


async def test_a_body_that_is_not_said_to_be_json_is_refused():
    async with (
        serving(config()) as (_, client),
        client.post("/v1/completions", data=b'{"prompt":"x"}') as response,
    ):
        assert response.status == 400
        assert "Unsupported Media Type" in await response.text()


async def test_a_large_body_with_a_short_prompt_is_served():
    async with serving(config()) as (_, client):
        body = json.dumps({"user": "x" * 5_000_000, "prompt": "hi"}).encode()
        headers = {"content-type": "application/json"}
        call = client.post("/v1/completions", data=io.BytesIO(body), headers=headers)
        async with call as response:
            assert response.status == 200


async def test_a_full_queue_answers_503_and_counts_it():
    async with serving(config(speed=SLOW, max_num_queued_reqs=1)) as (server, client):
        body = {"prompt": "x", "stream": True, "max_tokens": 50}
        running = await client.post("/v1/completions", json=body)
        await until(lambda: server.driver.engine.running == 1)
        queued = await client.post("/v1/completions", json=body)
        status, answer, headers = await post(client, "/v1/completions", body)
        assert (status, answer["error"]["type"]) == (503, "Service Unavailable")
        assert "Retry-After" not in headers
        labels = (("engine", "0"), ("model_name", "base"), ("reason", "max_num_queued_reqs"))
        assert (await page(client))["vllm:admission_rejections_total", *labels] == 1
        running.close()
        queued.close()


async def test_adapters_come_and_go():
    async with serving(config(adapters=("a",))) as (_, client):

        async def change(path, body):
            async with client.post(f"/v1/{path}_lora_adapter", json=body) as response:
                return response.status, await response.text()

        async def listed():
            async with client.get("/v1/models") as response:
                cards = (await response.json())["data"]
            return [(card["id"], card["parent"], card["root"]) for card in cards]

        assert await listed() == [("base", None, "base"), ("a", "base", "/adapters/a")]
        loaded = {"lora_name": "b", "lora_path": "/b"}
        assert await change("load", loaded) == (
            200,
            "Success: LoRA adapter 'b' added successfully.",
        )
        assert (await change("load", loaded))[0] == 400
        assert (await change("load", {"lora_name": "c"}))[0] == 400
        assert (await change("load", [1]))[0] == 400
        status, answer, _ = await post(client, "/v1/completions", {"model": "b", "prompt": "x"})
        assert (status, answer["model"]) == (200, "b")
        assert any(name == "vllm:lora_requests_info" for name, *_ in await page(client))
        assert await listed() == [
            ("base", None, "base"),
            ("a", "base", "/adapters/a"),
            ("b", "base", "/b"),
        ]
        assert (await change("unload", {"lora_name": "a"}))[0] == 200
        assert (await change("unload", {"lora_name": "a"}))[0] == 404
        assert (await post(client, "/v1/completions", {"model": "a", "prompt": "x"}))[0] == 404


async def test_small_endpoints_answer():
    async with serving(config()) as (_, client):
        async with client.get("/health") as response:
            assert (response.status, await response.read()) == (200, b"")
        async with client.get("/load") as response:
            assert await response.json() == {"server_load": 0}
        body = {"prompt": "x" * 640}
        await post(client, "/v1/completions", body)
        async with client.post("/reset_prefix_cache") as response:
            assert response.status == 200
        _, answer, _ = await post(client, "/v1/completions", body)
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("form", ["TEXT", "json"])
async def test_a_load_report_is_attached_where_it_is_asked_for(form):
    async with serving(config()) as (_, client):
        asked = {"endpoint-load-metrics-format": form}
        _, _, headers = await post(client, "/v1/completions", {"prompt": "x"}, **asked)
        assert (
            headers["endpoint-load-metrics"]
            == {
                "TEXT": "TEXT named_metrics.num_requests_waiting=0.0, "
                "named_metrics.kv_cache_usage_perc=0.0",
                "json": 'JSON {"named_metrics": {"num_requests_waiting": 0.0, '
                '"kv_cache_usage_perc": 0.0}}',
            }[form]
        )


async def test_leaving_finishes_what_was_begun_and_takes_nothing_new():
    received = asyncio.Event()

    async def stream(url):
        async with aiohttp.ClientSession(url) as client:
            body = {"prompt": "x", "stream": True, "max_tokens": 30}
            async with client.post("/v1/completions", json=body) as response:
                chunks = [await response.content.readuntil(b"\n\n")]
                received.set()
                return b"".join([*chunks, await response.read()])

    async with serve([("127.0.0.1", 0)], [config(speed=1.0)], drain_seconds=10) as (server,):
        streaming = asyncio.create_task(stream(server.url))
        await received.wait()
    assert (await streaming).endswith(b"data: [DONE]\n\n")
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(server.url)


async def test_what_is_not_finished_when_the_drain_ends_is_cut_off():
    async with serving(config(speed=SLOW), drain_seconds=0.05) as (server, client):
        response = await client.post(
            "/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 1000}
        )
        await until(lambda: server.driver.engine.running == 1)
    assert server.driver.engine.running == 0
    response.close()


async def test_servers_of_one_process_are_apart():
    configs = [config(seed=1), config(seed=2)]
    async with (
        serve([("127.0.0.1", 0), ("127.0.0.2", 0)], configs) as (one, two),
        aiohttp.ClientSession() as client,
    ):
        assert two.url.startswith("http://127.0.0.2:")
        texts = set()
        for server in (one, two):
            async with client.post(f"{server.url}/v1/completions", json={"prompt": "x"}) as answer:
                texts.add((await answer.json())["choices"][0]["text"])
        assert len(texts) == 2
        assert [server.statistics.request_success for server in (one, two)] == [1, 1]


async def test_an_address_that_is_taken_is_an_os_error():
    async with serving(config()) as (server, _):
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            async with serve([("127.0.0.1", 0), ("127.0.0.1", port)], [config(), config()]):
                pass


async def test_steps_begin_where_the_last_was_due_to_end_however_late_the_loop_is():
    async with serving(config(speed=1.0)) as (server, client):
        await post(client, "/v1/completions", {"prompt": "x", "max_tokens": 40})
        lateness = server.statistics.step_lateness_seconds
        latency = server.statistics.e2e_request_latency_seconds
        assert sum(lateness.counts) == 40
        steps = 40 * 7.5e-3 + 28e-6 + 39 * 40e-6
        assert latency.sum == pytest.approx(steps, abs=0.001)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_model_len": 10**9},
        {"stream_interval": 0},
        {"adapters": ("a", "a")},
        {"adapters": ("base",)},
        {"adapters": ("a",), "engine": EngineConfig()},
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changes):
    with pytest.raises(ValueError, match=r"max_|names|stream"):
        config(**changes)
