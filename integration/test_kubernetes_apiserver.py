"""The Kubernetes source and TokenReview against a real kube-apiserver.

KUBEBUILDER_ASSETS names a folder with `etcd` and `kube-apiserver`, as setup-envtest lays it out.
"""

import asyncio
import json
import random
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from integration.apiserver import ASSETS, ControlPlane, control_plane
from integration.servers import why_not
from weir.ports import free
from weir.processes import start, weir
from xds.access import Identity
from xds.sources import answers, kinds
from xds.sources.connection import Cluster, connected
from xds.sources.kubernetes import KubernetesSource, Watching
from xds.sources.reflector import State
from xds.sources.tokens import TokenReviews
from xds.tls import Unauthenticated

pytestmark = pytest.mark.skipif(not ASSETS, reason=why_not("apiserver"))
NAMESPACE = "/api/v1/namespaces/default"
PATCH = "merge-patch+json"


def crd(kind: kinds.Kind, served: str = "v1") -> dict:
    """Enough of a CRD: the names, and no validation."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.resource,
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {
                "plural": kind.plural,
                "kind": kind.name,
                "singular": kind.name.lower(),
                "listKind": f"{kind.name}List",
            },
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


async def install(plane: ControlPlane, kind: kinds.Kind) -> None:
    root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    await plane.do("POST", root, crd(kind))
    async with asyncio.timeout(20):
        while (await plane.call("GET", kind.path()))[0] != 200:
            await asyncio.sleep(0.1)


async def add_pool(plane: ControlPlane, name: str = "llm", port: int = 8000) -> None:
    body = {
        "apiVersion": f"{kinds.POOL.group}/v1",
        "kind": "InferencePool",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": "llm"}},
            "targetPorts": [{"number": port}],
            "endpointPickerRef": {"name": "weir", "port": {"number": 9002}},
        },
    }
    await plane.do("POST", kinds.POOL.path("default"), body)


async def add_pod(plane: ControlPlane, name: str, ip: str) -> None:
    container = {"name": "vllm", "image": "vllm"}
    body = {
        "metadata": {"name": name, "labels": {"app": "llm"}},
        "spec": {"containers": [container], "nodeName": "node"},
    }
    await plane.do("POST", f"{NAMESPACE}/pods", body)
    await set_status(plane, name, podIP=ip, podIPs=[{"ip": ip}])


async def set_status(plane: ControlPlane, name: str, ready: bool = True, **status) -> None:
    condition = {"type": "Ready", "status": str(ready)}
    body = {"status": {"phase": "Running", "conditions": [condition], **status}}
    await plane.do("PATCH", f"{NAMESPACE}/pods/{name}/status", body, PATCH)


async def account(plane: ControlPlane, name: str, rules: list[dict] | None = None) -> None:
    """A service account, and what it may do."""
    await plane.do("POST", f"{NAMESPACE}/serviceaccounts", {"metadata": {"name": name}})
    if rules is None:
        return
    root = "/apis/rbac.authorization.k8s.io/v1"
    role = {"metadata": {"name": name}, "rules": rules}
    await plane.do("POST", f"{root}/clusterroles", role)
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
    }
    await plane.do("POST", f"{root}/clusterrolebindings", binding)


async def token(plane: ControlPlane, name: str, *audiences: str) -> str:
    body = {"spec": {"audiences": list(audiences), "expirationSeconds": 600}}
    answer = await plane.do("POST", f"{NAMESPACE}/serviceaccounts/{name}/token", body)
    return answer["status"]["token"]


READS = ["get", "list", "watch"]
RULES = [
    *(
        {"apiGroups": [kind.group], "resources": [kind.plural], "verbs": READS}
        for kind in kinds.ALWAYS
    ),
    {
        "apiGroups": ["authentication.k8s.io"],
        "resources": ["tokenreviews"],
        "verbs": ["create"],
    },
]


@pytest.fixture
async def plane(tmp_path):
    (tmp_path / "plane").mkdir()
    async with control_plane(tmp_path / "plane") as running:
        yield running


@asynccontextmanager
async def watching(plane: ControlPlane, path: Path):
    """A source that watches as a service account that may do no more than it has to."""
    await account(plane, "weir", RULES)
    config = plane.kubeconfig(path / "kubeconfig", await token(plane, "weir"))
    async with connected(Cluster(config)) as connection, asyncio.TaskGroup() as tasks:
        source = KubernetesSource(connection, Watching(), rng=Impatient())
        running = tasks.create_task(source.run())
        yield source
        running.cancel()


class Impatient(random.Random):
    """Waits a second at most."""

    def uniform(self, low: float, high: float) -> float:
        return min(1.0, super().uniform(low, high))


def members(source) -> dict[str, list[str]]:
    found = source.pools.value
    return {name: [each.id for each in found[name].endpoints] for name in found}


async def until(condition, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def feed(source, kind):
    return next(each for each in source.feeds if each.kind == kind)


async def test_pools_follow_a_cluster(plane, tmp_path):
    await install(plane, kinds.POOL)
    await add_pool(plane)
    for number in (1, 2, 3):
        await add_pod(plane, f"llm-{number}", f"10.1.0.{number}")
    async with watching(plane, tmp_path) as source:
        await until(lambda: source.status(0)["complete"])
        assert members(source) == {"default/llm": [f"10.1.0.{n}:8000" for n in (1, 2, 3)]}
        await set_status(plane, "llm-1", ready=False)
        await plane.do("DELETE", f"{NAMESPACE}/pods/llm-2", {"gracePeriodSeconds": 300})
        await plane.do("DELETE", f"{NAMESPACE}/pods/llm-3", {"gracePeriodSeconds": 0})
        await until(lambda: members(source) == {"default/llm": ["10.1.0.1:8000", "10.1.0.2:8000"]})
        await until(lambda: source.pools.value["default/llm"].endpoints[1].draining)
        assert not source.pools.value["default/llm"].endpoints[0].ready
        await set_status(plane, "llm-1", phase="Failed")
        await until(lambda: members(source) == {"default/llm": ["10.1.0.2:8000"]})
        assert ("default", "llm-1") not in feed(source, kinds.POD).reflector.objects
        assert source.problems == ()


async def test_the_api_server_restarts_and_the_watch_goes_on(plane, tmp_path):
    await install(plane, kinds.POOL)
    await add_pool(plane)
    await add_pod(plane, "llm-1", "10.1.0.1")
    async with watching(plane, tmp_path) as source:
        await until(lambda: source.status(0)["complete"])
        pods = feed(source, kinds.POD).reflector
        await until(lambda: pods.state is State.WATCHING)
        await plane.stop_apiserver()
        await until(lambda: pods.state is State.RETRYING)
        assert members(source) == {"default/llm": ["10.1.0.1:8000"]}
        await plane.start_apiserver()
        await add_pod(plane, "llm-2", "10.1.0.2")
        await until(lambda: len(members(source)["default/llm"]) == 2)


async def test_what_went_with_its_history_is_dropped(plane, tmp_path):
    await install(plane, kinds.POOL)
    await add_pool(plane)
    for number in (1, 2):
        await add_pod(plane, f"llm-{number}", f"10.1.0.{number}")
    async with watching(plane, tmp_path) as source:
        await until(lambda: source.status(0)["complete"])
        pods = feed(source, kinds.POD).reflector
        await until(lambda: pods.state is State.WATCHING)
        await plane.stop_apiserver()
        await plane.forget("/registry/pods/default/llm-1")
        await plane.start_apiserver()
        await until(lambda: members(source) == {"default/llm": ["10.1.0.2:8000"]}, 60)
        assert pods.lists == 2, "410 led to a list"


async def test_a_kind_that_is_installed_later_is_found(plane, tmp_path):
    await add_pod(plane, "llm-1", "10.1.0.1")
    async with watching(plane, tmp_path) as source:
        pools = feed(source, kinds.POOL).reflector
        await until(lambda: pools.state is State.ABSENT)
        assert not source.status(0)["complete"]
        await install(plane, kinds.POOL)
        await add_pool(plane)
        await until(lambda: source.status(0)["complete"])
        await until(lambda: members(source) == {"default/llm": ["10.1.0.1:8000"]})


async def test_a_permission_that_is_missing_is_said_and_may_be_given_later(plane, tmp_path):
    await install(plane, kinds.POOL)
    await add_pool(plane)
    await account(plane, "poor", [rule for rule in RULES if rule["resources"] != ["pods"]])
    config = plane.kubeconfig(tmp_path / "kubeconfig", await token(plane, "poor"))
    async with connected(Cluster(config)) as connection, asyncio.TaskGroup() as tasks:
        source = KubernetesSource(connection, Watching(), rng=Impatient())
        running = tasks.create_task(source.run())
        await until(lambda: feed(source, kinds.POD).reflector.state is State.FORBIDDEN)
        assert "grant get, list and watch on 'pods'" in source.problems[0]
        role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/poor"
        await plane.do("PATCH", role, {"rules": RULES}, PATCH)
        await until(lambda: source.status(0)["complete"])
        assert source.problems == ()
        running.cancel()


async def test_lists_come_in_pages_and_watches_end_with_a_bookmark(plane, tmp_path):
    for number in range(5):
        await add_pod(plane, f"llm-{number}", f"10.1.0.{number}")
    async with connected(Cluster(plane.kubeconfig(tmp_path / "kubeconfig"))) as connection:
        more, seen, pages = "", 0, 0
        while pages == 0 or more:
            query = {"limit": "2"} | ({"continue": more} if more else {})
            async with connection.request("GET", "/api/v1/pods", query) as answer:
                page = answers.page(await answer.body())
            more, pages = page.metadata.continuation, pages + 1
            seen += len(page.items or ())
        assert (seen, pages) == (5, 3)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "8",
            "resourceVersion": page.metadata.version,
        }
        async with connection.request("GET", "/api/v1/pods", query, seconds=None) as answer:
            await set_status(plane, "llm-0", ready=False)
            events = [answers.event(line) async for line in answer.lines()]
        first, *rest = [each.type for each in events]
        assert (first, set(rest)) == ("MODIFIED", {"BOOKMARK"})
        versions = [answers.head(each.object).version for each in events]
        assert int(versions[-1]) >= int(versions[0]), "of this server, a number"


async def test_tokens_are_checked_by_the_api_server(plane, tmp_path):
    await account(plane, "weir", RULES)
    await account(plane, "gateway")
    good = await token(plane, "gateway", "istio-ca")
    other = await token(plane, "gateway")
    forged = good[:-8] + "AAAAAAAA"
    config = plane.kubeconfig(tmp_path / "kubeconfig", await token(plane, "weir"))
    async with connected(Cluster(config)) as connection:
        reviews = TokenReviews(connection, ["istio-ca"])
        assert await reviews(good) == Identity("default", "gateway", "token")
        for bad in (other, forged, "nonsense"):
            with pytest.raises(Unauthenticated):
                await reviews(bad)
        await plane.stop_apiserver()
        assert await reviews(good) == Identity("default", "gateway", "token")
        with pytest.raises(Unauthenticated, match="cannot be said now"):
            await TokenReviews(connection, ["istio-ca"])(good)


async def test_the_program_watches_a_cluster(plane, tmp_path):
    await install(plane, kinds.POOL)
    await add_pool(plane)
    await add_pod(plane, "llm-1", "10.1.0.1")
    await account(plane, "weir", RULES)
    config = plane.kubeconfig(tmp_path / "kubeconfig", await token(plane, "weir"))
    status = free()
    child = await start(
        "weir serve",
        weir(
            "serve",
            *("--kubernetes", "--kubeconfig", str(config), "--plaintext"),
            *("--listen", f"127.0.0.1:{free()}", "--status", f"127.0.0.1:{status}"),
        ),
        tmp_path / "serve.log",
    )
    try:
        async with aiohttp.ClientSession() as client:

            async def ready():
                try:
                    async with client.get(f"http://127.0.0.1:{status}/readyz") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            await child.until(ready, what="it was ready")
        shown = await asyncio.to_thread(
            subprocess.run,
            weir("status", "--status", f"127.0.0.1:{status}", "--json"),
            capture_output=True,
            check=True,
        )
        view = json.loads(shown.stdout)
        assert [each["endpoint"] for each in view["pools"]["default/llm"]["endpoints"]] == [
            "10.1.0.1:8000"
        ]
        assert view["source"]["complete"]
    finally:
        await child.stop()
