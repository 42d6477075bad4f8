"""The simulated model server's HTTP face: vLLM's paths, bodies, codes and words.

A handler turns a body into a `Call`, the call into the engine's `Request`, and then follows the
request's `Progress`. A client that goes away cancels its handler, and with it the request; vLLM
does the same. Several servers live in one process, each on its own address with its own engine.

What vLLM has and this has not: several prompts or choices in one request, token ids, log
probabilities, tools, tokenization, data parallelism, KV events.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

from aiohttp import web

from weir.inference_sim import answers, call, metrics, tokens
from weir.inference_sim.config import ServerConfig
from weir.inference_sim.driver import Driver, Progress
from weir.inference_sim.engine import Engine, RequestRefused
from weir.inference_sim.sequence import Request
from weir.inference_sim.statistics import Statistics

LARGEST_BODY_BYTES = 64 << 20
KEEP_ALIVE_SECONDS = 3600.0  # longer than any proxy keeps a connection: it never meets a closed one
BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)
JSON = "application/json"
EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}


class ModelServer:
    """One engine behind HTTP."""

    def __init__(self, config: ServerConfig) -> None:
        started = time.time()
        self.config = config
        self.url = ""  # known once it listens
        self.statistics = Statistics(config.max_model_len)
        self.driver = Driver(Engine(config.engine), self.statistics)
        self._page = metrics.Page(config.model, config.engine, config.max_model_len, started)
        self._started = int(started)
        self._adapters: dict[str, str] = {name: f"/adapters/{name}" for name in config.adapters}
        self._numbers = count()
        self._load = 0

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=LARGEST_BODY_BYTES)
        application.add_routes(
            [
                web.post("/v1/completions", self.completions),
                web.post("/v1/chat/completions", self.chat),
                web.get("/v1/models", self.models),
                web.post("/v1/load_lora_adapter", self.load_adapter),
                web.post("/v1/unload_lora_adapter", self.unload_adapter),
                web.get("/metrics", self.metrics),
                web.get("/health", self.health),
                web.get("/load", self.load),
                web.post("/reset_prefix_cache", self.reset_prefix_cache),
            ]
        )
        return application

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/completions`"""
        return await self._generate(request, call.Kind.COMPLETION)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`"""
        return await self._generate(request, call.Kind.CHAT)

    async def _generate(self, request: web.Request, kind: call.Kind) -> web.StreamResponse:
        if request.content_type != JSON:
            return _refusal(400, "Bad Request", f"Unsupported Media Type: Only {JSON!r} is allowed")
        body = await request.read()
        read = call.read_chat if kind is call.Kind.CHAT else call.read_completion
        try:
            asked = read(body)
        except call.MalformedCall as error:
            return _refusal(400, "Bad Request", str(error))
        except call.BadCall as error:
            return _refusal(400, "BadRequestError", str(error), error.param)
        self._load += 1
        try:
            return await self._serve(request, asked)
        finally:
            self._load -= 1

    async def _serve(self, request: web.Request, asked: call.Call) -> web.StreamResponse:
        model = asked.model or self.config.model
        if model != self.config.model and model not in self._adapters:
            return _refusal(
                404, "NotFoundError", f"The model `{model}` does not exist.", param="model"
            )
        prompt = tokens.count(asked.prompt)
        if prompt + asked.max_tokens > self.config.max_model_len:
            return _refusal(400, "BadRequestError", self._too_long(prompt, asked.max_tokens))
        limit = self.config.max_num_queued_reqs
        if limit is not None and self.driver.engine.waiting >= limit:
            self.statistics.admission_rejections += 1
            return _refusal(503, "Service Unavailable", BUSY)
        text = tokens.answer(asked.prompt, model, self.config.seed, asked.max_tokens)
        adapter = model if model in self._adapters else None
        work = Request(
            id=str(next(self._numbers)),
            prompt_tokens=prompt,
            output_tokens=asked.max_tokens,
            hashes=tokens.chain(
                asked.prompt + text.encode(), self.config.engine.block_size, adapter
            ),
            adapter=adapter,
        )
        name = request.headers.get("x-request-id") or uuid.uuid4().hex
        created = int(time.time()) if self.config.created is None else self.config.created
        answer = answers.Answer(asked.kind, f"{asked.kind.value}-{name}", created, model)
        stride = self.config.stream_interval if asked.stream else asked.max_tokens
        try:
            progress = self.driver.submit(work, stride=stride)
        except RequestRefused as error:
            return _refusal(400, "BadRequestError", str(error))
        try:
            if asked.stream:
                return await self._stream(request, asked, answer, text, progress)
            return await self._whole(request, answer, text, progress)
        finally:
            self.driver.release(progress)

    async def _stream(
        self,
        request: web.Request,
        asked: call.Call,
        answer: answers.Answer,
        text: str,
        progress: Progress,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=EVENTS)
        await response.prepare(request)
        sent, total = 0, asked.max_tokens
        while sent < total:
            parts: list[bytes] = [] if sent else [answer.opening()]
            for mark in await progress.next():
                piece = text[sent * tokens.TOKEN_BYTES : mark * tokens.TOKEN_BYTES]
                parts.append(answer.chunk(piece, last=mark == total))
                sent = mark
            if sent == total:
                if asked.usage:
                    parts.append(answer.usage(_usage(progress)))
                parts.append(answers.DONE)
            await response.write(b"".join(parts))
        await response.write_eof()
        return response

    async def _whole(
        self, request: web.Request, answer: answers.Answer, text: str, progress: Progress
    ) -> web.Response:
        while not progress.sequence.finished:
            await progress.next()
        response = web.Response(body=answer.whole(text, _usage(progress)), content_type=JSON)
        wanted = request.headers.get("endpoint-load-metrics-format", "").upper()
        if wanted in ("TEXT", "JSON"):
            response.headers["endpoint-load-metrics"] = self._load_report(wanted)
        return response

    def _load_report(self, form: str) -> str:
        """ORCA's two metrics, in the two forms that vLLM speaks."""
        load = {
            "num_requests_waiting": float(self.statistics.num_requests_waiting),
            "kv_cache_usage_perc": self.statistics.kv_cache_usage_perc,
        }
        if form == "JSON":
            return f"JSON {json.dumps({'named_metrics': load})}"
        return "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in load.items())

    def _too_long(self, prompt: int, answer: int) -> str:
        return (
            f"This model's maximum context length is {self.config.max_model_len} tokens. However, "
            f"you requested {answer} output tokens and your prompt contains {prompt} input tokens, "
            f"for a total of {prompt + answer} tokens. Please reduce the length of either."
        )

    async def models(self, _request: web.Request) -> web.Response:
        """`GET /v1/models`: the base model, then its adapters."""
        shared = {"object": "model", "created": self._started, "owned_by": "vllm"}
        base = self.config.model
        cards: list[dict[str, object]] = [
            {"id": base, **shared, "root": base, "parent": None,
             "max_model_len": self.config.max_model_len}
        ]  # fmt: skip
        for name, path in self._adapters.items():
            card = {"id": name, **shared, "root": path, "parent": base, "max_model_len": None}
            cards.append(card)
        return web.json_response({"object": "list", "data": cards})

    async def load_adapter(self, request: web.Request) -> web.Response:
        """`POST /v1/load_lora_adapter`: known from now on, loaded by the first who asks for it."""
        asked = await _adapter_request(request)
        name, path = asked.get("lora_name"), asked.get("lora_path")
        if not isinstance(name, str) or not isinstance(path, str) or not name or not path:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            return _refusal(400, "InvalidUserInput", message)
        if not self.config.engine.max_loras:
            return _refusal(400, "BadRequestError", "LoRA is not enabled: max_loras is 0")
        if name in self._adapters or name == self.config.model:
            message = f"The lora adapter '{name}' has already been loaded."
            return _refusal(400, "InvalidUserInput", message)
        self._adapters[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, request: web.Request) -> web.Response:
        """`POST /v1/unload_lora_adapter`; requests on their way are served to their end."""
        name = (await _adapter_request(request)).get("lora_name")
        if not isinstance(name, str) or not name:
            return _refusal(400, "InvalidUserInput", "'lora_name' needs to be provided.")
        if self._adapters.pop(name, None) is None:
            message = f"The lora adapter '{name}' cannot be found."
            return _refusal(404, "NotFoundError", message)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def metrics(self, _request: web.Request) -> web.Response:
        """`GET /metrics`"""
        page = self._page.render(self.statistics)
        return web.Response(body=page, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def health(self, _request: web.Request) -> web.Response:
        """`GET /health`"""
        return web.Response()

    async def load(self, _request: web.Request) -> web.Response:
        """`GET /load`: requests being served, streams included."""
        return web.json_response({"server_load": self._load})

    async def reset_prefix_cache(self, _request: web.Request) -> web.Response:
        """`POST /reset_prefix_cache`; refused while requests hold blocks."""
        if self.driver.engine.reset_prefix_cache():
            return web.Response()
        return _refusal(503, "Service Unavailable", "requests are running: the cache is in use")


async def _adapter_request(request: web.Request) -> dict[str, object]:
    """The body's object; of anything else, an empty one."""
    try:
        asked = json.loads(await request.read())
    except ValueError:
        return {}
    return asked if isinstance(asked, dict) else {}


def _usage(progress: Progress) -> answers.Usage:
    sequence = progress.sequence
    return answers.Usage(sequence.request.prompt_tokens, sequence.generated, sequence.cached_tokens)


def _refusal(code: int, kind: str, message: str, param: str | None = None) -> web.Response:
    return web.Response(
        status=code, body=answers.error(code, kind, message, param), content_type=JSON
    )


@asynccontextmanager
async def serve(
    addresses: Sequence[tuple[str, int]],
    configs: Sequence[ServerConfig],
    *,
    drain_seconds: float = 30.0,
) -> AsyncIterator[list[ModelServer]]:
    """Servers that listen while the block runs; port 0 takes a free one, see `ModelServer.url`.

    Leaving the block drains them: no new connections, requests on their way are finished, and what
    is not after `drain_seconds` is cut off. Raises `OSError` for an address that cannot be had.
    """
    servers = [ModelServer(config) for config in configs]
    failure: Exception | None = None
    async with (
        _listening(servers, addresses, drain_seconds) as runners,
        asyncio.TaskGroup() as group,
    ):
        engines = [group.create_task(server.driver.run(), name="engine") for server in servers]
        try:
            yield servers
        except Exception as error:  # noqa: BLE001 - raised below, outside the group, as it came
            failure = error
        finally:
            await asyncio.gather(*(runner.cleanup() for runner in runners))  # needs the engines
            for engine in engines:
                engine.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _listening(
    servers: Sequence[ModelServer], addresses: Sequence[tuple[str, int]], drain_seconds: float
) -> AsyncIterator[list[web.AppRunner]]:
    runners: list[web.AppRunner] = []
    try:
        for server, (host, port) in zip(servers, addresses, strict=True):
            runner = web.AppRunner(
                server.application(),
                access_log=None,
                handler_cancellation=True,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                shutdown_timeout=drain_seconds,
            )
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, host, port, backlog=1024).start()
            bound, taken = runner.addresses[0][:2]
            server.url = f"http://[{bound}]:{taken}" if ":" in bound else f"http://{bound}:{taken}"
        yield runners
    finally:
        for runner in runners:
            await runner.cleanup()
