"""The keeper against an API server of ours: what it applies, puts right, removes and leaves."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import pytest
import yaml
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests.xds.istio.wired import HAVE, SHADOW, XDS, pool
from tests.xds.operators_cluster import (
    FILTERS,
    NAME,
    POD,
    STEPS,
    Api,
    acknowledged,
    gateway,
    serving,
)
from tests.xds.talk import until
from weir.bench.apiserver import kubeconfig
from weir.ports import free
from xds.istio.keeping import KEPT_BY
from xds.istio.shapes.wiring import Shape, Version
from xds.keeper import Keeper, KeeperOptions
from xds.peers import PATH
from xds.problems import Reason
from xds.pulse import STILL_SECONDS
from xds.sources import kinds
from xds.sources.connection import Cluster, Connection
from xds.sources.kubernetes import KubernetesSource, Watching
from xds.status import reporting


class Impatient(random.Random):
    def uniform(self, low, high):
        return min(0.05, super().uniform(low, high))


@asynccontextmanager
async def keeping(api, tmp_path, *, seen=None, **options):
    """A keeper at work; `seen` is what its clients acknowledged."""
    path = kubeconfig(tmp_path / f"kubeconfig-{free()}", api.url)
    connection = Connection(Cluster(path))
    await connection.open()
    try:
        async with asyncio.TaskGroup() as tasks:
            source = KubernetesSource(connection, Watching(more=kinds.ISTIO), rng=Impatient())
            settings = {"replica": "weir-0", "istio_version": Version(1, 32)}
            settings |= {"settle_seconds": 0.3, "round_seconds": 0.1, "patience_seconds": 0.2}
            keeper = Keeper(
                source,
                connection,
                KeeperOptions(XDS, **settings | options),
                lambda: {} if seen is None else seen,
                Impatient(),
            )
            running = [tasks.create_task(source.run())]
            await source.complete()
            running.append(tasks.create_task(keeper.run()))
            yield keeper
            assert not any(task.done() for task in running)
            for task in running:
                task.cancel()
    finally:
        await connection.close()


def says(keeper):
    return [each["says"] for each in keeper.status()["places"]]


async def until_wired(api, names=STEPS):
    await until(lambda: api.filters() == names)


async def test_a_pool_that_asks_is_wired_in_steps_and_taken_out_in_reverse(tmp_path):
    async with serving(Api(*gateway(shape="auto"))) as api:
        seen = {}
        async with keeping(api, tmp_path, seen=seen) as keeper:
            await until(lambda: api.filters() == [f"{NAME}.gateway.probe"])
            await until(lambda: any("0 of 1" not in each for each in says(keeper)))
            await until(lambda: "1 of 1 proxies" in says(keeper)[0])
            assert api.filters() == [f"{NAME}.gateway.probe"], "no proxy has it yet"
            seen |= acknowledged()
            await until_wired(api)
            assert all(api.filter(each)["metadata"]["labels"][KEPT_BY] for each in STEPS)
            assert says(keeper) == ["in place"]
            api.writes.clear()
            api.put(*gateway())
            await until(lambda: api.filters() == [])
            removed = [path.rpartition("/")[2] for method, path in api.writes if method == "DELETE"]
            assert removed == [STEPS[2], STEPS[0], STEPS[1]]
            assert keeper.status()["places"] == []


@pytest.mark.parametrize("edit", [{"configPatches": []}, {"priority": 7}])
async def test_what_somebody_writes_into_the_specification_is_put_right(tmp_path, edit):
    async with (
        serving(Api(*gateway(shape="auto"))) as api,
        keeping(api, tmp_path, seen=acknowledged()),
    ):
        await until_wired(api)
        there = api.filter(NAME)
        good = there["spec"]
        metadata = there["metadata"] | {
            "annotations": there["metadata"]["annotations"] | {"a": "b"}
        }
        api.store.put(FILTERS, there | {"spec": good | edit, "metadata": metadata})
        await until(lambda: api.filter(NAME)["spec"] == good)
        assert api.filter(NAME)["metadata"]["annotations"]["a"] == "b", "that is theirs"
        api.writes.clear()
        await asyncio.sleep(0.5)
        assert api.writes == []


async def test_what_somebody_deletes_is_there_again(tmp_path):
    async with (
        serving(Api(*gateway(shape="auto"))) as api,
        keeping(api, tmp_path, seen=acknowledged()),
    ):
        await until_wired(api)
        api.store.delete(FILTERS, f"{NAME}.routes", "ns")
        await until_wired(api)


async def test_envoyfilters_of_operators_are_not_touched(tmp_path):
    theirs = {
        "kind": "EnvoyFilter",
        "metadata": {
            "name": NAME,
            "namespace": "ns",
            "labels": {"app.kubernetes.io/managed-by": "weir"},
            "annotations": {"weir.dev/pool": "ns/llm-pool"},
        },
        "spec": {"configPatches": []},
    }
    async with serving(Api(*gateway())) as api:
        api.store.put(FILTERS, theirs)
        async with keeping(api, tmp_path, seen=acknowledged()):
            await asyncio.sleep(1)
            assert api.writes == []


async def test_the_api_server_goes_away_and_what_was_meant_is_done_when_it_is_back(tmp_path):
    async with serving(Api(*gateway(shape="auto"))) as api:
        with capture_logs() as logs:
            async with keeping(api, tmp_path, seen=acknowledged()) as keeper:
                await until_wired(api)
                await api.stop()
                await until(lambda: keeper.status()["paused"])
                assert not keeper.me.able
                assert keeper.wiring is None
                api.put(*gateway())
                await asyncio.sleep(1)
                await api.start()
                await until(lambda: api.filters() == [])
        assert len([each for each in logs if each["event"] == "wiring is left as it is"]) == 1


async def test_writes_that_get_no_answer_are_said_once_and_tried_again(tmp_path):
    async with serving(Api(*gateway(shape="auto"))) as api:
        api.refuse = lambda method, path: 503
        with capture_logs() as logs:
            async with keeping(api, tmp_path, seen=acknowledged()) as keeper:
                await until(lambda: "status 503" in keeper.status()["away"])
                await until(lambda: not keeper.me.able)  # another may have more luck
                await until(lambda: len(api.writes) > 3)
                api.refuse = lambda method, path: None
                await until_wired(api)
                await until(lambda: keeper.status()["away"] == "")
        events = [each["event"] for each in logs]
        assert events.count("nothing can be written; trying on") == 1
        assert events.count("written again") == 1


async def test_what_is_forbidden_is_told_to_operators_and_done_once_it_is_allowed(tmp_path):
    async with serving(Api(*gateway(shape="auto"))) as api:
        api.refuse = lambda method, path: 403 if path.endswith("routes") else None
        async with keeping(api, tmp_path, seen=acknowledged()) as keeper:
            await until(lambda: any("forbidden" in each.message for each in keeper.problems))
            (problem,) = keeper.problems
            assert problem.where == "InferencePool ns/llm-pool"
            assert problem.reason is Reason.NOT_WIRED
            assert "Gateway ns/inference-gateway: step 2 of 2" in problem.message
            assert "forbidden; grant patch" in problem.message
            assert set(STEPS[:2]) <= set(api.filters()), "the rest is done meanwhile"
            api.refuse = lambda method, path: None
            await until(lambda: says(keeper) == ["in place"])
            assert keeper.problems == []


async def test_nothing_is_done_while_a_kind_of_object_is_not_known(tmp_path):
    """Without its HTTPRoutes a pool looks as if nobody wanted it."""
    routes = f"{kinds.ROUTE.plural}.{kinds.ROUTE.group}"
    async with (
        serving(Api(*gateway(shape="auto"))) as api,
        keeping(api, tmp_path, seen=acknowledged()) as keeper,
    ):
        await until_wired(api)
        await until(lambda: says(keeper) == ["in place"])
        api.forbidden.add(routes)
        await api.stop()
        await api.start()
        grant = "grant get, list and watch on 'httproutes'"
        await until(lambda: grant in keeper.status()["paused"])
        api.writes.clear()
        api.put(*gateway())
        await asyncio.sleep(1)
        assert api.writes == []
        api.forbidden.remove(routes)
        await until(lambda: api.filters() == [])


@asynccontextmanager
async def replica(api, tmp_path, name, *, port, peers, seen):
    addresses = tuple(f"127.0.0.1:{each}" for each in peers)
    async with keeping(api, tmp_path, seen=seen, replica=name, peers=addresses) as keeper:
        registry = CollectorRegistry()

        def page():
            return keeper.me.encode()

        async with reporting("127.0.0.1", port, dict, registry, pages={PATH: page}):
            yield keeper


async def test_of_two_replicas_one_acts_and_both_know_what_the_other_saw(tmp_path):
    """Each proxy's stream is at one of them. Who is left does what is to be done."""
    second = {**POD, "metadata": POD["metadata"] | {"name": "gw-1"}}
    ports = [free(), free()]
    async with serving(Api(*gateway(shape="auto"))) as api:
        api.store.put("pods.", second)
        more = {"peers": ports}
        theirs = {"ns/gw-1": ()}
        async with replica(api, tmp_path, "weir-b", port=ports[1], seen=theirs, **more) as later:
            async with replica(
                api, tmp_path, "weir-a", port=ports[0], seen=acknowledged(), **more
            ) as first:
                await until(lambda: first.status()["acting"] and not later.status()["acting"])
                await until(lambda: "(ns/gw-1)" in says(first)[0])
                assert says(later) == says(first)
                assert later.wiring is None, "another replica says it"
                theirs["ns/gw-1"] = (SHADOW, SHADOW)
                await until_wired(api)
            await until(lambda: later.status()["acting"])
            assert later.status()["silent"]
            assert "(ns/gw-0)" not in "".join(says(later)), "in place, whoever knows of it"
            api.put(*gateway())
            await until(lambda: api.filters() == [])


