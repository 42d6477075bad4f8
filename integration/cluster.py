"""A cluster with Istio in it and nobody's Pods: a real API server, a real istiod.

    async with cluster(tmp_path) as made:
        await made.apply(*documents)                     as an operator, and as kubelets
        async with made.proxy(node) as proxy:            what istiod sends that proxy
            await proxy.until(lambda: NAME in proxy.assignments)

There is no scheduler and no kubelet: a Pod is what its document says, `status` included.
EndpointSlices come as they do in a cluster (`slices`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from integration import apiserver, pilot
from integration.apiserver import ControlPlane, control_plane
from integration.follower import Follower, following
from integration.kubectl import Document, Kubectl
from integration.pilot import Istiod
from integration.servers import why_not
from integration.slices import Slices

SERVICES = "127.96.0.0/16"
ISTIODS = ("Gateway", "HTTPRoute")
# What tests that need it skip for; nothing where it is all there.
MISSING = "; ".join(
    why_not(which)
    for which, there in (("apiserver", apiserver.ASSETS), ("istiod", pilot.ASSETS))
    if not there
)


class Cluster:
    def __init__(self, plane: ControlPlane, istiod: Istiod, kubeconfig: Path) -> None:
        self.plane, self.istiod = plane, istiod
        self.kubeconfig = kubeconfig  # an administrator's
        self.kubectl = Kubectl(plane)
        self.slices = Slices(plane)

    async def apply(self, *documents: Document) -> None:
        """As `Kubectl.apply`, but EndpointSlices may have loopback addresses, and what istiod says
        of a Gateway or a route in its status, it says itself.
        """
        for each in documents:
            if each["kind"] == "EndpointSlice":
                await self.slices.write(each)
            elif each["kind"] in ISTIODS:
                await self.kubectl.apply({k: v for k, v in each.items() if k != "status"})
            else:
                await self.kubectl.apply(each)

    def proxy(self, node: dict[str, Any]) -> AbstractAsyncContextManager[Follower]:
        """As istiod configures it."""
        return following(self.istiod.address, node)


@asynccontextmanager
async def cluster(
    directory: Path, *documents: Document, **environment: str
) -> AsyncIterator[Cluster]:
    """With these objects when istiod starts, which has `environment` beside its own."""
    async with control_plane(directory, services=SERVICES) as plane, asyncio.TaskGroup() as tasks:
        kubeconfig = plane.kubeconfig(directory / "kubeconfig")
        made = Cluster(plane, Istiod(kubeconfig, directory, **environment), kubeconfig)
        await made.apply(*_crds(), _namespace(pilot.NAMESPACE), *documents)
        making = tasks.create_task(made.slices.run())
        await made.istiod.start()
        try:
            yield made
        finally:
            making.cancel()
            await made.istiod.stop()


def _crds() -> list[Document]:
    texts = [path.read_text() for path in sorted((pilot.ASSETS / "crds").iterdir())]
    found = [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader)]
    return [each for each in found if each and each["kind"] == "CustomResourceDefinition"]


def _namespace(name: str) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
