"""The applier of EnvoyFilters, held to what istiod itself made of the same patches."""

import json
from pathlib import Path

import pytest
import yaml

from integration.envoyfilter import (
    Configuration,
    EnvoyFilterError,
    Kind,
    Proxy,
    apply,
    referenced_services,
)

ISTIOD = Path(__file__).parent / "istiod"
GATEWAY = Proxy(Kind.GATEWAY, "inference-gateway")
WAYPOINT = Proxy(Kind.WAYPOINT, "waypoint")
UNPATCHED = {
    "gateway": "gateway",
    "gateway-own-cluster": "gateway",
    "waypoint-own-cluster": "waypoint-own-cluster",
    "waypoint-inferencepool": "waypoint-inferencepool",
    "waypoint-second-service": "waypoint-second-service",
}


def read(folder):
    found = {}
    for kind in ("clusters", "listeners", "routes"):
        path = ISTIOD / folder / f"{kind}.json"
        found[kind] = json.loads(path.read_text()) if path.exists() else []
    return Configuration(**found)


def sorted_by_name(configuration):
    return {
        kind: sorted(getattr(configuration, kind), key=lambda each: each["name"])
        for kind in ("clusters", "listeners", "routes")
    }


@pytest.mark.parametrize("shape", UNPATCHED)
def test_istiods_own_patch_on_its_own_input_gives_its_own_output(shape):
    proxy = GATEWAY if shape.startswith("gateway") else WAYPOINT
    document = yaml.safe_load((ISTIOD / "patched" / shape / "envoyfilter.yaml").read_text())
    patched, silences = apply([document], proxy, read(f"unpatched/{UNPATCHED[shape]}"))
    assert silences == []
    assert sorted_by_name(patched) == sorted_by_name(read(f"patched/{shape}"))


def test_without_its_annotation_a_waypoint_lacks_the_clusters_that_our_filters_need():
    """istiod's own two outputs show which clusters the annotation brings."""
    document = yaml.safe_load(
        (ISTIOD / "patched/waypoint-own-cluster/envoyfilter.yaml").read_text()
    )
    hosts = referenced_services([document])
    assert hosts == {"weir-xds.weir.svc.cluster.local", "llm-epp.ns.svc.cluster.local"}
    bare, full = read("unpatched/waypoint"), read("unpatched/waypoint-own-cluster")
    assert bare.clusters == [
        each for each in full.clusters if each["name"].rpartition("|")[2] not in hosts
    ]
    assert bare.listeners == full.listeners


# Small inputs for what istiod does not say aloud.
VIP = "inbound-vip|8000|http|llm.ns.svc.cluster.local"
OUT = "outbound|8000||other.ns.svc.cluster.local"
MANAGER = "envoy.filters.network.http_connection_manager"
T = "type.googleapis.com/envoy.extensions.filters."
EXT_PROC = f"{T}http.ext_proc.v3.ExternalProcessor"


def small(*, http_route=False):
    made_of = {"metadata": {"filter_metadata": {"istio": {"config": "/apis/…"}}}}
    route = {
        "name": "ns.llm.0" if http_route else "default",
        "match": {"prefix": "/"},
        "route": {"cluster": VIP, "timeout": "0s"},
        **(made_of if http_route else {}),
    }
    table = {
        "name": VIP,
        "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}],
    }
    filters = [
        {
            "name": "envoy.filters.http.ext_proc",
            "typed_config": {
                "@type": EXT_PROC,
                "grpc_service": {"envoy_grpc": {"cluster_name": "dummy"}, "timeout": "10s"},
                "message_timeout": "1000s",
                "request_attributes": ["xds.route_name"],
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{T}http.router.v3.Router"},
        },
    ]
    manager = {
        "@type": f"{T}network.http_connection_manager.v3.HttpConnectionManager",
        "route_config": table,
        "http_filters": filters,
    }
    chain = {"name": VIP, "filters": [{"name": MANAGER, "typed_config": manager}]}
    return Configuration(
        clusters=[
            {"name": OUT, "type": "EDS", "lb_policy": "LEAST_REQUEST", "connect_timeout": "10s"},
            {"name": VIP, "type": "EDS"},
        ],
        listeners=[{"name": "main_internal", "filter_chains": [chain]}],
        routes=[table],
    )


def envoy_filter(*patches, name="weir", namespace="ns", **spec):
    reference = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"targetRefs": [reference], **spec, "configPatches": list(patches)},
    }


