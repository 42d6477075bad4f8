"""From a request to an endpoint: filter, cost, pick, reserve. One pool, one synchronous step.

Filters: an endpoint must be in the subset, if the proxy names one; then those that take requests go
before those that drain or refuse connections, and a lower priority before a higher. The cheapest
endpoint by `picker.cost` wins, ties by lot.

Unknown is not idle: an endpoint of which nothing is known, or nothing recent, is taken to be as
busy as the mean of the others, plus what we sent it ourselves.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from picker.cost import (
    Coefficients,
    Standing,
    Work,
    endpoint_cost,
    prefill_seconds,
    step_seconds,
)
from picker.inflight import IDLE, NEVER, InFlight
from picker.prefix import PrefixIndex
from picker.request import BYTES_A_TOKEN, Request
from xds.pool import EndpointId, Load, Observation, Reachability
from xds.wire import Member, PoolView

STALE_SECONDS = 5.0
DEFAULT_KV_TOKENS = 400_000.0
DEFAULT_OUTPUT_TOKENS = 128.0
DEFAULT_PROMPT_TOKENS = 500.0
LEARNING = 0.05


@dataclass(frozen=True, slots=True)
class Pick:
    """The endpoint, and why: tokens of the prompt believed to be cached there."""

    endpoint: EndpointId
    cached: float
    candidates: int
    captured: bool = False

    @property
    def destination(self) -> str:
        """What the proxy is told. It looks for a host of just this name, and a Pod that ztunnel
        captured has an internal address there: both are named, and the proxy takes the one it has.
        """
        if not self.captured:
            return self.endpoint
        return f"{self.endpoint},envoy://connect_originate/{self.endpoint}"


class NoEndpoint(LookupError):
    """The pool has nobody to send this request to."""


class PoolState:
    """What a picker knows of one pool. Synchronous, one owner; `now` and `rng` are arguments."""

    def __init__(self, view: PoolView, coefficients: Coefficients | None = None) -> None:
        self.view = view
        self._k = coefficients or Coefficients()
        self._observations: Mapping[EndpointId, Observation] = {}
        self._in_flight: dict[EndpointId, InFlight] = {}
        self._index = PrefixIndex()
        self._adapters: frozenset[str] = frozenset()  # every name that a server called an adapter
        self._output = DEFAULT_OUTPUT_TOKENS  # learned means
        self._prompt = DEFAULT_PROMPT_TOKENS
        self._uncached = DEFAULT_PROMPT_TOKENS

    def update(self, view: PoolView) -> None:
        """Members and policy as they are now; what is known of those that stay is kept."""
        self.view = view
        names = {member.endpoint for member in view.members}
        self._index.keep(names)
        for gone in self._in_flight.keys() - names:
            del self._in_flight[gone]

    def observe(self, observations: Mapping[EndpointId, Observation]) -> None:
        """Loads as they are now; reservations that they include are given up."""
        self._observations = observations
        for name, seen in observations.items():
            if seen.load is None:
                continue
            self._adapters |= seen.load.adapters
            if name in self._in_flight:
                self._in_flight[name].settle(seen.load.at)
        loads = (seen.load for seen in observations.values())
        lengths = [load.output_tokens for load in loads if load and load.output_tokens]
        if lengths:
            self._output = sum(lengths) / len(lengths)

    def pick(
        self,
        request: Request,
        now: float,
        rng: Random,
        subset: Iterable[str] | None = None,
    ) -> Pick:
        """Choose, and reserve what was chosen. Raises `NoEndpoint`."""
        members = candidates(self.view.members, self._observations, subset)
        if not members:
            raise NoEndpoint(self.view.name)
        prompt = request.prompt_tokens
        work = Work(self._prompt if prompt is None else prompt, self._output)
        matched = self._index.match(request.prefix) if self.view.prefix_affinity else {}
        # JSON spells a prompt a little longer than it is: the share is what carries over.
        share = work.prompt / request.prompt_bytes if request.prompt_bytes else 0.0
        typical = self._typical(members, now)
        best: list[tuple[Member, Standing]] = []
        lowest = float("inf")
        for member in members:
            cached = min(matched.get(member.endpoint, 0) * share, work.prompt)
            standing = self._standing(member, cached, request.model, typical, now)
            cost = endpoint_cost(work, standing, self._k)
            if cost < lowest:
                lowest, best = cost, [(member, standing)]
            elif cost == lowest:
                best.append((member, standing))
        chosen, standing = best[0] if len(best) == 1 else rng.choice(best)
        self._take(chosen.endpoint, request, work, standing, now)
        return Pick(chosen.endpoint, standing.cached, len(members), chosen.captured)

    def _standing(
        self, member: Member, cached: float, model: str, typical: tuple[float, float], now: float
    ) -> Standing:
        load = self._load(member.endpoint, now)
        sent = self._in_flight.get(member.endpoint)
        waiting, running = typical
        scraped_at = NEVER
        if load is not None:
            scraped_at = load.at
            waiting = waiting if load.waiting is None else float(load.waiting)
            running = running if load.running is None else float(load.running)
        own = sent.own(now, scraped_at) if sent else IDLE
        # No more of ours can wait than the scrape saw waiting or in prefill, and what came since.
        most = waiting + 1 + own.sent
        ours = min(float(own.waiting), most)
        pending = own.pending * ours / own.waiting if own.waiting else 0.0
        others = max(0.0, waiting - own.waiting_then)
        everyone = waiting + running + own.sent - own.finished
        # What was admitted since the scrape holds memory, what finished has given it back.
        admitted = max(0.0, waiting + own.sent - ours - others)
        capacity = _kv_tokens(load)
        used = (load.kv_cache_usage or 0.0) * capacity if load is not None else 0.0
        used += admitted * self._uncached - own.finished * self._prompt
        has_adapter, has_slot = self._adapter(load, sent, model)
        return Standing(
            decoding=max(0.0, everyone - ours - others),
            waiting=ours + others,
            pending=pending + others * self._uncached,
            context=self._prompt,
            kv_usage=min(1.0, max(0.0, used / capacity)),
            kv_tokens=capacity,
            cached=cached,
            has_adapter=has_adapter,
            has_slot=has_slot,
            speed=member.speed,
        )

    def _adapter(self, load: Load | None, sent: InFlight | None, model: str) -> tuple[bool, bool]:
        """Is the adapter loaded there, as far as we can tell, and is a slot free if not?

        Servers name adapters with requests under way only; one that is loaded and idle is known
        from what we sent.
        """
        if not self.view.adapter_affinity or model not in self._adapters:
            return True, True
        believed = set(sent.adapters) if sent else set()
        busy = load.adapters if load is not None else frozenset()
        slots = load.max_adapters if load is not None else None
        return model in believed or model in busy, slots is None or len(believed | busy) < slots

    def _typical(self, members: Sequence[Member], now: float) -> tuple[float, float]:
        """Mean waiting and running of those whose load is known."""
        loads = [self._load(member.endpoint, now) for member in members]
        waiting = [load.waiting for load in loads if load and load.waiting is not None]
        running = [load.running for load in loads if load and load.running is not None]
        return (
            sum(waiting) / len(waiting) if waiting else 0.0,
            sum(running) / len(running) if running else 0.0,
        )

    def _load(self, endpoint: EndpointId, now: float) -> Load | None:
        """The endpoint's load, unless it is too old to say anything."""
        seen = self._observations.get(endpoint)
        if seen is None or seen.load is None or now - seen.load.at > STALE_SECONDS:
            return None
        return seen.load

    def _take(
        self, endpoint: EndpointId, request: Request, work: Work, found: Standing, now: float
    ) -> None:
        k, uncached = self._k, max(0.0, work.prompt - found.cached)
        step = step_seconds(found, k)
        alone = prefill_seconds(work, replace(found, pending=0.0), k)
        sent = self._in_flight.setdefault(endpoint, InFlight())
        sent.reserve(
            now,
            uncached,
            prefill=alone / found.speed,
            decode=work.output * step / found.speed,
        )
        load = self._load(endpoint, now)
        if request.model:
            sent.remember(request.model, load.max_adapters if load else None)
        if request.prefix.keys:
            self._index.learn(endpoint, request.prefix, _kv_tokens(load) * BYTES_A_TOKEN)
        self._prompt += LEARNING * (work.prompt - self._prompt)
        self._uncached += LEARNING * (uncached - self._uncached)


def candidates(
    members: Sequence[Member],
    observations: Mapping[EndpointId, Observation],
    subset: Iterable[str] | None,
) -> list[Member]:
    """Those that a request may go to: the best class of members that is not empty."""
    chosen = members if subset is None else [m for m in members if _is_in(m, frozenset(subset))]
    if not chosen:
        return []

    def rank(member: Member) -> tuple[bool, int]:
        seen = observations.get(member.endpoint)
        refused = seen is not None and seen.reachability is Reachability.REFUSED
        return member.draining or refused, member.priority

    ranks = [rank(member) for member in chosen]
    best = min(ranks)
    return [member for member, its in zip(chosen, ranks, strict=True) if its == best]


def _is_in(member: Member, subset: frozenset[str]) -> bool:
    """A subset names endpoints, or addresses with all of their ports."""
    return member.endpoint in subset or member.endpoint.rpartition(":")[0].strip("[]") in subset


def _kv_tokens(load: Load | None) -> float:
    if load is None or not load.blocks or not load.block_size:
        return DEFAULT_KV_TOKENS
    return float(load.blocks * load.block_size)
