"""What is kept for a pool that asks, and what stays where that cannot be told."""

import copy
import json

import pytest

from tests.xds.istio import wired
from tests.xds.istio.wired import (
    AT_SERVICE,
    GATEWAY,
    HAVE,
    SERVICE,
    XDS,
    asked,
    pool,
    route,
    to,
    version_for,
)
from xds import registry
from xds.istio.controller import GATEWAY as GATEWAY_NOTE
from xds.istio.controller import SETTLE_SECONDS, Proxies, decide, key_of
from xds.istio.keeping import KEPT_BY, Have, is_kept_by, istio_version, keep, keeper
from xds.istio.objects import KINDS
from xds.istio.reading import Reading
from xds.istio.shapes.inventory import inventory
from xds.istio.shapes.manifest import MANAGED_BY
from xds.istio.shapes.wiring import Host, Istio, Shape, ShapeError, Version
from xds.manifests import Metadata, Pod, read

LLM, GW, WP = "ns/llm-pool", "ns/inference-gateway", "ns/waypoint"


def asking(*documents, shape="auto"):
    """The same objects, and the pool asks."""
    return [
        each.replace("annotations: {", f"annotations: {{weir.dev/shape: {shape}, ", 1)
        if "llm-pool" in each and "kind: InferencePool" in each and "HTTPRoute" not in each
        else each
        for each in documents
    ]


def pods(gateway):
    """One proxy of the Gateway, which acknowledges everything."""

    class Everything(dict):
        def get(self, key, default=None):
            return {"ns/proxy": 2}

    return {gateway: Proxies(frozenset({"ns/proxy"}), Everything())}


class Cluster:
    """What an operator has, what is kept, and rounds of both."""

    def __init__(self, *documents, version="1.32", xds=XDS):
        self.documents, self.version, self.xds = list(documents), version, xds
        self.objects, self.log, self.now, self.decision = {}, [], 0.0, None
        self.theirs = {}  # EnvoyFilters that somebody else keeps
        self.unread = {}

    def look(self):
        manifests = read("\n---\n".join(self.documents), "have.yaml", KINDS)
        filters = read_back([*self.objects.values(), *self.theirs.values()])
        found = inventory([*manifests, *filters])
        policies = {name: each.policy for name, each in registry.pools(manifests).items()}
        have = Have(found, policies, self.objects | self.theirs, self.unread)
        return keep(have, Istio(Version(*map(int, self.version.split(".")))), self.xds)

    def round(self, seconds=SETTLE_SECONDS, gateway=GW, proxies=None):
        self.now += seconds
        keeping = self.look()
        self.decision = decide(
            keeping.wanted,
            self.objects,
            pods(gateway) if proxies is None else proxies,
            self.now,
            kept=keeping.kept,
            before=self.decision,
        )
        for each in self.decision.apply:
            assert each["kind"] == "EnvoyFilter"
            self.objects[key_of(each)] = copy.deepcopy(each)
            self.log.append("+" + each["metadata"]["name"])
        for key in self.decision.delete:
            del self.objects[key]
            self.log.append("-" + key[2])
        return [*keeping.reports, *self.decision.reports]

    def until_quiet(self, **options):
        for _ in range(30):
            reports = self.round(**options)
            if not (self.decision.apply or self.decision.delete or self.decision.since):
                return reports
        raise AssertionError(self.log)

    def says(self, **options):
        return [each.says for each in self.until_quiet(**options)]


def read_back(filters):
    text = "\n---\n".join(json.dumps(each) for each in filters)
    return read(text, "present", KINDS)


