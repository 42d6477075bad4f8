"""A cluster for benchmarks, in one process: an API server, and the model servers that its Pods are.

    python -m weir.bench.cluster PODS POOLS INTERVAL

INTERVAL is how often the pools ask for their servers to be asked. Model servers are addresses of
loopback, all behind one socket; a connection's own address says whom it was for. Prints where it
is, then obeys lines on stdin, each answered with one line of JSON:

    replace N    replace N Pods a second from now on, as a rolling update does    {}
    count        so far                                  {"scrapes": pages, "replaced": Pods}
"""

import asyncio
import itertools
import json
import socket
import sys
from collections import Counter, deque
from collections.abc import Sequence
from typing import cast

from aiohttp import web

from weir.bench import objects, pages
from weir.bench.apiserver import ApiServer, place_of
from weir.ports import free
from weir.running import run_loop
from xds.sources import kinds

PAGE = 500  # objects of a list
HISTORY_SECONDS = 600
SPARE = 256  # addresses beyond those of the first Pods
STARTING_SECONDS, LOADING_SECONDS = 0.3, 1.0
PODS, SERVICES, POOLS, NODES = (
    f"{kind.plural}.{kind.group}" for kind in (kinds.POD, kinds.SERVICE, kinds.POOL, kinds.NODE)
)


class _Server(ApiServer):
    """One that takes the status of pools, which Weir writes when it has started."""

    def _route(self, router: web.UrlDispatcher) -> None:
        super()._route(router)
        router.add_patch("/{path:.*}/status", self._take_status)

    async def _take_status(self, request: web.Request) -> web.Response:
        collection, namespace, name = place_of(request.path)
        item = self.store.objects[collection, namespace, name]
        item["status"] = (await request.json())["status"]
        self.store.put(collection, item)
        return web.json_response(item)


class ModelServers:
    """Every one answers with its own place in the same history, a page a question."""

    def __init__(self) -> None:
        head = "HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Type: text/plain; version=1.0.0\r\n"
        self.answers = [
            f"{head}Content-Length: {len(page)}\r\n\r\n".encode() + page
            for page in pages.history(HISTORY_SECONDS)
        ]
        self.asked: Counter[str] = Counter()

    def answer(self, address: str) -> bytes:
        self.asked[address] += 1
        second = objects.digest(address) + self.asked[address]
        return self.answers[second % len(self.answers)]


class _Connection(asyncio.Protocol):
    def __init__(self, servers: ModelServers) -> None:
        self._servers = servers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address: str = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(self._servers.answer(self._address))


class Cluster:
    """Pods of pools, and their replacement."""

    def __init__(self, api: ApiServer, count: int, apps: Sequence[str], port: int) -> None:
        self.replaced = 0
        self._api, self._port = api, port
        for number in range(objects.NODES):
            api.store.put(NODES, objects.node(number))
        self._numbers = itertools.count()
        spare = SPARE + count // 4
        self._addresses = deque(f"127.10.{n // 250}.{n % 250 + 1}" for n in range(count + spare))
        self._pods: deque[tuple[str, str, str]] = deque()  # name, app, address; the oldest first
        for number in range(count):
            name, app, address = self._new(apps[number % len(apps)])
            self._put(name, app, address)
            self._pods.append((name, app, address))

    async def replace(self) -> None:
        """One Pod, through everything that an API server tells of it."""
        old, app, freed = self._pods.popleft()
        name, _, address = self._new(app)
        self._put(name, app, "", ready=False)
        await asyncio.sleep(STARTING_SECONDS)
        self._put(name, app, address, ready=False)
        await asyncio.sleep(LOADING_SECONDS)
        self._put(name, app, address)
        self._put(old, app, freed, going=True)
        await asyncio.sleep(LOADING_SECONDS)
        self._api.store.delete(PODS, old, objects.NAMESPACE)
        self._pods.append((name, app, address))
        self._addresses.append(freed)
        self.replaced += 1

    def _put(
        self, name: str, app: str, address: str, *, ready: bool = True, going: bool = False
    ) -> None:
        item = objects.pod(name, app, address, self._port, ready=ready)
        if going:
            item["metadata"]["deletionTimestamp"] = objects.CREATED
        self._api.store.put(PODS, item)

    def _new(self, app: str) -> tuple[str, str, str]:
        return f"{app}-7c9d8f6b5d-{next(self._numbers):05}", app, self._addresses.popleft()


class _Replacing:
    """Replaces Pods at an even pace, until it is told another; what was begun is always ended."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pace: asyncio.Task[None] | None = None
        self._begun: set[asyncio.Task[None]] = set()

    async def go(self, a_second: int) -> None:
        if self._pace is not None:
            self._pace.cancel()
            self._pace = None
        if a_second:
            self._pace = asyncio.create_task(self._begin(1 / a_second))
        else:
            await asyncio.gather(*self._begun)

    async def _begin(self, interval: float) -> None:
        while True:
            task = asyncio.create_task(self._cluster.replace())
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)
            await asyncio.sleep(interval)


async def _obey(cluster: Cluster, servers: ModelServers) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    replacing = _Replacing(cluster)
    while line := (await commands.readline()).decode().split():
        answer = {}
        if line[0] == "replace":
            await replacing.go(int(line[1]))
        else:
            answer = {"scrapes": servers.asked.total(), "replaced": cluster.replaced}
        print(json.dumps(answer), flush=True)


def _listening(port: int) -> socket.socket:
    """A socket on every address of loopback, and on no other."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    made.bind(("", port))
    return made


async def main(count: int, pools: int, interval: str) -> None:
    api = _Server((f"{kind.plural}.{kind.group}" for kind in kinds.ALWAYS), PAGE)
    servers, port = ModelServers(), free("0.0.0.0")
    apps = [objects.called(number) for number in range(pools)]
    for app in apps:
        api.store.put(POOLS, objects.pool(app, port, interval))
        api.store.put(SERVICES, objects.service(app, port))
    cluster = Cluster(api, count, apps, port)
    listening = await asyncio.get_running_loop().create_server(
        lambda: _Connection(servers), sock=_listening(port), backlog=4096
    )
    await api.start()
    print(json.dumps({"url": api.url}), flush=True)
    await _obey(cluster, servers)
    listening.close()
    await api.stop()


if __name__ == "__main__":
    run_loop(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
