"""Loads → weights and priorities, by a damped controller.

An endpoint's load L is what holds its requests up, in sequences: 8 x waiting + running, over its
stated capacity, + 32 x KV use + the time between tokens in milliseconds; smoothed. Its error e is
(L - mean) / (mean + 1), nothing inside a dead band. The controller moves the logarithm of its
weight, so that a weight halves as easily as it doubles:

    log w = I - KP e          I -= KI e a second, leaking to 0 with a time constant of 1/LEAK

Gains: the "soft" row of a simulation study of 9 workloads (kp .3, ki .02, dead band .1), within
noise of the hot ones in capacity and with a third of their movement. The leak is what makes
replicas agree: integrators over the same loads would keep the difference they started with.

Priorities: an endpoint is where the operator wants it at best. One that serves at 0 and is
saturated, by the pool's thresholds, goes to 1 as spill-over, unless all that serve there are: then
nobody moves. It comes back when it was below `CALM` of the thresholds for `PROMOTE_AFTER` steps;
while its load is not known it stays where it is. Draining, and refusing connections, mean last.

The pool's mode says what of this has effect; what has none is still computed, and shown:

    active     weights by load, spill-over
    observe    weights all equal, nobody spills over
    uniform    likewise; pickers go on picking, which in observe they do not
    freeze     each endpoint's last weight, or what its capacity asks for; who had spilled over has

Invariants, each a property in the tests
1. Equal loads give equal weights, at once and for ever; capacities then set the proportions.
2. Whatever is not known counts as the mean: it neither attracts nor repels.
3. Weights are 1 to 100 x SCALE, and a pool's sum stays below 2^32. In the active mode they are
   within the pool's bounds of what the stated capacities ask for.
4. A steady pool keeps its shares: weights within 10 % of what the stated capacities ask for are
   exactly that (equal servers stay in step), and otherwise a change under 10 % is not published.
5. Priorities are contiguous from 0, and someone is at 0. Those that drain or refuse connections are
   behind all others in every mode; a server that came back waits `PROMOTE_AFTER` steps for its
   place. Nobody is before where the operator wants it while somebody serves who may be there.
6. One step never depends on the order of the endpoints.
7. Every endpoint that is ready has a share, in every mode and on the way from any to any other.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from xds.pool import (
    Endpoint,
    EndpointId,
    Load,
    Mode,
    Observation,
    Policy,
    Pool,
    Reachability,
    Share,
    Tier,
)

KP, KI, DEAD_BAND = 0.3, 0.02, 0.1
LEAK = 0.06  # a second: e^-3.6, under 3 %, is left of any difference after a minute
FADE_SECONDS = 10.0  # a load this old says nothing any more
SCALE = 100  # an ordinary endpoint's weight
HYSTERESIS = 0.10
PROMOTE_AFTER = 2
CALM = 0.8  # of a threshold: below it, saturation ends
ECHO_SECONDS = 0.5  # between a promotion and its second push, for the first to go out
UNIFORM = frozenset({Tier.ROUND_ROBIN, Tier.LEAST_REQUEST})
LAST = 3  # behind whatever an operator can ask for


@dataclass(frozen=True, slots=True)
class Memory:
    """What the controller remembers of one endpoint."""

    load: float | None = None  # smoothed
    integral: float = 0.0
    healthy_steps: int = PROMOTE_AFTER
    saturated: bool = False
    calm_steps: int = 0


UNKNOWN, NEW = Observation(), Memory()


@dataclass(frozen=True, slots=True)
class State:
    """One pool's controller. `echo` flips to have unchanged shares pushed once more (below)."""

    at: float | None = None
    memory: Mapping[EndpointId, Memory] = field(default_factory=dict)
    shares: Mapping[EndpointId, Share] = field(default_factory=dict)  # to be pushed
    computed: Mapping[EndpointId, Share] = field(default_factory=dict)  # as if active
    weights: Mapping[EndpointId, int] = field(default_factory=dict)  # last, of those not ready too
    spilled: frozenset[EndpointId] = frozenset()
    echo: bool = False
    promoted_at: float | None = None  # a promotion that was not pushed again yet

    def pushed(self, shares: Mapping[EndpointId, Share]) -> "State":
        """The state of a pool that was pushed these weights, whatever was computed."""
        weights = {name: share.weight for name, share in shares.items()}
        return replace(self, weights={**self.weights, **weights})


