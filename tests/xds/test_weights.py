import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xds import weights
from xds.pool import Endpoint, Load, Observation, Policy, Pool, Reachability, Share, Tier

ANSWERING, REFUSED = Reachability.ANSWERING, Reachability.REFUSED


def endpoint(name, **changes):
    return Endpoint(f"{name}:80", f"ns/{name}", f"10.0.0.{len(name)}", 80, **changes)


def pool(*members, tier=Tier.WEIGHTS):
    return Pool("ns/p", tuple(sorted(members, key=lambda each: each.id)), Policy(tier))


def seen(at=0.0, *, waiting=0, running=0, usage=0.0, reachability=ANSWERING):
    return Observation(Load(at, waiting, running, usage), reachability)


def steps(subject, observe, *, count=60, state=None, start=0.0):
    """Step once a second; `observe(now)` gives the observations by endpoint."""
    state = state or weights.State()
    shares = {}
    for number in range(count):
        now = start + number
        state, shares = weights.step(state, subject, observe(now), now)
    return state, shares


A, B, C = endpoint("a"), endpoint("b"), endpoint("c")
loads = st.tuples(st.integers(0, 500), st.integers(0, 300), st.floats(0, 1))


@given(loads, st.integers(2, 8))
def test_equal_loads_give_equal_weights(load, count):
    subject = pool(*(endpoint(f"e{n}") for n in range(count)))
    waiting, running, usage = load

    def observe(now):
        one = seen(now, waiting=waiting, running=running, usage=usage)
        return {each.id: one for each in subject.endpoints}

    _, shares = steps(subject, observe, count=5)
    assert {share.weight for share in shares.values()} == {weights.SCALE}


@given(st.lists(loads, min_size=2, max_size=6))
def test_the_heavier_loaded_never_weighs_more(all_loads):
    subject = pool(*(endpoint(f"e{n}") for n in range(len(all_loads))))
    by_name = dict(zip([each.id for each in subject.endpoints], all_loads, strict=True))

    def observe(now):
        return {
            name: seen(now, waiting=waiting, running=running, usage=usage)
            for name, (waiting, running, usage) in by_name.items()
        }

    _, shares = steps(subject, observe, count=20)
    pressures = {name: weights.pressure(o.load, 1.0) for name, o in observe(0).items()}
    for one, two in zip(
        sorted(pressures, key=pressures.get), sorted(pressures, key=pressures.get)[1:], strict=False
    ):
        assert shares[one].weight >= shares[two].weight


@given(
    st.lists(st.tuples(loads, st.floats(0.01, 100)), min_size=1, max_size=12),
    st.sampled_from(list(Tier)),
)
def test_weights_and_priorities_are_what_envoy_takes(members, tier):
    subject = pool(
        *(endpoint(f"e{n:02}", speed=speed) for n, (_, speed) in enumerate(members)), tier=tier
    )

    def observe(now):
        return {
            each.id: seen(now, waiting=load[0], running=load[1], usage=load[2])
            for each, (load, _) in zip(subject.endpoints, members, strict=True)
        }

    _, shares = steps(subject, observe, count=10)
    assert shares.keys() == {each.id for each in subject.endpoints}
    assert all(1 <= share.weight <= 100 * weights.SCALE for share in shares.values())
    assert {share.priority for share in shares.values()} == {0}


def test_capacities_set_the_proportions():
    subject = pool(A, endpoint("b", speed=3.0))
    _, shares = steps(subject, lambda now: {e.id: seen(now) for e in subject.endpoints})
    assert shares[subject.endpoints[1].id].weight == 3 * shares[A.id].weight


@given(st.permutations([A, B, C, endpoint("dd"), endpoint("ee")]), st.lists(loads, min_size=5))
def test_the_order_of_the_endpoints_does_not_matter(members, all_loads):
    def shares_of(order):
        subject = Pool("ns/p", tuple(order), Policy(Tier.WEIGHTS))
        names = sorted(each.id for each in order)

        def observe(now):
            return {
                name: seen(now, waiting=w, running=r, usage=u)
                for name, (w, r, u) in zip(names, all_loads, strict=False)
            }

        return steps(subject, observe, count=8)[1]

    assert shares_of(members) == shares_of(sorted(members, key=lambda each: each.id))


def test_the_unknown_count_as_the_mean():
    subject = pool(A, B, C)

    def observe(now):
        return {A.id: seen(now, waiting=8), B.id: seen(now, waiting=2)}

    _, shares = steps(subject, observe)
    assert shares[A.id].weight < shares[C.id].weight < shares[B.id].weight


def test_nothing_known_at_all_is_a_uniform_pool():
    _, shares = steps(pool(A, B, C), lambda _: {}, count=5)
    assert set(shares.values()) == {Share(weights.SCALE)}


def test_a_load_that_is_too_old_fades_to_neutral():
    subject = pool(A, B)

    def observe(now):
        return {A.id: seen(now, waiting=1), B.id: seen(min(now, 20.0), waiting=50)}

    _, early = steps(subject, observe, count=20)
    _, late = steps(subject, observe, count=200)
    assert early[B.id].weight < 0.6 * weights.SCALE
    assert late[B.id].weight == pytest.approx(weights.SCALE, rel=0.06)


