"""The applier of EnvoyFilters beside a real istiod: which patches it heeds, and which it drops.

What istiod makes of a case for one proxy has to be what `envoyfilter.apply` makes of istiod's own
output. That istiod has seen a case is told by a cluster that a later EnvoyFilter adds.
"""

import itertools
from dataclasses import replace

import pytest
import pytest_asyncio

from integration.cluster import MISSING, cluster
from integration.envoyfilter import Configuration, apply
from integration.mesh.istiod import GATEWAY_PROXY, POOL, VIP, WAYPOINT_PROXY
from integration.recording import by_name, followed, objects, stages
from integration.test_envoyfilter import (
    EXT_PROC,
    LUA,
    cluster_patch,
    envoy_filter,
    filter_patch,
    route_patch,
)
from integration.test_istiod import applied, sends

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.asyncio(loop_scope="module"),
]

EPP = "outbound|9002||llm-epp.ns.svc.cluster.local"  # the waypoint has it by an annotation
ROUTER = "envoy.filters.http.router"
SLOW, OURS = {"connect_timeout": "7s"}, {"name": "ours", "connect_timeout": "7s"}
TO_OURS, SLOWLY = {"route": {"cluster": EPP}}, {"route": {"timeout": "9s"}}
GATEWAY_API = "gateway.networking.k8s.io"
NUMBERS = itertools.count()


def on(proxy, *patches, **spec):
    made = envoy_filter(*patches, **{"targetRefs": refers("Gateway", proxy), **spec})
    if "workloadSelector" in spec:  # not both
        del made["spec"]["targetRefs"]
    return made


def waypoint(*patches, **spec):
    return on("waypoint", *patches, **spec)


def gateway(*patches, **spec):
    return on("inference-gateway", *patches, **spec)


def merge(context, name, value=SLOW):
    return cluster_patch("MERGE", value, context=context, name=name)


def add(context, value=OURS):
    return cluster_patch("ADD", value, context=context)


def refers(kind, name, group=GATEWAY_API):
    return [{"group": group, "kind": kind, "name": name}]


def policy(name):
    config = {"@type": f"type.googleapis.com/envoy.extensions.load_balancing_policies.{name}"}
    typed = {"name": name, "typed_config": config}
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": typed}]}}


def ext_proc():
    """Into istiod's own filter, in whatever chain it is."""
    value = {
        "@type": EXT_PROC,
        "message_timeout": "0.250s",
        "request_attributes": ["xds.cluster_name"],
    }
    made = filter_patch(
        "MERGE", {"typed_config": value}, context="GATEWAY", before="envoy.filters.http.ext_proc"
    )
    del made["match"]["listener"]["name"], made["match"]["listener"]["filterChain"]["name"]
    return made