def step(
    state: State, pool: Pool, observations: Mapping[EndpointId, Observation], now: float
) -> tuple[State, dict[EndpointId, Share]]:
    """The pool's next state and its shares as of `now` (seconds, in the clock of the loads).

    Every endpoint that is ready has a share. Envoy 1.40's override_host loses sight of an endpoint
    whose priority rises until the assignment comes once more: a step after such a promotion flips
    `echo`, which makes the same assignment other bytes.
    """
    elapsed = 0.0 if state.at is None else max(0.0, now - state.at)
    policy = pool.policy
    members = [endpoint for endpoint in pool.endpoints if endpoint.ready]
    memory = {}
    for each in members:
        before, seen = state.memory.get(each.id, NEW), observations.get(each.id, UNKNOWN)
        memory[each.id] = _remember(before, each, seen, policy, now, elapsed)
    memory = _control(memory, elapsed, policy)
    serving = [
        each
        for each in members
        if not each.draining and memory[each.id].healthy_steps >= PROMOTE_AFTER
    ]
    spilled = _spilled(serving, {name for name, each in memory.items() if each.saturated})
    weights = _weights(policy, members, memory, state.computed)
    computed = _shares(members, serving, weights, spilled)
    shares = computed
    if policy.mode is not Mode.ACTIVE:
        weights, spilled = _without_load(state, policy, members)
        shares = _shares(members, serving, weights, _spilled(serving, spilled))
    echo, promoted_at = _echo(state, shares, now)
    last = {each.id: state.weights[each.id] for each in pool.endpoints if each.id in state.weights}
    last |= weights
    return State(now, memory, shares, computed, last, spilled, echo, promoted_at), shares


def pressure(load: Load, speed: float) -> float | None:
    """L of one endpoint; None where the page had neither queue nor batch."""
    if load.waiting is None and load.running is None:
        return None
    usage = load.kv_cache_usage or 0.0
    gap = load.decode_step_seconds or 0.0
    sequences = 8 * (load.waiting or 0) + (load.running or 0)
    return sequences / speed + 32 * usage + 1e3 * gap


def _remember(  # noqa: PLR0913, PLR0917 - one endpoint's everything
    before: Memory,
    endpoint: Endpoint,
    seen: Observation,
    policy: Policy,
    now: float,
    elapsed: float,
) -> Memory:
    load = seen.load if seen.load is not None and now - seen.load.at <= FADE_SECONDS else None
    new = pressure(load, endpoint.speed) if load is not None else None
    if new is not None and before.load is not None:
        part = 1.0 - (1.0 - policy.smoothing) ** elapsed
        new = before.load + part * (new - before.load)
    dead = seen.reachability is Reachability.REFUSED
    # One that has not been asked yet keeps its standing, whatever that is.
    known = seen.reachability is not Reachability.UNKNOWN
    steps = 0 if dead else min(before.healthy_steps + known, PROMOTE_AFTER)
    return Memory(new, before.integral, steps, *_saturation(before, load, policy))


def _saturation(before: Memory, load: Load | None, policy: Policy) -> tuple[bool, int]:
    """Is it saturated, and for how many steps has it been calm?"""
    if policy.queue_threshold is None and policy.kv_threshold is None:
        return False, 0
    if load is None:
        return before.saturated, before.calm_steps
    uses = []
    if policy.queue_threshold is not None and load.waiting is not None:
        uses.append(load.waiting / policy.queue_threshold)
    if policy.kv_threshold is not None and load.kv_cache_usage is not None:
        uses.append(load.kv_cache_usage / policy.kv_threshold)
    use = max(uses, default=0.0)
    if use >= 1 or not before.saturated:
        return use >= 1, 0
    calm = before.calm_steps + 1 if use < CALM else 0
    return calm < PROMOTE_AFTER, calm


def _control(
    memory: dict[EndpointId, Memory], elapsed: float, policy: Policy
) -> dict[EndpointId, Memory]:
    """Move the integrals, then centre them: their mean has no effect but to reach a limit."""
    if not memory:
        return memory
    keep = math.exp(-LEAK * elapsed)
    errors = _errors(memory)
    moved = {
        name: keep * each.integral - KI * elapsed * errors[name] for name, each in memory.items()
    }
    centre = math.fsum(moved.values()) / len(moved)
    low, high = math.log(policy.weight_min), math.log(policy.weight_max)
    limited = {name: max(low, min(high, each - centre)) for name, each in moved.items()}
    return {
        name: Memory(each.load, limited[name], each.healthy_steps, each.saturated, each.calm_steps)
        for name, each in memory.items()
    }