@pytest.mark.parametrize("shape", Shape)
def test_what_is_kept_is_what_the_command_prints_with_a_label_that_says_who(shape):
    version = version_for(shape)
    cluster = Cluster(*asking(*HAVE[shape], shape=shape.value), version=version)
    (wanted,) = cluster.look().wanted
    (plan,) = wired.plans(*HAVE[shape], version=version)
    assert wanted.resources == set(plan.assignments)
    for step, made in zip(plan.steps, wanted.steps, strict=True):
        printed = [each for each in step.objects if each["kind"] == "EnvoyFilter"]
        for item in made:
            assert item["metadata"]["labels"].pop(KEPT_BY) == "weir-xds.weir"
        assert list(made) == printed
    first = {key_of(item) for item in wanted.steps[0]}
    assert wanted.probe
    assert all((key_of(item) in first) is shape.own_cluster for item in wanted.probe)


@pytest.mark.parametrize("gone", ["annotation", "pool"])
@pytest.mark.parametrize("shape", Shape)
def test_a_pool_that_asks_is_wired_and_taken_out_again_when_it_asks_no_more(shape, gone):
    gateway = GW if shape.on_gateway else WP
    cluster = Cluster(*asking(*HAVE[shape]), version=version_for(shape))
    reports = cluster.until_quiet(gateway=gateway)
    assert [(each.pool, each.gateway, each.done) for each in reports] == [(LLM, gateway, True)]
    assert all(is_kept_by(each, XDS) for each in cluster.objects.values())
    assert cluster.look().shapes == {(LLM, gateway): shape.value}
    count = len(cluster.objects)
    cluster.log.clear()
    left = HAVE[shape] if gone == "annotation" else HAVE[shape][1:]
    cluster.documents = [each for each in left if "llm-gamma" not in each]
    cluster.until_quiet(gateway=gateway)
    assert cluster.objects == {}
    assert len(cluster.log) == count


@pytest.mark.parametrize("shape", Shape)
def test_nothing_that_a_request_meets_is_applied_where_no_proxy_reaches_weir(shape):
    gateway = GW if shape.on_gateway else WP
    cluster = Cluster(*asking(*HAVE[shape]), version=version_for(shape))
    deaf = {gateway: Proxies(frozenset({"ns/proxy"}))}
    (report,) = cluster.until_quiet(proxies=deaf)
    assert "1 of 1 proxies" in report.says
    assert {each["applyTo"] for it in cluster.objects.values() for each in patches(it)} == {
        "CLUSTER"
    }
    operations = [
        each["patch"]["operation"] for it in cluster.objects.values() for each in patches(it)
    ]
    assert set(operations) == {"ADD"}


def patches(item):
    return item["spec"]["configPatches"]


def test_a_pool_that_does_not_ask_is_an_operators_and_so_are_its_envoyfilters():
    cluster = Cluster(*HAVE[Shape.GATEWAY])
    (plan,) = wired.plans(*HAVE[Shape.GATEWAY])
    printed = {key_of(item): item for step in plan.steps for item in step.objects}
    cluster.theirs = printed
    keeping = cluster.look()
    assert (keeping.wanted, keeping.kept) == ((), {})
    assert not any(is_kept_by(each, XDS) for each in printed.values())


def test_where_the_wiring_cannot_be_told_what_is_there_stays_and_the_reason_is_said():
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY]))
    cluster.until_quiet()
    before = dict(cluster.objects)
    cluster.documents.remove(GATEWAY)
    (says,) = cluster.says()
    assert cluster.objects == before
    assert "Gateway ns/inference-gateway is not in the configuration" in says


def test_a_change_of_the_httproute_is_followed():
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY]))
    cluster.until_quiet()
    cluster.log.clear()
    cluster.documents[-1] = route(to("llm-pool", extra="name: mine, "))
    cluster.until_quiet()
    assert cluster.log == ["+weir.inference-gateway.ns.llm-pool.routes"]


