from dataclasses import replace

import pytest
import yaml
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration

from xds import wire
from xds.assignment import cluster_load_assignment
from xds.court import Verdict
from xds.plane import OFFERS, Plane
from xds.pool import (
    Affinity,
    Body,
    Endpoint,
    Load,
    Mode,
    Observation,
    Policy,
    Pool,
    Reachability,
    Share,
    Tier,
)
from xds.snapshot import TypeUrl
from xds.standalone import Standalone, bootstrap

STANDALONE = Standalone(listen="127.0.0.1:8080", picker="127.0.0.1:9002", access_log="/tmp/log")


def member(number, **changes):
    return Endpoint(f"10.0.0.{number}:80", f"d/{number}", f"10.0.0.{number}", 80, **changes)


def pool(name="d/p", count=2, **changes):
    return Pool(name, tuple(member(n) for n in range(1, count + 1)), **changes)


def plane(*pools, now=0.0, standalone=STANDALONE):
    made = Plane(standalone)
    made.configure({each.name: each for each in pools}, now)
    return made


def body(snapshot, type_url, name):
    return snapshot.get(type_url, name).body


def test_an_assignment_says_each_endpoint_with_weight_and_priority():
    shares = {"10.0.0.1:80": Share(70), "10.0.0.2:80": Share(30, priority=1)}
    message = ClusterLoadAssignment.parse(
        cluster_load_assignment("d/p", [member(1), member(2), member(3)], shares)
    )
    assert message.cluster_name == "d/p"
    said = [
        (
            locality.priority,
            item.endpoint.address.socket_address.address,
            item.endpoint.address.socket_address.port_value,
            item.load_balancing_weight,
        )
        for locality in message.endpoints
        for item in locality.lb_endpoints
    ]
    assert said == [(0, "10.0.0.1", 80, 70), (1, "10.0.0.2", 80, 30)]


def test_an_echo_is_the_same_assignment_in_other_bytes():
    shares = {"10.0.0.1:80": Share(70)}
    plain = cluster_load_assignment("d/p", [member(1)], shares)
    echo = cluster_load_assignment("d/p", [member(1)], shares, echo=True)
    assert plain != echo
    assert (
        ClusterLoadAssignment.parse(plain).endpoints == ClusterLoadAssignment.parse(echo).endpoints
    )
    assert ClusterLoadAssignment.parse(echo).policy.overprovisioning_factor == 140


def test_a_pool_without_endpoints_is_an_empty_assignment_and_others_are_as_they_were():
    both = plane(pool("d/a"), pool("d/b"))
    before = both.snapshot(0.0)
    both.configure({"d/a": pool("d/a"), "d/b": pool("d/b", count=0)}, 1.0)
    after = both.snapshot(1.0)
    assert ClusterLoadAssignment.parse(body(after, TypeUrl.ENDPOINT, "d/b")).endpoints == []
    assert after.get(TypeUrl.ENDPOINT, "d/a") is before.get(TypeUrl.ENDPOINT, "d/a")
    assert after.types[TypeUrl.CLUSTER] is before.types[TypeUrl.CLUSTER]


def test_nothing_new_is_the_same_snapshot():
    one = plane(pool())
    first = one.snapshot(0.0)
    one.weigh(1.0)
    assert one.snapshot(1.0) is first


def test_an_observation_changes_its_pools_loads_and_nothing_else():
    one = plane(pool("d/a"), Pool("d/b", (member(9),)))
    before = one.snapshot(0.0)
    one.observe("10.0.0.1:80", Observation(Load(1.0, waiting=3), Reachability.ANSWERING))
    after = one.snapshot(1.5)
    assert after.changed(before) == {TypeUrl.POOL_LOAD: {"d/a"}}
    assert after.get(TypeUrl.POOL_LOAD, "d/b") is before.get(TypeUrl.POOL_LOAD, "d/b")
    loads = wire.decode_loads(body(after, TypeUrl.POOL_LOAD, "d/a"), received_at=100.0)
    assert loads["10.0.0.1:80"].load.waiting == 3
    assert loads["10.0.0.1:80"].load.at == pytest.approx(99.5)


