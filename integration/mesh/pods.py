"""Pods of the pool: which there are, and a model server on the address of each.

The two of istiod's data are llm-0, which ztunnel captured, and llm-1, which it did not. Any further
Pod is a copy of one of them: an even number is captured, an odd one is not. Kubernetes' objects,
Weir's assignments and istiod's have all of them.
"""

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import yaml
from aiohttp import web

from integration.mesh.places import POD

SERVED = "x-served-by"
PAGE = """vllm:num_requests_running{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.1
vllm:cache_config_info{block_size="16",num_gpu_blocks="4096"} 1.0
"""


@dataclass(slots=True)
class Pod:
    """One model server: answers with its name, at once; `status` other than 200 is a failure."""

    name: str
    address: str
    captured: bool
    status: int = 200
    requests: int = 0
    headers: dict[str, str] = field(default_factory=dict)  # of the last request
    body: bytes = b""
    _running: AsyncExitStack | None = None

    @property
    def endpoint(self):
        return f"{self.address}:{POD}"

    @property
    def dual(self):
        """How a picker names it to a proxy that may know it as captured."""
        return f"{self.endpoint},envoy://connect_originate/{self.endpoint}"

    async def start(self):
        stack = AsyncExitStack()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, self.address, POD).start()
        self._running = stack

    async def stop(self):
        """Close the port and all connections."""
        if self._running is not None:
            await self._running.aclose()
            self._running = None

    async def _metrics(self, request):
        return web.Response(text=PAGE)

    async def _answer(self, request):
        self.body = await request.read()
        self.headers = dict(request.headers)
        self.requests += 1
        headers = {SERVED: self.name}
        if self.status != 200 or b'"stream": true' not in self.body:
            answer = {"served": self.name, "bytes": len(self.body)}
            return web.json_response(answer, status=self.status, headers=headers)
        response = web.StreamResponse(
            headers={**headers, "content-type": "text/event-stream"}, status=200
        )
        await response.prepare(request)
        for number in range(5):
            await response.write(b"data: %s %d\n\n" % (self.name.encode(), number))
            await asyncio.sleep(0.01)
        await response.write_eof()
        return response


class Pods(dict[str, Pod]):
    """By name."""

    @classmethod
    def of(cls, places, count):
        return cls(
            (f"llm-{n}", Pod(f"llm-{n}", places(1, n + 1), n % 2 == 0)) for n in range(count)
        )

    @asynccontextmanager
    async def running(self):
        try:
            for pod in self.values():
                await pod.start()
            yield self
        finally:
            for pod in self.values():
                await pod.stop()

    @property
    def served(self):
        return Counter({name: pod.requests for name, pod in self.items() if pod.requests})

    def objects(self, places, text):
        """Kubernetes' objects with all Pods in them, from istiod's input with its two."""
        documents = [each for each in yaml.safe_load_all(places.move(text)) if each]
        models = {
            each["metadata"]["name"]: each
            for each in documents
            if each["kind"] == "Pod" and each["metadata"]["name"] in ("llm-0", "llm-1")
        }
        for number in range(2, len(self)):
            original, name = f"llm-{number % 2}", f"llm-{number}"
            copied = _renamed(models[original], places, number)
            documents.append(copied | {"metadata": copied["metadata"] | {"name": name}})
        return documents

    def endpoints(self, places, assignment):
        """istiod's assignment of the pool's two Pods, with all of them in it."""
        result = deepcopy(assignment)
        for locality in result.get("endpoints", []):
            own = locality["lb_endpoints"]
            ours = [each for each in own if "llm-" in json.dumps(each)]
            if len(ours) == 2:
                own += [_renamed(ours[n % 2], places, n) for n in range(2, len(self))]
        return result


def _renamed(value, places, number):
    text = json.dumps(value)
    original = number % 2
    text = text.replace(places(1, original + 1), places(1, number + 1))
    return json.loads(text.replace(f"llm-{original};", f"llm-{number};"))
