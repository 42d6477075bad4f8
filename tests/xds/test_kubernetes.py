"""A cluster as the source of pools, against `kmock` for scripts and an API server of ours."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from tests.xds.talk import until
from weir.bench.apiserver import ApiServer, kubeconfig
from xds.manifests import Pod
from xds.operators import Subject
from xds.sources import kinds
from xds.sources.answers import Failure
from xds.sources.connection import Cluster, ClusterError, Connection, Unreachable, connected
from xds.sources.feed import Feed
from xds.sources.kubernetes import KubernetesSource, Watching
from xds.sources.reflector import State

ROOT = Path(__file__).parents[2]
PODS = "v1/pods"
POOLS = f"{kinds.POOL.plural}.{kinds.POOL.group}"
ALPHA = f"{kinds.ALPHA_POOL.plural}.{kinds.ALPHA_POOL.group}"
INSTALLED = [f"{kind.plural}.{kind.group}" for kind in kinds.ALWAYS]


class Impatient(random.Random):
    """Waits no longer than a test can bear; remembers what was asked of it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def uniform(self, low, high):
        self.waits.append((low, high))
        return 0.02


def pod(name, ip="", *, ready=True, app="llm", namespace="ns", **metadata):
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": app},
            "managedFields": [{"manager": "kubelet"}],
            **metadata,
        },
        "spec": {"containers": [{"name": "vllm"}]},
        "status": status | ({"podIP": ip} if ip else {}),
    }


def pool(name="llm", app="llm", port=8000, namespace="ns", **spec):
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "targetPorts": [{"number": port}],
            "endpointPickerRef": {"name": "weir", "port": {"number": 9002}},
            **spec,
        },
    }


@asynccontextmanager
async def following(path, kind=kinds.POD):
    """A feed of one kind, running."""
    async with connected(Cluster(path)) as connection, asyncio.TaskGroup() as tasks:
        feed = Feed(kind, "", connection, lambda _feed, _keys: None, Impatient())
        running = tasks.create_task(feed.run())
        yield feed
        running.cancel()


@pytest.fixture
def scripted(kmock, tmp_path):
    """`kmock`, and a kubeconfig for it."""
    return kmock, kubeconfig(tmp_path / "kubeconfig", str(kmock.url))


def page(*items, version="5", more=""):
    return {"metadata": {"resourceVersion": version, "continue": more}, "items": list(items)}


def event(kind, item):
    return {"type": kind, "object": item}


def names(feed):
    return sorted(name for _, name in feed.reflector.objects)


def versions(kmock):
    """The versions that watches were asked to begin from."""
    return [each.params.get("resourceVersion") for each in kmock["watch"]]


async def test_a_kind_is_listed_in_pages_and_watched_with_bookmarks(scripted):
    kmock, path = scripted
    pods = kmock.resource(PODS)
    kmock["list", pods, kmock.params({"continue": "more"})] << page(pod("b"))
    kmock["list", pods] << page(pod("a"), more="more")
    kmock["watch", pods] << (event("ADDED", pod("c")), ...)
    async with following(path) as feed:
        await until(lambda: names(feed) == ["a", "b", "c"])
        first, second = (dict(each.params) for each in kmock["list"])
        assert (first["limit"], second["continue"]) == ("500", "more")
        assert "resourceVersion" not in first, "the most recent state"
        watch = kmock["watch"][0].params
        assert (watch["resourceVersion"], watch["allowWatchBookmarks"]) == ("5", "true")
        assert 120 <= int(watch["timeoutSeconds"]) <= 240
        assert watch["fieldSelector"] == first["fieldSelector"] == kinds.RUNNING


async def test_a_watch_goes_on_from_the_last_bookmark(scripted):
    kmock, path = scripted
    kmock["list", kmock.resource(PODS)] << page(pod("a"))
    bookmark = event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "99"}})
    kmock["watch", kmock.resource(PODS)] << (bookmark,)
    async with following(path) as feed:
        await until(lambda: versions(kmock)[:3] == ["5", "99", "99"])
        assert len(kmock["list"]) == 1
        assert names(feed) == ["a"]


