"""Nothing is relied upon before it is proven; nothing goes before what relies on it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from xds.istio.controller import (
    GATEWAY,
    POOL,
    SETTLE_SECONDS,
    STEP,
    Proxies,
    Wanted,
    decide,
    key_of,
)

GW, RESOURCE = "ns/gw", "outbound|54321||llama"
READY = Proxies(frozenset({"ns/a", "ns/b"}), {RESOURCE: {"ns/a": 2, "ns/b": 2}})
HALF = Proxies(frozenset({"ns/a", "ns/b"}), {RESOURCE: {"ns/a": 2}})
PROBED = Proxies(frozenset({"ns/a", "ns/b"}), {RESOURCE: {"ns/a": 2, "ns/b": 1}})


def item(name, step, spec=1, pool="ns/llama"):
    annotations = {GATEWAY: GW, STEP: str(step)} | ({POOL: pool} if pool else {})
    return {
        "kind": "EnvoyFilter",
        "metadata": {"namespace": "ns", "name": name, "annotations": annotations},
        "spec": {"value": spec},
    }


FILTERS = item("filters", 1, pool="")


def wanted(spec=1, *, probe=True, pool="ns/llama"):
    name = pool.replace("/", ".")
    return Wanted(
        pool,
        GW,
        (
            (item(f"{name}.clusters", 1, spec, pool), FILTERS),
            (item(f"{name}.routes", 2, spec, pool),),
        ),
        frozenset({RESOURCE}),
        (item(f"{name}.probe", 0, 1, pool),) if probe else (),
    )


class Cluster:
    """The API server's objects with our label, and rounds of the controller."""

    def __init__(self):
        self.objects = {}
        self.now = 0.0
        self.last = None
        self.log = []

    def round(self, *pools, proxies=READY, kept=None, seconds=0.0):
        self.now += seconds
        self.last = decide(
            pools, self.objects, {GW: proxies}, self.now, kept=kept, before=self.last
        )
        for each in self.last.apply:
            self.objects[key_of(each)] = each
            self.log.append(f"+{each['metadata']['name']}")
        for key in self.last.delete:
            del self.objects[key]
            self.log.append(f"-{key[2]}")
        return self.last.reports

    def says(self):
        return [report.says for report in self.last.reports]

    def until_quiet(self, *pools, **options):
        while True:
            self.round(*pools, seconds=SETTLE_SECONDS, **options)
            if not self.last.apply and not self.last.delete and not self.last.since:
                return


def test_the_probe_comes_first_then_the_clusters_then_the_routes_and_the_probe_goes():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    assert cluster.log == [
        "+ns.llama.probe",
        "+ns.llama.clusters",
        "+filters",
        "+ns.llama.routes",
        "-ns.llama.probe",
    ]
    assert cluster.last.reports[0].done


def test_nothing_but_the_probe_is_applied_where_a_proxy_does_not_reach_us():
    cluster = Cluster()
    for _ in range(5):
        cluster.round(wanted(), proxies=HALF, seconds=60)
    assert cluster.log == ["+ns.llama.probe"]
    (says,) = cluster.says()
    assert "1 of 2 proxies" in says
    assert "ns/b" in says


def test_what_the_probe_has_proves_nothing_of_the_cluster_that_a_route_will_lead_to():
    cluster = Cluster()
    for _ in range(5):
        cluster.round(wanted(), proxies=PROBED, seconds=60)
    assert cluster.log == ["+ns.llama.probe", "+ns.llama.clusters", "+filters"]
    assert "step 2 of 2 waits: 1 of 2 proxies" in cluster.says()[0]
    assert "ns/b" in cluster.says()[0]
    cluster.until_quiet(wanted())
    assert cluster.last.reports[0].done
    for _ in range(2):
        cluster.round(wanted(spec=2), proxies=PROBED)
    assert cluster.log[-2:] == ["+ns.llama.clusters", "+ns.llama.routes"], "there is no probe now"


def test_nothing_but_the_probe_is_applied_where_there_is_no_proxy():
    cluster = Cluster()
    cluster.round(wanted())
    cluster.round(wanted(), proxies=Proxies())
    assert cluster.log == ["+ns.llama.probe"]
    assert "no proxy that is ready" in cluster.says()[0]


def test_a_shape_with_a_cluster_of_its_own_needs_no_probe_but_its_route_waits():
    cluster = Cluster()
    cluster.round(wanted(probe=False), proxies=HALF)
    cluster.round(wanted(probe=False), proxies=HALF)
    assert cluster.log == ["+ns.llama.clusters", "+filters"]
    cluster.round(wanted(probe=False))
    assert cluster.log[-1] == "+ns.llama.routes"


