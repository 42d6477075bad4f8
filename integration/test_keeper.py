"""`weir serve --manage-envoyfilters` in the mesh: what it writes reaches the proxy.

istiod's stand-in has whatever EnvoyFilters the API server has. Removal waits 3 s between its steps
instead of 60, as connections drain within 2 s here instead of 45.
"""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest
import yaml

from integration.apiserver import ASSETS, control_plane
from integration.mesh import mesh
from integration.mesh.istiod import DATA
from integration.test_kubernetes_apiserver import account, install, token
from tests.manifests.objects import KUSTOMIZE
from tests.xds.apiserver import ApiServer
from tests.xds.operators_cluster import KINDS, NAME, POD, STEPS, acknowledge, gateway
from tests.xds.operators_cluster import control_plane as weir_serve
from weir.bench.apiserver import kubeconfig
from weir.ports import free
from weir.processes import start, weir
from xds.sources import kinds

FILTERS = f"{kinds.ENVOY_FILTER.plural}.{kinds.ENVOY_FILTER.group}"
POOLS = f"{kinds.POOL.plural}.{kinds.POOL.group}"
SETTLE_SECONDS, DRAIN_SECONDS = 3, 2


class Watched:
    """The API server, the mesh that follows it, and how it came to what it has."""

    def __init__(self, made, api):
        self.mesh, self.api = made, api
        self.history = []
        self._status = f"http://{made.places.weir}:15011/status"

    def put(self, documents):
        for each in documents:
            if (kind := KINDS.get(each["kind"])) is not None:
                self.api.store.put(f"{kind.plural}.{kind.group}", each)

    def annotate(self, shape=None):
        key = POOLS, "ns", "llm-pool"
        pool = self.api.store.objects[key]
        said = {} if shape is None else {"weir.dev/shape": shape}
        pool = {**pool, "metadata": {**pool["metadata"], "annotations": said}}
        self.api.store.put(POOLS, pool)

    def names(self):
        """What of the pool's EnvoyFilters there is; the part after what all have."""
        found = [name for kind, _, name in self.api.store.objects if kind == FILTERS]
        return sorted(found)

    async def until(self, condition, seconds=60):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    async def follow(self):
        """istiod, which watches EnvoyFilters and pushes."""
        seen = {}
        while True:
            there = {k[2]: v for k, v in self.api.store.objects.items() if k[0] == FILTERS}
            now = {name: each["metadata"]["resourceVersion"] for name, each in there.items()}
            if now != seen:
                seen = now
                self.history.append(sorted(there))
                await self.mesh.apply([json.loads(json.dumps(each)) for each in there.values()])
            await asyncio.sleep(0.05)

    async def places(self):
        async with aiohttp.ClientSession() as client, client.get(self._status) as response:
            return (await response.json())["wiring"]["places"]


@asynccontextmanager
async def watched(tmp_path, shape, *, address=None):
    """The shape's mesh with `weir serve` at work; proxies do not know of another `address`."""
    async with mesh(tmp_path, shape, [], drain_seconds=DRAIN_SECONDS, weir=False) as made:
        api = ApiServer(f"{each.plural}.{each.group}" for each in (*kinds.ALWAYS, *kinds.ISTIO))
        api.collections.add("events.")
        there = Watched(made, api)
        there.put(objects(made))
        await api.start()
        config = kubeconfig(tmp_path / "kubeconfig", api.url)
        child = await start(
            "weir serve",
            weir(
                *("serve", "--kubernetes", "--kubeconfig", str(config), "--plaintext"),
                *("--listen", address or made.places.xds, "--status", f"{made.places.weir}:15011"),
                *("--istio-domain", "cluster.local", "--manage-envoyfilters"),
                *("--istio-version", "1.32", "--settle-seconds", str(SETTLE_SECONDS)),
            ),
            tmp_path / "serve.log",
        )
        try:
            await child.until_logged("serving")
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(there.follow())
                yield there
                following.cancel()
        finally:
            await child.stop()
            await api.stop()


