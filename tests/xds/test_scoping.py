from xds.access import EVERYTHING, NOTHING, Scope
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
