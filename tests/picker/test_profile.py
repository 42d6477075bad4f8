from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picker import prefix
from picker.cost import Coefficients, Standing, Work, endpoint_cost
from picker.profile import NoEndpoint, PoolState
from picker.request import Request
from xds.pool import Load, Observation, Reachability
from xds.wire import Member, PoolView

ANSWERING, REFUSED, SILENT = Reachability.ANSWERING, Reachability.REFUSED, Reachability.SILENT
A, B, C = Member("a:1"), Member("b:1"), Member("c:1")


def pool(*members, **changes):
    return PoolState(PoolView("ns/p", members, **changes))


def load(at=0.0, waiting=0, running=0, reachability=ANSWERING, **changes):
    return Observation(Load(at, waiting, running, **changes), reachability)


def request(text=b"x" * 8000, model="m"):
    return Request(model, prefix.of_text(model, text), len(text))


def picks(state, count, *, asked=None, now=0.0, gap=0.0, subset=None):
    rng = Random(1)
    return [
        state.pick(asked or request(b"%d" % n * 4000), now + n * gap, rng, subset).endpoint
        for n in range(count)
    ]


def test_a_prefix_goes_where_it_went_before():
    state = pool(A, B, C)
    first, *rest = picks(state, 5, asked=request(), gap=1.0)
    assert set(rest) == {first}


def test_without_a_prefix_requests_spread_between_two_scrapes():
    state = pool(A, B, C)
    state.observe({member.endpoint: load() for member in (A, B, C)})
    assert sorted(picks(state, 3)) == ["a:1", "b:1", "c:1"]
    assert sorted(picks(state, 3)) == ["a:1", "b:1", "c:1"]


def test_a_hot_prefix_spills_over_when_its_endpoint_is_busy_enough():
    state = pool(A, B)
    state.observe({"a:1": load(), "b:1": load()})
    (holder,) = set(picks(state, 3, asked=request(), gap=0.5))
    other = "a:1" if holder == "b:1" else "b:1"
    state.observe({holder: load(2.0, waiting=40, running=60), other: load(2.0)})
    assert picks(state, 1, asked=request(), now=2.0) != [holder]


def test_the_busier_endpoint_is_avoided():
    state = pool(A, B)
    state.observe({"a:1": load(waiting=5, running=9), "b:1": load(running=1)})
    assert picks(state, 1) == ["b:1"]


def test_a_faster_endpoint_gets_more():
    state = pool(A, Member("b:1", speed=3.0))
    state.observe({"a:1": load(), "b:1": load()})
    assert picks(state, 40).count("b:1") > 26


def test_an_endpoint_of_which_nothing_is_known_is_not_taken_for_idle():
    state = pool(A, B, C)
    state.observe({"a:1": load(running=8), "b:1": load(running=4)})
    assert picks(state, 1) == ["b:1"]


def test_an_old_load_counts_as_unknown():
    state = pool(A, B)
    state.observe({"a:1": load(0.0, running=0), "b:1": load(100.0, running=3)})
    assert "b:1" in picks(state, 4, now=100.0)


def test_a_silent_endpoint_keeps_its_load_and_a_refusing_one_is_left_out():
    state = pool(A, B)
    state.observe({"a:1": load(reachability=REFUSED), "b:1": load(running=50, reachability=SILENT)})
    assert set(picks(state, 5)) == {"b:1"}


def test_if_all_refuse_all_are_tried():
    state = pool(A, B)
    state.observe({"a:1": load(reachability=REFUSED), "b:1": load(reachability=REFUSED)})
    assert set(picks(state, 6)) == {"a:1", "b:1"}


def test_draining_and_lower_priorities_get_nothing_while_others_are_left():
    state = pool(A, Member("b:1", draining=True), Member("c:1", priority=1))
    assert set(picks(state, 5)) == {"a:1"}
    state.update(PoolView("ns/p", (Member("b:1", draining=True), Member("c:1", priority=1))))
    assert set(picks(state, 5)) == {"c:1"}


