"""What each shape patches, and that Envoy's own API reads every bit of it."""

import importlib
import json
from pathlib import Path

import pytest
import yaml
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.route.v3 import Route
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter

from tests.xds.istio.wired import (
    GATEWAY,
    HAVE,
    OTHER_POOL,
    SERVICE,
    SHADOW,
    VIP,
    WAYPOINT,
    XDS,
    patches,
    plan,
    plan_of,
    plans,
    pool,
    route,
    to,
    values,
)
from xds import standalone
from xds.istio.shapes import filters, policy
from xds.istio.shapes.build import probe
from xds.istio.shapes.manifest import to_yaml
from xds.istio.shapes.wiring import Shape

MESSAGES = {"CLUSTER": Cluster, "HTTP_FILTER": HttpFilter, "HTTP_ROUTE": Route}
STAND_INS = Path(__file__).parents[3] / "integration" / "istiod" / "patched"
SHAPES = list(Shape)
ROUTER = "envoy.filters.http.router"
EXT_PROC = "envoy.filters.http.ext_proc"


def outline(made):
    """Of each patch: step, what it applies to, context, operation, what it matches, its name."""
    lines = []
    for step in made.steps:
        for item in step.objects:
            if item["kind"] != "EnvoyFilter":
                lines.append((step.number, item["kind"], item["metadata"]["name"]))
                continue
            for each in item["spec"]["configPatches"]:
                match, value = each["match"], each["patch"]["value"]
                place = match.get("cluster", {}).get("name", "")
                if "listener" in match:
                    chain = match["listener"]["filterChain"]
                    place = f"{chain.get('name', '*')} {chain['filter']['subFilter']['name']}"
                if "routeConfiguration" in match:
                    where = match["routeConfiguration"]
                    place = where.get("name") or where["vhost"]["route"]["name"]
                lines.append(
                    (
                        step.number,
                        each["applyTo"],
                        match["context"],
                        each["patch"]["operation"],
                        place,
                        value.get("name", ""),
                    )
                )
    return lines


