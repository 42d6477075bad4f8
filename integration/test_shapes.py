"""What `weir istio manifests` prints, in the mesh: each shape with the product's own filters.

Patches that change nothing are an error of the mesh, so that a shape which silently does not apply
fails here. What happens when parts fail, come and go: `test_shape_failures.py`.
"""

from collections import Counter
from dataclasses import replace

import pytest
import pytest_asyncio
import yaml

from integration.mesh import SHAPES, Tunnel, follows, mesh
from integration.mesh.istiod import POOL
from integration.wiring import Wiring, printed
from xds.istio.assignment import pool_cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXT_PROC = "envoy.filters.http.ext_proc"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SHAPES)
async def running(request, tmp_path_factory):
    """One mesh for the tests that leave it as they found it."""
    directory = tmp_path_factory.mktemp(request.param)
    filters = printed(request.param, directory)
    async with mesh(directory, request.param, filters) as made:
        await made.has(1, 3)
        yield made


async def test_weights_hold_and_change(running):
    for weights in ((1, 3), (3, 1), (1, 3)):
        await running.weighs(*weights)
        served = await running.traffic.served(300, at_once=1)
        assert follows(served, dict(zip(running.pods, weights, strict=True))), served


async def test_one_prompt_stays_on_one_pod_whatever_the_connection(running):
    for pod in running.pods.values():
        key = await a_key_of(running, pod)
        assert await running.traffic.served(20, key=key, at_once=1) == {pod.name: 20}
        assert await running.traffic.served(20, key=key, at_once=1, kept=False) == {pod.name: 20}


async def test_a_captured_pod_is_picked_by_its_internal_address_and_reached_by_mutual_tls(running):
    captured, plain = running.pods.values()
    key = await a_key_of(running, plain)
    running.picker.target = captured.endpoint  # silently ignored: affinity decides
    assert await running.traffic.served(20, key=key) == {plain.name: 20}
    running.picker.target = captured.dual
    assert await running.traffic.served(20, key=key) == {captured.name: 20}
    running.picker.target = None
    await running.far.has(1)
    assert set(running.far.tunnels) == {Tunnel(running.identity, captured.endpoint)}


async def test_the_picker_is_asked_once_a_request_for_the_pool_and_sees_digests(running):
    before = running.picker.asked["ns/llm-pool"]
    await running.traffic.served(20)
    assert running.picker.asked == {"ns/llm-pool": before + 20}
    served = next(pod for pod in running.pods.values() if pod.headers)
    headers = {name.lower(): value for name, value in served.headers.items()}
    assert headers["x-gateway-model-name"] == "m"
    assert headers["x-weir-digest"].startswith("v1;")


@pytest.mark.parametrize("shape", ["gateway", "gateway-own-cluster", "waypoint-own-cluster"])
async def test_in_steps_it_comes_and_goes_without_a_failed_request_though_weir_is_away(
    tmp_path, shape
):
    """With Weir there: `integration.drills`."""
    async with mesh(tmp_path, shape, [], drain_seconds=2, weir=False) as made:
        wiring = Wiring(made)
        async with made.traffic.under_load() as load:
            await wiring.install(1, 1)  # the twin's
            await made.traffic.served(40)
            await wiring.remove()
            await made.traffic.served(40)
        assert load.failures == {}
        assert load.sent > 100


async def test_a_route_whose_override_istio_lost_gets_its_picker_back(tmp_path):
    """As a CORS or fault filter makes Istio lose it."""

    def lost(configuration):
        for route in routes_of(configuration):
            del route["typed_per_filter_config"][EXT_PROC]
        return configuration

    filters = printed("gateway", tmp_path)
    async with mesh(tmp_path, "gateway", filters, edit=lost) as made:
        await made.has(1, 3)
        for pod in made.pods.values():
            made.picker.target = pod.dual
            assert await made.traffic.served(10) == {pod.name: 10}


async def test_other_routes_of_the_gateway_never_reach_the_picker(tmp_path):
    def beside(configuration):
        (route,) = routes_of(configuration)
        other = replace_in(route, "ns.llm-route.0", "ns.other.0")
        other["match"] = {"prefix": "/other"}
        del other["typed_per_filter_config"]
        for host in configuration.routes[0]["virtual_hosts"]:
            host["routes"].insert(0, other)
        return configuration

    async def upload():
        for _ in range(64):
            yield b"x" * 32_768

    filters = printed("gateway", tmp_path)
    async with mesh(tmp_path, "gateway", filters, edit=beside) as made:
        await made.has(1, 3)
        forged = {"x-weir-digest": "mine"}
        answer = await made.traffic.request(path="/other/x", data=upload(), headers=forged)
        assert answer.status == 200
        pod = made.pods[answer.served]
        assert len(pod.body) == 2 << 20
        assert pod.headers["x-weir-digest"] == "mine"
        assert made.picker.asked == {}
        await made.traffic.served(5)
        assert made.picker.asked == {"ns/llm-pool": 5}


async def test_a_split_between_pools_is_answered_for_each_and_keeps_istios_weights(tmp_path):
    """The other pool's cluster is istiod's of this one, by another name."""
    other = pool_cluster("ns", "other", "cluster.local").name

    def split(configuration):
        for route in routes_of(configuration):
            del route["route"]["cluster"]
            clusters = [{"name": POOL, "weight": 1}, {"name": other, "weight": 3}]
            route["route"]["weighted_clusters"] = {"clusters": clusters}
        (cluster,) = [each for each in configuration.clusters if each["name"] == POOL]
        copied = cluster | {"name": other, "alt_stat_name": f"{other};"}
        return replace(configuration, clusters=[*configuration.clusters, copied])

    def two_pools(text):
        documents = [each for each in yaml.safe_load_all(text) if each]
        (pool,) = [each for each in documents if each["kind"] == "InferencePool"]
        (route,) = [each for each in documents if each["kind"] == "HTTPRoute"]
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        route["spec"]["rules"][0]["backendRefs"].append(backend | {"name": "other"})
        copied = replace_in(pool, "llm-pool", "other")
        copied["spec"]["selector"]["matchLabels"] = {"app": "other"}
        return yaml.safe_dump_all([*documents, copied])

    filters = printed("gateway", tmp_path, change=two_pools)
    async with mesh(tmp_path, "gateway", filters, edit=split) as made:
        await made.has(1, 3)
        await made.has(1, 3, cluster=other)
        served = await made.traffic.served(200, at_once=1)
        assert follows(served, {"llm-0": 1, "llm-1": 3}), served
        assert made.picker.asked == {"ns/llm-pool": 200, "ns/other": 200}
        totals = Counter(
            {each: await made.stat("upstream_rq_total", each) for each in (POOL, other)}
        )
        assert follows(totals, {POOL: 1, other: 3}), totals
        for pod in made.pods.values():
            made.picker.target = pod.dual
            assert await made.traffic.served(20) == {pod.name: 20}


def routes_of(configuration):
    return [
        route
        for each in configuration.routes
        for host in each["virtual_hosts"]
        for route in host["routes"]
        if "typed_per_filter_config" in route
    ]


def replace_in(value, old, new):
    return yaml.safe_load(yaml.safe_dump(value).replace(old, new))


async def a_key_of(running, pod):
    """A prompt whose affinity leads to the Pod."""
    for number in range(100):
        key = f"seek-{number}"
        if (await running.traffic.request(key=key)).served == pod.name:
            return key
    raise AssertionError(f"no key leads to {pod.name}")