@pytest.mark.parametrize("how", ["status", "event"])
async def test_410_leads_to_a_list_that_drops_what_is_gone(scripted, how):
    kmock, path = scripted
    pods = kmock.resource(PODS)
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    lists = iter([page(pod("a"), pod("b")), page(pod("b"), version="9")])
    kmock["list", pods] << (lambda: next(lists))
    refusal = 410 if how == "status" else (event("ERROR", status),)
    kmock["watch", pods, kmock.params({"resourceVersion": "5"})] << refusal
    kmock["watch", pods] << (b"", ...)
    async with following(path) as feed:
        await until(lambda: feed.reflector.lists == 2 and feed.reflector.state is State.WATCHING)
        assert names(feed) == ["b"]
        assert versions(kmock) == ["5", "9"]


async def test_too_many_requests_are_answered_with_patience(scripted):
    kmock, path = scripted
    retry = kmock.headers({"Retry-After": "7"})
    kmock["list", kmock.resource(PODS)] ** 1 << 429 << retry
    async with following(path) as feed:
        await until(lambda: feed.reflector.failures > 0)
        assert feed._rng.waits[0][0] == 7.0


async def test_garbage_is_refused_and_the_rest_goes_on(scripted):
    kmock, path = scripted
    wrong = pod("a") | {"status": {"podIP": 7}}
    kmock["list", kmock.resource(PODS)] << page(pod("a", "10.0.0.1"), {"spec": {}}, "what")
    kmock["watch", kmock.resource(PODS)] << (
        event("MODIFIED", wrong),
        b"}{\n",
        event("ADDED", pod("b")),
        ...,
    )
    async with following(path) as feed:
        await until(lambda: names(feed) == ["a", "b"])
        assert feed.reflector.garbage == 3
        assert feed.reflector.objects["ns", "a"].object.status.pod_ip == "10.0.0.1"
        (refusal,) = feed.reflector.refused.values()
        assert refusal.startswith("kubernetes: Pod ns/a: Expected `str`, got `int` - at `$.status")


async def test_a_kind_that_is_not_installed_and_one_that_is_forbidden(scripted):
    kmock, path = scripted
    kmock["list", kmock.resource(PODS)] << 403 << {"kind": "Status", "message": "pods is forbidden"}
    async with following(path) as forbidden, following(path, kinds.POOL) as absent:
        await until(lambda: forbidden.reflector.state is State.FORBIDDEN)
        await until(lambda: absent.reflector.state is State.ABSENT)
        assert forbidden.reflector.problem == "pods is forbidden"
        await until(lambda: forbidden.reflector.failures > 1 and absent.reflector.failures > 1)


class Paper:
    """A connection to an API server on paper, for virtual time.

    `lists` has the answer to a list by the end of its path, a status where it is a number; `said`
    what the Pods' watch says, and after how many seconds. Every other watch is silent.
    """

    host = "paper"

    def __init__(self, lists, said=()):
        self.lists, self.said, self.asked = lists, list(said), []

    @asynccontextmanager
    async def request(self, _method, path, query, **_):
        now = asyncio.get_running_loop().time()
        plural = path.rpartition("/")[2]
        self.asked.append((now, plural, query.get("resourceVersion")))
        yield PaperAnswer(self, path, plural, "watch" in query)

    def watches(self, plural):
        return [(at, version) for at, which, version in self.asked if version and which == plural]


class PaperAnswer:
    def __init__(self, paper, path, plural, watch):
        self._paper, self._plural = paper, plural
        found = paper.lists.get(path, paper.lists.get(plural, 404))
        self._body = found if isinstance(found, dict) else page()
        self.status = 200 if watch or isinstance(found, dict) else found

    async def body(self):
        return json.dumps(self._body).encode()

    async def failure(self):
        return Failure(self.status, "no")

    async def lines(self):
        while self._plural == "pods" and self._paper.said:
            seconds, said = self._paper.said.pop(0)
            await asyncio.sleep(seconds)
            yield json.dumps(said).encode()
        await asyncio.Event().wait()