OUTLINES = {
    Shape.GATEWAY: [
        (1, "CLUSTER", "GATEWAY", "ADD", "", f"weir-twin|{SHADOW}"),
        (1, "CLUSTER", "GATEWAY", "MERGE_AND_REPLACE_LIST", SHADOW, ""),
        (1, "HTTP_FILTER", "GATEWAY", "INSERT_BEFORE", f"* {EXT_PROC}", "weir.digest"),
        (1, "HTTP_FILTER", "GATEWAY", "MERGE", f"* {EXT_PROC}", ""),
        (2, "HTTP_ROUTE", "GATEWAY", "MERGE", "ns.llm-route.0", ""),
    ],
    Shape.GATEWAY_OWN_CLUSTER: [
        (1, "CLUSTER", "GATEWAY", "ADD", "", "weir|54321|llm-pool.ns"),
        (1, "HTTP_FILTER", "GATEWAY", "INSERT_BEFORE", f"* {EXT_PROC}", "weir.digest"),
        (1, "HTTP_FILTER", "GATEWAY", "MERGE", f"* {EXT_PROC}", ""),
        (2, "HTTP_ROUTE", "GATEWAY", "MERGE", "ns.llm-route.0", ""),
    ],
    Shape.WAYPOINT_INFERENCEPOOL: [
        (1, "CLUSTER", "SIDECAR_INBOUND", "ADD", "", f"weir-twin|{SHADOW}"),
        (1, "CLUSTER", "SIDECAR_OUTBOUND", "MERGE", SHADOW, ""),
        (1, "HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", f"{VIP} {ROUTER}", "weir.digest"),
        (1, "HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", f"{VIP} {ROUTER}", EXT_PROC),
    ],
    Shape.WAYPOINT_SECOND_SERVICE: [
        (
            1,
            "CLUSTER",
            "SIDECAR_INBOUND",
            "ADD",
            "",
            "weir-twin|outbound|8000||llm-past.ns.svc.cluster.local",
        ),
        (
            1,
            "CLUSTER",
            "SIDECAR_OUTBOUND",
            "MERGE",
            "outbound|8000||llm-past.ns.svc.cluster.local",
            "",
        ),
        (1, "HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", f"{VIP} {ROUTER}", "weir.digest"),
        (1, "HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", f"{VIP} {ROUTER}", EXT_PROC),
    ],
    Shape.WAYPOINT_OWN_CLUSTER: [
        (1, "CLUSTER", "SIDECAR_INBOUND", "ADD", "", "weir|8000|llm.ns"),
        (1, "HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", f"{VIP} {ROUTER}", "weir.digest"),
        (1, "HTTP_FILTER", "SIDECAR_INBOUND", "INSERT_BEFORE", f"{VIP} {ROUTER}", EXT_PROC),
        (2, "HTTP_ROUTE", "SIDECAR_INBOUND", "MERGE", VIP, ""),
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_patches_what_was_run_and_nothing_else(shape):
    assert outline(plan_of(shape)) == OUTLINES[shape]


def stand_ins(shape):
    """The patches that ran with istiod's own generators, with other filters in them."""
    text = (STAND_INS / shape.value / "envoyfilter.yaml").read_text()
    return yaml.safe_load(text.replace("llm-weir", "llm-past"))["spec"]["configPatches"]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_patched_is_what_was_run_through_istiod(shape):
    def where(each):
        match = json.dumps(each["match"], sort_keys=True)
        return each["applyTo"], each["patch"]["operation"], match

    assert sorted(map(where, patches(plan_of(shape)))) == sorted(map(where, stand_ins(shape)))


@pytest.mark.parametrize("shape", [each for each in SHAPES if not each.own_cluster])
def test_clusters_are_patched_with_what_was_run_through_istiod(shape):
    ours = values(plan_of(shape), apply_to="CLUSTER")
    theirs = [each["patch"]["value"] for each in stand_ins(shape) if each["applyTo"] == "CLUSTER"]
    assert json.loads(json.dumps(ours).replace("125", "150")) == theirs


@pytest.mark.parametrize("shape", [each for each in SHAPES if each.own_cluster])
def test_a_cluster_of_ours_has_all_that_the_one_that_was_run_has(shape):
    ours = ours_of(plan_of(shape))
    (theirs,) = [e["patch"]["value"] for e in stand_ins(shape) if e["applyTo"] == "CLUSTER"]
    assert ours.keys() == theirs.keys()
    for name in ("name", "eds_cluster_config", "circuit_breakers", "common_lb_config"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_that_fits_is_chosen(shape):
    assert plan_of(shape).wiring.shape is shape


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_twin_of_the_same_name_over_istiods_own_ads(shape):
    made = plan_of(shape)
    ours, *_ = [each for each in values(made, apply_to="CLUSTER") if policies_of(each)]
    name = ours["eds_cluster_config"].get("service_name") or SHADOW
    if shape is Shape.WAYPOINT_SECOND_SERVICE:
        name = "outbound|8000||llm-past.ns.svc.cluster.local"
    if shape.own_cluster:
        # istiod's original: nothing patches it, and it bears the very name.
        assert made.twin == name
        touched = [each["match"].get("cluster") for each in patches(made, apply_to="CLUSTER")]
        assert touched == [None]
    else:
        twin = values(made, apply_to="CLUSTER")[0]
        assert made.twin == twin["name"] == f"weir-twin|{name}"
        assert twin["type"] == "EDS"
        assert twin["eds_cluster_config"]["service_name"] == name
        assert twin["eds_cluster_config"]["eds_config"]["ads"] == {}
        assert twin["eds_cluster_config"]["eds_config"]["initial_fetch_timeout"] == "2s"
    assert made.assignments == (name,)


def policies_of(cluster):
    return cluster.get("load_balancing_policy", {}).get("policies", [])


def ours_of(made):
    (cluster,) = [each for each in values(made, apply_to="CLUSTER") if policies_of(each)]
    return cluster


@pytest.mark.parametrize("shape", SHAPES)
def test_endpoints_come_from_weir_as_was_run(shape):
    source = ours_of(plan_of(shape))["eds_cluster_config"]["eds_config"]
    assert source == {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "2s",
        "api_config_source": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [
                {
                    "envoy_grpc": {
                        "cluster_name": "outbound|15010||weir-xds.weir.svc.cluster.local",
                        "retry_policy": {
                            "retry_back_off": {"base_interval": "0.25s", "max_interval": "2s"}
                        },
                    }
                }
            ],
        },
    }


def test_what_waypoints_merge_makes_istiods_clusters_take_our_endpoints():
    pool_cluster = ours_of(plan_of(Shape.WAYPOINT_INFERENCEPOOL))
    assert pool_cluster["type"] == "EDS"  # istiod makes it ORIGINAL_DST
    assert pool_cluster["eds_cluster_config"]["service_name"] == SHADOW
    second = ours_of(plan_of(Shape.WAYPOINT_SECOND_SERVICE))
    assert second["lb_policy"] == "CLUSTER_PROVIDED"


@pytest.mark.parametrize("shape", [each for each in SHAPES if each.own_cluster])
def test_a_cluster_of_ours_has_what_istiods_have(shape):
    cluster = ours_of(plan_of(shape))
    service = "llm" if shape is Shape.WAYPOINT_OWN_CLUSTER else "llm-pool-ip-1c222a41"
    assert cluster["type"] == "EDS"
    assert cluster["connect_timeout"] == "10s"
    assert cluster["lb_policy"] == "CLUSTER_PROVIDED"
    assert cluster["alt_stat_name"] == f"{cluster['name']};"
    assert cluster["common_lb_config"] == {"healthy_panic_threshold": {}}
    assert set(cluster["circuit_breakers"]["thresholds"][0].values()) == {2**32 - 1}
    assert len(cluster["circuit_breakers"]["thresholds"][0]) == 4
    assert cluster["metadata"]["filter_metadata"]["istio"]["services"] == [
        {"host": f"{service}.ns.svc.cluster.local", "name": service, "namespace": "ns"}
    ]
    assert "typed_extension_protocol_options" not in cluster


def test_tunnels_are_chosen_by_endpoint_on_a_gateway_and_always_on_a_waypoint():
    matches = ours_of(plan_of(Shape.GATEWAY_OWN_CLUSTER))["transport_socket_matches"]
    assert [(each["name"], each["match"]) for each in matches] == [
        ("hbone", {"tunnel": "http"}),
        ("tlsMode-disabled", {}),
    ]
    socket = ours_of(plan_of(Shape.WAYPOINT_OWN_CLUSTER))["transport_socket"]
    assert socket["name"] == "internal_upstream"
    passed = socket["typed_config"]["passthrough_metadata"]
    assert [each["name"] for each in passed] == ["envoy.filters.listener.original_dst", "istio"]


TIERS = {
    "pick": ["override_host", "maglev"],
    "affinity": ["maglev"],
    "weights": ["round_robin"],
    "round-robin": ["round_robin"],
    "least-request": ["least_request"],
}


def names(policies):
    """The names of policies, the fallback's after its own."""
    found = []
    for each in policies:
        extension = each["typed_extension_config"]
        found.append(extension["name"].rpartition(".")[2])
        fallback = extension["typed_config"].get("fallback_policy", {})
        found += names(fallback.get("policies", []))
    return found


@pytest.mark.parametrize(("tier", "expected"), TIERS.items())
@pytest.mark.parametrize("shape", SHAPES)
def test_the_policy_is_the_tiers_and_nothing_comes_after_it(shape, tier, expected):
    _, *rest = HAVE[shape]
    version = "1.30" if shape is Shape.GATEWAY_OWN_CLUSTER else "1.32"
    made = plan(pool(policy=tier), *rest, version=version)
    assert names(policies_of(ours_of(made))) == expected
    (_first,) = policies_of(ours_of(made))
    asks = [each for each in values(made) if EXT_PROC in str(each) and "disabled" not in str(each)]
    merges = [each for each in asks if "grpc_service" not in str(each)]
    assert (len(asks) > len(merges)) is (tier == "pick")


def test_a_tier_without_picks_turns_istiods_picker_off_on_its_routes_alone():
    made = plan(pool(policy="affinity"), GATEWAY, route(to("llm-pool")))
    (value,) = values(made, apply_to="HTTP_ROUTE")
    per_route = value["typed_per_filter_config"]
    assert per_route["weir.digest"]["name"] == "digest"
    assert per_route[EXT_PROC]["disabled"] is True
    made = plan(pool(policy="weights"), GATEWAY, route(to("llm-pool")))
    (value,) = values(made, apply_to="HTTP_ROUTE")
    assert list(value["typed_per_filter_config"]) == [EXT_PROC]


@pytest.mark.parametrize(("version", "told"), [("1.29", False), ("1.30", True), ("1.32", True)])
def test_what_was_served_is_asked_for_where_istio_knows_the_field(version, told):
    made = plan(*HAVE[Shape.WAYPOINT_OWN_CLUSTER], version=version)
    (override,) = policies_of(ours_of(made))
    assert ("selected_host_key" in override["typed_extension_config"]["typed_config"]) is told


def test_a_gateways_route_asks_our_way_and_by_name():
    (patch,) = patches(plan_of(Shape.GATEWAY), apply_to="HTTP_ROUTE")
    value = patch["patch"]["value"]
    assert value["typed_per_filter_config"] == {
        "weir.digest": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute",
            "name": "digest",
        },
        EXT_PROC: {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3."
            "ExtProcPerRoute",
            "overrides": {
                "failure_mode_allow": True,
                "grpc_service": {
                    "envoy_grpc": {"cluster_name": "outbound|9002||llm-epp.ns.svc.cluster.local"},
                    "timeout": "10s",
                },
                "grpc_initial_metadata": [
                    {"key": "x-weir-pool", "value": "ns/llm-pool"},
                    {"key": "x-weir-digests", "value": "v1"},
                ],
                "processing_mode": HEADERS_ONLY,
            },
        },
    }


HEADERS_ONLY = {
    "request_header_mode": "SEND",
    "request_body_mode": "NONE",
    "request_trailer_mode": "SKIP",
    "response_header_mode": "SKIP",
    "response_body_mode": "NONE",
    "response_trailer_mode": "SKIP",
}


def test_a_gateways_digest_filter_runs_nothing_by_itself():
    lua, ext_proc = values(plan_of(Shape.GATEWAY), apply_to="HTTP_FILTER")
    config = lua["typed_config"]
    assert "default_source_code" not in config
    assert list(config["source_codes"]) == ["digest"]
    assert "function envoy_on_request" in config["source_codes"]["digest"]["inline_string"]
    assert ext_proc["typed_config"]["message_timeout"] == "0.25s"
    assert ext_proc["typed_config"]["request_attributes"] == ["xds.cluster_name", "xds.route_name"]
    assert set(ext_proc["typed_config"]) == {"@type", "message_timeout", "request_attributes"}


@pytest.mark.parametrize("shape", [each for each in SHAPES if not each.on_gateway])
def test_a_waypoint_gets_both_filters_whole(shape):
    lua, ext_proc = values(plan_of(shape), apply_to="HTTP_FILTER")
    assert lua["typed_config"]["default_source_code"]["inline_string"] == filters.digest_source()
    config = ext_proc["typed_config"]
    assert config["failure_mode_allow"] is True
    assert config["message_timeout"] == "0.25s"
    assert config["processing_mode"] == HEADERS_ONLY
    assert config["request_attributes"] == ["xds.cluster_name", "xds.route_name"]
    namespaces = {"untyped": ["envoy.lb"]}
    assert config["metadata_options"] == {
        "receiving_namespaces": namespaces,
        "forwarding_namespaces": namespaces,
    }
    assert config["grpc_service"]["initial_metadata"] == [
        {"key": "x-weir-pool", "value": "ns/llm-pool"},
        {"key": "x-weir-digests", "value": "v1"},
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_proxies_are_given_the_clusters_of_weir_and_of_the_picker(shape):
    referenced = ",".join(
        item["metadata"]["annotations"].get("envoyfilter.istio.io/referenced-services", "")
        for step in plan_of(shape).steps
        for item in step.objects
    )
    assert XDS.reference in referenced
    assert "ns/llm-epp.ns.svc.cluster.local" in referenced


def test_the_words_are_those_of_the_standalone_envoy():
    assert policy.DESTINATION == standalone.DESTINATION
    assert policy.SERVED == standalone.SERVED
    assert filters.LUA == standalone.LUA
    assert filters.ATTRIBUTES == ["xds.cluster_name", "xds.route_name"]
    assert float(filters.MESSAGE_TIMEOUT[:-1]) == standalone.MESSAGE_TIMEOUT.total_seconds()


def register(value):
    """Import what the configuration names, for its types to be known."""
    if isinstance(value, list):
        for each in value:
            register(each)
    elif isinstance(value, dict):
        package = value.get("@type", "").rpartition("/")[2].rpartition(".")[0]
        if package:
            importlib.import_module(f"envoy_data_plane.{package}")
        for each in value.values():
            register(each)


@pytest.mark.parametrize("shape", SHAPES)
def test_envoys_api_reads_every_field_and_gives_it_back(shape):
    made = plan_of(shape)
    probes = [each for item in probe(made) for each in item["spec"]["configPatches"]]
    for each in [*patches(made), *probes]:
        value = each["patch"]["value"]
        register(value)
        kind = MESSAGES[each["applyTo"]]
        message = kind.from_dict(value)  # an unknown field raises
        again = kind.parse(bytes(message))
        assert again == message
        assert kind.from_dict(again.to_dict()) == message


def test_a_field_that_envoy_does_not_know_would_be_noticed():
    value = values(plan_of(Shape.GATEWAY), apply_to="CLUSTER")[1]
    register(value)
    config = policies_of(value)[0]["typed_extension_config"]["typed_config"]
    config["selected_host"] = config.pop("selected_host_key")
    with pytest.raises(KeyError, match="selected_host"):
        Cluster.from_dict(value)


@pytest.mark.parametrize("shape", SHAPES)
def test_yaml_says_what_made_it_and_reads_back_the_same(shape):
    made = plan_of(shape)
    text = to_yaml(made, "1.2.3")
    assert text.startswith("# Made by `weir istio manifests` 1.2.3.\n")
    assert f"shape {shape.value}." in text
    again = [item for item in yaml.safe_load_all(text) if item]
    assert again == [item for step in made.steps for item in step.objects]
    assert to_yaml(made, "1.2.3") == text


@pytest.mark.parametrize("name", ["n", "y", "on", "yes", "1e3", "0x10", "12", "1.5", "true", "~"])
def test_names_that_some_parser_takes_for_something_else_are_quoted(name):
    rule = to("llm-pool", extra=f"name: '{name}', ")
    text = to_yaml(plan(pool(), GATEWAY, route(rule)), "1")
    assert f"name: '{name}'\n" in text


def test_the_probe_is_a_cluster_that_nobody_routes_to_and_that_takes_our_endpoints():
    for shape in SHAPES:
        made = plan_of(shape)
        found = probe(made)
        if shape.own_cluster:
            assert found == ()
            continue
        (item,) = found
        assert item["metadata"]["annotations"]["weir.dev/step"] == "0"
        (patch,) = item["spec"]["configPatches"]
        (name,) = made.assignments
        assert patch["patch"]["value"]["eds_cluster_config"]["service_name"] == name


def test_two_pools_of_one_gateway_print_the_same_shared_object():
    have = (pool(), OTHER_POOL, GATEWAY, route(to("llm-pool"), to("other")))
    ours, theirs = (plan(*have, name=f"ns/{name}") for name in ("llm-pool", "other"))
    shared = [
        [item for item in made.steps[0].objects if item["metadata"]["name"] == SHARED]
        for made in (ours, theirs)
    ]
    assert shared[0] == shared[1] != []
    keys = [
        {item["metadata"]["name"] for step in made.steps for item in step.objects}
        for made in (ours, theirs)
    ]
    assert keys[0] & keys[1] == {SHARED}


SHARED = "weir.inference-gateway"


def test_waypoints_of_services_are_told_apart():
    second = SERVICE.replace("name: llm,", "name: llm-b,")
    made = plans(pool(), WAYPOINT, SERVICE, second)
    named = [
        item["metadata"]["name"] for each in made for step in each.steps for item in step.objects
    ]
    assert len(named) == len(set(named)) == 6
