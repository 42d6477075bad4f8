"""The slow line as one object: pools and observations in, snapshots out.

    configure(pools) ─┐
    observe(id, obs) ─┼─► weigh(now) ─► snapshot(now)
                      ┘
Pure: whoever owns a `Plane` says what time it is and when to weigh. What is expensive to make is
made when its source changes and kept as bytes: Listener, RouteConfiguration and Cluster with the
pools, ClusterLoadAssignment and Pool with the shares, PoolLoad with the observations. Snapshots
follow many times a second, mostly for a few loads: the next one costs what is new in it.

Invariants:
1. A pool whose loads are unknown is still served: unknown is neutral, never absent.
2. `weigh` changes shares only; membership comes from `configure` alone.
3. One pool's trouble changes no other pool's bytes.
4. Of a policy, only what proxies are configured with is put on trial; the weigher and the scraper
   follow the operator at once. Pickers are told of affinity when the proxies are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from xds import weights, wire
from xds.assignment import cluster_load_assignment
from xds.court import Verdict
from xds.istio.assignment import assignment
from xds.pool import EndpointId, Observation, Policy, Pool, PoolName, Share
from xds.snapshot import Bodies, ResourceName, Snapshot, TypeUrl, Version
from xds.standalone import Standalone, resources
from xds.trials import Quarantine, Trials

OF_A_POOL = (TypeUrl.ENDPOINT, TypeUrl.POOL, TypeUrl.POOL_LOAD)
OFFERS = 16  # assignments that a client may still have and refuse the next one of


@dataclass(slots=True)
class _Line:
    """One pool on its way to bytes."""

    pool: Pool
    state: weights.State
    shares: dict[EndpointId, Share]
    # Of each type of `OF_A_POOL`; one that is missing must be made again.
    bodies: dict[TypeUrl, dict[ResourceName, bytes]] = field(default_factory=dict)
    # What was offered lately, by the version of its assignment; the newest is last.
    offered: dict[Version, dict[EndpointId, Share]] = field(default_factory=dict)
    rolled_back_to: dict[EndpointId, Share] | None = None
    quarantine: Quarantine | None = None

    def take(self, shares: dict[EndpointId, Share]) -> None:
        """The weigher's shares; while those are in quarantine, its priorities only.

        Priorities and membership are not rolled back: that would send requests to the dead.
        """
        if self.rolled_back_to is not None:
            old = self.rolled_back_to
            shares = {
                name: Share(old[name].weight if name in old else weights.SCALE, share.priority)
                for name, share in shares.items()
            }
        if shares != self.shares:
            self.shares = shares
            self.forget(TypeUrl.ENDPOINT)
            self.forget(TypeUrl.POOL)

    def forget(self, type_url: TypeUrl) -> None:
        """Have its bodies made again."""
        self.bodies.pop(type_url, None)


class Plane:
    """Synchronous, one owner."""

    def __init__(self, standalone: Standalone) -> None:
        self._standalone = standalone
        self._lines: dict[PoolName, _Line] = {}
        self._lines_of: dict[EndpointId, list[_Line]] = {}
        self._observations: dict[EndpointId, Observation] = {}
        self._written: dict[EndpointId, wire.WrittenLoad] = {}  # the observations, for pickers
        self._owners: dict[ResourceName, PoolName] = {}
        self._rearranged = True  # are there other resources than in `_snapshot`?
        self.trials = Trials()
        self._policies: Mapping[PoolName, Policy] | None = None  # that `_config` was made of
        self._config: Bodies = {}
        self._tenants: Mapping[str, Bodies] = {}
        self._snapshot = Snapshot.of({})

    @property
    def pools(self) -> Mapping[PoolName, Pool]:
        return {name: line.pool for name, line in self._lines.items()}

    @property
    def observations(self) -> Mapping[EndpointId, Observation]:
        return self._observations

    def shares(self, name: PoolName) -> Mapping[EndpointId, Share]:
        """What of the pool's endpoints is pushed."""
        return self._lines[name].shares

    def computed(self, name: PoolName) -> Mapping[EndpointId, Share]:
        """What would be, if the pool's mode were active."""
        return self._lines[name].state.computed

    def quarantines(self, name: PoolName) -> list[Quarantine]:
        """What of the pool clients refused and does not have effect."""
        found = (self.trials.quarantined.get(name), self._lines[name].quarantine)
        return [each for each in found if each is not None]

    def seen(self, endpoint: EndpointId) -> Observation:
        """The last observation of an endpoint."""
        return self._observations.get(endpoint, Observation())

    def configure(self, pools: Mapping[PoolName, Pool], now: float) -> None:
        """Take the pools as they are now; a pool that stays keeps the weigher's memory."""
        known = self._lines
        self._lines = {}
        for name, pool in pools.items():
            line = known.get(name)
            if line is None or line.pool != pool:
                state = line.state.pushed(line.shares) if line is not None else weights.State()
                offered = line.offered if line is not None else {}
                shares = weights.step(state, pool, self._observations, now)
                line = _Line(pool, *shares, offered=offered)
            self._lines[name] = line
        self._lines_of, self._owners, self._rearranged = {}, {}, True
        for name, line in self._lines.items():
            for member in line.pool.endpoints:
                self._lines_of.setdefault(member.id, []).append(line)
            for resource in (name, *(each.name for each in line.pool.istio_clusters)):
                self._owners[resource] = name
        self.trials.configure(
            replace(pool, policy=pool.policy.of_proxies) for pool in pools.values()
        )

    def roll_back(self, verdict: Verdict) -> None:
        """Most clients of a resource refuse it: take weights or policy back, never members."""
        name = self._snapshot.owners.get(verdict.name, "")
        line = self._lines.get(name)
        if line is None:
            return
        if verdict.type_url == TypeUrl.CLUSTER:
            self.trials.roll_back(name, verdict.reason)
        elif verdict.type_url == TypeUrl.ENDPOINT and line.quarantine is None:
            line.quarantine = Quarantine("weights", verdict.reason)
            line.rolled_back_to = line.offered.get(verdict.accepted, {})
            line.take(line.shares)

    def observe(self, endpoint: EndpointId, observation: Observation | None) -> None:
        """What the scraper saw; None forgets an endpoint that no pool has any more."""
        if observation is None:
            self._observations.pop(endpoint, None)
            self._written.pop(endpoint, None)
        else:
            self._observations[endpoint] = observation
            self._written[endpoint] = wire.write_load(endpoint, observation)
        for line in self._lines_of.get(endpoint, ()):
            line.forget(TypeUrl.POOL_LOAD)

    def weigh(self, now: float) -> None:
        """One step of every pool's weigher."""
        for line in self._lines.values():
            before = line.state
            line.state, shares = weights.step(before, line.pool, self._observations, now)
            line.take(shares)
            if line.state.echo != before.echo:
                line.forget(TypeUrl.ENDPOINT)

    def snapshot(self, now: float) -> Snapshot:
        """The resources as of now; what did not change keeps its bytes and its version."""
        if self._policies != self.trials.in_effect:
            self._take_effect(dict(self.trials.in_effect))
        news = self._news(now)
        if self._rearranged:
            news = self._bodies()
            bodies = {**self._config, **news}
            self._snapshot = Snapshot.of(bodies, self._snapshot, self._owners, self._tenants)
            self._rearranged = False
        else:
            self._snapshot = self._snapshot.updated(news)
        for name in news[TypeUrl.ENDPOINT]:
            self._remember(name)
        return self._snapshot

    def trial(self) -> Snapshot:
        """The last snapshot, but for the policy that is to be tried."""
        config, tenants = self._compose(self.trials.tried())
        last = self._snapshot
        whole = {
            type_url: {name: each.body for name, each in resources.by_name.items()}
            for type_url, resources in last.types.items()
        }
        return Snapshot.of({**whole, **config}, last, last.owners, tenants)

    def _compose(self, policies: Mapping[PoolName, Policy]) -> tuple[Bodies, dict[str, Bodies]]:
        """What Envoys are told beside assignments: everybody, and each namespace for itself."""
        pools = {name: replace(self._lines[name].pool, policy=policies[name]) for name in policies}
        by_namespace = groupby(sorted(pools), key=lambda name: name.partition("/")[0])
        tenants: dict[str, Bodies] = {
            namespace: resources({name: pools[name] for name in names}, self._standalone)
            for namespace, names in by_namespace
        }
        return resources(pools, self._standalone), tenants

    def _take_effect(self, policies: Mapping[PoolName, Policy]) -> None:
        before, self._policies = self._policies or {}, policies
        for name, line in self._lines.items():
            if before.get(name) != policies[name]:
                line.forget(TypeUrl.POOL)
        self._config, self._tenants = self._compose(policies)
        self._rearranged = True

    def _news(self, now: float) -> Bodies:
        """Make what must be made again; returns what of it is to be seen.

        Two pools may answer for one cluster of istiod's: the one that it belongs to is heard.
        """
        news: dict[str, dict[ResourceName, bytes]] = {each: {} for each in OF_A_POOL}
        for pool, line in self._lines.items():
            for type_url in OF_A_POOL:
                if type_url not in line.bodies:
                    made = line.bodies[type_url] = self._made(type_url, line, now)
                    own = {name: made[name] for name in made if self._owners[name] == pool}
                    news[type_url] |= own
        return news

    def _made(self, type_url: TypeUrl, line: _Line, now: float) -> dict[ResourceName, bytes]:
        pool = line.pool
        if type_url is TypeUrl.ENDPOINT:
            return _assignments(line)
        if type_url is TypeUrl.POOL:
            return {pool.name: wire.encode_pool(self._for_pickers(pool), line.shares)}
        loads = [self._written[each.id] for each in pool.endpoints if each.id in self._written]
        return {pool.name: wire.join_loads(pool.name, loads, now)}

    def _bodies(self) -> Bodies:
        return {
            type_url: {
                name: body
                for line in self._lines.values()
                for name, body in line.bodies[type_url].items()
            }
            for type_url in OF_A_POOL
        }

    def _for_pickers(self, pool: Pool) -> Pool:
        """The pool, with the affinity that its proxies have."""
        theirs = self.trials.in_effect[pool.name]
        header = theirs.session_header
        policy = replace(pool.policy, affinity=theirs.affinity, session_header=header)
        return replace(pool, policy=policy)

    def _remember(self, name: ResourceName) -> None:
        """Which shares a version of an assignment stands for, so that they can be gone back to."""
        line, resource = self._lines[self._owners[name]], self._snapshot.get(TypeUrl.ENDPOINT, name)
        if resource is None:
            return
        line.offered.pop(resource.version, None)  # the newest is last
        line.offered[resource.version] = line.shares
        for old in list(line.offered)[: -OFFERS * len(line.bodies[TypeUrl.ENDPOINT])]:
            del line.offered[old]


def _assignments(line: _Line) -> dict[str, bytes]:
    pool, echo = line.pool, line.state.echo
    own = cluster_load_assignment(pool.name, pool.endpoints, line.shares, echo=echo)
    return {pool.name: own} | {
        cluster.name: assignment(cluster, pool.endpoints, line.shares, echo=echo)
        for cluster in pool.istio_clusters
    }
