import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xds import weights
from xds.pool import Endpoint, Load, Mode, Observation, Policy, Pool, Reachability, Share, Tier

ANSWERING, REFUSED = Reachability.ANSWERING, Reachability.REFUSED


def endpoint(name, **changes):
    return Endpoint(f"{name}:80", f"ns/{name}", f"10.0.0.{len(name)}", 80, **changes)


def pool(*members, tier=Tier.WEIGHTS, **policy):
    return Pool("ns/p", tuple(sorted(members, key=lambda each: each.id)), Policy(tier, **policy))


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


def run(subject, *history, state=None, start=0.0):
    """A step a second with these observations; the last state, and the shares of each step."""
    state, found = state or weights.State(), []
    for number, observations in enumerate(history):
        state, shares = weights.step(state, subject, observations, start + number)
        found.append(shares)
    return state, found


def waits(now=0.0, **queues):
    return {f"{name}:80": seen(now, waiting=waiting) for name, waiting in queues.items()}


def priorities(found, name="a:80"):
    return [shares[name].priority for shares in found]


@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        ([9, 9, 9], [0, 0, 0]),
        ([9, 10, 11], [0, 1, 1]),
        ([10, 9, 9, 9], [1, 1, 1, 1]),  # below the threshold is not enough
        ([10, 8, 8, 8], [1, 1, 1, 1]),  # 80 % is not below 80 %
        ([10, 7, 7, 7], [1, 1, 0, 0]),
        ([10, 7, 8, 7, 7], [1, 1, 1, 1, 0]),  # two steps in a row
        ([10, 7, 7, 9, 10], [1, 1, 0, 0, 1]),
    ],
)
def test_saturation_has_hysteresis(queues, expected):
    subject = pool(A, B, queue_threshold=10)
    _, found = run(subject, *(waits(n, a=queue, b=0) for n, queue in enumerate(queues)))
    assert priorities(found) == expected
    assert priorities(found, B.id) == [0] * len(queues)


@pytest.mark.parametrize(
    ("usage", "thresholds", "expected"),
    [
        (0.9, {"kv_threshold": 0.9}, 1),
        (0.89, {"kv_threshold": 0.9}, 0),
        (0.95, {"kv_threshold": 0.9, "queue_threshold": 100}, 1),
        (1.0, {}, 0),
        (None, {"kv_threshold": 0.01}, 0),
    ],
)
def test_either_threshold_saturates_and_neither_set_means_never(usage, thresholds, expected):
    observations = {A.id: seen(waiting=99, usage=usage), B.id: seen()}
    _, (shares,) = run(pool(A, B, **thresholds), observations)
    assert shares[A.id].priority == expected


def test_where_all_that_serve_are_saturated_nobody_moves():
    spare = endpoint("c", priority=1)
    subject = pool(A, B, spare, queue_threshold=10)
    queues = [(10, 0), (99, 10), (99, 0), (99, 0)]
    _, found = run(subject, *(waits(n, a=a, b=b, c=0) for n, (a, b) in enumerate(queues)))
    assert priorities(found) == [1, 0, 0, 1]
    assert priorities(found, B.id) == [0, 0, 0, 0]
    assert priorities(found, spare.id) == [1] * 4, "which is where the operator wants it"


def test_a_saturated_endpoint_whose_load_is_not_known_stays_where_it_is():
    subject = pool(A, B, queue_threshold=10)
    state, _ = run(subject, waits(a=10, b=0))
    silent = {A.id: seen(0.0, waiting=10, reachability=Reachability.SILENT), B.id: seen(60.0)}
    _, found = run(subject, *[silent] * 30, state=state, start=60.0)
    assert set(priorities(found)) == {1}


def test_an_endpoint_of_which_nothing_was_ever_known_is_not_saturated():
    _, found = run(pool(A, B, queue_threshold=1, kv_threshold=0.01), {B.id: seen()})
    assert priorities(found) == [0]


def test_without_thresholds_whoever_had_spilled_over_is_back_and_that_is_pushed_twice():
    state, found = run(pool(A, B, queue_threshold=10), waits(a=10, b=0))
    assert priorities(found) == [1]
    echo = state.echo
    state, shares = weights.step(state, pool(A, B), waits(1.0, a=10, b=0), 1.0)
    assert shares[A.id].priority == 0
    assert state.echo is echo
    state, _ = weights.step(state, pool(A, B), waits(2.0, a=10, b=0), 2.0)
    assert state.echo is not echo


def test_steps_that_follow_closely_do_not_make_one_push_of_two():
    subject = pool(A, B)
    dead = {A.id: seen(), B.id: seen(reachability=REFUSED)}
    state, _ = run(subject, dead)
    for now in (1.0, 2.0):
        state, shares = weights.step(state, subject, {A.id: seen(), B.id: seen()}, now)
    assert shares[B.id].priority == 0
    echo, echoes = state.echo, []
    for now in (2.01, 2.02, 2.3, 2.6, 2.7):
        state, _ = weights.step(state, subject, {A.id: seen(), B.id: seen()}, now)
        echoes.append(state.echo != echo)
    assert echoes == [False, False, False, True, True]