def test_a_slow_server_settles_at_a_steady_smaller_weight():
    """A closed loop: queues follow weights, and one server is half as fast."""
    subject = pool(A, B)
    state, history = weights.State(), []
    for now in range(240):
        share = {"A": 0.5, "B": 0.5}
        if history:
            a, b = (history[-1][e.id].weight for e in (A, B))
            share = {"A": a / (a + b), "B": b / (a + b)}
        observations = {
            A.id: seen(now, running=round(60 * share["A"])),
            B.id: seen(now, running=round(60 * share["B"] * 2)),
        }
        state, shares = weights.step(state, subject, observations, float(now))
        history.append(shares)
    settled = {tuple(sorted((n, s.weight) for n, s in each.items())) for each in history[-60:]}
    assert len(settled) <= 3, "no limit cycle"
    assert 1.2 < history[-1][A.id].weight / history[-1][B.id].weight < 2.2


def test_a_steady_pool_keeps_its_shares_through_noise():
    subject = pool(A, B, C)
    state, shares = steps(
        subject, lambda now: {e.id: seen(now, running=40) for e in subject.endpoints}
    )
    for now in range(60, 160):
        noisy = {
            e.id: seen(now, running=40 + (now * k) % 3) for k, e in enumerate(subject.endpoints)
        }
        state, next_shares = weights.step(state, subject, noisy, float(now))
        assert next_shares == shares


def test_a_replica_that_starts_late_agrees_within_a_minute():
    subject = pool(A, B, C)

    def observe(now):
        return {A.id: seen(now, waiting=9), B.id: seen(now, waiting=3), C.id: seen(now, waiting=1)}

    _, old = steps(subject, observe, count=660)
    _, new = steps(subject, observe, count=60, start=600.0)
    for name, share in old.items():
        assert new[name].weight == pytest.approx(share.weight, rel=0.1)


@pytest.mark.parametrize("tier", [Tier.ROUND_ROBIN, Tier.LEAST_REQUEST])
def test_baselines_are_uniform_whatever_the_load(tier):
    subject = pool(A, endpoint("b", speed=3.0), tier=tier)
    _, shares = steps(subject, lambda now: {A.id: seen(now, waiting=90)}, count=20)
    assert {share.weight for share in shares.values()} == {weights.SCALE}


def test_a_refused_connection_and_a_drain_mean_last():
    subject = pool(A, B, endpoint("c", draining=True))
    dead = {A.id: seen(), B.id: seen(reachability=REFUSED)}
    _, shares = weights.step(weights.State(), subject, dead, 0.0)
    assert {name: share.priority for name, share in shares.items()} == {
        A.id: 0,
        B.id: 1,
        C.id: 1,
    }


def test_a_slow_scrape_is_not_a_death():
    silent = {A.id: seen(reachability=Reachability.SILENT), B.id: seen()}
    _, shares = weights.step(weights.State(), pool(A, B), silent, 0.0)
    assert {share.priority for share in shares.values()} == {0}


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_priorities_are_contiguous_from_zero(dead):
    subject = pool(*(endpoint(f"e{n}") for n in range(len(dead))))
    observations = {
        each.id: seen(reachability=REFUSED if is_dead else ANSWERING)
        for each, is_dead in zip(subject.endpoints, dead, strict=True)
    }
    _, shares = weights.step(weights.State(), subject, observations, 0.0)
    priorities = {share.priority for share in shares.values()}
    assert priorities == set(range(len(priorities)))


def test_an_endpoint_that_came_back_waits_and_its_promotion_is_pushed_twice():
    subject = pool(A, B)
    fine = {A.id: seen(), B.id: seen()}
    dead = fine | {B.id: seen(reachability=REFUSED)}
    state = weights.State()
    priorities, echoes = [], []
    for now, observations in enumerate([fine, dead, dead, fine, fine, fine, fine]):
        state, shares = weights.step(state, subject, observations, float(now))
        priorities.append(shares[B.id].priority)
        echoes.append(state.echo)
    assert priorities == [0, 1, 1, 1, 0, 0, 0]
    assert echoes == [False, False, False, False, False, True, True]


def test_an_endpoint_that_is_not_ready_has_no_share():
    _, shares = weights.step(weights.State(), pool(A, endpoint("b", ready=False)), {}, 0.0)
    assert shares.keys() == {A.id}


@given(st.floats(0, 3600), loads)
def test_no_history_makes_a_weight_that_is_no_number(pause, load):
    assume(math.isfinite(pause))
    waiting, running, usage = load
    state, _ = weights.step(weights.State(), pool(A, B), {A.id: seen(0.0, waiting=waiting)}, 0.0)
    later = {B.id: seen(pause, running=running, usage=usage)}
    _, shares = weights.step(state, pool(A, B), later, pause)
    assert all(share.weight >= 1 for share in shares.values())
