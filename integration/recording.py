"""What istiod makes of `istiod/`'s objects, recorded there: for tests that have no istiod.

    python -m integration.recording          makes it again, where `make istiod apiserver` was

A `Stage` is one folder: whom istiod configures, and what was applied beside `kubernetes.yaml`.
`unpatched/` is what it makes of a shape's EnvoyFilter without its patches: the annotation for
clusters is heeded all the same.
"""

import asyncio
import json
import sys
from contextlib import AbstractAsyncContextManager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from integration.cluster import MISSING, Cluster, cluster
from integration.envoyfilter import Proxy
from integration.follower import Follower
from integration.mesh.envoy import node_of_proxy
from integration.mesh.istiod import DATA, SHAPES, WAYPOINT_PROXY, read
from integration.mesh.mesh import ACCOUNTS
from integration.mesh.places import Places
from integration.messages import URLS

QUIET_SECONDS = 3  # without a response: istiod has made of it what it makes


@dataclass(frozen=True, slots=True)
class Stage:
    """One folder of recorded data."""

    folder: str
    proxy: Proxy
    filters: tuple[Any, ...] = ()
    routes: tuple[Any, ...] = ()  # an operator's

    @property
    def objects(self) -> tuple[Any, ...]:
        return (*self.routes, *self.filters)

    @property
    def recorded(self) -> dict[str, dict[str, Any]]:
        """By kind and name, as a `Follower` has it."""
        return {kind: by_name(kind, read(self.folder, kind)) for kind in URLS}


def stages() -> dict[str, Stage]:
    """By folder."""
    found = [Stage("unpatched/waypoint", WAYPOINT_PROXY)]
    for name, shape in SHAPES.items():
        route = DATA / "patched" / name / "httproute.yaml"
        routes = tuple(yaml.safe_load_all(route.read_text())) if route.exists() else ()
        filters = tuple(shape.filters)
        idle = tuple(idling(each) for each in filters)
        found.append(Stage(f"unpatched/{shape.start}", shape.proxy, idle, routes))
        found.append(Stage(f"patched/{name}", shape.proxy, filters, routes))
    return {each.folder: each for each in found}


def idling(document: Any) -> Any:
    """An EnvoyFilter without its patches."""
    return {**deepcopy(document), "spec": {**document["spec"], "configPatches": []}}


def objects() -> list[Any]:
    return [each for each in yaml.safe_load_all((DATA / "kubernetes.yaml").read_text()) if each]


def followed(made: Cluster, proxy: Proxy) -> AbstractAsyncContextManager[Follower]:
    return made.proxy(node_of_proxy(proxy, Places(), ACCOUNTS[proxy.kind]))


def by_name(kind: str, found: list[Any]) -> dict[str, Any]:
    key = "cluster_name" if kind == "endpoints" else "name"
    return {each[key]: each for each in found}


def write(stage: Stage, resources: dict[str, dict[str, Any]]) -> None:
    """What is as it was keeps its place and its spelling."""
    folder = DATA / stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    for kind, items in resources.items():
        before = stage.recorded[kind]
        names = [name for name in dict.fromkeys([*before, *sorted(items)]) if name in items]
        made = [before[name] if before.get(name) == items[name] else items[name] for name in names]
        if made or kind != "routes":  # a waypoint's are in its listener
            texts = [json.dumps(each, indent=2) for each in made]
            (folder / f"{kind}.json").write_text("[\n" + ",\n".join(texts) + "\n]\n")


async def main(directory: Path) -> None:
    async with cluster(directory, *objects()) as made:
        for stage in stages().values():
            await made.apply(*stage.objects)
            async with followed(made, stage.proxy) as proxy:
                await quiet(proxy)
                write(stage, proxy.resources)
            await made.kubectl.delete(*stage.objects)


async def quiet(proxy: Follower) -> None:
    """Wait until istiod has nothing more to say."""
    await proxy.until(lambda: bool(proxy.responses))
    with suppress(TimeoutError):
        while count := len(proxy.responses):
            await proxy.until(lambda seen=count: len(proxy.responses) > seen, QUIET_SECONDS)


if __name__ == "__main__":
    if MISSING:
        sys.exit(MISSING)
    with TemporaryDirectory() as temporary:
        asyncio.run(main(Path(temporary)))