def objects(made):
    """What the operator has, the proxy's Pod named as its node says, and unequal capacities."""
    text = (DATA / "kubernetes.yaml").read_text().replace("name: gw-0", "name: inference-gateway-0")
    documents = made.pods.objects(made.places, text)
    for each in documents:
        if each["kind"] == "Pod" and each["metadata"]["name"] == "llm-1":
            each["metadata"]["annotations"] = {"weir.dev/capacity": "3"}
    return documents


FIRST = {
    "gateway": "weir.inference-gateway.ns.llm-pool.gateway.probe",
    "waypoint-own-cluster": "weir.waypoint.ns.llm.8000.cluster",
}
LAST = {
    "gateway": "weir.inference-gateway.ns.llm-pool.routes",
    "waypoint-own-cluster": "weir.waypoint.ns.llm.8000.route",
}


@pytest.mark.parametrize("shape", FIRST)
async def test_an_annotated_pool_is_wired_and_unwired_and_no_request_fails(tmp_path, shape):
    async with watched(tmp_path, shape) as there, there.mesh.traffic.under_load() as load:
        made = there.mesh
        await made.traffic.served(40)
        there.annotate(shape)
        await there.until(lambda: LAST[shape] in there.names())
        await made.has(100, 300)
        await made.traffic.served(100)
        async with asyncio.timeout(10):
            while [each["done"] for each in await there.places()] != [True]:
                await asyncio.sleep(0.2)
        assert there.history[0] == [FIRST[shape]]
        before = {*there.names()} - {LAST[shape]}
        there.annotate()
        await there.until(lambda: LAST[shape] not in there.names())
        assert {*there.names()} >= {each for each in before if "probe" not in each}
        await there.until(lambda: there.names() == [])
        await made.traffic.served(40)
        assert await there.places() == []
    assert load.failures == {}
    assert load.sent > 300


@pytest.mark.parametrize("shape", FIRST)
async def test_where_the_proxy_does_not_reach_weir_nothing_comes_but_a_cluster(tmp_path, shape):
    nowhere = f"127.0.0.1:{free()}"
    async with (
        watched(tmp_path, shape, address=nowhere) as there,
        there.mesh.traffic.under_load() as load,
    ):
        there.annotate(shape)
        await there.until(lambda: there.names() == [FIRST[shape]])
        await asyncio.sleep(6)
        assert there.names() == [FIRST[shape]]
        (place,) = await there.places()
        assert "1 of 1 proxies" in place["says"]
    assert load.failures == {}


RIGHTS = tuple(
    f"{each}/rbac.yaml" for each in ("base", "components/istio", "components/envoyfilters")
)


@asynccontextmanager
async def serving(plane, tmp_path):
    """Beside a real API server, with the rights that our manifests give and no others."""
    rules = [
        rule
        for name in RIGHTS
        for each in yaml.safe_load_all((KUSTOMIZE / name).read_text())
        for rule in each.get("rules", ())
    ]
    await account(plane, "weir", rules)
    config = plane.kubeconfig(tmp_path / "kubeconfig", await token(plane, "weir"))
    async with weir_serve(config) as (channel, http):
        yield channel, http


class Filters:
    """EnvoyFilters of a real API server."""

    def __init__(self, plane):
        self._plane, self._path = plane, kinds.ENVOY_FILTER.path("ns")

    async def names(self):
        found = (await self._plane.do("GET", self._path))["items"]
        return sorted(each["metadata"]["name"] for each in found)

    async def get(self, name):
        return await self._plane.do("GET", f"{self._path}/{name}")

    async def patch(self, name, body):
        await self._plane.do("PATCH", f"{self._path}/{name}", body, "merge-patch+json")

    async def until(self, condition, seconds=20):
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.1)


