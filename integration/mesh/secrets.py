"""SPIFFE identities, and an SDS server that hands one of them to its proxy, as istio-agent does."""

import grpc
import grpc.aio
from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    Secret,
    TlsCertificate,
)

from xds.proto.envoy.service.discovery.v3 import discovery_pb2

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def spiffe(account, namespace="ns"):
    return f"spiffe://cluster.local/ns/{namespace}/sa/{account}"


class Agent:
    """istio-agent, as far as a proxy's certificates go: those of `account`, over SDS."""

    def __init__(self, authority, account, places):
        self._bodies = _secrets(authority, account)
        self._address = f"{places.istiod}:15012"
        self._server = None

    async def start(self):
        method = grpc.stream_stream_rpc_method_handler(
            self._stream,
            discovery_pb2.DiscoveryRequest.FromString,
            discovery_pb2.DiscoveryResponse.SerializeToString,
        )
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"StreamSecrets": method}),)
        )
        self._server.add_insecure_port(self._address)
        await self._server.start()

    async def stop(self):
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _stream(self, requests, context):
        """State of the world, as istiod asks for it."""
        async for request in requests:
            if request.response_nonce:
                continue
            response = discovery_pb2.DiscoveryResponse(version_info="1", type_url=SECRET, nonce="1")
            for name in request.resource_names:
                response.resources.add(type_url=SECRET, value=self._bodies[name])
            await context.write(response)


def _secrets(authority, account):
    """The two secrets that istiod's listeners and clusters ask for, serialised."""
    certificate, key = authority.issue(account, spiffe=spiffe(account))
    own = TlsCertificate(
        certificate_chain=DataSource(inline_bytes=certificate.read_bytes()),
        private_key=DataSource(inline_bytes=key.read_bytes()),
    )
    root = CertificateValidationContext(
        trusted_ca=DataSource(inline_bytes=authority.ca.read_bytes())
    )
    return {
        "default": bytes(Secret(name="default", tls_certificate=own)),
        "ROOTCA": bytes(Secret(name="ROOTCA", validation_context=root)),
    }
