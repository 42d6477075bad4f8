"""Weir wires a pool in a real API server, a real istiod tells the proxy, and no request fails."""

import asyncio

import pytest

from integration.cluster import MISSING
from integration.mesh import SHAPES, Tunnel, follows
from integration.operated import operated
from xds.istio.shapes.inventory import INFERENCE

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.timeout(300),
]
UNFLAGGED = {INFERENCE: "false"}
SITES = {
    **{shape: (shape, {}) for shape in SHAPES},
    "waypoint-second-service, no inference flag": ("waypoint-second-service", UNFLAGGED),
    "waypoint-own-cluster, no inference flag": ("waypoint-own-cluster", UNFLAGGED),
    "waypoint-inferencepool, Namespace enrolled": ("waypoint-inferencepool", {"enrolled": True}),
}


@pytest.mark.parametrize(("shape", "options"), SITES.values(), ids=SITES)
async def test_an_annotated_pool_is_wired_and_unwired_and_no_request_fails(
    tmp_path, shape, options
):
    async with operated(tmp_path, shape, **options) as there:
        async with there.mesh.traffic.under_load() as load:
            await comes(there, shape)
        assert load.failures == {}
        await starts_alone(there)
        async with there.mesh.traffic.under_load() as load:
            await goes(there)
        assert load.failures == {}


async def comes(there, shape):
    made = there.mesh
    await made.traffic.served(40)
    await there.annotate(shape)
    await there.wired()
    highest = [max(each, default=-1) for each in there.steps]
    assert highest == sorted(highest)
    assert (there.steps[0], len(there.steps[1])) == ([], 1), "a cluster that nobody routes to"
    await made.has(100, 300)
    await made.drained()
    served = await made.traffic.served(300, at_once=1)
    assert follows(served, {"llm-0": 1, "llm-1": 3}), served
    for pod in made.pods.values():
        made.picker.target, before = pod.dual, await late(made)
        served = await made.traffic.served(20)
        assert served[pod.name] >= 20 - (await late(made) - before), served
    made.picker.target = None
    captured, _ = made.pods.values()
    assert set(made.far.tunnels) == {Tunnel(made.identity, captured.endpoint)}
    async with asyncio.timeout(20):
        while (await there.conditions())["weir.dev/controller"].get("weir.dev/Wired") != "True":
            await asyncio.sleep(0.1)
    if made.shape.name.startswith("gateway"):
        said = {"Accepted": "True", "ResolvedRefs": "True"}
        assert (await there.conditions())["istiod"] == said, "both write status"


async def late(made):
    """Of how many requests the proxy did not wait for the picker any longer."""
    return sum((await made.proxy.stats(r"ext_proc\.message_timeouts$")).values())


async def starts_alone(there):
    """A proxy that starts without Weir has istiod's endpoints by its twin, and then ours again."""
    made = there.mesh
    await made.proxy.stop()
    await there.weir.kill()
    await made.proxy.start()
    await made.has(1, 1)
    assert await made.stat("assignment_use_cached") == 1
    await made.traffic.served(40)
    await there.serve()
    await made.has(100, 300)


async def goes(there):
    made, came = there.mesh, len(there.steps)
    leftovers = await there.leftovers()
    await there.annotate(None)
    await there.unwired()
    highest = [max(each, default=-1) for each in there.steps[came:]]
    assert highest == sorted(highest, reverse=True)
    for each in leftovers:
        await made.drained()
        await there.cluster.kubectl.delete(each)
    await made.drained()
    await made.traffic.served(40)
    assert not [each for each in made.istiod.configuration.clusters if "weir|" in each["name"]]


@pytest.mark.parametrize("shape", ["gateway-own-cluster", "waypoint-second-service"])
async def test_what_is_wired_outlives_istiod_and_the_api_server_and_follows_a_destinationrule(
    tmp_path, shape
):
    async with operated(tmp_path, shape) as there, there.mesh.traffic.under_load() as load:
        made = there.mesh
        await there.annotate(shape)
        await there.wired()
        await made.has(100, 300)
        await there.cluster.istiod.stop()
        await made.traffic.served(40)
        await there.cluster.istiod.start()
        await there.cluster.plane.stop_apiserver()
        await made.traffic.served(40)
        await there.cluster.plane.start_apiserver()
        await there.cluster.apply(slow(made.shape.service))
        async with asyncio.timeout(60):
            while timeouts(made) != {"7s"}:
                await asyncio.sleep(0.1)
        await made.settled()
        await made.has(100, 300)
        await made.traffic.served(40)
    assert load.failures == {}


def slow(service):
    """A DestinationRule: what the cluster is made of changes."""
    connections = {"tcp": {"connectTimeout": "7s"}}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "llm", "namespace": "ns"},
        "spec": {
            "host": service.rpartition("|")[2],
            "trafficPolicy": {"connectionPool": connections},
        },
    }


def timeouts(made):
    """Of istiod's cluster and ours."""
    names = (made.shape.service, made.shape.cluster)
    clusters = made.istiod.configuration.clusters
    return {each["connect_timeout"] for each in clusters if each["name"] in names}
