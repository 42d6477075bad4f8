"""What a cluster of ours would lose of the operator's DestinationRule, and how it is kept.

Converted as istiod converts it (pilot/pkg/networking/core/cluster_traffic_policy.go): limits become
the thresholds of the circuit breaker, outlier detection is by consecutive errors alone, its
`minHealthPercent` is the panic threshold. A port's settings replace the rule's, all of them. TLS is
as istiod has it in the place: a gateway's cluster of a pool has none unless it is asked for, a
waypoint's ignores ISTIO_MUTUAL, because the tunnel is mutual TLS already.

The load balancer is ours; what the rule says of it is not in effect, and a note says so. What we
cannot carry over and traffic depends on is refused: a shape that patches istiod's own cluster
loses nothing.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from xds.istio.objects import (
    ClientTls,
    ConnectionPool,
    DestinationRule,
    HttpSettings,
    LoadBalancer,
    OutlierDetection,
    PortPolicy,
    TcpSettings,
    TrafficPolicy,
)
from xds.istio.shapes.wiring import Host, Istio, Object, Protocol, Proxy, ShapeError, Traffic

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
PART = r"(\d+(?:\.\d+)?)(h|ms|m|us|µs|ns|s)"
KEPT = "DestinationRule {}: trafficPolicy.{}: "


def rule_for(
    rules: Iterable[DestinationRule], host: Host, proxy: Proxy, istio: Istio
) -> DestinationRule | None:
    """The rule that istiod applies at this proxy: the nearest namespace first, exact before `*`."""
    order = [proxy.namespace, host.namespace, istio.root_namespace]
    fitting = [
        (order.index(rule.metadata.namespace), -len(_host(rule, istio).lstrip("*")), rule)
        for rule in rules
        if rule.metadata.namespace in order
        and _covers(_host(rule, istio), host.fqdn)
        and rule.spec.workload_selector is None
    ]
    return min(fitting, key=lambda each: each[:2])[2] if fitting else None


def carried_over(
    rule: DestinationRule | None, host: Host, *, waypoint: bool, http2: bool = False
) -> Traffic:
    """The fields of a cluster of ours. Raises `ShapeError` for TLS that we cannot speak.

    `http2`: the port's name or appProtocol says that it is.
    """
    port = Protocol.HTTP2 if http2 else Protocol.HTTP1
    if rule is None or rule.spec.traffic_policy is None:
        return Traffic(protocol=port)
    try:
        found = _carried_over(rule.spec.traffic_policy, _name(rule), host.port, waypoint=waypoint)
    except ValueError as error:
        raise ShapeError(f"DestinationRule {_name(rule)}: trafficPolicy.{error}") from error
    return replace(found, protocol=port) if found.protocol is Protocol.HTTP1 else found


def _carried_over(policy: TrafficPolicy, name: str, port: int, *, waypoint: bool) -> Traffic:
    at = _at_port(policy, port)
    tls = _tls(at.tls, waypoint=waypoint)
    pool = at.connection_pool or ConnectionPool()
    cluster = _connecting(pool.tcp)
    panic = 0
    if at.outlier_detection is not None:
        cluster["outlier_detection"] = _outliers(at.outlier_detection)
        panic = max(0, at.outlier_detection.min_health_percent)
    return Traffic(
        cluster=cluster,
        limits=_limits(pool),
        http=_http(pool),
        protocol=_protocol(pool.http),
        concurrent_streams=pool.http.concurrent_streams,
        panic_threshold=panic,
        istio_mutual=tls,
        notes=tuple(_lost(name, policy, at)),
    )


def patched(rule: DestinationRule | None, host: Host, *, waypoint: bool) -> tuple[str, ...]:
    """Notes on a rule whose cluster stays istiod's. Raises `ShapeError` where Envoy would refuse.

    Envoy takes no cluster with both a policy of ours and weights of localities in its common part.
    istiod leaves them out of a pool's cluster on a gateway, not of a waypoint's.
    """
    if rule is None or rule.spec.traffic_policy is None:
        return ()
    name, at = _name(rule), _at_port(rule.spec.traffic_policy, host.port)
    locality = at.load_balancer.locality if at.load_balancer else None
    if waypoint and locality is not None and locality.enabled is not False:
        failover = locality.failover or locality.failover_priority
        if locality.distribute or (failover and at.outlier_detection is not None):
            raise ShapeError(
                f"DestinationRule {name}: trafficPolicy.loadBalancer.localityLbSetting: Envoy "
                "refuses a cluster with weights of localities beside Weir's policy; remove it, or "
                "use --shape waypoint-own-cluster"
            )
    return tuple(_replaced(name, at.load_balancer))


def _name(rule: DestinationRule) -> str:
    return f"{rule.metadata.namespace}/{rule.metadata.name}"


def _host(rule: DestinationRule, istio: Istio) -> str:
    host = rule.spec.host
    return host if "." in host else f"{host}.{rule.metadata.namespace}.svc.{istio.domain}"


def _covers(pattern: str, fqdn: str) -> bool:
    return fqdn.endswith(pattern[1:]) if pattern.startswith("*") else fqdn == pattern


def _at_port(policy: TrafficPolicy, port: int) -> TrafficPolicy | PortPolicy:
    return next((each for each in policy.ports if each.port.number == port), policy)


def _limits(pool: ConnectionPool) -> Object:
    wanted = {
        "max_connections": pool.tcp.max_connections,
        "max_pending_requests": pool.http.max_pending,
        "max_requests": pool.http.max_requests,
        "max_retries": pool.http.max_retries,
    }
    return {name: value for name, value in wanted.items() if value > 0}


def _connecting(tcp: TcpSettings) -> Object:
    fields: Object = {}
    if tcp.connect_timeout:
        where = "connectionPool.tcp.connectTimeout"
        fields["connect_timeout"] = duration(tcp.connect_timeout, where)
    if (alive := tcp.keepalive) is not None:
        keepalive = "connectionPool.tcp.tcpKeepalive"
        wanted = {
            "keepalive_probes": alive.probes,
            "keepalive_time": _whole_seconds(alive.time, f"{keepalive}.time"),
            "keepalive_interval": _whole_seconds(alive.interval, f"{keepalive}.interval"),
        }
        said = {name: value for name, value in wanted.items() if value}
        fields["upstream_connection_options"] = {"tcp_keepalive": said}
    return fields


def _http(pool: ConnectionPool) -> Object:
    fields: Object = {}
    if idle := pool.http.idle_timeout or pool.tcp.idle_timeout:
        fields["idle_timeout"] = duration(idle, "connectionPool.idleTimeout")
    if pool.http.requests_per_connection > 0:
        fields["max_requests_per_connection"] = pool.http.requests_per_connection
    if pool.tcp.max_connection_duration:
        longest, where = (
            pool.tcp.max_connection_duration,
            "connectionPool.tcp.maxConnectionDuration",
        )
        fields["max_connection_duration"] = duration(longest, where)
    return fields


def _protocol(http: HttpSettings) -> Protocol:
    if http.use_client_protocol:
        return Protocol.CLIENT
    if http.h2_upgrade == "UPGRADE":
        return Protocol.HTTP2
    return Protocol.HTTP1  # unless the port is HTTP/2: DO_NOT_UPGRADE leaves that as it is


def _outliers(outlier: OutlierDetection) -> Object:
    fields: Object = {"enforcing_success_rate": 0}
    for field, count in (
        ("consecutive_5xx", outlier.errors_5xx),
        ("consecutive_gateway_failure", outlier.gateway_errors),
    ):
        if count is not None:
            fields[field] = count
            fields[f"enforcing_{field}"] = 100 if count else 0
    if outlier.interval:
        fields["interval"] = duration(outlier.interval, "outlierDetection.interval")
    if outlier.base_ejection_time:
        where = "outlierDetection.baseEjectionTime"
        fields["base_ejection_time"] = duration(outlier.base_ejection_time, where)
    if outlier.max_ejection_percent > 0:
        fields["max_ejection_percent"] = outlier.max_ejection_percent
    if outlier.split_local:
        fields["split_external_local_origin_errors"] = True
        fields["enforcing_local_origin_success_rate"] = 0
        if outlier.local_failures:
            fields["consecutive_local_origin_failure"] = outlier.local_failures
            fields["enforcing_consecutive_local_origin_failure"] = 100
    return fields


def _tls(tls: ClientTls | None, *, waypoint: bool) -> bool:
    """Is it the mesh's own mutual TLS?"""
    if tls is None or tls.mode == "DISABLE":
        return False
    if tls.mode == "ISTIO_MUTUAL":
        return not waypoint
    other = "waypoint-second-service" if waypoint else "gateway, with Istio 1.32 or later"
    raise ValueError(
        f"tls.mode: {tls.mode} cannot be carried over to a cluster of Weir's own; use a shape that "
        f"keeps istiod's cluster: {other}"
    )


