"""An ADS server as hasty as istiod's: every type is pushed at once, in order, acknowledged or not.

Ours waits for clusters to be accepted before it sends the listeners that need them, and takes
clusters away last. istiod does neither: a route that points at a cluster which is not warm yet is
sent, and fails requests. A stand-in with our server's patience would hide what an operator sees.

Delta only. As on a full push of istiod's, assignments go out again whenever a cluster changed.
"""

import asyncio

import grpc
import grpc.aio

from weir.stack import wait_until
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.snapshot import Resource, TypeUrl

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
CLUSTER, ENDPOINT = TypeUrl.CLUSTER.value, TypeUrl.ENDPOINT.value
LISTENER, ROUTE = TypeUrl.LISTENER.value, TypeUrl.ROUTE.value
ORDER = (CLUSTER, ENDPOINT, LISTENER, ROUTE)
EVERYTHING = "*"


class _Stream:
    def __init__(self, context):
        self.context = context
        self.names = {}  # by type, in the order of ORDER; EVERYTHING for all
        self.sent = {each: {} for each in ORDER}
        self.unanswered = set()
        self.turn = asyncio.Lock()


class Ads:
    """The server; what it has is replaced as a whole by `publish`."""

    def __init__(self):
        self.refusals = {}  # by type: why the proxy refuses what it was sent last
        self._resources = {each: {} for each in ORDER}
        self._streams = set()
        self._nonces = 0
        self._server = None

    async def publish(self, bodies):
        """Serialised resources by type and name."""
        self._resources = {
            kind: {name: Resource(kind, name, body) for name, body in bodies.get(kind, {}).items()}
            for kind in ORDER
        }
        for stream in list(self._streams):
            await self._push(stream)

    async def settled(self, seconds=20):
        """Wait until a proxy is there and has answered for all that it was sent."""

        async def has():
            return bool(self._streams) and not any(each.unanswered for each in self._streams)

        await wait_until(has, seconds=seconds)

    async def start(self, address):
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        method = grpc.stream_stream_rpc_method_handler(
            self._serve,
            discovery_pb2.DeltaDiscoveryRequest.FromString,
            discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"DeltaAggregatedResources": method}),)
        )
        self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self):
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _serve(self, requests, context):
        stream = _Stream(context)
        self._streams.add(stream)
        try:
            async for request in requests:
                await self._answer(stream, request)
        finally:
            self._streams.discard(stream)

    async def _answer(self, stream, request):
        kind = request.type_url
        if request.response_nonce:
            stream.unanswered.discard(request.response_nonce)
            self.refusals.pop(kind, None)
            if request.error_detail.message:
                self.refusals[kind] = request.error_detail.message
        if kind not in ORDER:
            return
        asked = set(request.resource_names_subscribe)
        sent = stream.sent[kind]
        if kind not in stream.names:
            stream.names[kind] = set()
            sent.update(request.initial_resource_versions)
            asked = asked or {EVERYTHING}
        else:
            for name in asked:  # who asks again has lost it
                sent.pop(name, None)
        stream.names[kind] |= asked
        for name in request.resource_names_unsubscribe:
            stream.names[kind].discard(name)
            sent.pop(name, None)
        if asked:
            await self._send(stream, kind, greet=EVERYTHING in asked)

    async def _push(self, stream):
        for kind in ORDER:
            if kind in stream.names:
                changed = await self._send(stream, kind)
                if kind == CLUSTER and changed:
                    stream.sent[ENDPOINT].clear()

    async def _send(self, stream, kind, *, greet=False):
        async with stream.turn:
            names, sent, known = stream.names[kind], stream.sent[kind], self._resources[kind]
            wanted = known.keys() if EVERYTHING in names else known.keys() & names
            due = [known[name] for name in wanted if sent.get(name) != known[name].version]
            gone = [name for name in sent if name not in known]
            if not due and not gone and not greet:
                return False
            self._nonces += 1
            response = discovery_pb2.DeltaDiscoveryResponse(
                type_url=kind, nonce=str(self._nonces), removed_resources=gone
            )
            for each in due:
                item = response.resources.add(name=each.name, version=each.version)
                item.resource.type_url, item.resource.value = kind, each.body
                sent[each.name] = each.version
            for name in gone:
                del sent[name]
            stream.unanswered.add(response.nonce)
            await stream.context.write(response)
            return True
