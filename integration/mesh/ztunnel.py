"""A second Envoy that is ztunnel on both sides of a waypoint.

On the near side it tunnels the clients' connections to the waypoint; on the far side, at each
captured Pod, it ends tunnels and writes down who opened them and where to.
"""

import json
from typing import NamedTuple

from integration.mesh.envoy import http2, socket_address, static_cluster
from integration.mesh.places import ADMIN, CAPTURE, HBONE, SERVICE
from integration.mesh.secrets import spiffe
from weir.stack import wait_until

T = "type.googleapis.com/envoy.extensions."
CONNECT = {"upgrade_type": "CONNECT"}


class Tunnel(NamedTuple):
    """Who opened it, as a SPIFFE id, and the CONNECT's authority."""

    peer: str
    authority: str


class FarEnd:
    """The tunnels that were opened to captured Pods."""

    def __init__(self, path):
        self.path = path
        path.touch()

    @property
    def tunnels(self):
        """Those so far, in order."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [Tunnel(line["peer"], line["authority"]) for line in lines]

    async def has(self, count, seconds=5):
        """Wait until so many tunnels were written down."""

        async def does():
            return len(self.tunnels) >= count

        await wait_until(does, seconds=seconds)


def bootstrap(places, captured, authority, log):
    """`captured` are endpoints, `authority` issues certificates, `log` is the far end's."""
    near = {
        "name": "near",
        "address": socket_address(places.ztunnel, CAPTURE),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "tunnel",
                        "typed_config": {
                            "@type": f"{T}filters.network.tcp_proxy.v3.TcpProxy",
                            "stat_prefix": "near",
                            "cluster": "waypoint",
                            "tunneling_config": {"hostname": SERVICE},
                        },
                    }
                ]
            }
        ],
    }
    waypoint = static_cluster(
        "waypoint",
        places.waypoint,
        HBONE,
        transport_socket=_tls("Upstream", authority, "client"),
        **http2(allow_connect=True),
    )
    listened = {}
    for endpoint in captured:
        listened.setdefault(endpoint.rpartition(":")[0], []).append(endpoint)
    pods = [_pod(endpoint) for endpoint in captured]
    return {
        "node": {"id": "ztunnel", "cluster": "ztunnel"},
        "admin": {"address": socket_address(places.ztunnel, ADMIN)},
        "static_resources": {
            "listeners": [near, *(_far(*each, authority, log) for each in listened.items())],
            "clusters": [waypoint, *pods],
        },
    }


def _pod(endpoint):
    address, _, port = endpoint.rpartition(":")
    return static_cluster(f"pod-{endpoint}", address, int(port))


def _far(address, endpoints, authority, log):
    hosts = [
        {
            "name": endpoint,
            "domains": [endpoint],
            "routes": [
                {
                    "match": {"connect_matcher": {}},
                    "route": {
                        "cluster": f"pod-{endpoint}",
                        "upgrade_configs": [{**CONNECT, "connect_config": {}}],
                    },
                }
            ],
        }
        for endpoint in endpoints
    ]
    lines = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(log),
        "log_format": {
            "json_format": {"peer": "%DOWNSTREAM_PEER_URI_SAN%", "authority": "%REQ(:AUTHORITY)%"}
        },
    }
    manager = {
        "@type": f"{T}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "far",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [CONNECT],
        # A tunnel is written down as it opens and not as it ends: it may outlive the test.
        "access_log_options": {"flush_access_log_on_new_request": True},
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "filter": {"log_type_filter": {"types": ["DownstreamStart"]}},
                "typed_config": lines,
            }
        ],
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{T}filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": f"far-{address}",
        "address": socket_address(address, HBONE),
        "filter_chains": [
            {
                "transport_socket": _tls("Downstream", authority, "llm"),
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ],
            }
        ],
    }


def _tls(side, authority, account):
    certificate, key = authority.issue(f"ztunnel-{account}", spiffe=spiffe(account))
    context = {
        # istiod asks for 1.3; an Envoy that is a client stops at 1.2 unless told.
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(certificate)},
                "private_key": {"filename": str(key)},
            }
        ],
        "validation_context": {"trusted_ca": {"filename": str(authority.ca)}},
    }
    kind = f"{T}transport_sockets.tls.v3.{side}TlsContext"
    required = {"require_client_certificate": True} if side == "Downstream" else {}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": kind, "common_tls_context": context, **required},
    }