def test_a_gateway_that_no_route_leads_from_any_more_is_given_up_in_reverse():
    second = GATEWAY.replace("inference-gateway", "second")
    at_second = route(to("llm-pool"), name="other", parents=["{name: second}"])
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY]), second, at_second)
    both = pods(GW) | pods("ns/second")
    cluster.until_quiet(proxies=both)
    assert {each["metadata"]["annotations"][GATEWAY_NOTE] for each in cluster.objects.values()} == {
        GW,
        "ns/second",
    }
    cluster.log.clear()
    cluster.documents.remove(at_second)
    cluster.until_quiet(proxies=both)
    assert cluster.log == [
        "-weir.second.ns.llm-pool.routes",
        "-weir.second.ns.llm-pool",
        "-weir.second",
    ]


@pytest.mark.parametrize("gone", ["annotation", "pool"])
def test_what_an_httproute_of_a_waypoint_relies_on_stays_until_the_route_is_gone(gone):
    have = HAVE[Shape.WAYPOINT_INFERENCEPOOL]
    cluster = Cluster(*asking(*have))
    cluster.until_quiet(gateway=WP)
    before = dict(cluster.objects)
    cluster.documents = list(have if gone == "annotation" else have[1:])
    (says,) = cluster.says(gateway=WP)
    assert cluster.objects == before
    assert "HTTPRoute ns/llm-gamma: goes first" in says
    cluster.documents = [each for each in cluster.documents if "llm-gamma" not in each]
    assert cluster.says(gateway=WP) == []
    assert cluster.objects == {}


def test_a_route_to_a_second_service_goes_first_if_we_printed_it_and_may_stay_if_not():
    """Seen of a real istiod: it takes the cluster away before the route, when the route goes."""
    theirs = HAVE[Shape.WAYPOINT_SECOND_SERVICE]
    ours = theirs[-1].replace("namespace: ns}", f"namespace: ns, labels: {{{MANAGED_BY}: weir}}}}")
    for have, held in ((theirs, False), ([*theirs[:-1], ours], True)):
        cluster = Cluster(*asking(*have))
        cluster.until_quiet(gateway=WP)
        cluster.documents = list(have)
        cluster.until_quiet(gateway=WP)
        assert bool(cluster.objects) is held
        if held:
            (says,) = cluster.says(gateway=WP)
            assert "HTTPRoute ns/llm: goes first" in says
            cluster.documents.remove(ours)
            cluster.until_quiet(gateway=WP)
            assert cluster.objects == {}


def test_what_is_the_operators_is_asked_for_when_its_turn_has_come():
    """Without an HTTPRoute: the patches first, then the route, which is never ours to apply."""
    have = HAVE[Shape.WAYPOINT_INFERENCEPOOL]
    cluster = Cluster(*asking(*have[:-1], shape="waypoint-inferencepool"))
    (says,) = cluster.says(gateway=WP)
    assert says.startswith("step 1 of 2 waits: apply Service ns/llm-pool-ip-1c222a41, which is")
    assert cluster.log == []
    labels = "istio.io/inferencepool-name: llm-pool, istio.io/use-waypoint: none"
    own = SERVICE.replace("name: llm,", "name: llm-pool-ip-1c222a41,")
    cluster.documents.append(own.replace("istio.io/use-waypoint: waypoint", labels))
    nobody = {WP: Proxies(frozenset({"ns/proxy"}))}
    cluster.round(gateway=WP, proxies=nobody)
    assert [each for each in cluster.log if not each.endswith("probe")] == []
    (says,) = cluster.says(gateway=WP)
    assert says.startswith("step 2 of 2 waits: apply HTTPRoute ns/")
    assert "weir istio manifests ns/llm-pool --shape waypoint-inferencepool --step 2" in says
    assert "probe" in " ".join(cluster.log), "it stays, so that the proof does"
    assert any(each.endswith("probe") for _, _, each in cluster.objects)
    name = says.split("apply HTTPRoute ns/")[1].partition(",")[0]
    made = route(to("llm-pool"), name=name, parents=[AT_SERVICE])
    labels = "labels: {app.kubernetes.io/managed-by: weir}"
    cluster.documents.append(made.replace("namespace: ns}", f"namespace: ns, {labels}}}", 1))
    assert cluster.says(gateway=WP) == ["in place"]
    assert not any(each.endswith("probe") for _, _, each in cluster.objects)


