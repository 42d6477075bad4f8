"""The client status discovery service: what each client has, for standard tools.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/status/v3/csds.proto

A resource's `version_info` is of the version that the client accepted, as Envoy's own config dump
shows it on a delta stream; `xds_config` is what it should have. Whoever sees everything sees all
clients; others see the clients of their own namespace.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from xds.access import Denied, Identity, Node, scope_of
from xds.proto.envoy.admin.v3 import config_dump_shared_pb2 as shared
from xds.proto.envoy.service.status.v3 import csds_pb2
from xds.session import Session
from xds.snapshot import Snapshot
from xds.streams import Context, XdsServer
from xds.tls import Unauthenticated

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"


def handler(server: XdsServer) -> grpc.GenericRpcHandler:
    """The service, beside `server` on its port."""

    async def identified(context: Context) -> Identity | None:
        try:
            return await server.security.identify(context)
        except Unauthenticated as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise

    async def fetch(raw: bytes, context: Context) -> bytes:
        identity = await identified(context)
        try:
            return client_status(server, identity, raw).SerializeToString()
        except (Denied, DecodeError) as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise

    async def stream(_: object, context: Context) -> None:
        while True:
            raw: Any = await context.read()
            if raw is grpc.aio.EOF:
                return
            await context.write(await fetch(raw, context))

    methods: dict[str, Any] = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(fetch),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def client_status(
    server: XdsServer, identity: Identity | None, raw: bytes
) -> csds_pb2.ClientStatusResponse:
    """Node matchers are honoured by exact id only. Raises `Denied`, `DecodeError`."""
    request = csds_pb2.ClientStatusRequest.FromString(raw)
    scope = scope_of(identity, Node.of(request.node), server.grants)
    ids = {matcher.node_id.exact for matcher in request.node_matchers if matcher.node_id.exact}
    response = csds_pb2.ClientStatusResponse()
    for session in server.clients:
        seen = scope.everything or (
            identity is not None
            and session.identity is not None
            and session.identity.namespace == identity.namespace
        )
        if seen and (not ids or session.node.id in ids):
            config = response.config.add()
            config.node.id = session.node.id
            config.generic_xds_configs.extend(_configs(session, server.view(session)))
    return response


def _configs(
    session: Session, snapshot: Snapshot
) -> Iterator[csds_pb2.ClientConfig.GenericXdsConfig]:
    for type_url, subscription in session.subscriptions.items():
        known = snapshot.types.get(type_url)
        wanted, held, refused = subscription.wanted(known), subscription.held, subscription.refused
        for name in sorted(wanted.keys() | held.keys() | subscription.names):
            item = csds_pb2.ClientConfig.GenericXdsConfig(
                type_url=type_url, name=name, version_info=held.get(name, "")
            )
            resource = None if known is None else known.by_name.get(name)
            if resource is not None and name in wanted:
                item.xds_config.type_url, item.xds_config.value = type_url, resource.body
            if name in refused and subscription.refusal is not None:
                item.config_status = csds_pb2.ConfigStatus.ERROR
                item.client_status = shared.ClientResourceStatus.NACKED
                item.error_state.details = subscription.refusal.reason
                item.error_state.version_info = refused[name]
            elif name not in wanted and name not in held:
                item.config_status = csds_pb2.ConfigStatus.NOT_SENT
                item.client_status = shared.ClientResourceStatus.REQUESTED
            elif held.get(name) == wanted.get(name):
                item.config_status = csds_pb2.ConfigStatus.SYNCED
                item.client_status = shared.ClientResourceStatus.ACKED
            else:
                item.config_status = csds_pb2.ConfigStatus.STALE
                item.client_status = shared.ClientResourceStatus.REQUESTED
            yield item
