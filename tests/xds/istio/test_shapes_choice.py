"""From what an operator has to what fits it; what is refused, and what is noted."""

import json

import pytest

from tests.xds.istio.test_shapes import EXT_PROC, HEADERS_ONLY, ours_of
from tests.xds.istio.wired import (
    AT_SERVICE,
    GATEWAY,
    HAVE,
    OTHER_POOL,
    SECOND,
    SERVICE,
    SHADOW,
    WAYPOINT,
    asked,
    patches,
    plan,
    plans,
    pool,
    route,
    to,
    values,
)
from xds.istio.shapes.wiring import Host, Shape, ShapeError

FOREIGN = GATEWAY.replace("inference-gateway", "foreign").replace(": istio,", ": envoy-gateway,")
TWO = GATEWAY.replace("inference-gateway", "second-gateway")
AT_BOTH = ["{name: inference-gateway}", "{name: second-gateway}"]
SPLIT = to("llm-pool", "other")
ISTIOD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: istiod, namespace: istio-system, labels: {app: istiod}}
spec: {template: {spec: {containers: [{name: d, image: "docker.io/istio/pilot:%s", env: [%s]}]}}}
"""
FLAG = "{name: ENABLE_GATEWAY_API_INFERENCE_EXTENSION, value: 'true'}"
FILTER = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: theirs, namespace: ns}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: inference-gateway}]
  configPatches: [{applyTo: HTTP_ROUTE, patch: {operation: MERGE, value: {}}}]
"""
VIRTUAL = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: ns}
spec: {hosts: [llm]}
"""


def notes(*documents, **more):
    return [note for made in plans(*documents, **more) for note in made.notes]


REFUSED = {
    "no route, no waypoint": (
        (pool(), GATEWAY),
        {},
        "InferencePool ns/llm-pool: nothing to wire by any shape: no HTTPRoute leads to it",
    ),
    "a Service without a waypoint is named": (
        (pool(), SECOND.replace(", labels: {istio.io/use-waypoint: none}", "")),
        {},
        "Service ns/llm-past: selects the pool's Pods, but has no waypoint",
    ),
    "the pool is not there": (
        (OTHER_POOL,),
        {},
        "InferencePool ns/llm-pool: not found; the configuration has ns/other",
    ),
    "the gateway is not there": (
        (pool(), route(to("llm-pool"))),
        {},
        "HTTPRoute ns/llm-route: spec.parentRefs[0]: Gateway ns/inference-gateway is not in the",
    ),
    "the gateway is another's": (
        (pool(), FOREIGN, route(to("llm-pool"), parents=["{name: foreign}"])),
        {},
        "Gateway ns/foreign has class envoy-gateway, which is not Istio's",
    ),
    "the route is not accepted": (
        (pool(), GATEWAY, route(to("llm-pool"), accepted="False")),
        {},
        "status.parents: Gateway inference-gateway has not accepted it (R: why)",
    ),
    "istiod knows no InferencePools": (
        (pool(), GATEWAY, route(to("llm-pool"), unresolved="InvalidKind")),
        {},
        "Gateway inference-gateway has not resolved it (InvalidKind: why)",
    ),
    "a pool beside it is not there": (
        (pool(), GATEWAY, route(SPLIT)),
        {},
        "InferencePool ns/other: not found",
    ),
    "two pools in one rule, before lists can be patched": (
        (pool(), OTHER_POOL, GATEWAY, route(SPLIT)),
        {"version": "1.31"},
        "HTTPRoute ns/llm-route: rule ns.llm-route.0 splits between several backends",
    ),
    "two rules of one name at one gateway": (
        (
            pool(),
            GATEWAY,
            route(to("llm-pool", extra="name: chat, ")),
            route("{name: chat, backendRefs: [{name: web, port: 80}]}", name="web"),
        ),
        {},
        "the rule's name `chat` is that of ns/llm-route rules[0] and ns/web rules[0]",
    ),
    "no picker is named": (
        (
            pool().replace(
                "  endpointPickerRef: "
                "{name: llm-epp, port: {number: 9002}, failureMode: FailOpen}\n",
                "",
            ),
            GATEWAY,
            route(to("llm-pool")),
        ),
        {},
        "InferencePool ns/llm-pool: spec.endpointPickerRef: missing",
    ),
    "the Service of a route is not there": (
        (pool(), WAYPOINT, route(to("llm-pool"), parents=[AT_SERVICE])),
        {},
        "HTTPRoute ns/llm-route: spec.parentRefs[0]: Service ns/llm is not in the configuration",
    ),
    "the Service of a route has no waypoint": (
        (
            pool(),
            SERVICE.replace("istio.io/use-waypoint: waypoint", ""),
            route(to("llm-pool"), parents=[AT_SERVICE]),
        ),
        {},
        "Service ns/llm: metadata.labels[istio.io/use-waypoint]: missing",
    ),
    "the waypoint is not there": (
        (pool(), SERVICE),
        {},
        "Service ns/llm: metadata.labels[istio.io/use-waypoint]: Gateway ns/waypoint is not in",
    ),
    "the waypoint is not for Services": (
        (
            pool(),
            SERVICE,
            WAYPOINT.replace("ns}", "ns, labels: {istio.io/waypoint-for: workload}}"),
        ),
        {},
        "Gateway ns/waypoint: metadata.labels[istio.io/waypoint-for]: workload: requests to",
    ),
    "a port that is not HTTP": (
        (pool(), WAYPOINT, SERVICE.replace("name: http,", "name: tcp-llm,")),
        {},
        "Service ns/llm: port 8000: is tcp; only HTTP can be directed",
    ),
    "a target port by name": (
        (pool(), WAYPOINT, SERVICE.replace("targetPort: 8000", "targetPort: web")),
        {},
        "Service ns/llm: port 8000: targetPort web is a name",
    ),
    "an own cluster where a route is": (
        HAVE[Shape.WAYPOINT_SECOND_SERVICE],
        {"shape": Shape.WAYPOINT_OWN_CLUSTER},
        "HTTPRoute ns/llm: istiod patches no route of a Service that has one",
    ),
    "an Istio that is too old": (
        HAVE[Shape.GATEWAY],
        {"version": "1.27"},
        "Istio 1.27, gateway-own-cluster at Gateway ns/inference-gateway: Istio 1.27 knows",
    ),
    "a shape for which there is nothing": (
        HAVE[Shape.GATEWAY],
        {"shape": Shape.WAYPOINT_OWN_CLUSTER},
        "InferencePool ns/llm-pool: nothing to wire by waypoint-own-cluster",
    ),
}


@pytest.mark.parametrize(("have", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_wired_is_refused_by_object_and_field(have, more, message):
    with pytest.raises(ShapeError) as refused:
        plans(*have, **more)
    assert message in str(refused.value)


def test_a_name_that_two_namespaces_have_must_be_said_whole():
    elsewhere = pool().replace("namespace: ns", "namespace: b")
    with pytest.raises(ShapeError, match=r"say which, b/llm-pool or ns/llm-pool"):
        asked(pool(), elsewhere, name="llm-pool")


def test_two_gateways_are_wired_each():
    made = plans(pool(), GATEWAY, TWO, route(to("llm-pool"), parents=AT_BOTH))
    assert [str(each.wiring.proxy) for each in made] == [
        "ns/inference-gateway",
        "ns/second-gateway",
    ]


def test_a_gateway_of_anothers_beside_istios_is_passed_over_and_said():
    both = ["{name: inference-gateway}", "{name: foreign}"]
    found = notes(pool(), GATEWAY, FOREIGN, route(to("llm-pool"), parents=both))
    assert any("Gateway ns/foreign has class envoy-gateway" in note for note in found)


def test_a_class_says_whose_it_is_by_its_controller():
    ours = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: %s}\n"
    ours += "spec: {controllerName: %s}\n"
    mine = GATEWAY.replace(": istio,", ": mine,")
    have = (pool(), mine, route(to("llm-pool")))
    assert plan(*have, ours % ("mine", "istio.io/gateway-controller"))
    with pytest.raises(ShapeError, match="class mine"):
        plans(*have, ours % ("mine", "example.com/other"))


def test_only_the_pools_own_rules_are_patched_by_the_name_that_istiod_gives_them():
    rules = (
        "{backendRefs: [{name: web, port: 80}]}",
        to("llm-pool"),
        to("llm-pool", extra="name: chat, "),
    )
    made = plan(pool(), GATEWAY, route(*rules))
    matched = [
        each["match"]["routeConfiguration"]["vhost"]["route"]["name"]
        for each in patches(made, apply_to="HTTP_ROUTE")
    ]
    assert matched == ["ns.llm-route.1", "chat"]


def test_a_rule_that_splits_patches_both_clusters_and_names_both_pools():
    made = plan(pool(), OTHER_POOL, GATEWAY, route(SPLIT))
    merged = [
        each["match"]["cluster"]["name"]
        for each in patches(made, apply_to="CLUSTER")
        if each["patch"]["operation"] == "MERGE_AND_REPLACE_LIST"
    ]
    assert merged == [SHADOW, *made.assignments[1:]]
    assert len(merged) == 2
    (value,) = values(made, apply_to="HTTP_ROUTE")
    overrides = value["typed_per_filter_config"][EXT_PROC]["overrides"]
    assert overrides["grpc_initial_metadata"][0] == {
        "key": "x-weir-pool",
        "value": "ns/llm-pool,ns/other",
    }
    assert "route" not in value  # weights stay istiod's


def test_a_rule_that_splits_is_patched_alike_whichever_pool_is_asked_for():
    have = (pool(), OTHER_POOL, GATEWAY, route(SPLIT))
    both = [
        values(plan(*have, name=f"ns/{name}"), apply_to="HTTP_ROUTE")
        for name in ("llm-pool", "other")
    ]
    assert both[0] == both[1]


def test_of_a_split_only_those_pools_are_asked_about_that_are_picked_for():
    other = OTHER_POOL.replace("annotations: {}", "annotations: {weir.dev/policy: weights}")
    made = plan(pool(), other, GATEWAY, route(SPLIT))
    (value,) = values(made, apply_to="HTTP_ROUTE")
    metadata = value["typed_per_filter_config"][EXT_PROC]["overrides"]["grpc_initial_metadata"]
    assert metadata[0]["value"] == "ns/llm-pool"


def test_a_cors_filter_is_noted_and_the_picker_brought_back():
    made = plan(pool(), GATEWAY, route(to("llm-pool", extra="filters: [{type: CORS}], ")))
    assert any("CORS filter" in note for note in made.notes)
    (value,) = values(made, apply_to="HTTP_ROUTE")
    assert value["typed_per_filter_config"][EXT_PROC]["overrides"]["failure_mode_allow"] is True


def test_on_a_waypoint_every_pool_of_the_service_is_named_once():
    rules = (to("llm-pool"), to("other", "llm-pool"))
    made = plan(pool(), OTHER_POOL, WAYPOINT, SERVICE, route(*rules, parents=[AT_SERVICE]))
    _, ext_proc = values(made, apply_to="HTTP_FILTER")
    metadata = ext_proc["typed_config"]["grpc_service"]["initial_metadata"]
    assert metadata[0]["value"] == "ns/llm-pool,ns/other"
    merged = [each for each in patches(made, apply_to="CLUSTER") if "cluster" in each["match"]]
    assert len(merged) == 2


def test_other_routes_of_a_waypoints_service_keep_their_bodies_unread():
    rules = (to("llm-pool"), "{backendRefs: [{name: web, port: 80}]}")
    made = plan(pool(), WAYPOINT, SERVICE, route(*rules, parents=[AT_SERVICE]))
    lua, _ = values(made, apply_to="HTTP_FILTER")
    source = lua["typed_config"]["default_source_code"]["inline_string"]
    assert 'local ROUTES = { ["ns.llm-route.0"] = true }' in source
    assert any("other routes of the Service are asked about too" in note for note in made.notes)


def test_a_body_is_sent_where_the_pool_asks_for_it():
    made = plan(pool(body="buffered"), GATEWAY, route(to("llm-pool")))
    (value,) = values(made, apply_to="HTTP_ROUTE")
    overrides = value["typed_per_filter_config"][EXT_PROC]["overrides"]
    assert overrides["processing_mode"] == HEADERS_ONLY | {"request_body_mode": "BUFFERED"}
    assert any("is answered with 413" in note for note in made.notes)


@pytest.mark.parametrize(
    ("annotations", "keys"),
    [
        ({}, [{"header": {"header_name": "x-weir-affinity"}}]),
        ({"affinity": "adapter"}, [{"header": {"header_name": "x-gateway-model-name"}}]),
        (
            {"affinity": "session", "session_header": "x-mine"},
            [
                {"header": {"header_name": "x-mine"}, "terminal": True},
                {"header": {"header_name": "x-weir-affinity"}},
            ],
        ),
    ],
)
def test_the_hash_key_follows_the_affinity(annotations, keys):
    made = plan(pool(policy="affinity", **annotations), GATEWAY, route(to("llm-pool")))
    (maglev,) = ours_of(made)["load_balancing_policy"]["policies"]
    config = maglev["typed_extension_config"]["typed_config"]["consistent_hashing_lb_config"]
    assert config == {"hash_balance_factor": 125, "hash_policy": keys}


def test_istio_before_1_32_gets_a_cluster_of_its_own():
    assert plan(*HAVE[Shape.GATEWAY], version="1.31").wiring.shape is Shape.GATEWAY_OWN_CLUSTER


def test_a_shape_that_is_asked_for_is_printed_with_what_is_against_it():
    found = notes(*HAVE[Shape.GATEWAY], version="1.31", shape=Shape.GATEWAY)
    assert any("MERGE_AND_REPLACE_LIST came with Istio 1.32" in note for note in found)


def test_a_missing_flag_is_noted_for_the_shapes_that_need_it():
    gateway, waypoint = HAVE[Shape.GATEWAY], HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    flag = "ENABLE_GATEWAY_API_INFERENCE_EXTENSION"
    assert any(flag in note for note in notes(*gateway, ISTIOD % ("1.32.0", "")))
    assert not any(flag in note for note in notes(*gateway, ISTIOD % ("1.32.0", FLAG)))
    assert not any(flag in note for note in notes(*gateway))
    assert not any(flag in note for note in notes(*waypoint, ISTIOD % ("1.32.0", "")))


def test_what_others_patch_on_the_same_proxy_is_noted():
    found = notes(*HAVE[Shape.GATEWAY], FILTER)
    assert any("EnvoyFilter ns/theirs: applies to HTTP_ROUTE" in note for note in found)
    elsewhere = FILTER.replace("inference-gateway", "another")
    assert not any("EnvoyFilter" in note for note in notes(*HAVE[Shape.GATEWAY], elsewhere))


def test_a_picker_that_must_not_fail_open_is_noted():
    closed = pool().replace("FailOpen", "FailClose")
    found = notes(closed, GATEWAY, route(to("llm-pool")))
    assert any("failureMode: FailClose is not kept" in note for note in found)


def test_a_status_that_is_not_there_is_noted():
    found = notes(pool(), GATEWAY, route(to("llm-pool"), accepted=""))
    assert any("whether it is accepted is not known" in note for note in found)


def test_what_a_route_has_beside_the_pool_and_istiod_does_not_resolve_is_noted():
    found = notes(pool(), GATEWAY, route(to("llm-pool"), unresolved="BackendNotFound"))
    assert any("has not resolved it (BackendNotFound: why)" in note for note in found)


def test_a_picker_that_is_named_by_the_operator_is_asked():
    made = plan(*HAVE[Shape.GATEWAY], picker=Host("weir", "weir-picker", 9002))
    (value,) = values(made, apply_to="HTTP_ROUTE")
    service = value["typed_per_filter_config"][EXT_PROC]["overrides"]["grpc_service"]
    cluster = service["envoy_grpc"]["cluster_name"]
    assert cluster == "outbound|9002||weir-picker.weir.svc.cluster.local"


def test_a_second_service_and_its_route_are_printed_where_there_are_none():
    made = plan(*HAVE[Shape.WAYPOINT_OWN_CLUSTER], shape=Shape.WAYPOINT_SECOND_SERVICE)
    first, last = made.steps
    service = first.objects[0]
    assert service["kind"] == "Service"
    assert service["metadata"]["labels"]["istio.io/use-waypoint"] == "none"
    assert service["spec"] == {
        "selector": {"app": "llm"},
        "ports": [{"name": "http", "port": 8000, "targetPort": 8000}],
    }
    (printed,) = last.objects
    assert printed["kind"] == "HTTPRoute"
    assert printed["spec"]["parentRefs"][0]["name"] == "llm"
    assert printed["spec"]["rules"] == [{"backendRefs": [{"name": "llm-weir", "port": 8000}]}]


def test_what_was_printed_is_printed_again_when_it_is_there():
    have = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    for shape in (Shape.WAYPOINT_SECOND_SERVICE, Shape.WAYPOINT_INFERENCEPOOL):
        made = plan(*have, shape=shape)
        printed = [json.dumps(item) for step in made.steps for item in step.objects]
        again = plan(*have, *printed)
        assert again.wiring.shape is shape
        assert again.steps == made.steps


def test_what_the_first_step_made_is_printed_again_before_the_second():
    have, shape = HAVE[Shape.WAYPOINT_OWN_CLUSTER], Shape.WAYPOINT_SECOND_SERVICE
    made = plan(*have, shape=shape)
    first = [json.dumps(item) for item in made.steps[0].objects]
    assert plan(*have, *first, shape=shape).steps == made.steps


OWN_NAME = "llm-pool-ip-1c222a41"
OWN = """
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: ns, labels: {%s}}
spec: {clusterIP: None, selector: {app: llm}, ports: [{name: http-0, port: 54321}]}"""


def enrolled(**labels):
    said = {"istio.io/use-waypoint": "waypoint"} | labels
    meta = {"name": "ns", "labels": said}
    return json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})


def printed(*documents, kind="Service"):
    made = plan(*documents, shape=Shape.WAYPOINT_INFERENCEPOOL)
    return [item for step in made.steps for item in step.objects if item["kind"] == kind]


def test_the_first_route_to_a_pool_finds_its_cluster_in_the_proxy_by_the_pools_own_service():
    """Against a real istiod: it takes the Service over when the route has come."""
    have = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    (service,) = printed(*have)
    assert service["metadata"]["name"] == OWN_NAME
    assert service["metadata"]["labels"].items() >= {
        ("istio.io/inferencepool-name", "llm-pool"),
        ("istio.io/use-waypoint", "none"),
    }
    assert service["spec"] == {
        "clusterIP": "None",
        "selector": {"app": "llm"},
        "ports": [{"name": "http-0", "port": 54321, "targetPort": 8000}],
    }
    first = plan(*have, shape=Shape.WAYPOINT_INFERENCEPOOL).steps[0].objects
    assert first[0] == service
    hosts = first[1]["metadata"]["annotations"]["envoyfilter.istio.io/referenced-services"]
    assert f"ns/{OWN_NAME}.ns.svc.cluster.local" in hosts.split(",")


def test_a_service_of_the_pool_that_is_there_or_will_be_is_istiods():
    have = HAVE[Shape.WAYPOINT_OWN_CLUSTER]
    assert printed(*have, GATEWAY, route(to("llm-pool"))) == []
    assert printed(*HAVE[Shape.WAYPOINT_INFERENCEPOOL]) == []
    assert printed(*have, OWN % (OWN_NAME, "")) == []


def test_a_namespace_that_is_enrolled_does_not_enrol_the_pools_own_service():
    """Else the route leads to a cluster that no EnvoyFilter reaches, and is answered with 503."""
    routed = HAVE[Shape.WAYPOINT_INFERENCEPOOL]
    for more in ([enrolled()], [enrolled(), OWN % (OWN_NAME, "istio.io/rev: x")]):
        (service,) = printed(*routed, *more)
        assert service["metadata"]["labels"]["istio.io/use-waypoint"] == "none"
    past = OWN % (OWN_NAME, "istio.io/use-waypoint: none")
    assert printed(*routed, enrolled(), past) == []
    assert printed(*routed, enrolled(**{"istio.io/use-waypoint": "none"})) == []


def test_the_pools_own_service_is_no_place_to_wire():
    have = (pool(), WAYPOINT, SERVICE, enrolled(), OWN % (OWN_NAME, ""))
    (made,) = plans(*have)
    assert made.wiring.service.service == "llm"


def test_an_operators_own_route_is_left_to_the_operator():
    rule = "{backendRefs: [{name: llm, port: 8000}]}"
    made = plan(pool(), WAYPOINT, SERVICE, route(rule, name="theirs", parents=[AT_SERVICE]))
    assert made.wiring.shape is Shape.WAYPOINT_SECOND_SERVICE
    kinds = [item["kind"] for step in made.steps for item in step.objects]
    assert kinds == ["Service", "EnvoyFilter", "EnvoyFilter"]
    assert any(
        "HTTPRoute ns/theirs: after step 1" in note and "Service ns/llm-weir, port 8000" in note
        for note in made.notes
    )


def test_a_virtual_service_is_left_to_the_operator_too():
    made = plan(pool(), WAYPOINT, SERVICE, VIRTUAL)
    assert made.wiring.shape is Shape.WAYPOINT_SECOND_SERVICE
    assert any("VirtualService ns/v: after step 1" in note for note in made.notes)


def test_a_namespaces_waypoint_serves_its_services_and_another_namespace_may_have_it():
    space = """
apiVersion: v1
kind: Namespace
metadata:
  name: ns
  labels: {istio.io/use-waypoint: shared, istio.io/use-waypoint-namespace: infra}
"""
    shared = WAYPOINT.replace("waypoint, namespace: ns", "shared, namespace: infra")
    bare = SERVICE.replace("istio.io/use-waypoint: waypoint", "")
    made = plan(pool(), shared, bare, space)
    assert str(made.wiring.proxy) == "infra/shared"
    assert {item["metadata"]["namespace"] for step in made.steps for item in step.objects} == {
        "infra"
    }


def test_every_port_of_a_service_is_wired_by_itself():
    ports = SERVICE.replace(
        "{name: http, port: 8000, targetPort: 8000}",
        "{name: http, port: 8000}, {name: http-b, port: 80, targetPort: 8000}, {name: m, port: 9}",
    )
    made = plans(pool(), WAYPOINT, ports)
    assert [each.wiring.service.port for each in made] == [8000, 80]
    assert any("port 9: targetPort 9 is not one of the pool's" in note for note in made[0].notes)
