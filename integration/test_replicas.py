"""Two replicas of `weir serve` in the mesh keep the wiring of a pool together.

Both are behind one Service, as proxies have it; a proxy's stream is at one of them. The one that
acts is the first by name, as long as it answers.
"""

import asyncio
from contextlib import asynccontextmanager

from integration.watched import watched

SHAPE = "waypoint-own-cluster"
CLUSTER, FILTERS, ROUTE = (
    f"weir.waypoint.ns.llm.8000{part}" for part in (".cluster", "", ".route")
)
COMES = [("ADDED", CLUSTER, 1), ("ADDED", FILTERS, 1), ("ADDED", ROUTE, 2)]
GOES = [("DELETED", ROUTE, 2), ("DELETED", CLUSTER, 1), ("DELETED", FILTERS, 1)]


@asynccontextmanager
async def two(directory, shape):
    """Replicas, of which the first acts, while requests go on; none of those may fail."""
    async with (
        watched(directory, shape, count=2) as there,
        there.mesh.traffic.under_load() as load,
    ):
        first, second = there.replicas.values()
        await there.acts(first.name)
        yield there, first, second
    assert load.failures == {}


async def acknowledged(replica):
    """By whom, as far as it saw."""
    return [*(await replica.get("/acknowledged"))["acknowledged"]]


async def test_the_one_that_acts_may_be_another_than_the_one_with_the_proxys_stream(tmp_path):
    async with two(tmp_path, SHAPE) as (there, first, second):
        await there.ready(second.name)
        there.annotate(SHAPE)
        async with asyncio.timeout(20):
            while await acknowledged(second) != ["ns/waypoint-0"]:
                await asyncio.sleep(0.05)
        await there.ready(first.name, second.name)
        await there.wired()
        assert await acknowledged(first) == []
        await there.mesh.has(100, 300)
        await there.mesh.traffic.served(100)
        assert there.changes == COMES
        assert await there.acting() == [first.name]
        assert set(there.api.writers) == {first.name}


def amid(there, replica, written, strike, then=None):
    """`strike()` when the replica writes this EnvoyFilter; `then` is the answer, if it is none."""

    async def before(who, _, name):
        if (who, name) != (replica.name, written):
            return None
        there.api.before = None
        await strike()
        return then

    there.api.before = before


async def test_the_one_that_acts_is_killed_between_steps_and_the_other_goes_on(tmp_path):
    """The proxy's stream, too, has to go to the other."""
    async with two(tmp_path, SHAPE) as (there, first, second):
        await there.ready(first.name)

        async def kill():
            await first.child.kill()
            await there.ready(second.name)

        amid(there, first, ROUTE, kill, then=503)
        there.annotate(SHAPE)
        await there.wired()
        assert await there.acting() == [second.name]
        assert there.changes == COMES
        await there.mesh.has(100, 300)
        await there.mesh.traffic.served(100)
        await there.start(first.name)
        await there.acts(first.name)
        amid(there, first, ROUTE, kill)
        there.annotate()
        await there.unwired()
        assert not first.child.running
        assert there.changes == GOES
        await there.mesh.traffic.served(40)


async def test_the_one_that_acts_is_paused_between_steps_and_undoes_nothing_later(tmp_path):
    async with two(tmp_path, SHAPE) as (there, first, second):
        await there.ready(second.name)

        async def pause():
            first.child.pause()

        for shape, written, whole in ((SHAPE, CLUSTER, COMES), (None, ROUTE, GOES)):
            amid(there, first, written, pause)
            there.annotate(shape)
            await there.until(lambda whole=whole: len(there.changes) == len(whole))
            assert await there.acting() == [second.name]
            first.child.resume()
            await there.acts(first.name)
            await there.mesh.traffic.served(40)
            assert there.changes == whole
        assert await there.places() == []


async def test_one_that_goes_on_does_not_go_on_with_what_it_had_decided(tmp_path):
    """It had one more EnvoyFilter of a step to write, when nobody wanted it any more."""
    pool, shared = "weir.inference-gateway.ns.llm-pool", "weir.inference-gateway"
    async with two(tmp_path, "gateway") as (there, first, second):
        await there.ready(second.name)

        async def pause():
            first.child.pause()
            there.annotate()

        amid(there, first, pool, pause)
        there.annotate("gateway")
        await there.until(lambda: ("DELETED", pool, 1) in there.changes)
        first.child.resume()
        await there.acts(first.name)
        await there.unwired()
        assert shared not in [each.name for each in there.changes]