def cluster_patch(operation, value=None, *, context="SIDECAR_OUTBOUND", name=None):
    match = {"context": context} | ({"cluster": {"name": name}} if name else {})
    return {
        "applyTo": "CLUSTER",
        "match": match,
        "patch": {"operation": operation, "value": value or {}},
    }


def filter_patch(operation, value, *, context="SIDECAR_INBOUND", before=None, chain=VIP):
    sub = {"subFilter": {"name": before}} if before else {}
    return {
        "applyTo": "HTTP_FILTER",
        "match": {
            "context": context,
            "listener": {
                "name": "main_internal",
                "filterChain": {"name": chain, "filter": {"name": MANAGER, **sub}},
            },
        },
        "patch": {"operation": operation, "value": value},
    }


def route_patch(value, *, context="SIDECAR_INBOUND", table=VIP, route=None):
    vhost = {"vhost": {"route": {"name": route}}} if route else {}
    return {
        "applyTo": "HTTP_ROUTE",
        "match": {"context": context, "routeConfiguration": {"name": table, **vhost}},
        "patch": {"operation": "MERGE", "value": value},
    }


def idle(*documents, proxy=WAYPOINT, to=None):
    """Why the only patch changed nothing, having made sure of that."""
    configuration = to or small()
    result, silences = apply(list(documents), proxy, configuration)
    assert result == configuration
    ((_, _, why),) = silences
    return why


LUA = {"name": "weir.lua", "typed_config": {"@type": f"{T}http.lua.v3.Lua"}}


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        (cluster_patch("MERGE", {"type": "STATIC"}, name=VIP), "istiod patches no cluster"),
        (
            cluster_patch("MERGE", {"type": "STATIC"}, context="ANY", name=VIP),
            "istiod patches no cluster",
        ),
        (cluster_patch("REMOVE", name=VIP, context="SIDECAR_INBOUND"), "istiod patches no cluster"),
        (cluster_patch("MERGE", {"type": "STATIC"}, name="outbound|1||gone"), "nothing matched"),
        (
            cluster_patch("MERGE", {"type": "STATIC"}, name=OUT, context="SIDECAR_INBOUND"),
            "nothing matched",
        ),
        (cluster_patch("ADD", {"name": "ours"}), "ADD wants context SIDECAR_INBOUND"),
        (cluster_patch("ADD", {"name": "ours"}, context="ANY"), "ADD wants context"),
        (cluster_patch("ADD", {"name": VIP}, context="SIDECAR_INBOUND"), "already"),
        (cluster_patch("ADD", {"name": "ours"}, context="WAYPOINT"), "ADD wants context"),
        (filter_patch("INSERT_FIRST", LUA, context="WAYPOINT"), "nothing matched"),
        (filter_patch("INSERT_FIRST", LUA, context="SIDECAR_OUTBOUND"), "nothing matched"),
        (filter_patch("INSERT_FIRST", LUA, chain="direct-http"), "nothing matched"),
        (filter_patch("INSERT_BEFORE", LUA, before="envoy.filters.http.cors"), "no filter"),
        (filter_patch("MERGE", LUA, before="envoy.filters.http.lua"), "no filter"),
        (filter_patch("MERGE", LUA), "no filter"),
        (route_patch({"route": {"cluster": "ours"}}, table="other"), "nothing matched"),
        (route_patch({"route": {"cluster": "ours"}}, route="other"), "nothing matched"),
        (
            route_patch({"route": {"cluster": "ours"}}, context="SIDECAR_OUTBOUND"),
            "nothing matched",
        ),
    ],
)
def test_a_patch_that_istiod_drops_changes_nothing_and_is_told_of(patch, why):
    assert why in idle(envoy_filter(patch))


