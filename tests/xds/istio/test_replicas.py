"""What each replica saw of a Gateway's proxies is known together, or not at all; one acts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.istio.controller import Proxies
from xds.istio.replicas import GATEWAY_NAME, Replica, leads, pod_of, proxies, seen
from xds.manifests import Condition, Metadata, Pod, PodStatus

A, B = "outbound|54321||a", "inbound-vip|8000|http|b"


@pytest.mark.parametrize(
    ("node", "pod"),
    [
        ("router~10.0.0.1~gw-7d-x.ns~ns.svc.cluster.local", "ns/gw-7d-x"),
        ("waypoint~10.0.0.1~with.dots.in-it.ns~ns.svc.cluster.local", "ns/with.dots.in-it"),
        ("ztunnel~10.0.0.1~z.ns~ns.svc.cluster.local", ""),
        ("router~10.0.0.1~gw", ""),
        ("router~10.0.0.1~gw~x", ""),
        ("an envoy", ""),
        ("", ""),
    ],
)
def test_a_node_id_names_a_proxys_pod_or_nothing(node, pod):
    assert pod_of(node) == pod


def test_streams_of_one_proxy_count_together():
    node = "router~10.0.0.1~gw.ns~ns.svc.cluster.local"
    clients = [(node, [A]), (node, [B]), (node, [A]), ("weir-picker", [A])]
    assert seen(clients) == {"ns/gw": (B, A, A)}


names = st.text("abc", min_size=1, max_size=3)
resources = st.lists(st.sampled_from([A, B])).map(sorted).map(tuple)
replicas = st.builds(Replica, names, st.booleans(), st.dictionaries(names, resources))


@given(replicas)
def test_what_a_replica_says_is_understood_as_it_was_meant(replica):
    assert Replica.decode(json.loads(json.dumps(replica.encode()))) == replica


@pytest.mark.parametrize(
    "document", [None, [], {}, {"replica": "a"}, {"replica": "a", "able": True, "acknowledged": []}]
)
def test_what_no_replica_says_is_refused(document):
    with pytest.raises(ValueError, match="not what a replica says"):
        Replica.decode(document)


@given(st.lists(replicas, unique_by=lambda each: each.name, min_size=1))
def test_of_those_that_are_able_just_one_acts(several):
    acting = [
        each for each in several if leads(each, [other for other in several if other is not each])
    ]
    assert len(acting) == any(each.able for each in several)


def pod(name, ready="True", gateway="gw"):
    labels = {GATEWAY_NAME: gateway} if gateway else {}
    conditions = [Condition("Ready", ready)] if ready else []
    return Pod(Metadata(name, "ns", labels=labels), status=PodStatus(conditions=conditions))


def test_a_gateways_proxies_are_its_pods_that_are_ready():
    pods = [pod("a"), pod("b", "False"), pod("c", ""), pod("d", gateway="w"), pod("e", gateway="")]
    found = proxies(pods, [])
    assert {name: each.pods for name, each in found.items()} == {
        "ns/gw": {"ns/a"},
        "ns/w": {"ns/d"},
    }


def test_a_proxy_acknowledged_at_whichever_replica_and_at_a_silent_one_not():
    one, two = (
        Replica("1", True, {"ns/a": (A, B)}),
        Replica("2", True, {"ns/b": (A,), "ns/a": (A,)}),
    )
    both = proxies([pod("a"), pod("b")], [one, two])["ns/gw"]
    assert both == Proxies(
        frozenset({"ns/a", "ns/b"}),
        {A: {"ns/a": 2, "ns/b": 1}, B: {"ns/a": 1}},
    )
    assert both.missing([A]) == set()
    assert both.missing([A], 2) == {"ns/b"}
    assert both.missing([A, B]) == {"ns/b"}
    assert proxies([pod("a"), pod("b")], [one])["ns/gw"].missing([A]) == {"ns/b"}