async def test_a_replica_that_is_silent_has_seen_nothing(tmp_path):
    nobody = f"127.0.0.1:{free()}"
    async with serving(Api(*gateway(shape="auto"))) as api:
        options = {"peers": (nobody,), "seen": {}}
        async with keeping(api, tmp_path, **options) as keeper:
            await until(lambda: says(keeper) and "1 of 1 proxies" in says(keeper)[0])
            assert keeper.status()["acting"]
            assert list(keeper.status()["silent"]) == [nobody]
            assert api.filters() == [f"{NAME}.gateway.probe"]


async def test_who_stood_still_does_nothing_of_what_he_had_decided(tmp_path):
    """Somebody else may have seen to it, or to the opposite."""
    async with serving(Api(*gateway(shape="auto"))) as api:

        def stand_still(method, path):
            if path.endswith(NAME):
                api.refuse = lambda method, path: None
                time.sleep(1.5 * STILL_SECONDS)
                api.put(*gateway())

        api.refuse = stand_still
        async with keeping(api, tmp_path, seen=acknowledged()) as keeper:
            await until(lambda: NAME in api.filters())
            assert not keeper.me.able, "others lead until he knows what happened"
            await until(lambda: keeper.me.able)
            await until(lambda: api.filters() == [])
            written = [path.rpartition("/")[2] for method, path in api.writes if method == "PATCH"]
            assert written == [f"{NAME}.gateway.probe", NAME]


