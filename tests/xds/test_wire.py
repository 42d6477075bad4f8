import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds import wire
from xds.pool import (
    Affinity,
    Endpoint,
    Load,
    Mode,
    Objective,
    Observation,
    Policy,
    Pool,
    Reachability,
    Share,
)
from xds.proto.weir.v1 import pool_pb2
from xds.wire import MalformedResource, Member, PoolView

ANSWERING, REFUSED, SILENT = Reachability.ANSWERING, Reachability.REFUSED, Reachability.SILENT
counts = st.none() | st.integers(0, 2**32 - 1)
positive = st.none() | st.integers(1, 2**32 - 1)
loads = st.builds(
    Load,
    at=st.floats(0, 1000),
    waiting=counts,
    running=counts,
    kv_cache_usage=st.none() | st.floats(0, 1),
    adapters=st.frozensets(st.text(max_size=5)),
    max_adapters=positive,
    block_size=positive,
    blocks=positive,
    decode_step_seconds=st.none() | st.floats(0, 10),
    output_tokens=st.none() | st.floats(0, 1e4),
)
observations = st.one_of(
    st.builds(Observation, loads, st.sampled_from([ANSWERING, REFUSED, SILENT])),
    st.builds(Observation, st.none(), st.sampled_from([Reachability.UNKNOWN, REFUSED, SILENT])),
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), observations), st.floats(0, 100))
def test_loads_arrive_as_they_were_sent_in_the_readers_clock(sent, age):
    now, there = 1000.0 + age, 5.0
    found = wire.decode_loads(wire.encode_loads("ns/p", sent, now), received_at=there)
    assert found.keys() == sent.keys()
    for name, seen in sent.items():
        assert found[name].reachability is seen.reachability
        if seen.load is None:
            assert found[name].load is None
            continue
        load = found[name].load
        assert there - load.at == pytest.approx(now - seen.load.at)
        for field in ("waiting", "running", "kv_cache_usage", "adapters", "max_adapters", "blocks"):
            assert getattr(load, field) == getattr(seen.load, field), field
        assert load.output_tokens == seen.load.output_tokens


def written_whole(name, seen, now):
    """A PoolLoad as protobuf writes it, in one piece."""
    items = []
    for endpoint, each in sorted(seen.items()):
        flags = {"refused": each.reachability is REFUSED, "silent": each.reachability is SILENT}
        item = pool_pb2.EndpointLoad(endpoint=endpoint, **flags)
        if (load := each.load) is not None:
            item.age_seconds = max(0.0, now - load.at)
            for field in ("waiting", "running", "kv_cache_usage"):
                if getattr(load, field) is not None:
                    setattr(item, field, getattr(load, field))
            for field in ("decode_step_seconds", "output_tokens"):
                if getattr(load, field) is not None:
                    setattr(item, field, getattr(load, field))
            item.adapters.extend(sorted(load.adapters))
            for field in ("max_adapters", "block_size", "blocks"):
                setattr(item, field, getattr(load, field) or 0)
        items.append(item)
    return pool_pb2.PoolLoad(name=name, loads=items).SerializeToString(deterministic=True)


names = st.text(min_size=1, max_size=5) | st.integers(1, 3).map(lambda n: "x" * 100 * n)


@given(names, st.dictionaries(names, observations), st.floats(0, 2000), st.floats(0, 2000))
def test_loads_written_once_are_the_bytes_of_a_whole_message_at_any_time(name, seen, one, other):
    written = [wire.write_load(endpoint, seen[endpoint]) for endpoint in sorted(seen)]
    for now in (one, other):
        assert wire.join_loads(name, written, now) == written_whole(name, seen, now)


def test_a_pool_crosses_without_what_a_picker_has_no_use_for():
    members = (
        Endpoint("10.0.0.1:80", "ns/a", "10.0.0.1", 80, speed=2.0),
        Endpoint("10.0.0.2:80", "ns/b", "10.0.0.2", 80, draining=True),
        Endpoint("10.0.0.3:80", "ns/c", "10.0.0.3", 80, ready=False),
    )
    pool = Pool("ns/p", members, objectives=(Objective("batch", -1),))
    view = wire.decode_pool(wire.encode_pool(pool, {"10.0.0.1:80": Share(7, priority=1)}))
    assert view == PoolView(
        "ns/p",
        (
            Member("10.0.0.1:80", "ns/a", priority=1, speed=2.0),
            Member("10.0.0.2:80", "ns/b", draining=True),
        ),
        (Objective("batch", -1),),
    )


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Policy(), PoolView("ns/p")),
        (Policy(mode=Mode.OBSERVE), PoolView("ns/p", observing=True)),
        (Policy(mode=Mode.FREEZE), PoolView("ns/p")),
        (Policy(affinity=Affinity.ADAPTER), PoolView("ns/p", prefix_affinity=False)),
        (Policy(affinity=Affinity.SESSION), PoolView("ns/p", session_header="x-session-id")),
        (Policy(session_header="x-user"), PoolView("ns/p")),
    ],
)
def test_of_the_policy_a_picker_is_told_what_concerns_it(policy, told):
    assert wire.decode_pool(wire.encode_pool(Pool("ns/p", (), policy), {})) == told


def test_a_control_plane_from_before_these_fields_has_its_pickers_pick():
    old = pool_pb2.Pool(name="ns/p", policy=pool_pb2.Policy(prefix_affinity=True))
    view = wire.decode_pool(old.SerializeToString())
    assert (view.observing, view.session_header) == (False, "")


def test_equal_views_are_equal_bytes():
    view = PoolView("ns/p", (Member("a:1"), Member("b:1")))
    assert wire.encode_view(view) == wire.encode_view(wire.decode_pool(wire.encode_view(view)))


@pytest.mark.parametrize("decode", [wire.decode_pool, lambda body: wire.decode_loads(body, 0.0)])
@pytest.mark.parametrize("body", [b"\xff", b"", b"\x0a\x01x\x12\x00"])
def test_what_is_not_the_resource_is_refused(decode, body):
    with pytest.raises(MalformedResource):
        decode(body)


def test_a_number_that_is_nonsense_does_not_keep_the_others_from_being_written():
    sent = {"a": Observation(Load(0.0, waiting=2**40), ANSWERING), "b": Observation(Load(0.0, 1))}
    found = wire.decode_loads(wire.encode_loads("ns/p", sent, 0.0), 0.0)
    assert found["a"].load.waiting == 2**32 - 1
    assert found["b"].load.waiting == 1
