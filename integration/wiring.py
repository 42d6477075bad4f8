"""How an operator wires a shape in and takes it out: what `weir istio` prints, in its order.

    gateway, and own clusters     step 1; once every proxy has our endpoints, step 2
    the others                    the patches; once every proxy has our endpoints, the HTTPRoute

and back in reverse, with connections drained before the last step goes. The operator's objects are
those that istiod's data was generated from.
"""

from dataclasses import replace

import yaml
from click.testing import CliRunner

from integration.envoyfilter import referenced_services
from integration.mesh.istiod import DATA, read
from weir.cli import main

VERSIONS = {"gateway-own-cluster": "1.31"}
BY_HTTPROUTE = ("waypoint-inferencepool", "waypoint-second-service")


def printed(shape, directory, *, step=None, change=str):
    """The EnvoyFilters that an operator gets for a shape, of one step or of all."""
    have = directory / "have"
    have.mkdir(exist_ok=True)
    (have / "kubernetes.yaml").write_text(change((DATA / "kubernetes.yaml").read_text()))
    route = DATA / "patched" / shape / "httproute.yaml"
    if route.exists():
        (have / "httproute.yaml").write_text(route.read_text())
    command = ["istio", "manifests", "ns/llm-pool", "--shape", shape]
    command += ["--step", str(step)] if step else []
    return [each for each in answer(command, have, shape) if each["kind"] == "EnvoyFilter"]


def version(shape):
    """Of Istio, for the shape to be possible or chosen."""
    return VERSIONS.get(shape, "1.32")


def answer(command, have, shape):
    """The documents that `weir istio manifests` prints, given the objects in a directory."""
    arguments = [*command, "--config", str(have), "--istio-version", version(shape)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return [each for each in yaml.safe_load_all(result.stdout) if each]


def unwired(shape):
    """The folder of `istiod/unpatched/` that has nothing of the operator's doing for the shape."""
    return "waypoint" if shape.name in BY_HTTPROUTE else shape.start


def with_asked_for(configuration, shape, filters, move=str):
    """What istiod generates, with the clusters of Services that no route leads to.

    A waypoint has those that an annotation of its EnvoyFilters asks for.
    """
    if shape.name not in BY_HTTPROUTE:
        return configuration
    known = {each["name"] for each in configuration.clusters}
    asked = referenced_services(filters)
    more = [
        each
        for each in read(f"unpatched/{shape.start}", "clusters", move)
        if each["name"].rpartition("|")[2] in asked and each["name"] not in known
    ]
    return replace(configuration, clusters=[*configuration.clusters, *more])


class Wiring:
    """One shape's objects in a mesh that began with none (`[]`, `start=unwired(shape)`)."""

    def __init__(self, made):
        self.mesh = made
        self.shape = made.shape
        self._seconds = None

    async def install(self, *weights):
        """`weights` are what the proxy must have of Weir before anything is routed by it."""
        if self.shape.name in BY_HTTPROUTE:
            await self._apply(self._printed())
            await self.mesh.has(*weights)
            await self._apply(start=self.shape.start)
        else:
            await self._apply(self._printed(1))
            await self.mesh.has(*weights)
            await self._apply(self._printed())

    async def remove(self):
        if self.shape.name in BY_HTTPROUTE:
            await self._apply(start=unwired(self.shape))
        else:
            await self._apply(self._printed(1))
        await self.mesh.drained()
        await self._apply([])

    async def retune(self, seconds):
        """A DestinationRule with this connectTimeout: what the pool's cluster is made of changes.

        istiod makes its own cluster anew, and `weir istio manifests` prints ours anew.
        """
        self._seconds = seconds
        await self._apply(self._printed())

    async def _apply(self, filters=None, *, start=None):
        await self.mesh.apply(filters, start=start, edit=self._generated)

    def _printed(self, step=None):
        return printed(self.shape.name, self.mesh.directory, step=step, change=self._ruled)

    def _ruled(self, text):
        if self._seconds is None:
            return text
        rule = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": "llm", "namespace": "ns"},
            "spec": {
                "host": self.shape.service.rpartition("|")[2],
                "trafficPolicy": {
                    "connectionPool": {"tcp": {"connectTimeout": f"{self._seconds}s"}}
                },
            },
        }
        return f"{text}\n---\n{yaml.safe_dump(rule)}"

    def _generated(self, configuration):
        """What istiod makes of the objects as they are now, before patches."""
        found = with_asked_for(configuration, self.shape, self.mesh.filters, self.mesh.places.move)
        for each in found.clusters:
            if each["name"] == self.shape.service and self._seconds is not None:
                each["connect_timeout"] = f"{self._seconds}s"
        return found