@asynccontextmanager
async def on_paper(lists, said=(), kind=None, **watching):
    """A feed of one kind, or a whole source, in virtual time."""
    paper, rng = Paper(lists, said), random.Random(1)
    async with asyncio.timeout(100_000), asyncio.TaskGroup() as tasks:
        if kind is None:
            running = KubernetesSource(paper, Watching(**watching), rng=rng)
        else:
            running = Feed(kind, "", paper, lambda _feed, _keys: None, rng)
        task = tasks.create_task(running.run())
        yield paper, running
        task.cancel()


@pytest.mark.looptime
async def test_a_watch_that_says_nothing_is_dropped_and_resumed():
    async with on_paper({"pods": page(pod("a"))}, kind=kinds.POD) as (paper, feed):
        while len(paper.watches("pods")) < 3:
            await asyncio.sleep(1)
        (first, a), (second, b), _ = paper.watches("pods")
        assert (a, b) == ("5", "5")
        assert 120 + 15 <= second - first <= 240 + 15 + 1
        assert names(feed) == ["a"]


@pytest.mark.looptime
async def test_a_watch_that_says_something_now_and_then_goes_on():
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "6"}})
    talk = [(100, bookmark)] * 20
    async with on_paper({"pods": page()}, talk, kind=kinds.POD) as (paper, _):
        await asyncio.sleep(2000)
        assert len(paper.watches("pods")) == 1


@pytest.mark.looptime
async def test_a_burst_is_one_change_and_one_that_does_not_end_is_one_a_second():
    burst = [(0.09, event("ADDED", pod(f"b-{n}", f"10.0.1.{n}"))) for n in range(5)]
    flood = [(0.09, event("ADDED", pod(f"f-{n}", f"10.0.2.{n}"))) for n in range(50)]
    talk = [*burst, (10, event("ADDED", pod("c", "10.0.3.1"))), *flood]
    lists = {"pods": page(), "inferencepools": page(pool())}
    seen = []
    async with on_paper(lists, talk) as (_, source):
        await source.complete()

        async def record():
            async for pools in source.pools.changes():
                seen.append(len(pools["ns/llm"].endpoints))  # noqa: PERF401 - it never ends

        async with asyncio.TaskGroup() as tasks:
            recording = tasks.create_task(record())
            await asyncio.sleep(60)
            recording.cancel()
    assert seen[:2] == [0, 5]
    assert seen[-1] == 56
    assert len(seen) == 2 + 5


@pytest.mark.looptime
async def test_a_kind_that_keeps_failing_holds_the_others_up_for_a_while_only():
    lists = {"pods": page(pod("a", "10.0.0.1")), "inferencepools": page(pool()), "services": 500}
    async with on_paper(lists) as (_, source):
        await source.complete()
        assert 30 <= clock() <= 32
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"]}
        row = next(e for e in source.status(clock())["kinds"] if e["kind"] == "services")
        assert (row["state"], row["stale"], row["age_seconds"]) == ("retrying", True, None)


@pytest.mark.looptime
async def test_an_api_server_that_is_away_at_the_start_excuses_nobody():
    lists = dict.fromkeys((kind.plural for kind in kinds.ALWAYS), 503)
    async with on_paper(lists) as (paper, source):
        await asyncio.sleep(3600)
        assert source.pools.value == {}
        lists |= {"pods": page(pod("a", "10.0.0.1")), "inferencepools": page(pool())}
        paper.lists = lists
        while not source._knows(""):
            await asyncio.sleep(0.1)
        known = clock()
        await source.complete()
        assert 29 <= clock() - known <= 32, "counted from when there is something to serve"
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"]}


@pytest.mark.looptime
async def test_pools_of_a_namespace_whose_pods_are_not_known_are_withheld():
    lists = {
        "/api/v1/namespaces/rich/pods": page(pod("a", "10.0.0.1", namespace="rich")),
        "/api/v1/namespaces/poor/pods": 403,
        "services": page(),
    }
    for namespace in ("rich", "poor"):
        path = f"/apis/{kinds.POOL.group}/v1/namespaces/{namespace}/inferencepools"
        lists[path] = page(pool(namespace=namespace))
    async with on_paper(lists, namespaces=("rich", "poor")) as (paper, source):
        await source.complete()
        assert members(source) == {"rich/llm": ["10.0.0.1:8000"]}
        assert "in a Role in namespace 'poor'" in source.problems[0]
        paper.lists["/api/v1/namespaces/poor/pods"] = page()
        await asyncio.sleep(100)
        assert members(source) == {"poor/llm": [], "rich/llm": ["10.0.0.1:8000"]}


