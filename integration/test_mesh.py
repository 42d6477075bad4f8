"""Each wiring shape, as istiod configures it, in real Envoys, with the patches of istiod's data.

The patches are stand-ins, so these tests say that the shapes work and that the mesh shows it.
"""

import io

import pytest
import pytest_asyncio

from integration.mesh import SHAPES, IdlePatchError, Tunnel, follows, mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SHAPES)
async def running(request, tmp_path_factory):
    """One mesh for the tests that leave it as they found it."""
    async with mesh(tmp_path_factory.mktemp(request.param), request.param) as made:
        await made.has(1, 3)
        yield made


async def test_weights_arrive_hold_and_change(running):
    for weights in ((1, 3), (3, 1), (1, 3)):
        await running.weighs(*weights)
        served = await running.traffic.served(300, at_once=1)
        assert follows(served, dict(zip(running.pods, weights, strict=True))), served
    assert await running.stat("assignment_use_cached") == 0


async def test_one_key_stays_on_one_pod_whatever_the_connection(running):
    for pod in running.pods.values():
        key = await a_key_of(running, pod)
        kept = await running.traffic.served(20, key=key, at_once=1)
        new = await running.traffic.served(20, key=key, at_once=1, kept=False)
        assert kept == new == {pod.name: 20}


async def test_a_captured_pod_is_reached_over_mutual_tls_and_sees_the_proxys_identity(running):
    captured, plain = running.pods.values()
    running.picker.target = captured.dual
    assert await running.traffic.served(10) == {captured.name: 10}
    running.picker.target = plain.endpoint
    assert await running.traffic.served(10) == {plain.name: 10}
    running.picker.target = None
    await running.far.has(1)
    assert set(running.far.tunnels) == {Tunnel(running.identity, captured.endpoint)}


async def test_a_captured_pod_must_be_picked_by_its_internal_address(running):
    captured, plain = running.pods.values()
    key = await a_key_of(running, plain)
    before = running.picker.asked["ns/llm-pool"]
    running.picker.target = captured.endpoint  # silently ignored: affinity decides
    assert await running.traffic.served(20, key=key) == {plain.name: 20}
    running.picker.target = captured.dual
    assert await running.traffic.served(20, key=key) == {captured.name: 20}
    running.picker.target = None
    assert await running.traffic.served(20, key=key) == {plain.name: 20}
    assert running.picker.asked["ns/llm-pool"] == before + 60


async def test_bodies_go_through_whole_and_answers_are_streamed(running):
    # 1 MiB and more is beyond what a filter of the patches would buffer.
    large = b"x" * 1_500_000
    answer = await running.traffic.request(data=io.BytesIO(large))
    assert (answer.status, running.pods[answer.served].body) == (200, large)
    answer = await running.traffic.request(json={"model": "m", "stream": True})
    assert answer.body.count(b"data: ") == 5


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_proxy_that_starts_while_weir_is_away_serves_from_its_twins_copy(tmp_path, shape):
    async with mesh(tmp_path, shape, weir=False) as made:
        await made.has(1, 1)  # istiod's
        assert await made.stat("assignment_use_cached") == 1
        async with made.traffic.under_load() as load:
            await made.weir.start()
            await made.has(1, 3)
        assert load.failures == {}
        served = await made.traffic.served(200, at_once=1)
        assert follows(served, {"llm-0": 1, "llm-1": 3}), served


@pytest.mark.parametrize("shape", ["gateway", "waypoint-second-service"])
async def test_a_shape_that_goes_leaves_istiods_own_weights_and_may_come_again(tmp_path, shape):
    async with mesh(tmp_path, shape) as made:
        await made.has(1, 3)
        async with made.traffic.under_load() as load:
            await made.apply([])
            await made.has(1, 1)
            await made.apply(made.shape.filters)
            await made.has(1, 3)
        assert load.failures == {}


async def test_istiods_pushes_do_not_wait_so_a_route_may_come_before_its_cluster_is_warm(tmp_path):
    """What the stand-in must not hide: a cluster and its route, installed in one step."""
    shape = SHAPES["waypoint-own-cluster"]
    async with mesh(tmp_path, shape, [], weir=False) as made:
        async with made.traffic.under_load() as load:
            await made.apply(shape.filters)
        assert set(load.failures) == {503}


async def test_a_cluster_that_was_warm_before_its_route_came_costs_no_request(tmp_path):
    shape = SHAPES["waypoint-own-cluster"]
    async with mesh(tmp_path, shape, [], weir=False) as made:
        async with made.traffic.under_load() as load:
            await made.apply(without_route(shape))
            await made.has(1, 1)  # as istiod's original cluster has them
            await made.apply(shape.filters)
        assert load.failures == {}


@pytest.mark.parametrize(("drain_seconds", "status"), [(45, 503), (1, 200)])
async def test_a_connection_that_idles_has_the_route_that_it_began_with_until_it_is_drained(
    tmp_path, drain_seconds, status
):
    """Even where the route went before its cluster: a waypoint's routes are in its listener."""
    async with mesh(tmp_path, "waypoint-own-cluster", drain_seconds=drain_seconds) as made:
        assert (await made.traffic.request()).status == 200
        await made.apply(without_route(made.shape))
        if drain_seconds == 1:
            await made.drained()
        await made.apply([])
        assert (await made.traffic.request()).status == status


async def test_a_patch_that_changes_nothing_is_not_passed_over(tmp_path):
    shape = SHAPES["gateway"]
    (document,) = shape.filters
    document["spec"]["targetRefs"][0]["name"] = "another"
    with pytest.raises(IdlePatchError, match="no targetRef names Gateway inference-gateway"):
        async with mesh(tmp_path, shape, [document]):
            pass


async def test_weir_itself_and_its_picker_run_in_the_mesh(tmp_path):
    """`weir serve` and `weir picker`, with a third Pod."""
    async with mesh(
        tmp_path, "waypoint-second-service", weights=(3, 1, 1), picker="real", program=True
    ) as made:
        await made.has(300, 100, 100)
        served = await made.traffic.served(60)
        assert served["llm-0"] > 30, "the fastest, picked by both its names"
        assert {each.peer for each in made.far.tunnels} == {made.identity}
        async with made.traffic.under_load() as load:
            await made.weir.kill()
            await made.picker.kill()
            await made.traffic.served(40)
            await made.weir.start()
            await made.picker.start()
            await made.weighs(1, 1, 3, times=100)
        assert load.failures == {}


def without_route(shape):
    """The shape's patches, the route's left out: the first step of its installation."""
    (document,) = shape.filters
    patches = document["spec"]["configPatches"]
    document["spec"]["configPatches"] = [p for p in patches if p["applyTo"] != "HTTP_ROUTE"]
    return [document]


async def a_key_of(running, pod):
    """An affinity key that leads to the Pod."""
    for number in range(100):
        key = f"seek-{number}"
        if (await running.traffic.request(key=key)).served == pod.name:
            return key
    raise AssertionError(f"no key leads to {pod.name}")
