"""What a cluster of ours keeps of the operator's DestinationRule."""

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from tests.xds.istio.test_shapes import ours_of, register
from tests.xds.istio.wired import HAVE, SECOND, plan
from xds.istio.shapes.traffic import duration
from xds.istio.shapes.wiring import Shape, ShapeError

HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
SHADOW_HOST = "llm-pool-ip-1c222a41.ns.svc.cluster.local"


def rule(policy, *, host="llm", name="theirs", namespace="ns"):
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{host: "{host}", trafficPolicy: {{{policy}}}}}
"""


def at_waypoint(*documents):
    return plan(*HAVE[Shape.WAYPOINT_OWN_CLUSTER], *documents)


def at_gateway(*documents):
    return plan(*HAVE[Shape.GATEWAY_OWN_CLUSTER], *documents, version="1.30")


OUTLIERS = """outlierDetection: {consecutive5xxErrors: 7, consecutiveGatewayErrors: 0,
  interval: 5m, baseEjectionTime: 30s, maxEjectionPercent: 50, minHealthPercent: 20}"""
LOCAL = (
    "outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3}"
)

KEPT = {
    "limits": (
        (
            "connectionPool: {tcp: {maxConnections: 10}, http: {http1MaxPendingRequests: 20, "
            "http2MaxRequests: 30, maxRetries: 40}}"
        ),
        {
            "circuit_breakers": {
                "thresholds": [
                    {
                        "max_connections": 10,
                        "max_pending_requests": 20,
                        "max_requests": 30,
                        "max_retries": 40,
                    }
                ]
            }
        },
    ),
    "connecting": (
        (
            "connectionPool: {tcp: {connectTimeout: 250ms, tcpKeepalive: {probes: 3, time: 2h, "
            "interval: 75s}}}"
        ),
        {
            "connect_timeout": "0.25s",
            "upstream_connection_options": {
                "tcp_keepalive": {
                    "keepalive_probes": 3,
                    "keepalive_time": 7200,
                    "keepalive_interval": 75,
                }
            },
        },
    ),
    "errors": (
        OUTLIERS,
        {
            "outlier_detection": {
                "enforcing_success_rate": 0,
                "consecutive_5xx": 7,
                "enforcing_consecutive_5xx": 100,
                "consecutive_gateway_failure": 0,
                "enforcing_consecutive_gateway_failure": 0,
                "interval": "300s",
                "base_ejection_time": "30s",
                "max_ejection_percent": 50,
            },
            "common_lb_config": {"healthy_panic_threshold": {"value": 20}},
        },
    ),
    "errors of ours": (
        LOCAL,
        {
            "outlier_detection": {
                "enforcing_success_rate": 0,
                "split_external_local_origin_errors": True,
                "enforcing_local_origin_success_rate": 0,
                "consecutive_local_origin_failure": 3,
                "enforcing_consecutive_local_origin_failure": 100,
            },
            "common_lb_config": {"healthy_panic_threshold": {}},
        },
    ),
    "connections": (
        (
            "connectionPool: {tcp: {maxConnectionDuration: 1h, idleTimeout: 3s}, "
            "http: {maxRequestsPerConnection: 5, idleTimeout: 2s}}"
        ),
        {
            "typed_extension_protocol_options": {
                HTTP: {
                    "@type": f"type.googleapis.com/{HTTP}",
                    "common_http_protocol_options": {
                        "idle_timeout": "2s",
                        "max_requests_per_connection": 5,
                        "max_connection_duration": "3600s",
                    },
                    "explicit_http_config": {"http_protocol_options": {}},
                }
            }
        },
    ),
    "HTTP/2": (
        "connectionPool: {http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 9}}",
        {
            "typed_extension_protocol_options": {
                HTTP: {
                    "@type": f"type.googleapis.com/{HTTP}",
                    "explicit_http_config": {
                        "http2_protocol_options": {"max_concurrent_streams": 9}
                    },
                }
            }
        },
    ),
    "the client's protocol": (
        "connectionPool: {http: {useClientProtocol: true}}",
        {
            "typed_extension_protocol_options": {
                HTTP: {
                    "@type": f"type.googleapis.com/{HTTP}",
                    "use_downstream_protocol_config": {
                        "http_protocol_options": {},
                        "http2_protocol_options": {},
                    },
                }
            }
        },
    ),
    "a port's settings, and nothing of the rule's": (
        (
            "connectionPool: {tcp: {maxConnections: 1}}, outlierDetection: {interval: 1s}, "
            "portLevelSettings: [{port: {number: 9}}, {port: {number: 8000}, "
            "connectionPool: {tcp: {connectTimeout: 1m30s}}}]"
        ),
        {"connect_timeout": "90s", "circuit_breakers": {"thresholds": [{}]}},
    ),
}


@pytest.mark.parametrize(("policy", "expected"), KEPT.values(), ids=KEPT)
def test_what_an_operator_set_is_kept_as_istiod_would_convert_it(policy, expected):
    unbroken = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), 2**32 - 1
    )
    cluster = ours_of(at_waypoint(rule(policy)))
    thresholds = expected.get("circuit_breakers", {"thresholds": [{}]})["thresholds"]
    wanted = expected | {"circuit_breakers": {"thresholds": [unbroken | thresholds[0]]}}
    assert {name: cluster[name] for name in wanted} == wanted
    if "outlier_detection" not in expected:
        assert "outlier_detection" not in cluster
    register(cluster)
    for field in ("consecutive_5xx", "enforcing_consecutive_5xx"):  # betterproto cannot spell them
        cluster.get("outlier_detection", {}).pop(field, None)
    assert Cluster.from_dict(cluster)


LOST = {
    "loadBalancer": "loadBalancer: {simple: RANDOM}",
    "proxyProtocol": "proxyProtocol: {version: V2}",
    "retryBudget": "retryBudget: {percent: 20}",
    "connectionPool.http.h2UpgradePolicy": (
        "connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}"
    ),
}


@pytest.mark.parametrize(("field", "policy"), LOST.items())
def test_what_is_not_carried_over_is_named(field, policy):
    notes = at_waypoint(rule(policy)).notes
    assert any(f"DestinationRule ns/theirs: trafficPolicy.{field}: " in note for note in notes)


@pytest.mark.parametrize("mode", ["SIMPLE", "MUTUAL"])
def test_tls_that_a_cluster_of_ours_cannot_speak_is_refused_with_a_shape_that_can(mode):
    with pytest.raises(ShapeError, match=r"ns/theirs: trafficPolicy\.tls\.mode.*second-service"):
        at_waypoint(rule(f"tls: {{mode: {mode}}}"))
    with pytest.raises(ShapeError, match=r"ns/theirs: trafficPolicy\.tls\.mode.*gateway"):
        at_gateway(rule(f"tls: {{mode: {mode}}}", host=SHADOW_HOST))


def test_the_meshs_own_tls_is_kept_on_a_gateway_and_is_the_tunnels_on_a_waypoint():
    policy = "tls: {mode: ISTIO_MUTUAL}"
    hbone, rest = ours_of(at_gateway(rule(policy, host=SHADOW_HOST)))["transport_socket_matches"]
    assert hbone["match"] == {"tunnel": "http"}
    config = rest["transport_socket"]["typed_config"]
    assert config["sni"] == f"outbound_.54321_._.{SHADOW_HOST}"
    register(config)
    secrets = config["common_tls_context"]["tls_certificate_sds_secret_configs"]
    assert secrets[0]["name"] == "default"
    plain = ours_of(at_waypoint())
    assert ours_of(at_waypoint(rule(policy))) == plain
    assert ours_of(at_waypoint(rule("tls: {mode: DISABLE}"))) == plain


def test_a_duration_that_is_none_is_refused_by_rule_and_field():
    with pytest.raises(
        ShapeError, match=r"ns/theirs: trafficPolicy\.outlierDetection\.interval: `5`"
    ):
        at_waypoint(rule('outlierDetection: {interval: "5"}'))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", "1s"),
        ("100ms", "0.1s"),
        ("1m30s", "90s"),
        ("1.5h", "5400s"),
        ("123456789s", "123456789s"),
    ],
)
def test_durations_become_seconds(text, seconds):
    assert duration(text, "x") == seconds


def test_the_nearest_rule_counts_and_an_exact_host_before_a_pattern():
    def limit(*rules):
        cluster = ours_of(at_waypoint(*rules))
        return cluster["circuit_breakers"]["thresholds"][0]["max_connections"]

    def said(number, **more):
        policy = f"connectionPool: {{tcp: {{maxConnections: {number}}}}}"
        return rule(policy, name=f"r{number}", **more)

    pattern = said(1, host="*.ns.svc.cluster.local")
    root = said(2, host="llm.ns.svc.cluster.local", namespace="istio-system")
    exact = said(3)
    foreign = said(4, host="llm.ns.svc.cluster.local", namespace="elsewhere")
    assert limit(pattern, root, exact, foreign) == 3
    assert limit(pattern, root, foreign) == 1
    assert limit(root, foreign) == 2
    assert limit(foreign) == 2**32 - 1
    some = exact.replace("spec: {", "spec: {workloadSelector: {matchLabels: {app: client}}, ")
    assert limit(some) == 2**32 - 1


@pytest.mark.parametrize(
    ("locality", "refused"),
    [
        (
            (
                "outlierDetection: {interval: 1s}, loadBalancer: {localityLbSetting: "
                "{failoverPriority: [zone]}}"
            ),
            True,
        ),
        ("loadBalancer: {localityLbSetting: {failoverPriority: [zone]}}", False),
        ("loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 100}}]}}", True),
        ("loadBalancer: {localityLbSetting: {enabled: false, distribute: [{}]}}", False),
    ],
)
def test_weights_of_localities_that_envoy_refuses_beside_our_policy_are_refused(locality, refused):
    shape = Shape.WAYPOINT_SECOND_SERVICE
    have = (*HAVE[shape], rule(locality, host="llm-past"))
    if refused:
        with pytest.raises(ShapeError, match=r"ns/theirs: .*localityLbSetting: Envoy refuses"):
            plan(*have)
    else:
        assert any("loadBalancer: not in effect" in note for note in plan(*have).notes)
    # istiod leaves them out of a pool's cluster on a gateway.
    assert plan(*HAVE[Shape.GATEWAY], rule(locality, host=SHADOW_HOST))


def test_a_rule_for_the_first_service_is_not_one_for_the_second():
    policy = "connectionPool: {tcp: {maxConnections: 1}}"
    made = plan(*HAVE[Shape.WAYPOINT_SECOND_SERVICE], rule(policy))
    assert any(
        "DestinationRule ns/theirs: spec.host: it is for Service llm" in n for n in made.notes
    )


def test_servers_that_speak_http2_are_spoken_to_so():
    pool, gateway, route = HAVE[Shape.GATEWAY_OWN_CLUSTER]
    h2c = pool.replace("spec:\n", "spec:\n  appProtocol: kubernetes.io/h2c\n")
    cluster = ours_of(plan(h2c, gateway, route, version="1.30"))
    options = cluster["typed_extension_protocol_options"][HTTP]
    assert options["explicit_http_config"] == {"http2_protocol_options": {}}
    pool, waypoint, service = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    cluster = ours_of(plan(pool, waypoint, service.replace("name: http,", "name: grpc-llm,")))
    assert "typed_extension_protocol_options" in cluster
    assert "http2" not in SECOND