@asynccontextmanager
async def cluster(tmp_path, *items, installed=INSTALLED, domain="", **watching):
    """An API server with Pods and pools, and a source that watches it."""
    api = ApiServer(installed)
    for item in items:
        put(api, item)
    await api.start()
    try:
        async with connected(Cluster(kubeconfig(tmp_path / "kubeconfig", api.url))) as connection:
            watch = Watching(**watching)
            source = KubernetesSource(connection, watch, domain, rng=Impatient())
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(source.run())
                yield api, source
                running.cancel()
    finally:
        await api.stop()


def put(api, item):
    collection = {"inference.networking.k8s.io/v1": POOLS, ALPHA_VERSION: ALPHA}
    default = "nodes." if item.get("kind") == "Node" else "pods."
    api.store.put(collection.get(item.get("apiVersion"), default), item)


ALPHA_VERSION = "inference.networking.x-k8s.io/v1alpha2"


def members(source):
    found = source.pools.value
    return {name: [each.id for each in found[name].endpoints] for name in found}


async def complete(source, seconds=10):
    async with asyncio.timeout(seconds):
        await source.complete()


async def test_pools_come_from_a_cluster_and_follow_it(tmp_path):
    pods = [pod(f"llm-{number}", f"10.0.0.{number}") for number in (1, 2, 3)]
    async with cluster(tmp_path, pool(), *pods) as (api, source):
        await complete(source)
        assert members(source) == {"ns/llm": ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]}
        assert len(api.lists("pods")) == 2, "in pages"
        put(api, pod("llm-4", "10.0.0.4"))
        api.store.delete("pods.", "llm-1", "ns")
        put(api, pod("llm-2", "10.0.0.2", ready=False))
        put(api, pod("llm-3", "10.0.0.3", deletionTimestamp="2026-01-01T00:00:00Z"))
        await until(lambda: members(source)["ns/llm"][-1:] == ["10.0.0.4:8000"])
        two, three, four = source.pools.value["ns/llm"].endpoints
        assert [two.ready, three.ready, four.ready] == [False, True, True]
        assert [two.draining, three.draining, four.draining] == [False, True, False]
        assert source.problems == ()


async def test_nothing_is_published_before_every_kind_has_listed(tmp_path):
    items = [pool(), pod("a", "10.0.0.1")]
    async with cluster(tmp_path, *items, installed=[POOLS]) as (api, source):
        api.forbidden.add("pods.")
        await until(lambda: source.feeds[0].reflector.listed)
        with pytest.raises(TimeoutError):
            await complete(source, 0.5)
        assert source.pools.value == {}
        assert not source.status(0.0)["complete"]
        api.collections.add("pods.")
        api.forbidden.clear()
        await complete(source)
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"]}


async def test_kinds_that_are_not_installed_hold_nobody_up(tmp_path):
    async with cluster(tmp_path, pool(), installed=[POOLS, "pods.", "services."]) as (_, source):
        await complete(source)
        states = {each["kind"]: each["state"] for each in source.status(0.0)["kinds"]}
        assert states["httproutes.gateway.networking.k8s.io"] == "absent"
        assert source.problems == ()


async def test_without_any_inference_pool_installed_nothing_is_known(tmp_path):
    async with cluster(tmp_path, installed=["pods.", "services."]) as (api, source):
        await until(lambda: any("no InferencePool" in each for each in source.problems))
        with pytest.raises(TimeoutError):
            await complete(source, 0.5)
        api.collections.add(POOLS)
        put(api, pool())
        await complete(source)
        assert members(source) == {"ns/llm": []}


async def test_a_missing_permission_is_said_with_what_to_grant(tmp_path):
    async with cluster(tmp_path, pool()) as (api, source):
        await complete(source)
        api.forbidden.add("services.")
        await api.stop()
        await api.start()
        api.store.compact()
        await until(lambda: source.problems)
        (problem,) = source.problems
        assert problem == (
            "kubernetes: services: forbidden; grant get, list and watch on 'services' of API group "
            "'' in a ClusterRole, bound to our service account"
        )
        assert members(source) == {"ns/llm": []}


