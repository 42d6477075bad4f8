"""Loads → weights and priorities, by a damped controller.

An endpoint's load L is what holds its requests up, in sequences: 8 x waiting + running, over its
stated capacity, + 32 x KV use + the time between tokens in milliseconds; smoothed. Its error e is
(L - mean) / (mean + 1), nothing inside a dead band. The controller moves the logarithm of its
weight, so that a weight halves as easily as it doubles:

    log w = I - KP e          I -= KI e a second, leaking to 0 with a time constant of 1/LEAK

Gains: the "soft" row of a simulation study of 9 workloads (kp .3, ki .02, dead band .1), within
noise of the hot ones in capacity and with a third of their movement. The leak is what makes
replicas agree: integrators over the same loads would keep the difference they started with.

Invariants, each a property in the tests
1. Equal loads give equal weights, at once and for ever; capacities then set the proportions.
2. Whatever is not known counts as the mean: it neither attracts nor repels.
3. Weights are 1 to 100 x SCALE, and a pool's sum stays below 2^32.
4. A steady pool keeps its shares: weights within 10 % of what the stated capacities ask for are
   exactly that (equal servers stay in step), and otherwise a change under 10 % is not published.
5. Priorities are contiguous from 0, and someone is at 0. Draining, and refusing connections, mean
   last; a server that came back waits `PROMOTE_AFTER` steps for its place.
6. One step never depends on the order of the endpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from xds.pool import Endpoint, EndpointId, Load, Observation, Pool, Reachability, Share, Tier

KP, KI, DEAD_BAND = 0.3, 0.02, 0.1
LEAK = 0.06  # a second: e^-3.6, under 3 %, is left of any difference after a minute
SMOOTHING = 0.3  # of a second's new loads in the smoothed one
FADE_SECONDS = 10.0  # a load this old says nothing any more
SCALE = 100  # an ordinary endpoint's weight
LOWEST, HIGHEST = 0.1, 10.0  # the controller's reach
HYSTERESIS = 0.10
PROMOTE_AFTER = 2
UNIFORM = frozenset({Tier.ROUND_ROBIN, Tier.LEAST_REQUEST})


@dataclass(frozen=True, slots=True)
class Memory:
    """What the controller remembers of one endpoint."""

    load: float | None = None  # smoothed
    integral: float = 0.0
    healthy_steps: int = PROMOTE_AFTER


@dataclass(frozen=True, slots=True)
class State:
    """One pool's controller. `echo` flips to have unchanged shares pushed once more (below)."""

    at: float | None = None
    memory: Mapping[EndpointId, Memory] = field(default_factory=dict)
    shares: Mapping[EndpointId, Share] = field(default_factory=dict)
    echo: bool = False
    promoted: bool = False


def step(
    state: State, pool: Pool, observations: Mapping[EndpointId, Observation], now: float
) -> tuple[State, dict[EndpointId, Share]]:
    """The pool's next state and its shares as of `now` (seconds, in the clock of the loads).

    Every endpoint that is ready has a share. Envoy 1.40's override_host loses sight of an endpoint
    whose priority rises until the assignment comes once more: the step after such a promotion flips
    `echo`, which makes the same assignment other bytes.
    """
    elapsed = 0.0 if state.at is None else max(0.0, now - state.at)
    members = [endpoint for endpoint in pool.endpoints if endpoint.ready]
    memory = {
        each.id: _remember(state.memory.get(each.id), each, observations.get(each.id), now, elapsed)
        for each in members
    }
    memory = _control(memory, elapsed)
    priorities = _priorities(members, memory)
    shares = _shares(pool.policy.tier, members, memory, priorities, state.shares)
    promoted = any(
        name in state.shares and state.shares[name].priority > share.priority
        for name, share in shares.items()
    )
    echo = state.echo != state.promoted
    return State(now, memory, shares, echo, promoted), shares


def pressure(load: Load, speed: float) -> float | None:
    """L of one endpoint; None where the page had neither queue nor batch."""
    if load.waiting is None and load.running is None:
        return None
    usage = load.kv_cache_usage or 0.0
    gap = load.decode_step_seconds or 0.0
    sequences = 8 * (load.waiting or 0) + (load.running or 0)
    return sequences / speed + 32 * usage + 1e3 * gap


def _remember(
    before: Memory | None,
    endpoint: Endpoint,
    seen: Observation | None,
    now: float,
    elapsed: float,
) -> Memory:
    before = before or Memory()
    seen = seen or Observation()
    load = seen.load
    fresh = load is not None and now - load.at <= FADE_SECONDS
    new = pressure(load, endpoint.speed) if load is not None and fresh else None
    if new is not None and before.load is not None:
        part = 1.0 - (1.0 - SMOOTHING) ** elapsed
        new = before.load + part * (new - before.load)
    dead = seen.reachability is Reachability.REFUSED
    # One that has not been asked yet keeps its standing, whatever that is.
    known = seen.reachability is not Reachability.UNKNOWN
    steps = 0 if dead else min(before.healthy_steps + known, PROMOTE_AFTER)
    return Memory(new, before.integral, steps)


def _control(memory: dict[EndpointId, Memory], elapsed: float) -> dict[EndpointId, Memory]:
    """Move the integrals, then centre them: their mean has no effect but to reach a limit."""
    if not memory:
        return memory
    keep = math.exp(-LEAK * elapsed)
    errors = _errors(memory)
    moved = {
        name: keep * each.integral - KI * elapsed * errors[name] for name, each in memory.items()
    }
    centre = math.fsum(moved.values()) / len(moved)
    limit = math.log(HIGHEST)
    return {
        name: Memory(each.load, max(-limit, min(limit, moved[name] - centre)), each.healthy_steps)
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


def _priorities(
    members: list[Endpoint], memory: Mapping[EndpointId, Memory]
) -> dict[EndpointId, int]:
    last = {
        each.id: each.draining or memory[each.id].healthy_steps < PROMOTE_AFTER for each in members
    }
    lowest = 0 if all(last.values()) else 1
    return {name: lowest if is_last else 0 for name, is_last in last.items()}


def _shares(
    tier: Tier,
    members: list[Endpoint],
    memory: Mapping[EndpointId, Memory],
    priorities: Mapping[EndpointId, int],
    before: Mapping[EndpointId, Share],
) -> dict[EndpointId, Share]:
    """Integer shares: those that the capacities ask for, or those published, if near enough."""
    if tier in UNIFORM:
        return {each.id: Share(SCALE, priorities[each.id]) for each in members}
    errors = _errors(memory)
    factors = {
        each.id: max(
            LOWEST, min(HIGHEST, math.exp(memory[each.id].integral - KP * errors[each.id]))
        )
        for each in members
    }
    mean = math.fsum(factors.values()) / len(factors) if factors else 1.0
    highest = min(100 * SCALE, (2**32 - 1) // max(1, len(members)))

    def weight(member: Endpoint, factor: float) -> int:
        return max(1, min(highest, round(SCALE * member.speed * factor)))

    weights = {each.id: weight(each, factors[each.id] / mean) for each in members}
    stated = {each.id: weight(each, 1.0) for each in members}
    published = {name: share.weight for name, share in before.items()}
    chosen = next((known for known in (stated, published) if _is_near(weights, known)), weights)
    return {name: Share(chosen[name], priorities[name]) for name in weights}


def _is_near(weights: Mapping[EndpointId, int], known: Mapping[EndpointId, int]) -> bool:
    """Are these the same endpoints, and no weight further off than the hysteresis?"""
    return weights.keys() == known.keys() and all(
        abs(weight - known[name]) <= HYSTERESIS * known[name] for name, weight in weights.items()
    )