def test_a_change_waits_for_proof_too_and_what_is_there_stays():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    cluster.log.clear()
    cluster.round(wanted(2), proxies=HALF, seconds=60)
    assert cluster.log == []
    cluster.until_quiet(wanted(2))
    assert cluster.log == ["+ns.llama.clusters", "+ns.llama.routes"]


def test_what_somebody_changed_by_hand_is_put_right():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    key = ("EnvoyFilter", "ns", "ns.llama.routes")
    cluster.objects[key] = cluster.objects[key] | {"spec": {"value": "theirs"}}
    cluster.until_quiet(wanted())
    assert cluster.objects[key]["spec"] == {"value": 1}


def test_what_others_add_to_metadata_is_left_alone():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    cluster.log.clear()
    for each in cluster.objects.values():
        each["metadata"]["annotations"]["argo"] = "x"
    cluster.until_quiet(wanted())
    assert cluster.log == []


def test_a_restarted_controller_that_no_proxy_knows_yet_changes_nothing():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    cluster.log.clear()
    cluster.last = None
    for _ in range(5):
        cluster.round(wanted(), proxies=Proxies(), seconds=60)
    assert cluster.log == []


def test_removal_goes_backwards_with_time_in_between():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    cluster.log.clear()
    cluster.round()
    cluster.round(seconds=SETTLE_SECONDS / 2)
    assert cluster.log == []
    cluster.round(seconds=SETTLE_SECONDS / 2)
    assert cluster.log == ["-ns.llama.routes"]
    cluster.round(seconds=1)
    cluster.round(seconds=SETTLE_SECONDS - 1)
    assert cluster.log == ["-ns.llama.routes"]
    cluster.until_quiet()
    assert cluster.log == ["-ns.llama.routes", "-ns.llama.clusters", "-filters"]


def test_what_pools_share_stays_with_the_last_of_them():
    cluster = Cluster()
    two = wanted(pool="ns/b")
    cluster.until_quiet(wanted(), two)
    cluster.log.clear()
    cluster.until_quiet(two)
    assert cluster.log == ["-ns.llama.routes", "-ns.llama.clusters"]
    cluster.until_quiet()
    assert cluster.log[2:] == ["-ns.b.routes", "-ns.b.clusters", "-filters"]


def test_a_pool_that_cannot_be_told_keeps_all_it_has():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    cluster.log.clear()
    cluster.round(kept={"ns/llama": "two HTTPRoutes contradict each other"}, seconds=600)
    cluster.round(kept={"ns/llama": "two HTTPRoutes contradict each other"}, seconds=600)
    assert cluster.log == []
    assert cluster.says() == ["two HTTPRoutes contradict each other"]


def test_a_pool_that_comes_back_while_it_is_taken_down_is_put_up_again():
    cluster = Cluster()
    cluster.until_quiet(wanted())
    cluster.round()
    cluster.round(seconds=SETTLE_SECONDS)
    cluster.log.clear()
    cluster.until_quiet(wanted())
    assert cluster.log == ["+ns.llama.routes"]


ROUNDS = st.lists(
    st.tuples(
        st.sets(st.sampled_from(["ns/llama", "ns/b"])),
        st.sampled_from([READY, HALF, Proxies()]),
        st.sampled_from([1, 2]),
        st.sampled_from([0.5, 6.0, 30.0]),
        st.booleans(),
    ),
    max_size=30,
)


@given(ROUNDS)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_a_step_is_never_there_without_the_one_before_it(rounds):
    """A route without its cluster is a 503; a first change without proof may be one."""
    cluster = Cluster()
    for pools, proxies, spec, seconds, restarted in rounds:
        before = set(cluster.objects)
        if restarted:
            cluster.last = None
        cluster.round(
            *(wanted(spec, pool=pool) for pool in sorted(pools)), proxies=proxies, seconds=seconds
        )
        for pool in ("ns.llama", "ns.b"):
            clusters, routes = (
                ("EnvoyFilter", "ns", f"{pool}.{n}") for n in ("clusters", "routes")
            )
            if routes in cluster.objects:
                assert clusters in cluster.objects
                assert key_of(FILTERS) in cluster.objects
            if clusters in cluster.objects and clusters not in before:
                assert proxies is READY
    cluster.until_quiet()
    assert cluster.objects == {}
    cluster.until_quiet(wanted())
    assert cluster.last.reports[0].done
