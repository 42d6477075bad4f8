"""A cluster with Istio in it, as an operator has it, and `weir serve` beside it."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import grpc.aio
import yaml

from tests.xds.apiserver import ApiServer
from tests.xds.istio.wired import GATEWAY, SHADOW, XDS, pool, route, to
from tests.xds.talk import EDS, ack, ask, delta, read
from weir.ports import free
from xds.app import ServeOptions, serve
from xds.istio.replicas import GATEWAY_NAME
from xds.istio.shapes.wiring import Version
from xds.keeper import KeeperOptions
from xds.operators import Service
from xds.snapshot import TypeUrl
from xds.sources import kinds
from xds.sources.connection import Cluster
from xds.sources.kubernetes import Watching
from xds.standalone import Standalone

KINDS = {kind.name: kind for kind in (*reversed(kinds.ALWAYS), *kinds.ISTIO)}
FILTERS = f"{kinds.ENVOY_FILTER.plural}.{kinds.ENVOY_FILTER.group}"
NAME = "weir.inference-gateway.ns.llm-pool"
STEPS = [NAME, "weir.inference-gateway", f"{NAME}.routes"]
PROXY = "ns/gw-0"
NODE = "router~10.0.0.1~gw-0.ns~ns.svc.cluster.local"
POD = {
    "metadata": {
        "name": "gw-0",
        "namespace": "ns",
        "labels": {GATEWAY_NAME: "inference-gateway"},
    },
    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
}


class Api(ApiServer):
    """With what an operator has."""

    def __init__(self, *documents):
        every = (*kinds.ALWAYS, *kinds.ISTIO)
        super().__init__(f"{kind.plural}.{kind.group}" for kind in every)
        self.put(*documents)
        self.store.put("pods.", POD)

    def put(self, *documents):
        for text in documents:
            for each in yaml.safe_load_all(text):
                kind = KINDS[each["kind"]]
                self.store.put(f"{kind.plural}.{kind.group}", each)

    def filters(self):
        """In the order in which they came."""
        found = [each for key, each in self.store.objects.items() if key[0] == FILTERS]
        return [each["metadata"]["name"] for each in found]

    def filter(self, name):
        return self.store.objects[FILTERS, "ns", name]


@asynccontextmanager
async def serving(api):
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


def acknowledged():
    """On two streams: a probe's, and the cluster's own."""
    return {PROXY: (SHADOW, SHADOW)}


def gateway(**annotations):
    return (pool(**annotations), GATEWAY, route(to("llm-pool")))


@asynccontextmanager
async def control_plane(config, *, manage=True, write_status=True):
    """`weir serve` beside a cluster (a kubeconfig): its xDS channel, and its HTTP."""
    xds, status = free(), free()
    keeper = KeeperOptions(
        XDS, "weir-0", (), Version(1, 32), settle_seconds=0.3, round_seconds=0.1, patience_seconds=1
    )
    options = ServeOptions(
        Watching(),
        f"127.0.0.1:{xds}",
        f"127.0.0.1:{status}",
        Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2"),
        istio_domain="cluster.local",
        cluster=Cluster(config),
        service=Service("weir", "weir-xds") if write_status else None,
        keeper=keeper if manage else None,
    )
    stopping = asyncio.Event()
    async with (
        asyncio.TaskGroup() as tasks,
        grpc.aio.insecure_channel(f"127.0.0.1:{xds}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{status}") as http,
    ):
        tasks.create_task(serve(options, stopping))
        await channel.channel_ready()
        yield channel, http
        stopping.set()


async def acknowledge(channel):
    """As the Gateway's proxy, take the assignment for a probe and for the cluster; the streams."""
    calls = [delta(channel, f"{EDS}/DeltaEndpoints") for _ in range(2)]
    for call in calls:
        await call.write(ask(TypeUrl.ENDPOINT.value, SHADOW, node=NODE))
        await call.write(ack(await read(call)))
    return calls