@pytest.mark.parametrize("subset", [("b:1",), ("b",)])
def test_a_subset_of_endpoints_or_addresses_is_kept_to(subset):
    assert set(picks(pool(A, B, C), 5, subset=subset)) == {"b:1"}


def test_nobody_to_send_it_to_is_an_error():
    with pytest.raises(NoEndpoint):
        picks(pool(), 1)
    with pytest.raises(NoEndpoint):
        picks(pool(A), 1, subset=("x:1",))
    with pytest.raises(NoEndpoint):
        picks(pool(A), 1, subset=())


def test_an_adapter_goes_where_it_was_sent_although_no_server_shows_it():
    state = pool(A, B)
    first = load(adapters=frozenset({"lora"}), max_adapters=2)
    state.observe({"a:1": first, "b:1": load(max_adapters=2)})
    assert picks(state, 1, asked=Request("lora", prompt_bytes=400)) == ["a:1"]
    state.observe({"a:1": load(5.0, max_adapters=2), "b:1": load(5.0, max_adapters=2)})
    assert set(picks(state, 5, asked=Request("lora", prompt_bytes=400), now=5.0, gap=1.0)) == {
        "a:1"
    }


def test_what_is_known_of_members_that_stay_is_kept():
    state = pool(A, B)
    (holder,) = picks(state, 1, asked=request())
    state.update(PoolView("ns/p", (A, B, C)))
    assert picks(state, 1, asked=request(), now=5.0) == [holder]
    state.update(PoolView("ns/p", tuple(m for m in (A, B, C) if m.endpoint != holder)))
    assert picks(state, 1, asked=request(), now=9.0) != [holder]


def test_prefix_affinity_can_be_switched_off():
    state = pool(A, B, prefix_affinity=False)
    state.observe({"a:1": load(), "b:1": load()})
    assert set(picks(state, 4, asked=request())) == {"a:1", "b:1"}


def test_equal_endpoints_are_chosen_by_lot():
    firsts = {pool(A, B, C).pick(request(), 0.0, Random(seed)).endpoint for seed in range(20)}
    assert firsts == {"a:1", "b:1", "c:1"}


standings = st.builds(
    Standing,
    decoding=st.floats(0, 250),
    waiting=st.floats(0, 200),
    pending=st.floats(0, 1e5),
    context=st.floats(1, 1e4),
    kv_usage=st.floats(0, 1),
    kv_tokens=st.floats(1e3, 1e6),
    cached=st.floats(0, 1e4),
    has_adapter=st.booleans(),
    has_slot=st.booleans(),
    speed=st.floats(0.1, 10),
)
works = st.builds(Work, prompt=st.floats(1, 1e5), output=st.floats(1, 4000))


@given(works, standings, st.sampled_from(["decoding", "waiting", "pending", "kv_usage"]))
def test_more_load_never_costs_less(work, at, field):
    value = getattr(at, field)
    more = replace(at, **{field: min(1.0, value * 1.5) if field == "kv_usage" else value + 10})
    k = Coefficients()
    assert endpoint_cost(work, more, k) >= endpoint_cost(work, at, k) * (1 - 1e-9)


@given(works, standings, st.floats(0, 1))
def test_a_longer_cached_prefix_never_costs_more(work, at, share):
    cold = endpoint_cost(work, replace(at, cached=0.0), Coefficients())
    warm = endpoint_cost(work, replace(at, cached=share * work.prompt), Coefficients())
    assert warm <= cold * (1 + 1e-9)
    assert 0 < warm < float("inf")


def test_a_captured_pod_is_named_by_both_its_addresses():
    plain, captured = pool(A), pool(replace(A, captured=True))
    picked = [state.pick(request(), 0.0, Random(1)) for state in (plain, captured)]
    assert [each.endpoint for each in picked] == ["a:1", "a:1"]
    assert picked[0].destination == "a:1"
    assert picked[1].destination == "a:1,envoy://connect_originate/a:1"
