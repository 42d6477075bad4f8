"""A cluster with Istio in it, as an operator has it, on an API server of ours."""

from contextlib import asynccontextmanager

import yaml

from tests.xds.apiserver import ApiServer
from tests.xds.istio.wired import GATEWAY, SHADOW, pool, route, to
from xds.istio.replicas import GATEWAY_NAME
from xds.sources import kinds

KINDS = {kind.name: kind for kind in (*reversed(kinds.ALWAYS), *kinds.ISTIO)}
FILTERS = f"{kinds.ENVOY_FILTER.plural}.{kinds.ENVOY_FILTER.group}"
NAME = "weir.inference-gateway.ns.llm-pool"
STEPS = [NAME, "weir.inference-gateway", f"{NAME}.routes"]
PROXY = "ns/gw-0"
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
    return {PROXY: frozenset({SHADOW})}


def gateway(**annotations):
    return (pool(**annotations), GATEWAY, route(to("llm-pool")))