def test_the_operators_priorities_are_kept_and_closed_up():
    subject = pool(A, endpoint("b", priority=1), endpoint("c", priority=2))
    fine = {each.id: seen() for each in subject.endpoints}
    _, (shares,) = run(subject, fine)
    assert [share.priority for share in shares.values()] == [0, 1, 2]
    dead = fine | {A.id: seen(reachability=REFUSED)}
    _, (shares,) = run(subject, dead)
    assert [share.priority for share in shares.values()] == [2, 0, 1]


def test_an_endpoint_that_drains_is_behind_the_operators_last_resort():
    subject = pool(A, endpoint("b", priority=2), endpoint("c", draining=True))
    _, (shares,) = run(subject, {each.id: seen() for each in subject.endpoints})
    assert [share.priority for share in shares.values()] == [0, 1, 2]


def busy(now):
    return {A.id: seen(now, waiting=40), B.id: seen(now, waiting=1), C.id: seen(now, waiting=4)}


def test_weights_are_bounded_as_the_pool_says():
    for bounds in (
        {"weight_min": 0.5},
        {"weight_max": 1.2},
        {"weight_min": 1.0, "weight_max": 1.0},
    ):
        _, shares = steps(pool(A, B, C, **bounds), busy)
        low, high = bounds.get("weight_min", 0.1), bounds.get("weight_max", 10.0)
        found = [share.weight for share in shares.values()]
        assert low * weights.SCALE <= min(found)
        assert max(found) <= high * weights.SCALE
    assert set(found) == {weights.SCALE}, "no room for anything else"


def test_bounds_that_become_narrower_hold_at_once():
    state, wide = steps(pool(A, B, C), busy)
    edge = wide[A.id].weight / weights.SCALE * 1.05  # within what is not worth a push
    _, shares = weights.step(state, pool(A, B, C, weight_min=edge), busy(60.0), 60.0)
    assert shares[A.id].weight >= int(edge * weights.SCALE)


def test_smoothing_says_how_soon_a_new_load_counts():
    def after(smoothing):
        subject = pool(A, B, smoothing=smoothing)
        state, _ = steps(subject, lambda now: waits(now, a=0, b=0), count=5)
        return weights.step(state, subject, waits(5.0, a=50, b=0), 5.0)[1][A.id].weight

    assert after(1.0) < after(0.3) < weights.SCALE
    assert after(0.01) > after(0.3)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.UNIFORM])
def test_weights_that_have_no_effect_are_computed_all_the_same(mode):
    fast = endpoint("b", speed=3.0)
    state, shares = steps(
        pool(A, fast, mode=mode, queue_threshold=5), lambda n: waits(n, a=40, b=1)
    )
    assert set(shares.values()) == {Share(weights.SCALE)}
    active, computed = steps(pool(A, fast, queue_threshold=5), lambda n: waits(n, a=40, b=1))
    assert state.computed == computed == active.computed
    assert computed[A.id].priority == 1
    assert computed[A.id].weight < computed[fast.id].weight


def test_a_frozen_pool_keeps_its_weights_and_who_had_spilled_over():
    state, before = steps(pool(A, B, C, queue_threshold=20), busy)
    assert before[A.id].priority == 1
    frozen = pool(A, B, C, mode=Mode.FREEZE, queue_threshold=20)
    state, after = steps(frozen, lambda n: waits(n, a=0, b=90, c=0), state=state, start=60.0)
    assert after == before
    assert state.computed != before
    state, thawed = weights.step(state, pool(A, B, C, queue_threshold=20), busy(121.0), 121.0)
    assert thawed == state.computed != before


def test_the_dead_of_a_frozen_pool_get_no_requests_while_others_live():
    state, before = steps(pool(A, B, C), busy)
    frozen = pool(A, B, C, mode=Mode.FREEZE)
    dead = {A.id: seen(), B.id: seen(reachability=REFUSED), C.id: seen()}
    state, found = run(frozen, dead, dead, state=state, start=60.0)
    assert priorities(found, B.id) == [1, 1]
    assert {n: s.weight for n, s in found[-1].items()} == {n: s.weight for n, s in before.items()}
    assert priorities(found) == priorities(found, C.id) == [0, 0]


