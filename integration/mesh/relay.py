"""Between a real istiod and the mesh's proxy: what istiod sends, as upstream Envoy takes it.

The proxy is istiod's client: its requests go through as they are, its answers and refusals too, in
their order and at once. Only what is in clusters, listeners and routes is made `loadable`.
"""

import asyncio
from typing import Any

import grpc
import grpc.aio

from integration.envoyfilter import Configuration
from integration.mesh.ads import SERVICE
from integration.mesh.istiod import loadable
from integration.mesh.places import Places
from integration.messages import URLS, parsed, serialised
from tests.xds.talk import delta
from weir.stack import wait_until
from xds.proto.envoy.service.discovery.v3 import discovery_pb2

KINDS = {url: kind for kind, url in URLS.items()}


class Relay:
    """In the place of the stand-in; `upstream` is istiod's HOST:PORT, before a proxy connects."""

    def __init__(self, places: Places) -> None:
        self.upstream = ""
        self.refusals: dict[str, str] = {}  # by type: why the proxy refuses what it was sent last
        self._places = places
        self._unanswered: dict[object, set[str]] = {}  # by stream
        self._resources: dict[str, dict[str, Any]] = {}  # by kind and name, as istiod has them
        self._server: grpc.aio.Server | None = None

    @property
    def configuration(self) -> Configuration:
        """What istiod sent the last proxy that connected."""
        kinds = ("clusters", "listeners", "routes")
        return Configuration(*(list(self._resources.get(kind, {}).values()) for kind in kinds))

    async def settled(self, seconds: float = 20) -> None:
        """Wait until a proxy is there and has answered for all that it was sent."""

        async def has() -> bool:
            return bool(self._unanswered) and not any(self._unanswered.values())

        await wait_until(has, seconds=seconds)

    async def start(self) -> None:
        method = grpc.stream_stream_rpc_method_handler(
            self._serve,
            discovery_pb2.DeltaDiscoveryRequest.FromString,
            discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": method}),)
        )
        self._server.add_insecure_port(f"{self._places.istiod}:15010")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _serve(self, requests: Any, context: Any) -> None:
        unanswered = self._unanswered.setdefault(context, set())
        self._resources = {kind: {} for kind in URLS}

        async def up(call: Any) -> None:
            async for request in requests:
                self._note(request, unanswered)
                await call.write(request)
            await call.done_writing()

        try:
            async with grpc.aio.insecure_channel(self.upstream) as channel:
                call = delta(channel)
                asking = asyncio.create_task(up(call))
                try:
                    async for response in call:
                        unanswered.add(response.nonce)
                        await context.write(self._loadable(response))
                finally:
                    asking.cancel()
        except grpc.aio.AioRpcError as error:  # istiod is away
            await context.abort(error.code(), error.details())
        finally:
            del self._unanswered[context]

    def _note(self, request: discovery_pb2.DeltaDiscoveryRequest, unanswered: set[str]) -> None:
        if not request.response_nonce:
            return
        unanswered.discard(request.response_nonce)
        self.refusals.pop(request.type_url, None)
        if request.error_detail.message:
            self.refusals[request.type_url] = request.error_detail.message

    def _loadable(
        self, response: discovery_pb2.DeltaDiscoveryResponse
    ) -> discovery_pb2.DeltaDiscoveryResponse:
        kind = KINDS.get(response.type_url)
        if kind is None or kind == "endpoints":
            return response
        known = self._resources[kind]
        for each in response.resources:
            known[each.name] = parsed(kind, each.resource.value)
            plain = loadable(known[each.name], self._places)
            each.resource.value = serialised(kind, plain)
        for name in response.removed_resources:
            known.pop(name, None)
        return response
