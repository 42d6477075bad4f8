from envoy_data_plane.envoy.service.discovery import v3 as independent
from hypothesis import given
from hypothesis import strategies as st

from xds.discovery import Response
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.snapshot import Resource, Snapshot, TypeUrl, version_of

ENDPOINT, CLUSTER = TypeUrl.ENDPOINT, TypeUrl.CLUSTER


def test_what_did_not_change_is_the_same_object():
    first = Snapshot.of({ENDPOINT: {"a": b"1", "b": b"1"}, CLUSTER: {"c": b"1"}})
    second = Snapshot.of({ENDPOINT: {"a": b"1", "b": b"2"}, CLUSTER: {"c": b"1"}}, first)
    assert second.get(ENDPOINT, "a") is first.get(ENDPOINT, "a")
    assert second.types[CLUSTER] is first.types[CLUSTER]
    assert list(second.changed(first)) == [ENDPOINT]
    assert Snapshot.of({ENDPOINT: {"a": b"1", "b": b"2"}, CLUSTER: {"c": b"1"}}, second) is second


bodies = st.dictionaries(
    st.sampled_from([ENDPOINT, CLUSTER]),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([b"", b"1", b"2"])),
)


@given(bodies, bodies)
def test_an_updated_snapshot_is_what_all_bodies_together_make(first, more):
    before = Snapshot.of(first, owners={"a": "ns/p"})
    changes = {
        type_url: {name: body for name, body in named.items() if name in first[type_url]}
        for type_url, named in more.items()
        if type_url in first
    }
    whole = {type_url: named | changes.get(type_url, {}) for type_url, named in first.items()}
    after, naive = before.updated(changes), Snapshot.of(whole, before, before.owners)
    assert after == naive
    assert after.owners == naive.owners
    assert after.changed(before) == naive.changed(before)
    assert (after is before) == (naive is before)
    for type_url, named in first.items():
        assert list(after.types[type_url].by_name) == list(named)


def test_replicas_agree_on_versions_and_any_change_makes_another():
    one = Snapshot.of({ENDPOINT: {"a": b"1", "b": b"1"}})
    two = Snapshot.of({ENDPOINT: {"b": b"1", "a": b"1"}})
    assert one == two
    assert one != Snapshot.of({ENDPOINT: {"a": b"1", "b": b"2"}})
    assert one != Snapshot.of({ENDPOINT: {"a": b"1"}})


def test_a_type_that_is_empty_is_known_and_one_that_is_missing_is_not():
    assert Snapshot.of({ENDPOINT: {}}) != Snapshot.of({})
    assert Snapshot.of({}).get(ENDPOINT, "a") is None


def test_a_resource_is_framed_once_for_each_form_whoever_asks():
    resource = Resource(ENDPOINT, "a", b"1")
    for _ in range(1000):
        Response(ENDPOINT, "v", "1", (resource,)).sotw_bytes()
        Response(ENDPOINT, "v", "1", (resource,)).delta_bytes()
    assert resource.framings == 2


def response():
    resources = tuple(Resource(ENDPOINT, name, name.encode() * 9) for name in "ab")
    return Response(ENDPOINT, version_of(resources), "7", resources, removed=("x",))


def test_heads_and_frames_are_the_messages_that_protobuf_reads():
    sotw = discovery_pb2.DiscoveryResponse.FromString(response().sotw_bytes())
    assert (sotw.nonce, sotw.type_url, sotw.version_info) == ("7", ENDPOINT, response().version)
    assert [each.value for each in sotw.resources] == [b"a" * 9, b"b" * 9]
    delta = discovery_pb2.DeltaDiscoveryResponse.FromString(response().delta_bytes())
    assert [each.name for each in delta.resources] == ["a", "b"]
    assert list(delta.removed_resources) == ["x"]


def test_and_so_does_an_independent_decoder():
    sotw = independent.DiscoveryResponse.parse(response().sotw_bytes())
    assert [each.value for each in sotw.resources] == [b"a" * 9, b"b" * 9]
    delta = independent.DeltaDiscoveryResponse.parse(response().delta_bytes())
    assert [(each.name, each.resource.value) for each in delta.resources] == [
        ("a", b"a" * 9),
        ("b", b"b" * 9),
    ]
    assert delta.nonce == "7"