def test_routes_of_a_service_with_an_http_route_are_out_of_reach():
    document = envoy_filter(route_patch({"route": {"cluster": "ours"}}))
    assert "has an HTTPRoute" in idle(document, to=small(http_route=True))
    result, silences = apply([document], WAYPOINT, small())
    (chain,) = result.listeners[0]["filter_chains"]
    (host,) = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    assert host["routes"][0]["route"] == {"cluster": "ours", "timeout": "0s"}
    assert silences == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"namespace": "elsewhere"}, "in another namespace"),
        ({"targetRefs": []}, "only EnvoyFilters with targetRefs"),
        ({"targetRefs": [], "workloadSelector": {"labels": {"a": "b"}}}, "with targetRefs"),
        (
            {
                "targetRefs": [
                    {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "x"}
                ]
            },
            "no targetRef names Gateway waypoint",
        ),
        ({"targetRefs": [{"group": "", "kind": "Service", "name": "llm"}]}, "no targetRef"),
        (
            {
                "targetRefs": [
                    {
                        "group": "gateway.networking.k8s.io",
                        "kind": "GatewayClass",
                        "name": "istio-waypoint",
                    }
                ]
            },
            "no targetRef",  # in the root namespace only
        ),
    ],
)
def test_a_filter_that_does_not_name_the_proxys_gateway_is_not_for_it(changes, why):
    patch = cluster_patch("MERGE", {"type": "STATIC"}, name=OUT)
    assert why in idle(envoy_filter(patch, **changes))


def test_a_gateway_class_in_the_root_namespace_and_a_gateways_labels_reach_a_proxy():
    patch = cluster_patch("MERGE", {"type": "STATIC"}, context="ANY", name=OUT)
    waypoints = {"group": "gateway.networking.k8s.io", "kind": "GatewayClass"}
    mesh_wide = envoy_filter(
        patch, namespace="istio-system", targetRefs=[{**waypoints, "name": "istio-waypoint"}]
    )
    assert apply([mesh_wide], WAYPOINT, small())[1] == []
    labelled = envoy_filter(patch, targetRefs=[], workloadSelector={"labels": {"a": "b"}})
    gateway = Proxy(Kind.GATEWAY, "g", labels={"a": "b", "c": "d"})
    assert apply([labelled], gateway, small())[1] == []
    assert "another's" in idle(labelled, proxy=GATEWAY)


@pytest.mark.parametrize(
    ("patch", "names"),
    [
        ({"applyTo": "LISTENER", "patch": {"operation": "MERGE"}}, "applyTo"),
        (cluster_patch("REPLACE", {}), "operation"),
        (filter_patch("MERGE_AND_REPLACE_LIST", LUA), "operation"),
        (cluster_patch("ADD", {"nam": "ours"}), "nam"),
        (cluster_patch("ADD", {"type": "EDSS"}), "EDSS"),
        (cluster_patch("ADD", {"transport_socket": {"typed_config": {"@type": "a/b.C"}}}), "b.C"),
        (cluster_patch("MERGE", {"transport_socket": {"name": "t"}}), "transport_socket"),
        (cluster_patch("ADD", {}, context="INBOUND"), "INBOUND"),
        (
            {
                "applyTo": "CLUSTER",
                "match": {"cluster": {"service": "llm"}},
                "patch": {"operation": "MERGE"},
            },
            "match.cluster.service",
        ),
        (filter_patch("MERGE", LUA, before="envoy.filters.http.router"), "cannot be merged"),
    ],
)
def test_what_we_do_not_know_is_an_error_that_names_the_filter_and_the_field(patch, names):
    with pytest.raises(EnvoyFilterError, match="EnvoyFilter ns/weir, spec") as raised:
        apply([envoy_filter(patch)], WAYPOINT, small())
    assert names in str(raised.value)