async def test_who_stood_still_removes_nothing_more_of_what_he_had_decided(tmp_path):
    async with serving(Api(*gateway())) as api:
        for each in "ab":
            notes = {"weir.dev/pool": f"ns/{each}", "weir.dev/step": "2"}
            metadata = {"name": each, "namespace": "ns", "annotations": notes}
            metadata |= {"labels": {KEPT_BY: "weir-xds.weir"}}
            api.store.put(FILTERS, {"kind": "EnvoyFilter", "metadata": metadata, "spec": {}})

        def stand_still(method, path):
            if path.endswith("/a"):
                time.sleep(1.5 * STILL_SECONDS)

        api.refuse = stand_still
        async with keeping(api, tmp_path) as keeper:
            await until(lambda: "stood still" in keeper.status()["paused"])
            assert api.filters() == ["b"]
            await until(lambda: api.filters() == [])


async def test_who_stood_still_first_learns_that_something_is_wanted_again(tmp_path):
    async with (
        serving(Api(*gateway(shape="auto"))) as api,
        keeping(api, tmp_path, seen=acknowledged(), settle_seconds=1.0) as keeper,
    ):
        await until_wired(api)
        api.writes.clear()
        api.put(*gateway())
        await until(lambda: keeper.status()["leaving"])
        time.sleep(2 * STILL_SECONDS)
        await until(lambda: "stood still" in keeper.status()["paused"])
        api.put(*gateway(shape="auto"))
        await until(lambda: says(keeper) == ["in place"])
        await until(lambda: keeper.status()["leaving"] == [])
        assert api.writes == []


