"""Weir wires a pool in a real API server, a real istiod tells the proxy, and no request fails."""

import pytest

from integration.cluster import MISSING
from integration.mesh import SHAPES, Tunnel, follows
from integration.operated import operated

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_annotated_pool_is_wired_and_unwired_and_no_request_fails(tmp_path, shape):
    async with operated(tmp_path, shape) as there, there.mesh.traffic.under_load() as load:
        made = there.mesh
        await made.traffic.served(40)
        await there.annotate(shape)
        await there.wired()
        await follows_weir(made)
        assert there.steps[0] == []
        assert there.steps[1] in ([0], [1])
        assert [max(each, default=0) for each in there.steps] == sorted(
            max(each, default=0) for each in there.steps
        )
        came = len(there.steps)
        leftovers = await there.leftovers()
        await there.annotate(None)
        await there.unwired()
        went = [max(each, default=0) for each in there.steps[came:]]
        assert went == sorted(went, reverse=True)
        for each in leftovers:
            await made.drained()
            await there.cluster.kubectl.delete(each)
        await made.traffic.served(40)
    assert load.failures == {}
    assert load.sent > 300


async def follows_weir(made):
    """Weights and picks are Weir's, of the captured Pod and of the other."""
    await made.has(100, 300)
    await made.drained()
    served = await made.traffic.served(300, at_once=1)
    assert follows(served, {"llm-0": 1, "llm-1": 3}), served
    for pod in made.pods.values():
        made.picker.target = pod.dual
        assert await made.traffic.served(20) == {pod.name: 20}
    made.picker.target = None
    captured, _ = made.pods.values()
    assert set(made.far.tunnels) == {Tunnel(made.identity, captured.endpoint)}
