"""A proxy's view of an ADS server, without the proxy: what it would be sent, kept as it changes.

It asks as Envoy does, over delta ADS: for all clusters and listeners, for the assignments that
clusters take from ADS, and for the routes that listeners name. It acknowledges everything.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf.json_format import ParseDict

from integration.envoyfilter import Configuration
from integration.messages import URLS, parsed
from tests.xds.talk import ack, delta
from xds.proto.envoy.config.core.v3 import base_pb2
from xds.proto.envoy.service.discovery.v3 import discovery_pb2

KINDS = {url: kind for kind, url in URLS.items()}
EVERYTHING = ("clusters", "listeners")


class Follower:
    """JSON by kind ("clusters", "endpoints", "listeners", "routes") and name."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.resources: dict[str, dict[str, Any]] = {kind: {} for kind in URLS}
        self.responses: list[tuple[str, list[str], list[str]]] = []  # kind, sent, removed
        self._bodies: dict[tuple[str, str], bytes] = {}
        self._call = call
        self._asked: dict[str, set[str]] = {"endpoints": set(), "routes": set()}
        self._beside: set[str] = set()
        self._changed = asyncio.Condition()
        self._greeted = asyncio.Event()
        self._writing = asyncio.Lock()  # a call takes one message at a time

    @property
    def configuration(self) -> Configuration:
        return Configuration(
            *(list(self.resources[kind].values()) for kind in ("clusters", "listeners", "routes"))
        )

    @property
    def assignments(self) -> dict[str, Any]:
        return self.resources["endpoints"]

    async def ask(self, *names: str) -> None:
        """For these assignments too, whether or not a cluster takes them."""
        await self._greeted.wait()
        self._beside |= set(names)
        await self._ask("endpoints", self._asked["endpoints"] | self._beside)

    async def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until it holds, looking whenever something came. Raises `TimeoutError`."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def run(self, node: base_pb2.Node) -> None:
        for kind in EVERYTHING:
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=URLS[kind], node=node)
            await self._write(request)
        self._greeted.set()
        async for response in self._call:
            await self._take(response)

    async def _write(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        async with self._writing:
            await self._call.write(request)

    async def _take(self, response: discovery_pb2.DeltaDiscoveryResponse) -> None:
        kind = KINDS[response.type_url]
        known = self.resources[kind]
        for each in response.resources:
            if each.name not in self._asked.get(kind, (each.name,)):
                continue  # it is late
            if self._bodies.get((kind, each.name)) != each.resource.value:  # parsing is slow
                known[each.name] = parsed(kind, each.resource.value)
                self._bodies[kind, each.name] = each.resource.value
        for name in response.removed_resources:
            self._drop(kind, name)
        names = [each.name for each in response.resources]
        self.responses.append((kind, names, list(response.removed_resources)))
        await self._write(ack(response))
        if kind == "clusters":
            await self._ask("endpoints", {*taken_from_ads(known.values()), *self._beside})
        elif kind == "listeners":
            await self._ask("routes", set(_routed(known.values())))
        async with self._changed:
            self._changed.notify_all()

    def _drop(self, kind: str, name: str) -> None:
        self.resources[kind].pop(name, None)
        self._bodies.pop((kind, name), None)

    async def _ask(self, kind: str, names: set[str]) -> None:
        before, self._asked[kind] = self._asked[kind], names
        if before == names:
            return
        for name in before - names:
            self._drop(kind, name)
        await self._write(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=URLS[kind],
                resource_names_subscribe=sorted(names - before),
                resource_names_unsubscribe=sorted(before - names),
            )
        )


@asynccontextmanager
async def following(address: str, node: dict[str, Any]) -> AsyncIterator[Follower]:
    """Of the server at `address`, as the proxy of this `node` (as a bootstrap has it)."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as tasks:
        follower = Follower(delta(channel))
        running = tasks.create_task(follower.run(ParseDict(node, base_pb2.Node())))
        yield follower
        running.cancel()


def taken_from_ads(clusters: Iterable[Any]) -> Iterable[str]:
    for each in clusters:
        eds = each.get("eds_cluster_config", {})
        if each.get("type") == "EDS" and "ads" in eds.get("eds_config", {}):
            yield eds.get("service_name", each["name"])


def _routed(value: Any) -> Iterable[str]:
    """Names of routes, wherever a listener has them."""
    if isinstance(value, dict):
        if "route_config_name" in value:
            yield value["route_config_name"]
        value = value.values()
    elif not hasattr(value, "__iter__") or isinstance(value, str):
        return
    for each in value:
        yield from _routed(each)