def test_a_second_service_that_is_missing_is_asked_for_before_anything_is_applied():
    have = HAVE[Shape.WAYPOINT_SECOND_SERVICE]
    cluster = Cluster(*asking(*have[:3], shape="waypoint-second-service"))
    (says,) = cluster.says(gateway=WP)
    assert says.startswith("step 1 of 2 waits: apply Service ns/llm-weir")
    assert cluster.objects == {}


@pytest.mark.parametrize(
    ("old", "new"), [("gateway", "gateway-own-cluster"), ("gateway-own-cluster", "gateway")]
)
def test_a_pool_that_gets_another_shape_loses_the_old_one_first_in_reverse(old, new):
    """Both name the clusters' object alike: changed in place, the old route would lose its own."""
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY], shape=old))
    cluster.until_quiet()
    cluster.log.clear()
    cluster.documents = asking(*HAVE[Shape.GATEWAY], shape=new)
    (report,) = cluster.round()
    assert (report.done, report.says) == (False, f"{old} is taken away before {new} comes")
    assert cluster.until_quiet()[0].done
    name = "weir.inference-gateway.ns.llm-pool"
    moved = [each for each in cluster.log if name in each and "probe" not in each]
    assert "-weir.inference-gateway" not in cluster.log, "what both share stays"
    assert moved == [f"-{name}.routes", f"-{name}", f"+{name}", f"+{name}.routes"]


def test_two_pools_that_want_one_object_otherwise_do_not_fight_over_it():
    twin = pool(shape="auto").replace("llm-pool", "z-pool")
    cluster = Cluster(*asking(*HAVE[Shape.WAYPOINT_OWN_CLUSTER]), twin)
    first, second = cluster.until_quiet(gateway=WP)
    assert (first.pool, first.done) == (LLM, True)
    assert (second.pool, second.done) == ("ns/z-pool", False)
    assert "ns/llm-pool wants it otherwise" in second.says


def test_what_another_weir_keeps_is_its_own():
    other = Cluster(*asking(*HAVE[Shape.GATEWAY]), xds=Host("elsewhere", "weir-xds", 15010))
    other.until_quiet()
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY]))
    cluster.theirs = other.objects
    (says,) = cluster.says()
    assert "weir-xds.elsewhere keeps it, another Weir" in says
    assert cluster.objects == {}


def test_a_pool_of_a_namespace_with_an_object_that_cannot_be_read_is_left_alone():
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY]))
    cluster.until_quiet()
    before = dict(cluster.objects)
    cluster.unread = {"ns": "HTTPRoute ns/x: Expected `str`"}
    for documents in (asking(*HAVE[Shape.GATEWAY]), list(HAVE[Shape.GATEWAY])):
        cluster.documents = documents
        (says,) = cluster.says()
        assert says.startswith("HTTPRoute ns/x: Expected `str`")
        assert cluster.objects == before


def test_a_pool_that_asks_and_cannot_be_served_keeps_what_it_has():
    cluster = Cluster(*asking(*HAVE[Shape.GATEWAY]))
    cluster.until_quiet()
    found = asked(*asking(*HAVE[Shape.GATEWAY])).inventory
    keeping = keep(Have(found, {}, cluster.objects), Istio(Version(1, 32)), XDS)
    assert "cannot be served" in keeping.kept[LLM]


def test_a_pool_of_the_older_version_is_not_wired_and_told():
    question = asked(*asking(*HAVE[Shape.GATEWAY]))
    question.inventory.pools.clear()
    keeping = keep(Have(question.inventory, question.policies), question.istio, XDS)
    assert "inference.networking.k8s.io/v1" in keeping.kept[LLM]


