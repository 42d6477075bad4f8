"""Each check of `weir doctor`, on the smallest configuration that shows it."""

import copy
import json
import re
from random import Random

import pytest

from weir.doctor import proxy
from weir.doctor.command import _numbered
from weir.doctor.examination import examine
from weir.doctor.finding import Sight, Verdict

POOL = "team/llama"
NAME = "outbound|54321||llama-ip-fc5a1047.team.svc.cluster.local"
PICKER = "outbound|9002||weir-picker.weir.svc.cluster.local"
XDS = "outbound|15010||weir-xds.weir.svc.cluster.local"
NODE = "router~10.0.0.9~gateway-0.team~team.svc.cluster.local"
EXT_PROC = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
WIDE = {"thresholds": [{"max_requests": 4294967295}]}
ADDRESSES = ("10.1.0.1:8000", "10.1.0.2:8000")


def cluster(name, source, **more):
    services = [{"envoy_grpc": {"cluster_name": source}}]
    config = {"api_config_source": {"grpc_services": services}} if source else {"ads": {}}
    return {
        "name": name,
        "eds_cluster_config": {"service_name": NAME, "eds_config": config},
        "circuit_breakers": WIDE,
        **more,
    }


def policy(name):
    full = f"envoy.load_balancing_policies.{name}"
    return {"policies": [{"typed_extension_config": {"name": full}}]}


def per_route(**overrides):
    said = {
        "failure_mode_allow": True,
        "grpc_service": {"envoy_grpc": {"cluster_name": PICKER}},
        "grpc_initial_metadata": [{"key": "x-weir-pool", "value": POOL}],
        "processing_mode": {"request_body_mode": "NONE"},
    }
    return {"ext_proc": {"overrides": said | overrides}}


class World:
    """A gateway that is as it should be; tests break one thing."""

    def __init__(self):
        self.pool = cluster(NAME, XDS, load_balancing_policy=policy("override_host"))
        self.twin = cluster("weir-twin", "")
        self.picker = {"name": PICKER, "circuit_breakers": WIDE}
        self.filter = {
            "name": "ext_proc",
            "typed_config": {
                "@type": EXT_PROC,
                "grpc_service": {"envoy_grpc": {"cluster_name": "dummy"}},
                "message_timeout": "0.250s",
            },
        }
        self.route = {
            "name": "team.llama.0",
            "route": {"cluster": NAME},
            "typed_per_filter_config": per_route(),
        }
        self.stats = {}
        self.hosts = dict.fromkeys(ADDRESSES, (100, 0))
        self.copied = dict.fromkeys(ADDRESSES, (1, 0))  # what the twin has
        self.silent = {}
        self.served = dict.fromkeys(ADDRESSES, 0)
        self.picked = dict.fromkeys(ADDRESSES, 0)
        self.client = {
            "node": NODE,
            "types": {"ClusterLoadAssignment": {"has": {NAME: "1"}, "should_have": {NAME: "1"}}},
            "refusals": {},
        }
        self.clients = [self.client]
        self.pools = {
            POOL: {
                "policy": "pick",
                "clusters": [NAME],
                "endpoints": [
                    {"endpoint": each, "weight": 100, "priority": 0} for each in ADDRESSES
                ],
            }
        }

    def serve(self, served, picked=None):
        """Traffic: requests by endpoint, and where the picker sent them."""
        self.served = dict(zip(ADDRESSES, served, strict=True))
        self.picked = dict(zip(ADDRESSES, picked or served, strict=True))
        self.stats["http.gw.ext_proc.streams_started"] = sum(picked or served)
        return self

    def sight(self):
        manager = {
            "@type": "type.googleapis.com/x.v3.HttpConnectionManager",
            "stat_prefix": "gw",
            "http_filters": [self.filter],
            "rds": {"route_config_name": "http.80"},
        }
        listener = {"filter_chains": [{"filters": [{"typed_config": manager}]}]}
        table = {"name": "http.80", "virtual_hosts": [{"routes": [self.route]}]}
        dump = {
            "configs": [
                {
                    "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
                    "dynamic_active_clusters": [
                        {"cluster": each} for each in (self.pool, self.twin, self.picker) if each
                    ],
                },
                {
                    "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                    "dynamic_listeners": [{"active_state": {"listener": listener}}],
                },
                {
                    "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
                    "dynamic_route_configs": [{"route_config": table}],
                },
            ]
        }
        statuses = [
            {"name": NAME, "host_statuses": self._hosts(self.hosts, self.served)},
            {"name": "weir-twin", "host_statuses": self._hosts(self.copied, {})},
        ]
        view = {
            "pools": self.pools,
            "clients": self.clients,
            "reports": [{"pool": POOL, "node": "weir-picker~0", "endpoints": self.picked}],
        }
        return Sight(
            () if self.silent else (copy.deepcopy(view),),
            proxy.read(
                {"node": {"id": NODE}},
                dump,
                {"cluster_statuses": statuses},
                {"stats": [{"name": name, "value": n} for name, n in self.stats.items()]},
            ),
            self.silent,
        )

    @staticmethod
    def _hosts(hosts, served):
        return [
            {
                "address": {"envoy_internal_address": {"endpoint_id": name}},
                "weight": weight,
                "priority": priority,
                "stats": [{"name": "rq_total", "value": str(served.get(name, 0))}],
            }
            for name, (weight, priority) in hosts.items()
        ]