def test_patches_may_be_spelled_in_lower_camel_case_as_kubernetes_does():
    camel = cluster_patch("MERGE", {"connectTimeout": "0.25s", "lbPolicy": "MAGLEV"}, name=OUT)
    snake = cluster_patch("MERGE", {"connect_timeout": "0.25s", "lb_policy": "MAGLEV"}, name=OUT)
    one, _ = apply([envoy_filter(camel)], WAYPOINT, small())
    other, _ = apply([envoy_filter(snake)], WAYPOINT, small())
    assert one == other
    assert one.clusters[0]["connect_timeout"] == "0.250s"
    assert one.clusters[0]["lb_policy"] == "MAGLEV"


def test_filters_go_by_priority_then_root_namespace_then_creation_then_name():
    def document(name, seconds, *, namespace="ns", priority=0, created="2026-01-01T00:00:00Z"):
        patch = cluster_patch("MERGE", {"connect_timeout": f"{seconds}s"}, name=OUT)
        made = envoy_filter(patch, name=name, namespace=namespace, priority=priority)
        reference = {
            "group": "gateway.networking.k8s.io",
            "kind": "GatewayClass",
            "name": "istio-waypoint",
        }
        if namespace != "ns":
            made["spec"]["targetRefs"] = [reference]
        made["metadata"]["creationTimestamp"] = created
        return made

    def last(*documents):
        result, _ = apply(list(documents), WAYPOINT, small())
        return result.clusters[0]["connect_timeout"]

    assert last(document("b", 2), document("a", 1)) == "2s"
    assert last(document("a", 1, created="2026-02-01T00:00:00Z"), document("b", 2)) == "1s"
    assert last(document("z", 1, namespace="istio-system"), document("a", 2)) == "2s"
    assert last(document("a", 1), document("z", 2, namespace="istio-system", priority=1)) == "2s"


def test_a_cluster_that_one_filter_adds_no_filter_merges():
    add = cluster_patch("ADD", {"name": "outbound|ours"}, context="SIDECAR_INBOUND")
    merge = cluster_patch("MERGE", {"type": "STATIC"}, name="outbound|ours")
    result, ((_, index, why),) = apply([envoy_filter(add, merge)], WAYPOINT, small())
    assert result.clusters[-1] == {"name": "outbound|ours"}
    assert (index, why) == (1, "nothing matched")


def test_an_inserted_filter_is_merged_even_by_a_patch_before_it():
    new = {**LUA, "typed_config": {**LUA["typed_config"], "stat_prefix": "s"}}
    merge = filter_patch("MERGE", new, before="weir.lua")
    insert = filter_patch("INSERT_BEFORE", LUA, before="envoy.filters.http.router")
    result, silences = apply([envoy_filter(merge, insert)], WAYPOINT, small())
    (chain,) = result.listeners[0]["filter_chains"]
    names = [each["name"] for each in chain["filters"][0]["typed_config"]["http_filters"]]
    assert names == ["envoy.filters.http.ext_proc", "weir.lua", "envoy.filters.http.router"]
    assert chain["filters"][0]["typed_config"]["http_filters"][1] == new
    assert silences == []


def test_a_removed_cluster_is_gone():
    result, _ = apply([envoy_filter(cluster_patch("REMOVE", name=OUT))], WAYPOINT, small())
    assert [each["name"] for each in result.clusters] == [VIP]


def test_a_filters_own_lists_are_appended_to_and_its_durations_replaced():
    new = {
        "typed_config": {
            "@type": EXT_PROC,
            "message_timeout": "0.25s",
            "request_attributes": ["xds.cluster_name"],
        }
    }
    patch = filter_patch("MERGE", new, before="envoy.filters.http.ext_proc")
    result, _ = apply([envoy_filter(patch)], WAYPOINT, small())
    (chain,) = result.listeners[0]["filter_chains"]
    merged = chain["filters"][0]["typed_config"]["http_filters"][0]["typed_config"]
    assert merged["message_timeout"] == "0.250s"
    assert merged["request_attributes"] == ["xds.route_name", "xds.cluster_name"]
    assert merged["grpc_service"]["timeout"] == "10s"
