"""What a real istiod generates, beside what tests without one take it to be.

`make integration-istiod` builds one. The data in `istiod/` is held to it here, and so is
`envoyfilter.py`, which patches that data as istiod would.
"""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from integration.cluster import MISSING, cluster
from integration.envoyfilter import apply
from integration.follower import taken_from_ads
from integration.mesh.istiod import GATEWAY_PROXY, SHAPES, assignments, generated
from integration.recording import by_name, followed, objects, stages
from integration.wiring import printed, unwired, with_asked_for
from tests.weir.test_istio_live import weir
from xds.istio.shapes.inventory import INFERENCE

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    """One cluster for tests that leave it as they found it."""
    async with cluster(tmp_path_factory.mktemp("cluster"), *objects()) as made:
        yield made


@asynccontextmanager
async def applied(made, *documents):
    """Until the block ends."""
    try:
        await made.apply(*documents)
        yield
    finally:
        await made.kubectl.delete(*documents)


async def sends(proxy, expected):
    """Wait until istiod's resources are these, by kind and name; else say where they differ."""
    try:
        await proxy.until(lambda: proxy.resources == expected)
    except TimeoutError:
        raise AssertionError("\n".join(differences(proxy.resources, expected))) from None


def differences(found, expected, where=""):
    """Where istiod differs from what was expected, one line each."""
    if found == expected:
        return
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in {**found, **expected}:
            yield from differences(found.get(key), expected.get(key), f"{where}/{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}/{number}")
    else:
        yield f"{where}: istiod has {json.dumps(found)}, expected was {json.dumps(expected)}"


@pytest.mark.parametrize("folder", stages())
async def test_istiod_makes_of_the_recorded_objects_what_is_recorded(running, folder):
    stage = stages()[folder]
    async with applied(running, *stage.objects), followed(running, stage.proxy) as proxy:
        await sends(proxy, stage.recorded)


@pytest.mark.parametrize("shape", SHAPES)
async def test_istiod_makes_of_what_is_printed_what_the_applier_makes_of_it(
    running, shape, tmp_path
):
    """Step by step, as an operator applies it; an HTTPRoute comes last."""
    shape = SHAPES[shape]
    first, every = (printed(shape.name, tmp_path, step=step) for step in (1, None))
    routes = stages()[f"patched/{shape.name}"].routes
    async with followed(running, shape.proxy) as proxy, applied(running, *every, *routes):
        await running.kubectl.delete(*routes, *(each for each in every if each not in first))
        await sends(proxy, await patched(running, shape, first, start=unwired(shape)))
        await running.apply(*every, *routes)
        await sends(proxy, await patched(running, shape, every, start=shape.start))


@pytest.mark.parametrize("shape", SHAPES)
async def test_istiods_webhook_says_of_what_is_printed_what_it_says_of_every_envoyfilter(
    running, shape, tmp_path
):
    """The API server's own validation, by Istio's CRDs, is part of applying it above."""
    for each in printed(shape, tmp_path):
        (said,) = await running.istiod.objections(each)
        assert said.startswith("EnvoyFilter exposes internal implementation details that may ")
    each["spec"]["configPatches"][0]["patch"]["value"] = {"no": "field"}
    assert len(await running.istiod.objections(each)) == 2


async def test_an_istiod_that_knows_no_pools_says_so_of_a_route_and_weir_passes_it_on(tmp_path):
    """It accepts the route, and leads it to a cluster that is none."""
    async with cluster(tmp_path, *objects(), **{INFERENCE: "false"}) as made:
        async with followed(made, GATEWAY_PROXY) as proxy:
            await proxy.until(lambda: "http.80" in proxy.resources["routes"])
            assert "UnknownService" in json.dumps(proxy.resources["routes"])
        (route,) = (each for each in objects() if each["kind"] == "HTTPRoute")
        async with asyncio.timeout(20):
            while "status" not in await made.kubectl.get(route):
                await asyncio.sleep(0.1)
        status, _, why = await weir(
            *("manifests", "ns/llm-pool", "--istio-version", "1.32"),
            *("--kubernetes", "--kubeconfig", made.kubeconfig),
        )
    assert status == 1
    assert f"To enable, set {INFERENCE} to true in istiod" in why


async def patched(made, shape, filters, *, start):
    """What the mesh's stand-in would send of these EnvoyFilters, as the API server has them."""
    there = [await made.kubectl.get(each) for each in filters]
    before = with_asked_for(generated(start, there, shape.proxy), shape, there)
    configuration, silences = apply(there, shape.proxy, before)
    assert silences == []
    kinds = ("clusters", "listeners", "routes")
    found = {kind: by_name(kind, getattr(configuration, kind)) for kind in kinds}
    known = assignments()
    names = set(taken_from_ads(configuration.clusters))
    return {**found, "endpoints": {name: known[name] for name in names}}