def test_weighing_moves_shares_in_the_assignment_and_for_pickers():
    one = plane(pool(policy=Policy(Tier.WEIGHTS)))
    one.observe("10.0.0.1:80", Observation(reachability=Reachability.REFUSED))
    one.observe("10.0.0.2:80", Observation(Load(0.0, waiting=3), Reachability.ANSWERING))
    one.weigh(1.0)
    snapshot = one.snapshot(1.0)
    view = wire.decode_pool(body(snapshot, TypeUrl.POOL, "d/p"))
    assert {each.endpoint: each.priority for each in view.members} == {
        "10.0.0.1:80": 1,
        "10.0.0.2:80": 0,
    }
    assignment = ClusterLoadAssignment.parse(body(snapshot, TypeUrl.ENDPOINT, "d/p"))
    assert [locality.priority for locality in assignment.endpoints] == [0, 1]


def policies(tier):
    snapshot = plane(pool(policy=Policy(tier, 150))).snapshot(0.0)
    cluster = Cluster.parse(body(snapshot, TypeUrl.CLUSTER, "d/p"))
    first = cluster.load_balancing_policy.policies[0].typed_extension_config
    routes = RouteConfiguration.parse(body(snapshot, TypeUrl.ROUTE, "weir"))
    return first.typed_config.unpack(), routes.virtual_hosts[0]


def test_the_pick_tier_is_one_composed_policy():
    policy, host = policies(Tier.PICK)
    assert policy.override_host_sources[0].metadata.path[0].key == "x-gateway-destination-endpoint"
    fallback = policy.fallback_policy.policies[0].typed_extension_config.typed_config.unpack()
    config = fallback.consistent_hashing_lb_config
    assert config.hash_balance_factor == 150
    assert config.hash_policy[0].header.header_name == "x-weir-affinity"
    filters = {n: each.unpack() for n, each in host.routes[0].typed_per_filter_config.items()}
    metadata = filters["weir.picker"].overrides.grpc_initial_metadata
    assert {each.key: each.value for each in metadata} == {
        "x-weir-pool": "d/p",
        "x-weir-digests": "v1",
    }
    assert "envoy_on_request" in filters["weir.digest"].source_code.inline_string


@pytest.mark.parametrize(
    ("tier", "name"),
    [
        (Tier.AFFINITY, "Maglev"),
        (Tier.WEIGHTS, "RoundRobin"),
        (Tier.ROUND_ROBIN, "RoundRobin"),
        (Tier.LEAST_REQUEST, "LeastRequest"),
    ],
)
def test_other_tiers_ask_no_picker(tier, name):
    policy, host = policies(tier)
    assert type(policy).__name__ == name
    assert "weir.picker" not in host.routes[0].typed_per_filter_config


def test_one_pool_gets_every_host_name_and_several_their_own():
    routes = plane(pool("d/a"), pool("e/b")).snapshot(0.0).get(TypeUrl.ROUTE, "weir")
    hosts = RouteConfiguration.parse(routes.body).virtual_hosts
    assert [host.domains[0] for host in hosts] == ["a.d", "b.e"]
    assert policies(Tier.PICK)[1].domains == ["*"]


def test_body_modes_tell_the_picker_nothing_of_digests():
    buffered = Standalone("127.0.0.1:1", "127.0.0.1:2", body_mode="full-duplex")
    snapshot = plane(pool(), standalone=buffered).snapshot(0.0)
    host = RouteConfiguration.parse(body(snapshot, TypeUrl.ROUTE, "weir")).virtual_hosts[0]
    overrides = host.routes[0].typed_per_filter_config["weir.picker"].unpack().overrides
    assert [each.key for each in overrides.grpc_initial_metadata] == ["x-weir-pool"]


def test_the_listener_waits_for_a_model_as_long_as_it_takes():
    snapshot = plane(pool()).snapshot(0.0)
    listener = Listener.parse(body(snapshot, TypeUrl.LISTENER, "weir"))
    manager = listener.filter_chains[0].filters[0].typed_config.unpack()
    assert manager.stream_idle_timeout.total_seconds() == 0
    assert [each.name for each in manager.http_filters][-1] == "envoy.filters.http.router"


