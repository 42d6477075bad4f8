"""What `weir istio manifests` prints, in the mesh: each shape with the product's own filters.

The operator's objects are those that istiod's data was generated from. Patches that change nothing
are an error of the mesh, so that a shape which silently does not apply fails here.
"""

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest
import pytest_asyncio
import yaml
from click.testing import CliRunner

from integration.envoyfilter import referenced_services
from integration.mesh import SHAPES, Tunnel, follows, mesh
from integration.mesh.istiod import DATA, POOL, read
from weir.cli import main
from xds.istio.assignment import pool_cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXT_PROC = "envoy.filters.http.ext_proc"
VERSIONS = {"gateway-own-cluster": "1.31"}
OWN = ["gateway-own-cluster", "waypoint-own-cluster"]


def printed(shape, directory, *, step=None, change=str):
    """The EnvoyFilters that an operator gets for a shape, of one step or of all."""
    have = directory / "have"
    have.mkdir(exist_ok=True)
    (have / "kubernetes.yaml").write_text(change((DATA / "kubernetes.yaml").read_text()))
    route = DATA / "patched" / shape / "httproute.yaml"
    if route.exists():
        (have / "httproute.yaml").write_text(route.read_text())
    arguments = [
        *("istio", "manifests", "ns/llm-pool", "--config", str(have), "--shape", shape),
        *("--istio-version", VERSIONS.get(shape, "1.32")),
        *(("--step", str(step)) if step else ()),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    documents = [each for each in yaml.safe_load_all(result.stdout) if each]
    return [each for each in documents if each["kind"] == "EnvoyFilter"]


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


async def test_a_picker_that_is_killed_costs_no_request_and_one_that_hangs_a_quarter_second(
    running,
):
    try:
        async with running.traffic.under_load() as load:
            await running.picker.stop()
            await running.traffic.served(40)
            await running.picker.start()
            await running.traffic.served(40)
        assert load.failures == {}
        running.picker.hanging = True
        began = time.monotonic()
        await running.traffic.served(8, at_once=1)
        assert time.monotonic() - began < 8 * (0.25 + 0.5)  # it hangs for ever
    finally:
        running.picker.hanging = False


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_proxy_that_starts_while_weir_is_away_serves_from_its_twins_copy(tmp_path, shape):
    async with mesh(tmp_path, shape, printed(shape, tmp_path), weir=False) as made:
        await made.has(1, 1)  # istiod's
        assert await made.stat("assignment_use_cached") == 1
        async with made.traffic.under_load() as load:
            await made.weir.start()
            await made.has(1, 3)
        assert load.failures == {}


@pytest.mark.parametrize("shape", [*OWN, "gateway"])
@pytest.mark.parametrize("weir", [True, False], ids=["weir", "no-weir"])
async def test_installed_in_steps_and_removed_in_reverse_it_costs_no_request(tmp_path, shape, weir):
    first, last = (printed(shape, tmp_path, step=number) for number in (1, 2))
    weights = (1, 3) if weir else (1, 1)
    async with mesh(tmp_path, shape, [], drain_seconds=2, weir=weir) as made:
        async with made.traffic.under_load() as load:
            await made.apply(first)
            await made.has(*weights)  # every proxy has acknowledged
            await made.apply([*first, *last])
            await made.traffic.served(40)
            await made.apply(first)
            await asyncio.sleep(3)  # connections drain
            await made.apply([])
            await made.traffic.served(40)
        assert load.failures == {}
        assert load.sent > 100


@pytest.mark.parametrize("shape", ["waypoint-inferencepool", "waypoint-second-service"])
async def test_with_the_httproute_after_the_patches_and_before_them_it_costs_no_request(
    tmp_path, shape
):
    """The cluster is in the proxy by the annotation of the filters, before a route leads to it.

    So istiod has it once its Service exists: a second one does, and that of a pool does where
    another HTTPRoute leads to the pool too.
    """
    filters, start = printed(shape, tmp_path), SHAPES[shape].start
    hosts = referenced_services(filters)
    assert SHAPES[shape].cluster.rpartition("|")[2] in hosts

    def referenced(configuration):
        known = {each["name"] for each in configuration.clusters}
        asked = [
            each
            for each in read(f"unpatched/{start}", "clusters", made.places.move)
            if each["name"].rpartition("|")[2] in hosts and each["name"] not in known
        ]
        return replace(configuration, clusters=[*configuration.clusters, *asked])

    def unreferenced(configuration):
        return configuration

    async with mesh(tmp_path, shape, [], start="waypoint", drain_seconds=2) as made:
        async with made.traffic.under_load() as load:
            await made.apply(filters, edit=referenced)
            await made.has(1, 3)  # every proxy has acknowledged
            await made.apply(start=start)
            await made.traffic.served(40)
            await made.apply(start="waypoint")
            await asyncio.sleep(3)  # connections drain
            await made.apply([], edit=unreferenced)
            await made.traffic.served(40)
        assert load.failures == {}


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