def examined(world, served=(9, 1), picked=None):
    before = world.sight()
    return examine(POOL, [before, world.serve(served, picked).sight()], Random(1))


def found(world, check, **traffic):
    (finding,) = [each for each in examined(world, **traffic) if each.check == check]
    return finding


def test_all_is_well_where_all_is_as_it_should_be():
    findings = examined(World())
    assert {each.verdict for each in findings} == {Verdict.OK}
    assert [each.check for each in findings] == [
        *("answering", "subscribed", "endpoints", "twin", "policy", "route", "failing"),
        *("breakers", "picker", "honoured", "draining"),
    ]


def test_silent_round_robin_is_found():
    finding = found(World(), "honoured", served=(5, 5), picked=(10, 0))
    assert finding.verdict is Verdict.WRONG
    assert "5 of 10" in finding.seen


def test_agreement_that_chance_would_bring_about_as_well_proves_nothing():
    """Whoever picks in turn and a proxy that ignores it both give each endpoint its half."""
    for served in ((5, 5), (250, 250), (5000, 5000), (5001, 4999)):
        finding = found(World(), "honoured", served=served)
        assert finding.verdict is Verdict.UNKNOWN
        assert "may be chance" in finding.seen
    assert "no number of requests" in found(World(), "honoured", served=(5, 5)).seen