async def test_the_api_server_may_go_away_and_come_back(tmp_path):
    items = [pool(), pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    async with cluster(tmp_path, *items) as (api, source):
        await complete(source)
        await api.stop()
        await until(lambda: all(each["stale"] for each in source.status(clock())["kinds"]))
        assert members(source) == {"ns/llm": ["10.0.0.1:8000", "10.0.0.2:8000"]}
        put(api, pod("c", "10.0.0.3"))
        api.store.delete("pods.", "a", "ns")
        await api.start()
        await until(lambda: members(source) == {"ns/llm": ["10.0.0.2:8000", "10.0.0.3:8000"]})
        assert len(api.lists("pods")) == 1, "the watch was resumed, nothing listed anew"


async def test_what_went_while_nobody_could_watch_is_dropped_by_a_list(tmp_path):
    items = [pool(), pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    async with cluster(tmp_path, *items) as (api, source):
        await complete(source)
        lists = len(api.lists("pods"))
        await api.stop()
        api.store.delete("pods.", "a", "ns")
        api.store.compact()
        await api.start()
        await until(lambda: members(source) == {"ns/llm": ["10.0.0.2:8000"]})
        assert len(api.lists("pods")) > lists


def clock():
    return asyncio.get_running_loop().time()


async def test_its_age_is_said(tmp_path):
    async with cluster(tmp_path, pool()) as (_, source):
        await complete(source)
        pods = next(feed for feed in source.feeds if feed.kind == kinds.POD)
        await until(lambda: pods.reflector.state is State.WATCHING)

        def row(later):
            status = source.status(clock() + later)
            return next(each for each in status["kinds"] if each["kind"] == "pods")

        assert row(500)["age_seconds"] >= 500
        assert row(500)["stale"], "no watch may be silent for that long"
        assert (row(1)["stale"], row(1)["state"], row(1)["objects"]) == (False, "watching", 0)


async def test_two_pools_may_have_a_pod_in_common(tmp_path):
    items = [pool("one"), pool("two", port=9000), pod("a", "10.0.0.1")]
    async with cluster(tmp_path, *items) as (_, source):
        await complete(source)
        assert members(source) == {"ns/one": ["10.0.0.1:8000"], "ns/two": ["10.0.0.1:9000"]}


async def test_pods_without_an_address_and_of_other_namespaces_are_no_endpoints(tmp_path):
    others = [pod("pending"), pod("far", "10.0.0.9", namespace="other")]
    nobody = pool("none", app="nobody")
    async with cluster(tmp_path, pool(), nobody, pod("a", "10.0.0.1"), *others) as (api, source):
        await complete(source)
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"], "ns/none": []}
        put(api, pod("pending", "fd00::1"))
        await until(lambda: "[fd00::1]:8000" in members(source)["ns/llm"])


async def test_only_the_ports_that_a_pod_says_are_active_are_endpoints(tmp_path):
    ports = [{"number": 8000}, {"number": 8001}, {"number": 8002}]
    active = {"inference.networking.k8s.io/active-ports": "8000, 8002,nonsense,9"}
    items = [
        pool(targetPorts=ports),
        pod("all", "10.0.0.1"),
        pod("some", "10.0.0.2", annotations=active),
        pod("newer", "10.0.0.3", annotations=active | {"llm-d.ai/active-ports": "8001"}),
        pod("none", "10.0.0.4", annotations={"llm-d.ai/active-ports": ""}),
    ]
    async with cluster(tmp_path, *items) as (_, source):
        await complete(source)
        found = [each.removeprefix("10.0.0.") for each in members(source)["ns/llm"]]
        assert found == ["1:8000", "1:8001", "1:8002", "2:8000", "2:8002", "3:8001"]


def node(name, zone, **metadata):
    labels = {"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone}
    return {
        "kind": "Node",
        "metadata": {"name": name, "namespace": "", "labels": labels, **metadata},
    }


async def test_a_pod_is_where_its_node_is_and_goes_where_that_goes(tmp_path):
    here = pod("a", "10.0.0.1") | {"spec": {"nodeName": "n1"}}
    async with cluster(tmp_path, pool(), here, node("n1", "eu-1")) as (api, source):
        await complete(source)

        def places():
            return [(e.mesh.region, e.mesh.zone) for e in source.pools.value["ns/llm"].endpoints]

        assert places() == [("eu", "eu-1")]
        put(api, node("n1", "eu-2"))
        await until(lambda: places() == [("eu", "eu-2")])
        before = source.pools.value["ns/llm"]
        put(api, node("n1", "eu-2", annotations={"heartbeat": "now"}))
        (nodes,) = [feed for feed in source.feeds if feed.kind == kinds.NODE]
        await until(
            lambda: any(
                each.object.metadata.annotations for each in nodes.reflector.objects.values()
            )
        )
        put(api, pool(namespace="other"))
        await until(lambda: "other/llm" in source.pools.value)
        assert source.pools.value["ns/llm"] is before, "a Node's heartbeat is no news"
        api.store.delete("nodes.", "n1", namespace="")
        await until(lambda: places() == [("", "")])


async def test_a_peer_authentication_of_the_mesh_concerns_the_pods_of_every_namespace(tmp_path):
    labelled = pod("a", "10.0.0.1")
    labelled["metadata"]["labels"] |= {"security.istio.io/tlsMode": "istio"}
    async with cluster(tmp_path, pool(), labelled, domain="cluster.local") as (api, source):
        await complete(source)

        def plaintext():
            return [each.mesh.plaintext for each in source.pools.value["ns/llm"].endpoints]

        assert plaintext() == [False]
        kind = kinds.PEER_AUTHENTICATION
        api.collections.add(f"{kind.plural}.{kind.group}")
        api.store.put(
            f"{kind.plural}.{kind.group}",
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "PeerAuthentication",
                "metadata": {"name": "default", "namespace": "istio-system"},
                "spec": {"mtls": {"mode": "DISABLE"}},
            },
        )
        await until(lambda: plaintext() == [True])
        api.store.delete(f"{kind.plural}.{kind.group}", "default", namespace="istio-system")
        await until(lambda: plaintext() == [False])


async def test_who_sees_some_namespaces_only_does_not_ask_for_nodes(tmp_path):
    here = pod("a", "10.0.0.1") | {"spec": {"nodeName": "n1"}}
    items = (pool(), here, node("n1", "eu-1"))
    async with cluster(tmp_path, *items, namespaces=("ns",)) as (api, source):
        await complete(source)
        (endpoint,) = source.pools.value["ns/llm"].endpoints
        assert endpoint.mesh.zone == ""
        assert not api.lists("nodes")


def alpha_pool(name="llm", port=8000):
    extension = {"name": "weir", "portNumber": 9002, "failureMode": "FailOpen"}
    return {
        "apiVersion": ALPHA_VERSION,
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {
            "selector": {"app": "llm"},
            "targetPortNumber": port,
            "extensionRef": extension,
        },
    }


async def test_v1alpha2_stands_beside_v1_and_v1_counts_where_there_are_both(tmp_path):
    items = [pool(), alpha_pool(port=1), alpha_pool("old", 9000), pod("a", "10.0.0.1")]
    async with cluster(tmp_path, *items) as (api, source):
        await complete(source)
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"], "ns/old": ["10.0.0.1:9000"]}
        api.store.delete(POOLS, "llm", "ns")
        await until(lambda: members(source)["ns/llm"] == ["10.0.0.1:1"])


async def test_a_field_that_is_newer_than_we_are_takes_no_pool_away(tmp_path):
    newer = pool(fancy={"new": True})
    async with cluster(tmp_path, newer, pod("a", "10.0.0.1")) as (_, source):
        await complete(source)
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"]}
        (manifest,) = source.feeds[0].reflector.objects.values()
        assert manifest.passed_over == ("spec.fancy",)


async def test_a_pool_that_breaks_stands_as_it_was_and_others_go_on(tmp_path):
    async with cluster(tmp_path, pool(), pool("two", port=9000), pod("a", "10.0.0.1")) as (
        api,
        source,
    ):
        await complete(source)
        put(api, pool(port=0))
        put(api, pool("two", port=9001))
        await until(lambda: members(source)["ns/two"] == ["10.0.0.1:9001"])
        assert members(source)["ns/llm"] == ["10.0.0.1:8000"]
        (fault,) = source.faults
        assert fault.where == "InferencePool ns/llm"
        assert "spec.targetPorts[0].number: 1 to 65535, not 0" in fault.message
        put(api, pool(port=7000))
        await until(lambda: members(source)["ns/llm"] == ["10.0.0.1:7000"])
        assert source.faults == []


async def test_a_pod_with_a_bad_annotation_is_followed_all_the_same(tmp_path):
    tuned = {"weir.dev/capacity": "2"}
    bad = {"weir.dev/capacity": "lots"}
    items = [pool(), pod("a", "10.0.0.1", annotations=tuned), pod("b", "10.0.0.2", annotations=bad)]
    async with cluster(tmp_path, *items) as (api, source):
        await complete(source)
        a, b = source.pools.value["ns/llm"].endpoints
        assert (a.speed, b.speed) == (2.0, 1.0)
        assert [each.where for each in source.faults] == ["Pod ns/b"]
        put(api, pod("a", "10.0.0.3", annotations=bad))
        await until(lambda: "10.0.0.3:8000" in members(source)["ns/llm"])
        _, a = source.pools.value["ns/llm"].endpoints
        assert a.speed == 2.0, "its last good value stands, and its address is what it is"


async def test_pools_that_have_a_status_for_us_to_write_are_those_of_v1(tmp_path):
    typed = pool() | {"metadata": {"name": "llm", "namespace": "ns", "uid": "u", "generation": 7}}
    async with cluster(tmp_path, typed, alpha_pool("old")) as (_, source):
        await complete(source)
        assert source.subjects() == [Subject("ns", "llm", 7)]
        assert {each.where for each in source.faults} == {
            "InferencePool ns/llm",
            "InferencePool ns/old",
        }, "no Pods"


async def test_namespaces_that_are_named_are_all_that_is_asked_for(tmp_path):
    items = [pool(), pool(namespace="other"), pod("a", "10.0.0.1")]
    async with cluster(tmp_path, *items, namespaces=("ns", "more")) as (api, source):
        await complete(source)
        assert members(source) == {"ns/llm": ["10.0.0.1:8000"]}
        assert all("/namespaces/" in path for path, _ in api.requests)


async def test_objectives_of_the_group_that_they_left_count_until_the_new_one_is_installed(
    tmp_path,
):
    old, new = (f"{kind.plural}.{kind.group}" for kind in (kinds.ALPHA_OBJECTIVE, kinds.OBJECTIVE))

    def objective(name, priority):
        reference = {"name": "llm", "group": kinds.POOL.group}
        spec = {"poolRef": reference, "priority": priority}
        return {"metadata": {"name": name, "namespace": "ns"}, "spec": spec}

    async with cluster(tmp_path, pool(), installed=set(INSTALLED) - {new}) as (api, source):
        api.store.put(old, objective("batch", -1))
        await complete(source)

        def priorities():
            return {each.name: each.priority for each in source.pools.value["ns/llm"].objectives}

        await until(lambda: priorities() == {"batch": -1})
        api.collections.add(new)
        await until(lambda: priorities() == {})
        api.store.put(new, objective("chat", 5))
        await until(lambda: priorities() == {"chat": 5})


async def test_kinds_that_nothing_follows_from_are_shown(tmp_path):
    async with cluster(tmp_path, pool()) as (api, source):
        spec = {"poolRef": {"name": "llm"}, "rules": [{"targets": [{"modelRewrite": "b"}]}]}
        rewrite = {"metadata": {"name": "ab", "namespace": "ns"}, "spec": spec}
        spec = {"poolRef": {"name": "llm"}, "modelName": "m", "criticality": "Critical"}
        model = {"metadata": {"name": "m", "namespace": "ns"}, "spec": spec}
        api.store.put(f"{kinds.REWRITE.plural}.{kinds.REWRITE.group}", rewrite)
        api.store.put(f"{kinds.MODEL.plural}.{kinds.MODEL.group}", model)
        await complete(source)
        await until(lambda: len(source.status(0.0)["not_in_effect"]) == 2)
        assert source.status(0.0)["not_in_effect"] == [
            "kubernetes: InferenceModelRewrite ns/ab",
            "kubernetes: InferenceModel ns/m",
        ]
        assert source.problems == ()


async def test_gateways_and_routes_stay_as_they_are(tmp_path):
    async with cluster(tmp_path, pool(), more=kinds.ISTIO) as (api, source):
        api.collections |= {f"{kind.plural}.{kind.group}" for kind in kinds.ISTIO}
        route = {"metadata": {"name": "r", "managedFields": []}, "spec": {"rules": [{"x": 1}]}}
        api.store.put(f"{kinds.ROUTE.plural}.{kinds.ROUTE.group}", route)
        api.store.put("envoyfilters.networking.istio.io", {"metadata": {"name": "f"}, "spec": {}})
        await complete(source)
        await until(lambda: source.documents(kinds.ENVOY_FILTER))
        (route,) = source.documents(kinds.ROUTE)
        assert route["spec"] == {"rules": [{"x": 1}]}
        assert "managedFields" not in route["metadata"]


def test_a_pod_keeps_what_is_used_and_no_more():
    long = pod("a", "10.0.0.1", annotations={"x": "y" * 5000, "weir.dev/drain": "true"})
    kept = kinds.POD.parse(json.dumps(long).encode()).object
    assert isinstance(kept, Pod)
    assert len(kept.metadata.annotations["x"]) == kinds.ANNOTATION_LENGTH
    assert kept.metadata.annotations["weir.dev/drain"] == "true"


@pytest.mark.parametrize(
    ("watched", "begin", "end", "role"),
    [
        (kinds.ALWAYS, "## What is watched", "With `--istio-domain`", "base/rbac.yaml"),
        (
            kinds.MESH,
            "With `--istio-domain`",
            "With `--manage-envoyfilters`",
            "components/istio/rbac.yaml",
        ),
        (
            kinds.ISTIO,
            "With `--manage-envoyfilters`",
            "`--token-review`",
            "components/envoyfilters/rbac.yaml",
        ),
    ],
    ids=["always", "istio-domain", "manage-envoyfilters"],
)
def test_the_documented_rights_are_exactly_what_is_asked_for(watched, begin, end, role):
    asked = {(kind.group, kind.version, kind.plural) for kind in watched}
    table = (ROOT / "docs/kubernetes.md").read_text().partition(begin)[2].partition(end)[0]
    rows = [line.split("|") for line in table.splitlines()]
    cells = [(row[1].strip(), row[2].strip()) for row in rows if len(row) == 5][2:]
    assert {
        (group.rpartition("/")[0].replace("core", ""), group.rpartition("/")[2], plural)
        for plural, group in cells
    } == asked
    granted = set()
    for each in yaml.safe_load_all((ROOT / "manifests/kustomize" / role).read_text()):
        for rule in each.get("rules", ()):
            if "list" in rule["verbs"]:
                assert rule["verbs"][:3] == ["get", "list", "watch"]
                granted |= {(g, r) for g in rule["apiGroups"] for r in rule["resources"]}
    assert granted == {(group, plural) for group, _, plural in asked}


async def test_credentials_are_loaded_again_when_the_api_server_does_not_know_us(kmock, tmp_path):
    path = kubeconfig(tmp_path / "kubeconfig", str(kmock.url), token="old")
    kmock["list", kmock.headers({"Authorization": "Bearer new"})] << page()
    kmock["list"] << 401
    connection = Connection(Cluster(path), reload_seconds=0.0)
    await connection.open()
    try:
        kubeconfig(path, str(kmock.url), token="new")
        async with connection.request("GET", "/api/v1/pods") as answer:
            assert answer.status == 200
    finally:
        await connection.close()


async def test_no_way_to_an_api_server_says_what_to_do(tmp_path):
    for text in (None, "a: [", "kind: Config", "7"):
        path = tmp_path / "kubeconfig"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ClusterError, match="--kubeconfig"):
            await Connection(Cluster(path)).open()


async def test_an_api_server_that_nobody_listens_for_is_unreachable(tmp_path):
    async with connected(
        Cluster(kubeconfig(tmp_path / "kubeconfig", ApiServer([]).url))
    ) as connection:
        with pytest.raises(Unreachable):
            async with connection.request("GET", "/api/v1/pods"):
                pass