@pytest.mark.skipif(not ASSETS, reason="KUBEBUILDER_ASSETS names no etcd and kube-apiserver")
async def test_a_real_api_server_takes_what_is_applied_put_right_and_removed(tmp_path):
    (tmp_path / "plane").mkdir()
    async with control_plane(tmp_path / "plane") as plane:
        for kind in (kinds.POOL, kinds.GATEWAY, kinds.ROUTE, *kinds.ISTIO):
            if kind is not kinds.NAMESPACE:
                await install(plane, kind)
        await has_status(plane, kinds.POOL)
        await plane.do("POST", "/api/v1/namespaces", {"metadata": {"name": "ns"}})
        for text in gateway(shape="auto"):
            for each in yaml.safe_load_all(text):
                await plane.do("POST", KINDS[each["kind"]].path("ns"), each)
        await add_proxy(plane)
        filters = Filters(plane)

        async def wired():
            return await filters.names() == sorted(STEPS)

        async with serving(plane, tmp_path) as (channel, http):
            await filters.until(lambda: told(plane, "False"))
            stream = await acknowledge(channel)
            await filters.until(wired)
            await filters.until(lambda: told(plane, "True"))
            good = await filters.get(NAME)
            (applied,) = (
                each for each in good["metadata"]["managedFields"] if each["manager"] == "weir"
            )
            assert applied["operation"] == "Apply"
            await filters.patch(NAME, {"spec": {"configPatches": [], "priority": 7}})

            async def put_right():
                return (await filters.get(NAME))["spec"] == good["spec"]

            await filters.until(put_right)
            notes = {"metadata": {"annotations": {"theirs": "too"}}}
            await filters.patch(NAME, notes)
            await filters.patch(NAME, {"spec": {"targetRefs": []}})
            await filters.until(put_right)
            assert (await filters.get(NAME))["metadata"]["annotations"]["theirs"] == "too"
            async with http.get("/status") as response:
                wiring = (await response.json())["wiring"]
            assert (wiring["acting"], wiring["paused"], wiring["away"]) == (True, "", "")
            said = {"metadata": {"annotations": {"weir.dev/shape": None}}}
            path = f"{kinds.POOL.path('ns')}/llm-pool"
            await plane.do("PATCH", path, said, "merge-patch+json")

            async def gone():
                return await filters.names() == []

            await filters.until(gone)
            stream.cancel()


async def told(plane, status):
    """Whether the pool's status says so, and an Event was there of what was wrong before."""
    pool = await plane.do("GET", f"{kinds.POOL.path('ns')}/llm-pool")
    events = (await plane.do("GET", "/api/v1/namespaces/ns/events"))["items"]
    conditions = {
        each["type"]: each["status"]
        for parent in pool.get("status", {}).get("parents", ())
        for each in parent["conditions"]
    }
    reasons = {each["reason"] for each in events}
    return conditions.get("weir.dev/Wired") == status and "NotWired" in reasons


async def has_status(plane, kind):
    """As a CRD that is not a test's has it."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind.resource}"
    versions = (await plane.do("GET", path))["spec"]["versions"]
    versions = [each | {"subresources": {"status": {}}} for each in versions]
    await plane.do("PATCH", path, {"spec": {"versions": versions}}, "merge-patch+json")
    async with asyncio.timeout(20):
        while (await plane.call("GET", f"{kind.path('ns')}/none/status"))[0] == 404:
            if "the server could not find" not in str(
                (await plane.call("GET", f"{kind.path('ns')}/none/status"))[1]
            ):
                return
            await asyncio.sleep(0.1)


async def add_proxy(plane):
    body = {
        "metadata": {"name": "gw-0", "labels": POD["metadata"]["labels"]},
        "spec": {"containers": [{"name": "istio-proxy", "image": "proxyv2"}], "nodeName": "node"},
    }
    await plane.do("POST", "/api/v1/namespaces/ns/pods", body)
    status = {"status": POD["status"]}
    await plane.do("PATCH", "/api/v1/namespaces/ns/pods/gw-0/status", status, "merge-patch+json")