def test_it_says_how_many_requests_would_tell_and_they_do():
    for first, second in ((3, 2), (22, 18), (28, 25)):
        finding = found(World(), "honoured", served=(first, second))
        assert finding.verdict is Verdict.UNKNOWN
        times = int(re.search(r"some (\d+) requests", finding.seen)[1]) // (first + second)
        verdicts = [
            found(World(), "honoured", served=(each * first, each * second)).verdict
            for each in (times // 2, times)
        ]
        assert verdicts == [Verdict.UNKNOWN, Verdict.OK]


def test_many_requests_that_are_spread_unevenly_prove_what_few_do_not():
    assert found(World(), "honoured", served=(5050, 4950)).verdict is Verdict.OK


def test_rounds_of_few_requests_prove_more_than_one_of_many():
    """Half and half together; that all four agree exactly would hardly be chance."""
    finding = after_rounds((3, 2), (1, 4), (2, 3), (4, 1))
    assert finding.verdict is Verdict.OK
    assert "20 of 20" in finding.seen


def test_rounds_that_are_what_turns_would_be_prove_nothing():
    for rounds in (((3, 2), (2, 3), (3, 2), (2, 3)), ((2, 2),) * 5):
        finding = after_rounds(*rounds)
        assert finding.verdict is Verdict.UNKNOWN
        assert "20 of 20" in finding.seen


def test_rounds_that_each_go_to_one_place_prove_something_if_there_are_several():
    """Affinity sends what is alike to one place too, and as likely as not to the same."""
    assert after_rounds((6, 0)).verdict is Verdict.UNKNOWN
    assert after_rounds((6, 0), (0, 6), (0, 6)).verdict is Verdict.UNKNOWN
    assert after_rounds((6, 0), (0, 6), (0, 6), (6, 0), (6, 0)).verdict is Verdict.OK


def after_rounds(*rounds):
    world = World()
    sights, ones, others = [world.sight()], 0, 0
    for one, other in rounds:
        ones, others = ones + one, others + other
        sights.append(world.serve((ones, others)).sight())
    (finding,) = [e for e in examine(POOL, sights, Random(1)) if e.check == "honoured"]
    return finding


def test_of_a_pool_with_one_endpoint_nothing_can_be_proven_or_wrong():
    world = World()
    del world.hosts[ADDRESSES[1]]
    assert found(world, "honoured", served=(10, 0)).verdict is Verdict.OK


def test_picks_of_other_proxies_are_no_proof_against_this_one():
    assert found(World(), "honoured", served=(5, 5), picked=(50, 40)).verdict is Verdict.UNKNOWN


def test_without_traffic_nothing_is_proven():
    findings = {each.check: each.verdict for each in examined(World(), served=(0, 0))}
    assert findings["picker"] is findings["honoured"] is Verdict.UNKNOWN


def test_requests_that_ask_nobody_are_found():
    world = World()
    before = world.sight()
    world.served = dict.fromkeys(ADDRESSES, 5)
    verdicts = {each.check: each for each in examine(POOL, [before, world.sight()], Random(1))}
    assert verdicts["picker"].verdict is Verdict.WRONG
    assert "10 requests, and none asked" in verdicts["picker"].seen


@pytest.mark.parametrize("stat", ["failure_mode_allowed", "message_timeouts"])
def test_a_picker_that_is_dead_or_too_slow_is_found(stat):
    world = World()
    before = world.sight()
    world.stats[f"http.gw.ext_proc.{stat}"] = 3
    findings = examine(POOL, [before, world.serve((9, 1)).sight()], Random(1))
    (finding,) = [each for each in findings if each.check == "picker"]
    assert finding.verdict is Verdict.WRONG


def no_stream(world):
    world.clients = []


def refusal(world):
    world.client["refusals"] = {"ClusterLoadAssignment": {"reason": "weight 0"}}


def unpatched(world):
    world.clients, world.pool["eds_cluster_config"]["eds_config"] = [], {"ads": {}}


def other_weights(world):
    world.hosts[ADDRESSES[0]] = (1, 0)


def twins_copy(world):
    world.clients, world.hosts = [], world.copied
    world.stats[f"cluster.{NAME}.assignment_use_cached"] = 1


def no_twin(world):
    world.twin = None


def other_policy(world):
    world.pool["load_balancing_policy"] = policy("round_robin")


def cors(world):
    world.route["typed_per_filter_config"] = {"envoy.filters.http.cors": {}}


def other_pool(world):
    metadata = [{"key": "x-weir-pool", "value": "team/other"}]
    world.route["typed_per_filter_config"] = per_route(grpc_initial_metadata=metadata)


def closed(world):
    world.route["typed_per_filter_config"] = per_route(failure_mode_allow=False)


def duplex(world):
    mode = {"request_body_mode": "FULL_DUPLEX_STREAMED"}
    world.route["typed_per_filter_config"] = per_route(processing_mode=mode)


def patient(world):
    world.filter["typed_config"]["message_timeout"] = "1000s"


def unrouted(world):
    world.route["route"]["cluster"] = "elsewhere"


def enrolled(world):
    vip = NAME.replace("outbound|54321||", "inbound-vip|54321|http|")
    world.route["route"]["cluster"] = vip


def unknown(world):
    world.pools = {}


@pytest.mark.parametrize(
    ("mistake", "check", "says"),
    [
        (no_stream, "subscribed", "no stream"),
        (refusal, "subscribed", "weight 0"),
        (unpatched, "subscribed", "from istiod alone"),
        (unrouted, "subscribed", "no route"),
        (enrolled, "subscribed", "is enrolled in the waypoint"),
        (unknown, "subscribed", "does not know pool"),
        (other_weights, "endpoints", "(1, 0), (100, 0)"),
        (twins_copy, "endpoints", "twin's copy"),
        (no_twin, "twin", "nobody keeps"),
        (other_policy, "policy", "round_robin"),
        (cors, "route", "cors made Istio drop it"),
        (other_pool, "route", "asks about team/other"),
        (closed, "failing", "fail when the picker does"),
        (duplex, "failing", "full duplex"),
        (patient, "failing", "1000 s"),
    ],
)
def test_each_mistake_is_found_and_has_a_way_out(mistake, check, says):
    world = World()
    mistake(world)
    finding = found(world, check)
    assert finding.verdict is Verdict.WRONG
    assert says in finding.seen
    assert finding.do


def test_a_dead_control_plane_is_found_and_the_proxy_alone_tells_what_it_lives_on():
    world = World()
    world.silent = {"127.0.0.1:18001": "connection refused"}
    findings = {each.check: each for each in examined(world)}
    assert findings["answering"].verdict is Verdict.WRONG
    assert "127.0.0.1:18001" in findings["answering"].seen
    assert findings["endpoints"].verdict is Verdict.UNKNOWN
    assert findings["twin"].verdict is Verdict.OK
    assert findings["route"].verdict is Verdict.OK
    assert findings["honoured"].verdict is Verdict.UNKNOWN
    twins_copy(world)
    assert "twin's copy" in found(world, "endpoints").seen


def test_without_a_control_plane_it_is_not_said_that_a_standalone_proxy_is_istiods():
    world = World()
    world.silent = {"127.0.0.1:18001": "connection refused"}
    world.twin, world.pool["eds_cluster_config"]["eds_config"] = None, {"ads": {}}
    findings = {each.check: each.verdict for each in examined(world)}
    assert findings["subscribed"] is findings["twin"] is Verdict.UNKNOWN


def test_whose_copy_was_used_once_and_has_weirs_last_since_does_not_live_on_it():
    world = World()
    world.silent = {"127.0.0.1:18001": "connection refused"}
    world.stats[f"cluster.{NAME}.assignment_use_cached"] = 1
    assert "as Weir last said" in found(world, "endpoints").seen


def test_without_a_control_plane_and_a_route_that_asks_istios_name_of_the_pool_is_known():
    world = World()
    world.silent = {"127.0.0.1:18001": "connection refused"}
    cors(world)
    assert "asks no picker" in found(world, "route").seen
    world.pool["name"] = world.route["route"]["cluster"] = "weir|54321|llama.team"
    world.pool["eds_cluster_config"]["service_name"] = world.pool["name"]
    world.twin["eds_cluster_config"]["service_name"] = world.pool["name"]
    assert "asks a picker about" in found(world, "subscribed").seen


@pytest.mark.parametrize(
    ("body", "numbered"),
    [
        ({"prompt": "x"}, {"prompt": "7 x"}),
        ({"messages": [{"content": "x"}]}, {"messages": [{"content": "7 x"}]}),
        ({"messages": [{"content": ["x"]}]}, {"messages": [{"content": ["x"]}]}),
        ({"input": "x"}, {"input": "x"}),
        ([1], [1]),
    ],
)
def test_each_round_of_probes_has_a_prompt_of_its_own_where_it_has_one(body, numbered):
    assert json.loads(_numbered(json.dumps(body), 7)) == numbered
    assert _numbered("no json", 7) == "no json"


def test_a_default_limit_of_the_picker_is_a_warning():
    world = World()
    world.picker["circuit_breakers"] = {}
    finding = found(world, "breakers")
    assert finding.verdict is Verdict.WARNING
    assert PICKER in finding.seen


def test_old_connections_are_a_warning():
    world = World()
    world.stats["listener_manager.total_filter_chains_draining"] = 2
    assert found(world, "draining").verdict is Verdict.WARNING


def test_a_pool_whose_policy_is_affinity_need_not_ask():
    world = World()
    world.route["typed_per_filter_config"] = {}
    world.pools[POOL]["policy"] = "affinity"
    assert found(world, "route").verdict is Verdict.OK


def test_a_route_that_splits_asks_about_both_pools():
    world = World()
    metadata = [{"key": "x-weir-pool", "value": f"team/other,{POOL}"}]
    world.route["typed_per_filter_config"] = per_route(grpc_initial_metadata=metadata)
    assert found(world, "route").verdict is Verdict.OK
