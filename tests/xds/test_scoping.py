from xds.access import EVERYTHING, NOTHING, Scope
from xds.istio.assignment import assignment
from xds.pool import Endpoint, IstioCluster, Mesh, Share
from xds.scoping import Views
from xds.snapshot import Snapshot, TypeUrl

CLUSTER, ENDPOINT, ROUTE = TypeUrl.CLUSTER, TypeUrl.ENDPOINT, TypeUrl.ROUTE
OWNERS = {"a/x": "a/x", "b/y": "b/y"}
A = Scope(frozenset({"a/*"}))


def world(previous=None, **versions):
    bodies = {name.replace("_", "/"): text.encode() for name, text in versions.items()}
    return Snapshot.of(
        {CLUSTER: {**bodies, "weir-picker": b"p"}, ENDPOINT: bodies, ROUTE: {"weir": b"all"}},
        previous,
        OWNERS,
        {
            "a": {
                CLUSTER: {"a/x": bodies["a/x"], "weir-picker": b"p"},
                ROUTE: {"weir": b"a's alone"},
            }
        },
    )


def names(snapshot, type_url):
    return sorted(snapshot.types[type_url].by_name)


def test_a_tenant_sees_its_own_endpoints_and_a_configuration_of_its_own():
    view = Views().view(world(a_x="1", b_y="1"), A)
    assert names(view, ENDPOINT) == ["a/x"]
    assert names(view, CLUSTER) == ["a/x", "weir-picker"]
    assert view.get(ROUTE, "weir").body == b"a's alone"


def test_what_has_no_owner_is_shown_to_nobody_but_those_who_see_everything():
    whole = world(a_x="1", b_y="1")
    pattern = Views().view(whole, Scope(frozenset({"a/*", "b/z"})))
    assert names(pattern, CLUSTER) == ["a/x"]
    assert names(pattern, ROUTE) == []
    assert names(Views().view(whole, NOTHING), ENDPOINT) == []
    assert Views().view(whole, EVERYTHING) is whole


def test_a_client_without_tunnels_has_plain_addresses_and_all_else_as_others():
    pods = [
        Endpoint(f"10.0.0.{n}:80", f"a/{n}", f"10.0.0.{n}", 80, mesh=Mesh(captured=captured))
        for n, captured in ((1, True), (2, False))
    ]
    bodies = {
        cluster: assignment(IstioCluster(cluster), [pod], {pod.id: Share(1)})
        for cluster, pod in zip(("captured", "plain"), pods, strict=True)
    }
    whole = Snapshot.of(
        {CLUSTER: {"c": b"1", "nobodys": b"2"}, ENDPOINT: bodies}, None, {"c": "a/x"}
    )
    views = Views()
    view = views.view(whole, Scope(frozenset({"*"}), tunnels=False))
    assert view.types[CLUSTER].by_name == whole.types[CLUSTER].by_name
    assert b"connect_originate" in whole.get(ENDPOINT, "captured").body
    assert b"connect_originate" not in view.get(ENDPOINT, "captured").body
    assert view.get(ENDPOINT, "plain") == whole.get(ENDPOINT, "plain")
    assert names(Views().view(whole, Scope(frozenset({"b/*"}), tunnels=False)), ENDPOINT) == []
    later = whole.updated({ENDPOINT: {"plain": b""}})
    after = views.view(later, Scope(frozenset({"*"}), tunnels=False))
    assert after.get(ENDPOINT, "captured") is view.get(ENDPOINT, "captured"), "framed once"


def test_anothers_change_is_no_news():
    views = Views()
    first = world(a_x="1", b_y="1")
    before = views.view(first, A)
    assert views.view(first, A) is before
    after = views.view(world(first, a_x="1", b_y="2"), A)
    for type_url in (CLUSTER, ENDPOINT, ROUTE):
        assert after.types[type_url] is before.types[type_url]
    changed = views.view(world(first, a_x="2", b_y="2"), A)
    assert changed.types[ENDPOINT] is not before.types[ENDPOINT]


def test_a_pool_that_changes_hands_changes_views():
    views = Views()
    first = Snapshot.of({ENDPOINT: {"n": b"1"}}, None, {"n": "a/x"})
    assert names(views.view(first, A), ENDPOINT) == ["n"]
    second = Snapshot.of({ENDPOINT: {"n": b"1"}}, first, {"n": "b/x"})
    assert second is not first
    assert names(views.view(second, A), ENDPOINT) == []


def test_views_that_nobody_has_are_forgotten():
    views = Views()
    views.view(world(a_x="1", b_y="1"), A)
    views.keep(set())
    assert views._views == {}