def test_a_bootstrap_knows_nothing_but_the_control_plane():
    config = yaml.safe_load(bootstrap("10.1.2.3:18000", 19000, "me"))
    assert config["node"]["id"] == "me"
    assert [cluster["name"] for cluster in config["static_resources"]["clusters"]] == ["weir-xds"]
    assert config["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"


def verdict(type_url, accepted):
    return Verdict(type_url, "d/p", "bad", accepted, 2, 3, "too heavy")


def weights_in(snapshot):
    message = ClusterLoadAssignment.parse(body(snapshot, TypeUrl.ENDPOINT, "d/p"))
    return {
        item.endpoint.address.socket_address.address: item.load_balancing_weight
        for locality in message.endpoints
        for item in locality.lb_endpoints
    }


def loaded(made, busy, now):
    """The first endpoint so busy, for long enough that its weight changes."""
    for second in range(20):
        made.observe("10.0.0.1:80", Observation(Load(now + second, waiting=busy, running=9)))
        made.observe("10.0.0.2:80", Observation(Load(now + second, waiting=0, running=1)))
        made.weigh(now + second)
    return made.snapshot(now + 20)


def test_refused_weights_go_back_to_the_accepted_and_stay_until_the_pool_changes():
    made = plane(pool())
    good = made.snapshot(0.0)
    accepted = good.get(TypeUrl.ENDPOINT, "d/p").version
    bad = loaded(made, 50, 1.0)
    assert weights_in(bad) != weights_in(good)
    made.roll_back(verdict(TypeUrl.ENDPOINT, accepted))
    assert weights_in(made.snapshot(22.0)) == weights_in(good)
    assert made.quarantines("d/p")[0].what == "weights"
    assert weights_in(loaded(made, 90, 30.0)) == weights_in(good), "quarantined"
    made.configure({"d/p": pool(policy=Policy(hash_balance_factor=200))}, 60.0)
    assert made.quarantines("d/p") == []
    assert weights_in(loaded(made, 50, 61.0)) != weights_in(good)


def test_a_rollback_never_raises_the_dead():
    made = plane(pool(count=3))
    accepted = made.snapshot(0.0).get(TypeUrl.ENDPOINT, "d/p").version
    loaded(made, 50, 1.0)
    made.roll_back(verdict(TypeUrl.ENDPOINT, accepted))
    made.configure({"d/p": pool(count=2)}, 30.0)
    assert set(weights_in(made.snapshot(30.0))) == {"10.0.0.1", "10.0.0.2"}


def test_weights_that_nobody_remembers_go_back_to_equal_ones():
    made = plane(pool())
    loaded(made, 50, 1.0)
    made.roll_back(verdict(TypeUrl.ENDPOINT, "never seen"))
    assert set(weights_in(made.snapshot(22.0)).values()) == {100}


def test_weights_that_came_back_are_remembered_for_as_long_as_new_ones():
    made = Plane(STANDALONE)

    def offered(speed):
        made.configure({"d/p": Pool("d/p", (member(1, speed=speed), member(2)))}, 0.0)
        return made.snapshot(0.0).get(TypeUrl.ENDPOINT, "d/p").version

    accepted = offered(2.0)
    assert len({offered(3.0 + number) for number in range(OFFERS - 1)}) == OFFERS - 1
    assert offered(2.0) == accepted
    offered(99.0)
    made.roll_back(verdict(TypeUrl.ENDPOINT, accepted))
    assert weights_in(made.snapshot(1.0)) == {"10.0.0.1": 200, "10.0.0.2": 100}


def test_a_policy_on_trial_is_in_the_trials_snapshot_only():
    made = plane(pool())
    before = made.snapshot(0.0)
    made.configure({"d/p": pool(policy=Policy(tier=Tier.WEIGHTS))}, 1.0)
    stable, trial = made.snapshot(1.0), made.trial()
    assert stable.types[TypeUrl.CLUSTER] is before.types[TypeUrl.CLUSTER]
    assert trial.types[TypeUrl.CLUSTER] != stable.types[TypeUrl.CLUSTER]
    assert trial.types[TypeUrl.ENDPOINT] is stable.types[TypeUrl.ENDPOINT]
    made.trials.accept()
    assert made.snapshot(2.0).types[TypeUrl.CLUSTER] == trial.types[TypeUrl.CLUSTER]


def test_a_refused_policy_is_rolled_back_and_another_pools_is_not_touched():
    made = plane(pool(), Pool("e/q", (member(9),)))
    first = made.snapshot(0.0)
    weights = Policy(tier=Tier.WEIGHTS)
    made.configure({"d/p": pool(policy=weights), "e/q": Pool("e/q", (member(9),), weights)}, 1.0)
    made.trials.accept()
    made.trials.accept()
    made.snapshot(1.0)
    made.roll_back(verdict(TypeUrl.CLUSTER, "x"))
    after = made.snapshot(2.0)
    assert body(after, TypeUrl.CLUSTER, "d/p") == body(first, TypeUrl.CLUSTER, "d/p")
    assert body(after, TypeUrl.CLUSTER, "e/q") != body(first, TypeUrl.CLUSTER, "e/q")
    assert made.quarantines("e/q") == []


def test_each_namespace_has_routes_of_its_own_that_name_nobody_else():
    made = plane(pool(), Pool("e/q", (member(9),)))
    snapshot = made.snapshot(0.0)
    own = RouteConfiguration.parse(snapshot.tenants["e"][TypeUrl.ROUTE].by_name["weir"].body)
    assert [host.name for host in own.virtual_hosts] == ["e/q"]
    assert b"d/p" not in snapshot.tenants["e"][TypeUrl.CLUSTER].by_name["e/q"].body
    assert set(snapshot.tenants["e"][TypeUrl.CLUSTER].by_name) == {"e/q", "weir-picker"}


def test_no_pools_is_known_to_be_no_pools():
    snapshot = plane().snapshot(0.0)
    assert set(snapshot.types[TypeUrl.CLUSTER].by_name) == {"weir-picker"}


def test_an_endpoint_of_two_pools_is_in_both_and_its_load_is_news_for_both():
    made = plane(pool("d/a"), pool("d/b", count=1))
    before = made.snapshot(0.0)
    made.observe("10.0.0.1:80", Observation(Load(1.0, waiting=3), Reachability.ANSWERING))
    assert made.snapshot(1.5).changed(before) == {TypeUrl.POOL_LOAD: {"d/a", "d/b"}}


def picker_view(snapshot):
    return wire.decode_pool(body(snapshot, TypeUrl.POOL, "d/p"))


def hash_keys(policy):
    """Headers that requests are kept together by, and whether the first that is there is enough."""
    snapshot = plane(pool(policy=policy)).snapshot(0.0)
    cluster = Cluster.parse(body(snapshot, TypeUrl.CLUSTER, "d/p"))
    maglev = cluster.load_balancing_policy.policies[0].typed_extension_config.typed_config.unpack()
    return [
        (each.header.header_name, each.terminal)
        for each in maglev.consistent_hashing_lb_config.hash_policy
    ]


def test_affinity_is_by_prefix_by_model_or_by_session_and_then_by_prefix():
    def keys(affinity):
        return hash_keys(Policy(Tier.AFFINITY, affinity=affinity, session_header="x-user"))

    assert keys(Affinity.PREFIX) == [("x-weir-affinity", False)]
    assert keys(Affinity.ADAPTER) == [("x-gateway-model-name", False)]
    assert keys(Affinity.SESSION) == [("x-user", True), ("x-weir-affinity", False)]


@pytest.mark.parametrize("sent", ["digests", "full-duplex"])
@pytest.mark.parametrize("wanted", list(Body))
def test_a_pool_may_have_its_bodies_sent_where_others_have_digests(sent, wanted):
    standalone = Standalone("127.0.0.1:1", "127.0.0.1:2", body_mode=sent)
    snapshot = plane(pool(policy=Policy(body=wanted)), standalone=standalone).snapshot(0.0)
    host = RouteConfiguration.parse(body(snapshot, TypeUrl.ROUTE, "weir")).virtual_hosts[0]
    overrides = host.routes[0].typed_per_filter_config["weir.picker"].unpack().overrides
    mode = overrides.processing_mode
    if wanted is Body.BUFFERED and sent == "digests":
        assert mode.request_body_mode.name == "BUFFERED"
        assert mode.response_body_mode.name == "NONE"
    else:
        assert mode is None, "as the listener has it"


def test_pickers_of_a_pool_that_is_observed_are_told_so_and_its_weights_are_equal():
    made = plane(pool())
    loaded(made, 50, 1.0)
    made.configure({"d/p": pool(policy=Policy(mode=Mode.OBSERVE))}, 21.0)
    snapshot = made.snapshot(21.0)
    assert picker_view(snapshot).observing
    assert set(weights_in(snapshot).values()) == {100}
    assert set(weights_in(loaded(made, 50, 22.0)).values()) == {100}
    assert made.computed("d/p")["10.0.0.1:80"].weight < 80
    made.configure({"d/p": pool()}, 60.0)
    assert not picker_view(made.snapshot(60.0)).observing


@pytest.mark.parametrize("mode", list(Mode))
def test_whatever_the_mode_members_come_and_go(mode):
    made = plane(pool(policy=Policy(mode=mode)))
    assert len(weights_in(loaded(made, 50, 1.0))) == 2
    made.configure({"d/p": pool(count=3, policy=Policy(mode=mode))}, 30.0)
    assert len(weights_in(made.snapshot(30.0))) == 3
    made.configure({"d/p": pool(count=1, policy=Policy(mode=mode))}, 31.0)
    assert len(weights_in(made.snapshot(31.0))) == 1
    view = picker_view(made.snapshot(31.0))
    assert [each.endpoint for each in view.members] == ["10.0.0.1:80"]


def test_a_pool_is_frozen_with_what_was_pushed_also_where_that_was_rolled_back():
    made = plane(pool())
    accepted = made.snapshot(0.0).get(TypeUrl.ENDPOINT, "d/p").version
    refused = weights_in(loaded(made, 50, 1.0))
    made.roll_back(verdict(TypeUrl.ENDPOINT, accepted))
    made.configure({"d/p": pool(policy=Policy(mode=Mode.FREEZE))}, 22.0)
    frozen = weights_in(made.snapshot(22.0))
    assert frozen == {"10.0.0.1": 100, "10.0.0.2": 100} != refused
    assert weights_in(loaded(made, 90, 30.0)) == frozen


def test_a_promotion_is_pushed_twice_though_members_change_right_after_it():
    made = plane(pool(count=3))
    made.observe("10.0.0.1:80", Observation(reachability=Reachability.REFUSED))
    made.weigh(1.0)
    made.observe("10.0.0.1:80", Observation(Load(1.0, waiting=0), Reachability.ANSWERING))
    made.weigh(2.0)
    made.weigh(3.0)
    assert made.shares("d/p")["10.0.0.1:80"].priority == 0
    made.configure({"d/p": pool(count=2)}, 3.02)
    first = made.snapshot(3.02).get(TypeUrl.ENDPOINT, "d/p")
    made.weigh(4.0)
    second = made.snapshot(4.0).get(TypeUrl.ENDPOINT, "d/p")
    assert second.version != first.version
    assert (
        ClusterLoadAssignment.parse(second.body).endpoints
        == ClusterLoadAssignment.parse(first.body).endpoints
    )
    made.weigh(5.0)
    assert made.snapshot(5.0).get(TypeUrl.ENDPOINT, "d/p") is second


def test_what_proxies_are_not_configured_with_is_not_on_trial():
    made = plane(pool())
    made.snapshot(0.0)
    made.configure({"d/p": pool(policy=Policy(mode=Mode.UNIFORM, queue_threshold=5))}, 1.0)
    assert made.trials.candidate is None
    for change in (
        {"tier": Tier.WEIGHTS},
        {"affinity": Affinity.ADAPTER},
        {"session_header": "x-user"},
        {"body": Body.BUFFERED},
        {"hash_balance_factor": 200},
    ):
        made.configure({"d/p": pool(policy=replace(Policy(), **change))}, 2.0)
        assert made.trials.candidate == "d/p", change


def test_pickers_leave_sessions_to_proxies_from_when_proxies_know_of_them():
    made = plane(pool())
    made.snapshot(0.0)
    session = Policy(affinity=Affinity.SESSION, session_header="x-user")
    made.configure({"d/p": pool(policy=session)}, 1.0)
    assert picker_view(made.snapshot(1.0)).session_header == "", "on trial"
    made.trials.accept()
    assert picker_view(made.snapshot(2.0)).session_header == "x-user"
    made.roll_back(verdict(TypeUrl.CLUSTER, "x"))
    assert picker_view(made.snapshot(3.0)).session_header == ""