def test_a_picker_of_ours_is_asked_instead_of_the_one_that_a_pool_names():
    question = asked(*asking(*HAVE[Shape.WAYPOINT_OWN_CLUSTER]))
    have, picker = Have(question.inventory, question.policies), Host("weir", "weir-picker", 9002)
    texts = [
        json.dumps(keep(have, question.istio, XDS, each).wanted[0].steps) for each in (None, picker)
    ]
    assert [f"9002||{name}" in text for name, text in zip(PICKERS, texts, strict=True)] == [1, 1]
    assert PICKERS[0] not in texts[1]


PICKERS = ["llm-epp.ns.svc.cluster.local", "weir-picker.weir.svc.cluster.local"]


def test_a_waypoint_with_two_services_of_a_pool_has_both_wired():
    more = SERVICE.replace("name: llm,", "name: chat,")
    cluster = Cluster(*asking(*HAVE[Shape.WAYPOINT_OWN_CLUSTER]), more)
    reports = cluster.until_quiet(gateway=WP)
    assert [each.done for each in reports] == [True, True]
    cluster.documents.remove(more)
    cluster.until_quiet(gateway=WP)
    assert not any("chat" in name for _, _, name in cluster.objects)


def test_a_label_is_never_longer_than_kubernetes_allows():
    xds = Host("n" * 63, "s" * 40, 15010)
    assert len(keeper(xds)) == 63
    assert keeper(Host("weir", "weir-xds", 1)) == "weir-xds.weir"


def istiod(version, **labels):
    said = {"app": "istiod", "app.kubernetes.io/version": version} | labels
    return Pod(Metadata("istiod", "istio-system", labels=said))


@pytest.mark.parametrize(
    ("said", "pods", "wanted"),
    [
        (Version(1, 30), [istiod("1.32.0")], Version(1, 30)),
        (None, [istiod("1.32.0"), istiod("1.32.1")], Version(1, 32)),
        (None, [istiod("1.31.2"), istiod("1.32.1")], "Istio 1.31 and 1.32"),
        (None, [istiod("unknown"), Pod(Metadata("x"))], "no Pod with the label app=istiod"),
    ],
)
def test_the_version_is_as_said_or_as_all_of_istiods_pods_say(said, pods, wanted):
    if isinstance(wanted, Version):
        assert istio_version(said, pods) == wanted
    else:
        with pytest.raises(ShapeError, match=wanted):
            istio_version(said, pods)


ROUTE_KIND = ("gateway.networking.k8s.io", "HTTPRoute")


def document(parents, version="1", uid="u"):
    meta = {"name": "r", "namespace": "ns", "resourceVersion": version, "uid": uid}
    return {"metadata": meta, "spec": {"parentRefs": parents}}


def test_an_object_that_cannot_be_read_stands_as_it_was_and_is_told_of_if_it_never_could():
    reading = Reading()
    good, bad = document([{"name": "gw"}]), document([{"name": 1}], "2")
    found, unread = reading.inventory([], {ROUTE_KIND: [good]})
    assert (list(found.routes), unread) == (["ns/r"], {})
    same, unread = reading.inventory([], {ROUTE_KIND: [bad]})
    assert same.routes["ns/r"] is found.routes["ns/r"]
    assert unread == {}
    gone, unread = reading.inventory([], {ROUTE_KIND: [document([{"name": 1}], "3", "other")]})
    assert (gone.routes, list(unread)) == ({}, ["ns"])
    assert "HTTPRoute ns/r: Expected `str`" in unread["ns"]


def test_what_did_not_change_is_not_read_again():
    reading = Reading()
    first, _ = reading.inventory([], {ROUTE_KIND: [document([{"name": "gw"}])]})
    again, _ = reading.inventory([], {ROUTE_KIND: [document([{"name": "gw"}])]})
    changed, _ = reading.inventory([], {ROUTE_KIND: [document([{"name": "b"}], "2")]})
    assert again.routes["ns/r"] is first.routes["ns/r"]
    assert changed.routes["ns/r"].spec.parent_refs[0].name == "b"
