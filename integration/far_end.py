"""An Envoy as ztunnel's far end of a captured Pod: mutual TLS, HTTP/2 CONNECT, then the app.

Plaintext to the app itself is not refused by this; who wants a STRICT Pod gives the app an address
that only Envoy is told: `apps` maps authorities of tunnels to where the apps really are.
"""

from contextlib import asynccontextmanager

import yaml

from weir.envoy import envoy_binary
from weir.ports import free
from weir.processes import running

TYPES = "type.googleapis.com/envoy.extensions."
LOG = "%DOWNSTREAM_PEER_URI_SAN% %REQ(:AUTHORITY)% %RESPONSE_CODE% %CONNECTION_ID%\n"


def bootstrap(where, admin, tls_files, apps, log, *, denied=(), connection_seconds=None):
    """The whole configuration.

    `denied` are authorities that RBAC keeps everybody out of; connections older than
    `connection_seconds` are told to go away.
    """
    certificate, key, ca = tls_files
    tls = {
        "@type": TYPES + "transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(certificate)},
                    "private_key": {"filename": str(key)},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": str(ca)}},
        },
    }
    manager = {
        "@type": TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "far",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "drain_timeout": "0.2s",
        "common_http_protocol_options": (
            {"max_connection_duration": f"{connection_seconds}s"} if connection_seconds else {}
        ),
        "access_log_options": {"flush_access_log_on_new_request": True},
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3."
                    "FileAccessLog",
                    "path": str(log),
                    "log_format": {"text_format_source": {"inline_string": LOG}},
                },
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": authority,
                    "domains": [authority],
                    "routes": [
                        {
                            "match": {"connect_matcher": {}},
                            "route": {
                                "cluster": authority,
                                "upgrade_configs": [
                                    {"upgrade_type": "CONNECT", "connect_config": {}}
                                ],
                            },
                        }
                    ],
                }
                for authority in apps
            ]
        },
        "http_filters": [_rbac(denied), _filter("router", "router.v3.Router", {})],
    }
    listener = {
        "name": "far",
        "address": _address(*where),
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ],
            }
        ],
    }
    return {
        "admin": {"address": _address("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [_cluster(name, *app) for name, app in apps.items()],
        },
    }


def _address(address, port):
    return {"socket_address": {"address": address, "port_value": port}}


def _cluster(name, address, port):
    endpoint = {"endpoint": {"address": _address(address, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _filter(name, kind, config):
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": {"@type": f"{TYPES}filters.http.{kind}", **config},
    }


def _rbac(denied):
    permissions = [
        {"header": {"name": ":authority", "string_match": {"exact": each}}} for each in denied
    ] or [{"not_rule": {"any": True}}]
    policies = {"denied": {"permissions": permissions, "principals": [{"any": True}]}}
    return _filter("rbac", "rbac.v3.RBAC", {"rules": {"action": "DENY", "policies": policies}})


class FarEnd:
    """A running one. `seen()` are lines of (our SPIFFE id, authority, status, connection)."""

    def __init__(self, child, log):
        self.child = child
        self._log = log

    def seen(self):
        if not self._log.exists():
            return []
        return [tuple(line.split()) for line in self._log.read_text().splitlines()]


@asynccontextmanager
async def far_end(directory, client, tls_files, apps, where, *, name="far", **options):
    """An Envoy at `where` (address and port) until the block ends."""
    admin, log = free(), directory / f"{name}.access"
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(bootstrap(where, admin, tls_files, apps, log, **options)))
    command = [
        *(str(envoy_binary()), "--config-path", str(path), "--concurrency", "1"),
        *("--use-dynamic-base-id", "--log-level", "warning", "--file-flush-interval-msec", "50"),
    ]
    async with running(name, command, directory / f"{name}.log") as child:

        async def live():
            try:
                async with client.get(f"http://127.0.0.1:{admin}/ready") as response:
                    return "LIVE" in await response.text()
            except OSError:
                return False

        await child.until(live, what="it was live")
        yield FarEnd(child, log)