def _lost(name: str, policy: TrafficPolicy, at: TrafficPolicy | PortPolicy) -> Iterator[str]:
    yield from _replaced(name, at.load_balancer)
    for field, value in (
        ("proxyProtocol", policy.proxy_protocol),
        ("retryBudget", policy.retry_budget),
        ("tunnel", policy.tunnel),
    ):
        if value is not None:
            yield KEPT.format(name, field) + "not carried over to Weir's cluster"
    http = at.connection_pool.http if at.connection_pool else HttpSettings()
    if http.h2_upgrade == "DO_NOT_UPGRADE":
        where = "connectionPool.http.h2UpgradePolicy"
        yield KEPT.format(name, where) + "not carried over; the port's protocol decides"


def _replaced(name: str, balancer: LoadBalancer | None) -> Iterator[str]:
    if balancer is not None:
        yield KEPT.format(name, "loadBalancer") + "not in effect, Weir's policy takes its place"


def duration(text: str, where: str) -> str:
    """Istio's durations may be "1m30s" or "100ms"; protobuf's JSON knows seconds alone."""
    return f"{_seconds(text, where):.9f}".rstrip("0").rstrip(".") + "s"


def _whole_seconds(text: str, where: str) -> int:
    return round(_seconds(text, where)) if text else 0


def _seconds(text: str, where: str) -> float:
    if not re.fullmatch(f"({PART})+", text):
        raise ValueError(f"{where}: `{text}` is not a duration; write it as 1.5s, 100ms or 1m30s")
    return sum(float(part[1]) * UNITS[part[2]] for part in re.finditer(PART, text))
