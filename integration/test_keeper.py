"""`weir serve --manage-envoyfilters` in the mesh: what it writes reaches the proxy.

With more than one replica: `test_replicas.py`.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest
import yaml

from integration.apiserver import ASSETS, control_plane
from integration.mesh import SHAPES
from integration.test_kubernetes_apiserver import account, install, token
from integration.watched import SETTLE_SECONDS, watched
from integration.wiring import BY_HTTPROUTE
from tests.manifests.objects import KUSTOMIZE
from tests.xds.operators_cluster import KINDS, NAME, POD, STEPS, acknowledge, gateway
from tests.xds.operators_cluster import control_plane as weir_serve
from weir.ports import free
from xds.sources import kinds

FIRST = {
    "gateway": "weir.inference-gateway.ns.llm-pool.gateway.probe",
    "gateway-own-cluster": "weir.inference-gateway.ns.llm-pool",
    "waypoint-inferencepool": "weir.waypoint.ns.llm-pool.waypoint-inferencepool.probe",
    "waypoint-second-service": "weir.waypoint.ns.llm-pool.waypoint-second-service.probe",
    "waypoint-own-cluster": "weir.waypoint.ns.llm.8000.cluster",
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_annotated_pool_is_wired_and_unwired_and_no_request_fails(tmp_path, shape):
    async with watched(tmp_path, shape) as there, there.mesh.traffic.under_load() as load:
        made = there.mesh
        await made.traffic.served(40)
        there.annotate(shape)
        await there.wired()
        await made.has(100, 300)
        await made.traffic.served(100)
        came = [each for each in there.changes if each.what == "ADDED"]
        assert came[0].name == FIRST[shape]
        assert [each.step for each in came] == sorted(each.step for each in came)
        await there.until(lambda: 0 not in there.filters.values())  # the probe
        before, highest = there.filters, max(there.filters.values())
        there.annotate()
        if shape in BY_HTTPROUTE:
            await held_until_the_route_is_gone(there)
        await there.until(lambda: there.filters != before)
        assert all(name in there.filters for name, step in before.items() if step < highest)
        await there.unwired()
        steps = [each.step for each in there.changes]
        assert {each.what for each in there.changes} == {"DELETED"}
        assert steps == sorted(steps, reverse=True)
        await made.traffic.served(40)
    assert load.failures == {}
    assert load.sent > 300


async def held_until_the_route_is_gone(there):
    """Istio alone answers it with 503, or takes its cluster away before it."""
    before = there.filters
    (place,) = await there.until_told(lambda places: "goes first" in places[0]["says"])
    await asyncio.sleep(2 * SETTLE_SECONDS)
    assert there.filters == before
    await there.mesh.traffic.served(40)
    there.obey(place["says"])
    assert not there.routed


async def test_patches_come_under_a_route_that_is_in_use_and_go_after_it(tmp_path):
    """Istio alone carries out a route to a second Service."""
    shape = "waypoint-second-service"
    async with watched(tmp_path, shape) as there, there.mesh.traffic.under_load() as load:
        made = there.mesh
        for number in (1, 2):
            command = f"istio manifests ns/llm-pool --shape {shape} --step {number}"
            there.obey(f"`weir {command}` prints it")
        await made.has(1, 1)
        there.annotate(shape)
        await there.wired()
        await made.has(100, 300)
        await there.until(lambda: 0 not in there.filters.values())  # the probe
        before = there.filters
        there.obey("kubectl delete httproute -n ns llm-weir")
        await there.until_told(lambda places: "apply HTTPRoute" in places[0]["says"])
        await asyncio.sleep(2 * SETTLE_SECONDS)
        assert there.filters == before, "they go with the annotation"
        there.annotate()
        await there.unwired()
        await made.traffic.served(40)
    assert load.failures == {}


@pytest.mark.parametrize("shape", ["gateway", "waypoint-own-cluster"])
async def test_where_the_proxy_does_not_reach_weir_nothing_comes_but_a_cluster(tmp_path, shape):
    nowhere = f"127.0.0.1:{free()}"
    async with (
        watched(tmp_path, shape, listen=nowhere) as there,
        there.mesh.traffic.under_load() as load,
    ):
        there.annotate(shape)
        await there.until(lambda: [*there.filters] == [FIRST[shape]])
        await asyncio.sleep(6)
        assert [*there.filters] == [FIRST[shape]]
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
            streams = await acknowledge(channel)
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
            for stream in streams:
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