LUA_AS_WELL = {**LUA, "name": "weir.more"}
ROUND_ROBIN = policy("round_robin.v3.RoundRobin")
CONTEXTS = ("ANY", "GATEWAY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND")
ON_WAYPOINT = {
    **{f"a cluster of others is merged, {each}": [waypoint(merge(each, EPP))] for each in CONTEXTS},
    **{f"its own cluster is not, {each}": [waypoint(merge(each, VIP))] for each in CONTEXTS},
    **{f"a cluster is added, {each}": [waypoint(add(each))] for each in CONTEXTS},
    "one of a name that is there is not": [waypoint(add("SIDECAR_INBOUND", {"name": VIP}))],
    "one that is added is not merged": [
        waypoint(add("SIDECAR_INBOUND"), merge("SIDECAR_OUTBOUND", "ours", {"type": "STATIC"}))
    ],
    "a cluster is removed": [waypoint(cluster_patch("REMOVE", name=EPP))],
    "its own cluster is not removed": [
        waypoint(cluster_patch("REMOVE", name=VIP, context="SIDECAR_INBOUND"))
    ],
    **{
        f"a filter comes first, {each}": [waypoint(filter_patch("INSERT_FIRST", LUA, context=each))]
        for each in CONTEXTS
    },
    "into another chain": [waypoint(filter_patch("INSERT_FIRST", LUA, chain="direct-http"))],
    "before the router": [waypoint(filter_patch("INSERT_BEFORE", LUA, before=ROUTER))],
    "before what is not there": [waypoint(filter_patch("INSERT_BEFORE", LUA, before="no"))],
    "merged into what is not there": [waypoint(filter_patch("MERGE", LUA, before="no"))],
    "merged into nothing": [waypoint(filter_patch("MERGE", LUA))],
    "one patch's filter is merged by the one before it": [
        waypoint(
            filter_patch("MERGE", LUA_AS_WELL, before=LUA["name"]),
            filter_patch("INSERT_BEFORE", LUA, before=ROUTER),
        )
    ],
    **{
        f"the route of a Service, {each}": [waypoint(route_patch(TO_OURS, context=each))]
        for each in CONTEXTS
    },
    "a route of another name": [waypoint(route_patch(TO_OURS, route="other"))],
    "a route of its name": [waypoint(route_patch(TO_OURS, route="default"))],
    "in another table": [waypoint(route_patch(TO_OURS, table="other"))],
    "of nobody's": [waypoint(merge("ANY", EPP), targetRefs=[])],
    "by labels": [
        waypoint(
            merge("ANY", EPP),
            workloadSelector={"labels": {f"{GATEWAY_API}/gateway-name": "waypoint"}},
        )
    ],
    "of another Gateway": [gateway(merge("ANY", EPP))],
    "of a Service": [waypoint(merge("ANY", EPP), targetRefs=refers("Service", "llm", ""))],
    "of a class, in its namespace": [
        waypoint(merge("ANY", EPP), targetRefs=refers("GatewayClass", "istio-waypoint"))
    ],
    "of a class, in the root namespace": [
        waypoint(
            merge("ANY", EPP),
            targetRefs=refers("GatewayClass", "istio-waypoint"),
            namespace="istio-system",
        )
    ],
    "in another namespace": [waypoint(merge("ANY", EPP), namespace="weir")],
    "by priority": [
        waypoint(merge("ANY", EPP), name="a", priority=1),
        waypoint(merge("ANY", EPP, {"connect_timeout": "8s"}), name="b"),
    ],
    "by name": [
        waypoint(merge("ANY", EPP), name="b"),
        waypoint(merge("ANY", EPP, {"connect_timeout": "8s"}), name="a"),
    ],
    "the root namespace first": [
        waypoint(merge("ANY", EPP), name="a"),
        waypoint(
            merge("ANY", EPP, {"connect_timeout": "8s"}),
            targetRefs=refers("GatewayClass", "istio-waypoint"),
            namespace="istio-system",
            name="b",
        ),
    ],
}
ON_GATEWAY = {
    **{f"a cluster is merged, {each}": [gateway(merge(each, POOL))] for each in CONTEXTS},
    **{f"a cluster is added, {each}": [gateway(add(each))] for each in CONTEXTS},
    "the tunnel's cluster is not": [gateway(merge("ANY", "connect_originate"))],
    "a list is appended to": [gateway(merge("GATEWAY", POOL, ROUND_ROBIN))],
    "a list is replaced": [
        gateway(cluster_patch("MERGE_AND_REPLACE_LIST", ROUND_ROBIN, context="GATEWAY", name=POOL))
    ],
    "a zero changes nothing": [gateway(merge("GATEWAY", POOL, {"lb_policy": "ROUND_ROBIN"}))],
    "a field's message is merged, a duration replaced": [
        gateway(
            merge(
                "GATEWAY",
                EPP,
                {
                    "circuit_breakers": {"thresholds": [{"max_requests": 5}]},
                    "common_lb_config": {"healthy_panic_threshold": {"value": 3}},
                    "connect_timeout": "0.250s",
                },
            )
        )
    ],
    **{
        f"a route is merged, {each}": [gateway(route_patch(SLOWLY, context=each, table="http.80"))]
        for each in CONTEXTS
    },
    **{
        f"a route of the name {each}": [
            gateway(route_patch(SLOWLY, context="GATEWAY", table="http.80", route=each))
        ]
        for each in ("ns.llm-route.0", "other")
    },
    "istiod's own filter is merged": [gateway(ext_proc())],
    "of another Gateway": [waypoint(merge("ANY", POOL))],
    "by labels": [
        gateway(
            merge("ANY", POOL),
            workloadSelector={"labels": {f"{GATEWAY_API}/gateway-name": "inference-gateway"}},
        )
    ],
    "by other labels": [gateway(merge("ANY", POOL), workloadSelector={"labels": {"a": "b"}})],
    "of everybody": [gateway(merge("ANY", POOL), targetRefs=[])],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    """The waypoint is brought EPP by an EnvoyFilter without patches."""
    (asking,) = stages()["unpatched/waypoint-own-cluster"].filters
    asking["metadata"]["name"] = "asking"
    directory = tmp_path_factory.mktemp("cluster")
    async with (
        cluster(directory, *objects(), asking) as made,
        followed(made, WAYPOINT_PROXY) as one,
        followed(made, GATEWAY_PROXY) as other,
    ):
        yield made, {WAYPOINT_PROXY.gateway: one, GATEWAY_PROXY.gateway: other}


async def judged(running, proxy, filters, folder, *more):
    """The case is applied, and istiod agrees with the applier."""
    made, followers = running
    contexts = {"waypoint": "SIDECAR_INBOUND", "inference-gateway": "GATEWAY"}
    seen = {"name": f"seen-{next(NUMBERS)}"}
    marker = on(proxy.gateway, add(contexts[proxy.gateway], seen), name="zz", priority=9)
    async with applied(made, *more, *filters, marker):
        there = [await made.kubectl.get(each) for each in (*filters, marker)]
        recorded = stages()[folder].recorded
        before = Configuration(
            *(list(recorded[kind].values()) for kind in ("clusters", "listeners", "routes"))
        )
        after, _ = apply(there, proxy, before)
        kinds = ("clusters", "listeners", "routes")
        expected = {kind: by_name(kind, getattr(after, kind)) for kind in kinds}
        follower = followers[proxy.gateway]
        await follower.until(lambda: seen["name"] in follower.resources["clusters"])
        await sends(follower, {**expected, "endpoints": follower.resources["endpoints"]})


@pytest.mark.parametrize("case", ON_WAYPOINT)
async def test_on_a_waypoint(running, case):
    await judged(running, WAYPOINT_PROXY, ON_WAYPOINT[case], "unpatched/waypoint-own-cluster")


@pytest.mark.parametrize("case", ON_GATEWAY)
async def test_on_a_gateway(running, case):
    labelled = replace(GATEWAY_PROXY, labels={f"{GATEWAY_API}/gateway-name": "inference-gateway"})
    await judged(running, labelled, ON_GATEWAY[case], "unpatched/gateway")


async def test_on_a_waypoint_routes_of_a_service_with_an_httproute_are_out_of_reach(running):
    stage = stages()["unpatched/waypoint-second-service"]
    filters = [waypoint(route_patch(TO_OURS)), *stage.filters]
    await judged(running, WAYPOINT_PROXY, filters, stage.folder, *stage.routes)