async def test_who_has_nothing_to_do_does_not_stand_still(tmp_path):
    async with (
        serving(Api(*gateway())) as api,
        keeping(api, tmp_path, round_seconds=60) as keeper,
    ):
        await until(lambda: keeper.me.able)
        await asyncio.sleep(2 * STILL_SECONDS)
        assert keeper.me.able


async def test_a_pool_that_cannot_be_wired_is_told_and_the_others_are(tmp_path):
    bad = pool(shape="waypoint-own-cluster").replace("llm-pool", "bad")
    async with (
        serving(Api(*gateway(shape="auto"), bad)) as api,
        keeping(api, tmp_path, seen=acknowledged()) as keeper,
    ):
        await until_wired(api)
        await until(lambda: keeper.problems)
        (problem,) = keeper.problems
        assert problem.where == "InferencePool ns/bad"
        assert "nothing to wire by waypoint-own-cluster" in problem.message
        assert {name: [each.done for each in it] for name, it in keeper.wiring.items()} == {
            "ns/bad": [False],
            "ns/llm-pool": [True],
        }


async def test_without_the_istio_version_nothing_is_done_and_it_is_said(tmp_path):
    istiod = {"name": "istiod", "namespace": "istio-system", "labels": {"app": "istiod"}}
    async with (
        serving(Api(*gateway(shape="auto"))) as api,
        keeping(api, tmp_path, seen=acknowledged(), istio_version=None) as keeper,
    ):
        await until(lambda: "--istio-version" in keeper.status()["paused"])
        await until(lambda: keeper.problems)
        (problem,) = keeper.problems
        assert (problem.where, problem.reason) == ("InferencePool ns/llm-pool", Reason.NOT_WIRED)
        assert "say it with --istio-version" in problem.message
        istiod["labels"]["app.kubernetes.io/version"] = "1.32.1"
        api.store.put("pods.", {"metadata": istiod})
        await until_wired(api)


async def test_a_waypoint_of_the_namespace_is_one(tmp_path):
    """As `istioctl waypoint apply --enroll-namespace` writes it: no label on the Service."""
    pools, waypoint, service = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    asking = pools.replace("annotations: {", "annotations: {weir.dev/shape: auto")
    space = {"kind": "Namespace", "metadata": {"name": "ns", "labels": {}}}
    space["metadata"]["labels"]["istio.io/use-waypoint"] = "waypoint"
    unlabelled = service.replace(", labels: {istio.io/use-waypoint: waypoint}", "")
    assert unlabelled != service
    have = Api(asking, waypoint, unlabelled, yaml.safe_dump(space))
    async with serving(have) as api, keeping(api, tmp_path):
        await until(lambda: "weir.waypoint.ns.llm.8000.cluster" in api.filters())