def test_a_frozen_pool_whose_others_die_is_served_by_who_had_spilled_over():
    state, _ = steps(pool(A, B, queue_threshold=20), lambda n: waits(n, a=40, b=0))
    frozen, spare = pool(A, B, mode=Mode.FREEZE, queue_threshold=20), endpoint("c", priority=1)
    dead = waits(60.0, a=40) | {B.id: seen(reachability=REFUSED)}
    _, (shares,) = run(frozen, dead, state=state, start=60.0)
    assert (shares[A.id].priority, shares[B.id].priority) == (0, 1)
    _, (shares,) = run(replace(frozen, endpoints=(*frozen.endpoints, spare)), dead, state=state)
    assert shares[A.id].priority < shares[spare.id].priority < shares[B.id].priority


def test_members_come_and_go_in_a_frozen_pool():
    state, before = steps(pool(A, B, C), busy)
    away = [replace(each, ready=False) if each == B else each for each in (A, B)]
    new = endpoint("dd", speed=2.0)
    frozen = pool(*away, new, mode=Mode.FREEZE)
    state, (shares,) = run(frozen, busy(60.0), state=state, start=60.0)
    assert shares.keys() == {A.id, new.id}
    assert shares[A.id] == before[A.id]
    assert shares[new.id].weight == 2 * weights.SCALE, "what its capacity asks for"
    back = pool(A, B, new, mode=Mode.FREEZE)
    _, (shares,) = run(back, busy(61.0), state=state, start=61.0)
    assert shares[B.id].weight == before[B.id].weight, "it was away, and is the same"


def test_a_pool_that_starts_frozen_has_what_its_capacities_ask_for():
    subject = pool(A, endpoint("b", speed=3.0), mode=Mode.FREEZE)
    _, shares = steps(subject, lambda n: waits(n, a=40, b=0), count=5)
    assert [share.weight for share in shares.values()] == [100, 300]


endpoints = st.builds(
    Endpoint,
    id=st.sampled_from("abcdef"),
    pod=st.just("ns/p"),
    address=st.just("10.0.0.1"),
    port=st.just(80),
    ready=st.sampled_from([True, True, True, False]),
    draining=st.sampled_from([False, False, False, True]),
    speed=st.floats(0.01, 100),
    priority=st.integers(0, 2),
)
policies = st.builds(
    Policy,
    tier=st.sampled_from([Tier.PICK, Tier.WEIGHTS, Tier.ROUND_ROBIN]),
    mode=st.sampled_from(list(Mode)),
    queue_threshold=st.none() | st.integers(1, 50),
    kv_threshold=st.none() | st.floats(0.01, 1),
    smoothing=st.floats(0.01, 1),
    weight_min=st.floats(0.01, 1),
    weight_max=st.floats(1, 100),
)
worlds = st.tuples(
    st.lists(endpoints, max_size=6, unique_by=lambda each: each.id),
    policies,
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(loads, st.sampled_from(list(Reachability)))
    ),
    st.sampled_from([0.01, 1.0, 20.0]),
)


@given(st.lists(worlds, min_size=1, max_size=12))
def test_no_history_of_members_modes_and_loads_makes_an_assignment_that_is_not_valid(history):
    state, now, promotions = weights.State(), 0.0, []
    for members, policy, observed, pause in history:
        now += pause
        subject = replace(pool(*members), policy=policy)
        observations = {
            name: seen(now, waiting=load[0], running=load[1], usage=load[2], reachability=reached)
            for name, (load, reached) in observed.items()
        }
        before, echo = state.shares, state.echo
        state, shares = weights.step(state, subject, observations, now)
        check(subject, shares, policy, observations)
        assert state.computed.keys() == shares.keys()
        if state.echo != echo:
            promotions = [at for at in promotions if now - at < weights.ECHO_SECONDS]
        if any(name in before and before[name].priority > s.priority for name, s in shares.items()):
            promotions.append(now)
        assert state.promoted_at == (promotions[-1] if promotions else None)
        assert all(now - at < 20.0 for at in promotions), "a step later at the latest"


def check(subject, shares, policy, observations):
    """The invariants of one step's shares, each said as plainly as can be."""
    ready = {each.id: each for each in subject.endpoints if each.ready}
    assert shares.keys() == ready.keys()
    assert {share.priority for share in shares.values()} == set(
        range(len({share.priority for share in shares.values()}))
    )
    for name, share in shares.items():
        assert 1 <= share.weight <= 100 * weights.SCALE
        if policy.mode is Mode.ACTIVE and policy.tier is Tier.WEIGHTS:
            ordinary = weights.SCALE * ready[name].speed
            assert share.weight >= min(10000, math.floor(policy.weight_min * ordinary))
            assert share.weight <= max(1, math.ceil(policy.weight_max * ordinary))
    refusing = {n for n, seen_ in observations.items() if seen_.reachability is REFUSED}
    out = {n for n, each in ready.items() if each.draining or n in refusing}
    for name in ready.keys() - out:
        assert all(shares[name].priority <= shares[other].priority for other in out)
    if policy.mode in (Mode.OBSERVE, Mode.UNIFORM):
        assert {share.weight for share in shares.values()} <= {weights.SCALE}
