"""The mesh with a real API server and a real istiod behind it, and `weir serve` at work there.

An operator does what Weir asks for, by the very commands that it names. Removal waits 3 s between
its steps instead of 60, as connections drain within 2 s here instead of 45.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from integration.cluster import Cluster, cluster
from integration.kubectl import AWAY, Document
from integration.mesh import SHAPES, Mesh, mesh
from integration.mesh.istiod import DATA
from integration.mesh.relay import Relay
from integration.test_keeper import RIGHTS
from integration.test_kubernetes_apiserver import account, token
from integration.watched import GOES_FIRST, PRINTED_BY
from integration.wiring import version
from tests.manifests.objects import KUSTOMIZE
from tests.weir.test_istio_live import weir as weir_istio
from weir.processes import Child, start, weir

SETTLE_SECONDS, DRAIN_SECONDS = 3, 2
KINDS = {
    "httproute": ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    "service": ("v1", "Service"),
    "envoyfilter": ("networking.istio.io/v1alpha3", "EnvoyFilter"),
    "inferencepool": ("inference.networking.k8s.io/v1", "InferencePool"),
}


class Operated:
    """`steps` are those of the EnvoyFilters that there were: which at once, change by change."""

    def __init__(self, made: Mesh, there: Cluster, command: list[str]) -> None:
        self.mesh, self.cluster = made, there
        self.steps: list[list[int]] = []
        self.weir: Child | None = None
        self._command = command
        self._status = f"http://{made.places.weir}:15011/status"

    async def serve(self) -> None:
        """`weir serve` starts; it is stopped by its process, `weir`."""
        log = self.mesh.directory / f"serve-{len(list(self.mesh.directory.glob('serve-*')))}.log"
        self.weir = await start("weir serve", self._command, log)
        await self.weir.until_logged("serving")

    async def conditions(self) -> dict[str, dict[str, str]]:
        """The status of the pool: of each controller, and of istiod, what it says by type."""
        pool = await self.cluster.kubectl.get(named("inferencepool", "ns", "llm-pool"))
        return {
            each.get("controllerName", "istiod"): {
                condition["type"]: condition["status"] for condition in each["conditions"]
            }
            for each in pool.get("status", {}).get("parents", ())
        }

    async def annotate(self, shape: str | None) -> None:
        """The pool asks to be wired so, or, with None, no more."""
        await self.cluster.kubectl.annotate(named("inferencepool", "ns", "llm-pool"), shape=shape)

    async def wired(self) -> None:
        """Until the status says so; the operator does what it asks for."""
        await self._until(lambda places: [each["done"] for each in places] == [True])

    async def unwired(self) -> None:
        """Until the status has nothing to say, and there is no EnvoyFilter; as above."""
        await self._until(lambda places: places == [] and self.steps[-1:] == [[]])

    async def leftovers(self) -> list[Document]:
        """What of the wiring is the operator's to delete, in this order."""
        said = await self._weir("uninstall", "--dry-run", "ns/llm-pool")
        found = [named(*each) for each in GOES_FIRST.findall(said)]
        return [each for each in found if each["kind"] != "EnvoyFilter"]

    async def follow(self) -> None:
        """Of EnvoyFilters, which steps there are."""
        api, kind = KINDS["envoyfilter"]
        while True:
            with suppress(*AWAY):
                found = await self.cluster.kubectl.list(api, kind, "ns")
                notes = (each["metadata"]["annotations"] for each in found)
                steps = sorted(int(each["weir.dev/step"]) for each in notes)
                if self.steps[-1:] != [steps]:
                    self.steps.append(steps)
            await asyncio.sleep(0.1)

    async def _until(self, condition: Callable[[list[dict[str, Any]]], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition(places := await self._places()):
                for each in places:
                    await self._obey(each["says"])
                await asyncio.sleep(0.1)

    async def _places(self) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as client, client.get(self._status) as response:
            return (await response.json())["wiring"]["places"]

    async def _obey(self, says: str) -> None:
        if (asked := PRINTED_BY.search(says)) is not None:
            _, *command = asked[1].split()
            printed = yaml.safe_load_all(await self._weir(*command))
            ours = [each for each in printed if each["kind"] != "EnvoyFilter"]
            await self.cluster.kubectl.apply(*ours)
        for found in GOES_FIRST.findall(says):
            await self.cluster.kubectl.delete(named(*found))

    async def _weir(self, *arguments: str) -> str:
        """What `weir istio` prints, looking at the cluster."""
        options = ["--kubernetes", "--kubeconfig", str(self.cluster.kubeconfig)]
        if "manifests" in arguments:
            options += ["--istio-version", version(self.mesh.shape.name)]
        status, said, why = await weir_istio(*arguments, *options)
        assert status == 0, why
        return said


def named(kind: str, namespace: str, name: str) -> Document:
    api, kind = KINDS[kind]
    return {"apiVersion": api, "kind": kind, "metadata": {"namespace": namespace, "name": name}}


@asynccontextmanager
async def operated(
    directory: Path, shape: str, *, enrolled: bool = False, **environment: str
) -> AsyncIterator[Operated]:
    """One shape's mesh, not wired; `environment` is istiod's.

    With `enrolled` the whole Namespace is in the waypoint, and not the Service alone.
    """
    (directory / "cluster").mkdir()
    options = {"proxy": False, "weir": False, "drain_seconds": DRAIN_SECONDS, "istiod": Relay}
    async with (
        mesh(directory, SHAPES[shape], **options) as made,
        cluster(directory / "cluster", *objects(made, enrolled=enrolled), **environment) as there,
        asyncio.TaskGroup() as tasks,
    ):
        operator = Operated(made, there, await _serve(made, there))
        made.istiod.upstream = there.istiod.address
        try:
            await operator.serve()
            await made.proxy.start()
            await _answered(made)
            following = tasks.create_task(operator.follow())
            yield operator
            following.cancel()
        finally:
            if operator.weir is not None:
                await operator.weir.stop()


def objects(made: Mesh, *, enrolled: bool) -> list[Document]:
    """What the operator has: the proxy's Pod named as its node says, and unequal capacities.

    A second Service, and on a waypoint any HTTPRoute, are what he is asked for.
    """
    text = (DATA / "kubernetes.yaml").read_text().replace("name: gw-0", "name: inference-gateway-0")
    found = []
    for each in made.pods.objects(made.places, text):
        kind, metadata = each["kind"], each["metadata"]
        if (kind, metadata["name"]) == ("Pod", "llm-1"):
            metadata["annotations"] = {"weir.dev/capacity": "3"}
        if enrolled and (kind, metadata["name"]) == ("Namespace", "ns"):
            metadata["labels"] = {"istio.io/use-waypoint": "waypoint"}
        asked_for = (kind, metadata["name"]) == ("Service", "llm-weir") or (
            kind == "HTTPRoute" and made.shape.name.startswith("waypoint")
        )
        if not asked_for:
            found.append(each)
    return found


async def _serve(made: Mesh, there: Cluster) -> list[str]:
    """With the rights that our manifests give, and no others."""
    rules = [
        rule
        for name in RIGHTS
        for each in yaml.safe_load_all((KUSTOMIZE / name).read_text())
        for rule in each.get("rules", ())
    ]
    await account(there.plane, "weir", rules)
    config = made.directory / "weir.kubeconfig"
    there.plane.kubeconfig(config, await token(there.plane, "weir"))
    return weir(
        *("serve", "--kubernetes", "--kubeconfig", str(config), "--plaintext"),
        *("--listen", made.places.xds, "--status", f"{made.places.weir}:15011"),
        *("--istio-domain", "cluster.local", "--manage-envoyfilters"),
        *("--istio-version", version(made.shape.name)),
        *("--settle-seconds", str(SETTLE_SECONDS)),
    )


async def _answered(made: Mesh) -> None:
    """Until a request is: the proxy has what istiod made of the objects."""
    async with asyncio.timeout(20):
        while (await made.traffic.request(kept=False)).status != 200:
            await asyncio.sleep(0.1)