def _errors(memory: Mapping[EndpointId, Memory]) -> dict[EndpointId, float]:
    known = [each.load for each in memory.values() if each.load is not None]
    mean = math.fsum(known) / len(known) if known else 0.0
    errors = {}
    for name, each in memory.items():
        error = 0.0 if each.load is None else (each.load - mean) / (mean + 1)
        errors[name] = 0.0 if abs(error) < DEAD_BAND else error
    return errors


def _spilled(serving: list[Endpoint], full: Collection[EndpointId]) -> frozenset[EndpointId]:
    """Those of `full` that spill over: all that serve at 0, unless nobody would be left there."""
    first = [each.id for each in serving if each.priority == 0]
    spilled = frozenset(first).intersection(full)
    return spilled if len(spilled) < len(first) else frozenset()


def _without_load(
    state: State,
    policy: Policy,
    members: list[Endpoint],
) -> tuple[dict[EndpointId, int], frozenset[EndpointId]]:
    """Weights, and who has spilled over, in the modes that do not follow the load."""
    if policy.mode is not Mode.FREEZE:
        return {each.id: SCALE for each in members}, frozenset()
    stated = _stated(policy, members)
    kept = {each.id: state.weights.get(each.id, stated[each.id]) for each in members}
    return kept, state.spilled


def _shares(
    members: list[Endpoint],
    serving: list[Endpoint],
    weights: Mapping[EndpointId, int],
    spilled: Collection[EndpointId],
) -> dict[EndpointId, Share]:
    """Shares with priorities contiguous from 0, in the order of the ranks."""
    ranks = {each.id: LAST for each in members}
    ranks |= {each.id: max(each.priority, int(each.id in spilled)) for each in serving}
    order = {rank: number for number, rank in enumerate(sorted(set(ranks.values())))}
    return {each.id: Share(weights[each.id], order[ranks[each.id]]) for each in members}


def _weights(
    policy: Policy,
    members: list[Endpoint],
    memory: Mapping[EndpointId, Memory],
    before: Mapping[EndpointId, Share],
) -> dict[EndpointId, int]:
    """Integer weights: those that the capacities ask for, or the last ones, if near enough."""
    if policy.tier in UNIFORM:
        return {each.id: SCALE for each in members}
    errors = _errors(memory)
    low, high = policy.weight_min, policy.weight_max
    factors = {
        each.id: max(low, min(high, math.exp(memory[each.id].integral - KP * errors[each.id])))
        for each in members
    }
    mean = math.fsum(factors.values()) / len(factors) if factors else 1.0
    limit, weights = _limit(members), {}
    for each in members:
        factor = max(low, min(high, factors[each.id] / mean))
        weights[each.id] = _weight(each, factor, limit)
    if _is_near(weights, stated := _stated(policy, members)):
        return stated
    last = {name: share.weight for name, share in before.items()}
    if _is_near(weights, last) and all(
        _weight(each, low, limit) <= last[each.id] <= _weight(each, high, limit) for each in members
    ):
        return last
    return weights


def _stated(policy: Policy, members: list[Endpoint]) -> dict[EndpointId, int]:
    """What the capacities alone ask for."""
    if policy.tier in UNIFORM:
        return {each.id: SCALE for each in members}
    limit = _limit(members)
    return {each.id: _weight(each, 1.0, limit) for each in members}


def _limit(members: list[Endpoint]) -> int:
    return min(100 * SCALE, (2**32 - 1) // max(1, len(members)))


def _weight(member: Endpoint, factor: float, limit: int) -> int:
    return max(1, min(limit, round(SCALE * member.speed * factor)))


def _is_near(weights: Mapping[EndpointId, int], known: Mapping[EndpointId, int]) -> bool:
    """Are these the same endpoints, and no weight further off than the hysteresis?"""
    return weights.keys() == known.keys() and all(
        abs(weight - known[name]) <= HYSTERESIS * known[name] for name, weight in weights.items()
    )


def _echo(
    state: State, shares: Mapping[EndpointId, Share], now: float
) -> tuple[bool, float | None]:
    """`echo`, and since when a promotion waits for it.

    Steps that follow closely, as when members change, may be pushed as one: the second push of a
    promotion must not be part of the first.
    """
    echo, waiting = state.echo, state.promoted_at
    if waiting is not None and now - waiting >= ECHO_SECONDS:
        echo, waiting = not echo, None
    promoted = any(
        name in state.shares and state.shares[name].priority > share.priority
        for name, share in shares.items()
    )
    return echo, now if promoted else waiting
