import pytest
import yaml

from xds.access import (
    EVERYTHING,
    NOTHING,
    Denied,
    GrantsError,
    Identity,
    Node,
    Scope,
    parse_grants,
    scope_of,
)
from xds.proto.envoy.config.core.v3 import base_pb2

TEAM = Identity("team", "proxy")
GRANTS = parse_grants(
    yaml.safe_load("""
- namespace: edge
  serviceAccount: gateway*
  proxyType: router
  labels: {tier: front}
  pools: [team/*, other/chat]
- namespace: weir-system
  pools: ["*"]
""")
)


def node(text_id="", **metadata):
    message = base_pb2.Node(id=text_id)
    message.metadata.update(metadata)
    return Node.of(message)


def test_a_client_sees_its_own_namespace_whatever_its_node_says():
    scope = scope_of(TEAM, node("anything"))
    assert scope.admits("team/a")
    assert not scope.admits("team-b/a")
    assert not scope.admits("other/team")
    assert scope.namespace == "team"


def test_a_node_that_claims_another_namespace_than_its_identity_is_denied():
    for liar in (node("router~1.2.3.4~pod.other~other.svc"), node("x", NAMESPACE="other")):
        with pytest.raises(Denied, match="claims namespace 'other', but is team/proxy"):
            scope_of(TEAM, liar)
    assert scope_of(TEAM, node("router~1.2.3.4~pod.team~team.svc")).namespace == "team"


def test_a_ztunnel_sees_nothing_and_the_plaintext_port_everything():
    ztunnel = node("ztunnel~1.2.3.4~pod.team~team.svc")
    assert scope_of(TEAM, ztunnel) == NOTHING
    assert not NOTHING.admits("team/a")
    assert scope_of(None, ztunnel) is EVERYTHING


def test_a_grant_adds_pools_to_those_it_describes_and_to_nobody_else():
    front = node("router~1~pod.edge~x", LABELS={"tier": "front"})
    back = node("router~1~pod.edge~x", LABELS={"tier": "back"})
    waypoint = node("waypoint~1~pod.edge~x", LABELS={"tier": "front"})
    gateway = Identity("edge", "gateway-1")
    scope = scope_of(gateway, front, GRANTS)
    assert [scope.admits(pool) for pool in ("edge/a", "team/a", "other/chat", "other/b")] == [
        True,
        True,
        True,
        False,
    ]
    assert scope.namespace is None
    for unlike in (back, waypoint):
        assert not scope_of(gateway, unlike, GRANTS).admits("team/a")
    assert not scope_of(Identity("edge", "other"), front, GRANTS).admits("team/a")
    assert scope_of(Identity("weir-system", "picker"), node(), GRANTS) is EVERYTHING


def test_a_client_that_opens_no_tunnels_says_so_and_sees_what_others_see():
    for metadata in (
        {"DISABLE_HBONE_SEND": "true"},
        {"DISABLE_HBONE_SEND": "1"},
        {"DISABLE_HBONE_SEND": True},
        {"GENERATOR": "grpc"},
    ):
        for identity in (None, TEAM):
            scope = scope_of(identity, node("x", **metadata), GRANTS)
            assert not scope.tunnels
            assert scope.patterns == scope_of(identity, node("x"), GRANTS).patterns
    for metadata in ({}, {"DISABLE_HBONE_SEND": "false"}, {"ENABLE_HBONE": "false"}):
        assert scope_of(TEAM, node("sidecar~1~pod.team~x", **metadata)).tunnels


def test_a_pattern_is_not_a_namespace():
    assert Scope(frozenset({"team-*/*"})).namespace is None
    assert Scope(frozenset({"team/chat"})).namespace is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b", "a list of grants"),
        ("- 1", r"\[0\]: a mapping"),
        ("- {pools: [x], who: y}", r"\[0\].who: no such field"),
        ("- {namespace: x}", r"\[0\].pools: a list"),
        ("- {pools: []}", r"\[0\].pools: a list"),
        ("- {pools: [x]}\n- {pools: [x], labels: {a: 1}}", r"\[1\].labels: a mapping of strings"),
        ("- {pools: [x], proxyType: 1}", r"\[0\].proxyType: a string"),
    ],
)
def test_a_wrong_grants_file_names_the_row_and_the_field(text, words):
    with pytest.raises(GrantsError, match=words):
        parse_grants(yaml.safe_load(text))


def test_a_build_is_what_a_proxy_runs():
    message = base_pb2.Node(user_agent_name="envoy")
    message.user_agent_build_version.version.major_number = 1
    message.user_agent_build_version.version.minor_number = 40
    assert Node.of(message).build == "envoy 1.40.0"
    message.metadata.update({"ISTIO_VERSION": "1.32"})
    assert Node.of(message).build == "envoy 1.40.0 1.32"
    assert node("x").build == ""
