"""Clusters: where their endpoints come from, their twins, and those that we add.

Endpoints come over `DELTA_GRPC` from a cluster that istiod delivers: of the ways to reach us it is
the one that Envoy accepts in a cluster of CDS, and that reconnects within a second. The fetch ends
after 2 s, not never: a proxy that starts while we are away must become ready.

A cluster that we add has what istiod's own have, so that telemetry, circuit breaking and the tunnel
to captured Pods are as they were: breakers that do not break, no panic below a share of healthy
hosts, statistics and the service under names that Istio's dashboards know.
"""

from xds.istio.assignment import SHADOW_PORT
from xds.istio.shapes.policy import TYPES, load_balancing_policy
from xds.istio.shapes.wiring import Host, Istio, Member, Object, Protocol, Traffic
from xds.pool import Policy

UNBROKEN = dict.fromkeys(
    ("max_connections", "max_pending_requests", "max_requests", "max_retries"), 2**32 - 1
)
FETCH_TIMEOUT = "2s"
CONNECT_TIMEOUT = "10s"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
TLS = f"{TYPES}transport_sockets.tls.v3.UpstreamTlsContext"
TWIN, PROBE = "weir-twin|", "weir-probe|"


def eds_config(xds: Host) -> Object:
    """Weir as the source of a cluster's endpoints."""
    retry = {"retry_back_off": {"base_interval": "0.25s", "max_interval": "2s"}}
    return {
        "resource_api_version": "V3",
        "initial_fetch_timeout": FETCH_TIMEOUT,
        "api_config_source": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": xds.cluster, "retry_policy": retry}}],
        },
    }


def twin(service_name: str) -> Object:
    """A cluster that nobody routes to; it keeps istiod's assignment of that name in the proxy."""
    source = {
        "ads": {},
        "resource_api_version": "V3",
        "initial_fetch_timeout": FETCH_TIMEOUT,
    }
    return {
        "name": f"{TWIN}{service_name}",
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"service_name": service_name, "eds_config": source},
    }


def probe(service_name: str, xds: Host) -> Object:
    """A cluster that nobody routes to, with our endpoints: it proves that a proxy reaches us."""
    return {
        "name": f"{PROBE}{service_name}",
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"service_name": service_name, "eds_config": eds_config(xds)},
    }


def redirected(policy: Policy, istio: Istio, xds: Host) -> Object:
    """What is merged into a cluster of istiod's: our endpoints, our policy."""
    return {
        "eds_cluster_config": {"eds_config": eds_config(xds)},
        "load_balancing_policy": load_balancing_policy(policy, istio),
    }


def own_gateway_cluster(
    member: Member, shadow: Host, istio: Istio, xds: Host, traffic: Traffic
) -> Object:
    """Beside istiod's cluster of the pool, with the same endpoints by name.

    As istiod's it has no TLS of its own to Pods with a sidecar: it does not infer it for a Service
    without an address. Only a DestinationRule can ask for it.
    """
    cluster = _own(own_gateway_name(member), shadow, traffic)
    cluster |= _ours(member.policy, shadow.cluster, istio, xds)
    cluster |= _http_options(traffic)
    mode = "tlsMode-istio" if traffic.istio_mutual else "tlsMode-disabled"
    rest = _tls(shadow) if traffic.istio_mutual else _raw_buffer()
    cluster["transport_socket_matches"] = [
        {"name": "hbone", "match": {"tunnel": "http"}, "transport_socket": _tunnel("cluster")},
        {"name": mode, "match": {}, "transport_socket": rest},
    ]
    return cluster


def own_waypoint_cluster(
    member: Member, service: Host, istio: Istio, xds: Host, traffic: Traffic
) -> Object:
    """Beside a waypoint's own cluster of a Service, with the same endpoints by name."""
    cluster = _own(own_waypoint_name(service), service, traffic)
    cluster |= _ours(member.policy, service.vip, istio, xds)
    cluster |= _http_options(traffic)
    cluster["transport_socket"] = _tunnel()
    return cluster


def own_gateway_name(member: Member) -> str:
    return f"weir|{SHADOW_PORT}|{member.name}.{member.namespace}"


def own_waypoint_name(service: Host) -> str:
    return f"weir|{service.port}|{service.service}.{service.namespace}"


def _own(name: str, host: Host, traffic: Traffic) -> Object:
    panic = {"value": traffic.panic_threshold} if traffic.panic_threshold else {}
    service = {"host": host.fqdn, "name": host.service, "namespace": host.namespace}
    return {
        "name": name,
        "type": "EDS",
        "connect_timeout": CONNECT_TIMEOUT,
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": {"thresholds": [UNBROKEN | traffic.limits]},
        "common_lb_config": {"healthy_panic_threshold": panic},
        "metadata": {"filter_metadata": {"istio": {"services": [service]}}},
        "alt_stat_name": f"{name};",
        **traffic.cluster,
    }


def _ours(policy: Policy, service_name: str, istio: Istio, xds: Host) -> Object:
    return {
        "eds_cluster_config": {"service_name": service_name, "eds_config": eds_config(xds)},
        "load_balancing_policy": load_balancing_policy(policy, istio),
    }


def _http_options(traffic: Traffic) -> Object:
    """Nothing, where it would say what Envoy does anyhow: HTTP/1.1, no limits."""
    if traffic.protocol is Protocol.CLIENT:
        protocol: Object = {
            "use_downstream_protocol_config": {
                "http_protocol_options": {},
                "http2_protocol_options": {},
            }
        }
    elif traffic.protocol is Protocol.HTTP2:
        streams = traffic.concurrent_streams
        limit = {"max_concurrent_streams": streams} if streams else {}
        protocol = {"explicit_http_config": {"http2_protocol_options": limit}}
    elif traffic.http:
        protocol = {"explicit_http_config": {"http_protocol_options": {}}}
    else:
        return {}
    options: Object = {"@type": f"type.googleapis.com/{HTTP_OPTIONS}"}
    if traffic.http:
        options["common_http_protocol_options"] = traffic.http
    return {"typed_extension_protocol_options": {HTTP_OPTIONS: options | protocol}}


def _tunnel(*more: str) -> Object:
    """To the internal listener that makes HBONE of it; captured Pods have its address."""
    passed = [{"kind": {"host": {}}, "name": "envoy.filters.listener.original_dst"}]
    passed += [{"kind": {kind: {}}, "name": "istio"} for kind in (*more, "host")]
    return {
        "name": "internal_upstream",
        "typed_config": {
            "@type": f"{TYPES}transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
            "passthrough_metadata": passed,
            "transport_socket": _raw_buffer(),
        },
    }


def _raw_buffer() -> Object:
    return {
        "name": "raw_buffer",
        "typed_config": {"@type": f"{TYPES}transport_sockets.raw_buffer.v3.RawBuffer"},
    }


def _tls(host: Host) -> Object:
    """The mesh's mutual TLS to Pods with a sidecar: certificates from the proxy's own agent."""
    agent = {
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
            "set_node_on_first_message_only": True,
        },
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
    }
    common = {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": agent}],
        "combined_validation_context": {
            "default_validation_context": {},
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": agent},
        },
        "alpn_protocols": ["istio-peer-exchange", "istio"],
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": TLS,
            "common_tls_context": common,
            "sni": f"outbound_.{host.port}_._.{host.fqdn}",
        },
    }
