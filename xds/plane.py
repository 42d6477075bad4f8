"""The slow line as one object: pools and observations in, snapshots out.

    configure(pools) ─┐
    observe(id, obs) ─┼─► weigh(now) ─► snapshot(now)
                      ┘
Pure: whoever owns a `Plane` says what time it is and when to weigh. What is expensive to make is
made when its source changes and kept as bytes: Listener, RouteConfiguration and Cluster with the
pools, ClusterLoadAssignment and Pool with the shares, PoolLoad with the observations.

Invariants:
1. A pool whose loads are unknown is still served: unknown is neutral, never absent.
2. `weigh` changes shares only; membership comes from `configure` alone.
3. One pool's trouble changes no other pool's bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xds import weights, wire
from xds.assignment import cluster_load_assignment
from xds.pool import EndpointId, Observation, Pool, PoolName, Share
from xds.snapshot import Snapshot, TypeUrl
from xds.standalone import Standalone, resources


@dataclass(slots=True)
class _Line:
    """One pool on its way to bytes; a body that is None must be made again."""

    pool: Pool
    state: weights.State
    shares: dict[EndpointId, Share]
    assignment: bytes | None = None
    members: bytes | None = None
    loads: bytes | None = None


class Plane:
    """Synchronous, one owner."""

    def __init__(self, standalone: Standalone) -> None:
        self._standalone = standalone
        self._lines: dict[PoolName, _Line] = {}
        self._lines_of: dict[EndpointId, list[_Line]] = {}
        self._observations: dict[EndpointId, Observation] = {}
        self._config: Mapping[str, Mapping[str, bytes]] = {}
        self._snapshot = Snapshot.of({})

    @property
    def pools(self) -> Mapping[PoolName, Pool]:
        return {name: line.pool for name, line in self._lines.items()}

    @property
    def observations(self) -> Mapping[EndpointId, Observation]:
        return self._observations

    def shares(self, name: PoolName) -> Mapping[EndpointId, Share]:
        """What `weigh` last said of the pool's endpoints."""
        return self._lines[name].shares

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
                state = line.state if line is not None else weights.State()
                line = _Line(pool, *weights.step(state, pool, self._observations, now))
            self._lines[name] = line
        self._lines_of = {}
        for line in self._lines.values():
            for member in line.pool.endpoints:
                self._lines_of.setdefault(member.id, []).append(line)
        self._config = resources(pools, self._standalone)

    def observe(self, endpoint: EndpointId, observation: Observation | None) -> None:
        """What the scraper saw; None forgets an endpoint that no pool has any more."""
        if observation is None:
            self._observations.pop(endpoint, None)
        else:
            self._observations[endpoint] = observation
        for line in self._lines_of.get(endpoint, ()):
            line.loads = None

    def weigh(self, now: float) -> None:
        """One step of every pool's weigher."""
        for line in self._lines.values():
            before = line.state
            line.state, shares = weights.step(before, line.pool, self._observations, now)
            if shares != line.shares:
                line.shares = shares
                line.assignment = line.members = None
            if line.state.echo != before.echo:
                line.assignment = None

    def snapshot(self, now: float) -> Snapshot:
        """The resources as of now; what did not change keeps its bytes and its version."""
        assignments, members, loads = {}, {}, {}
        for name, line in self._lines.items():
            if line.assignment is None:
                line.assignment = cluster_load_assignment(
                    name, line.pool.endpoints, line.shares, echo=line.state.echo
                )
            if line.members is None:
                line.members = wire.encode_pool(line.pool, line.shares)
            if line.loads is None:
                line.loads = wire.encode_loads(name, self._loads_of(line.pool), now)
            assignments[name], members[name], loads[name] = (
                line.assignment,
                line.members,
                line.loads,
            )
        self._snapshot = Snapshot.of(
            {
                **self._config,
                TypeUrl.ENDPOINT: assignments,
                TypeUrl.POOL: members,
                TypeUrl.POOL_LOAD: loads,
            },
            self._snapshot,
        )
        return self._snapshot

    def _loads_of(self, pool: Pool) -> dict[EndpointId, Observation]:
        return {
            member.id: observation
            for member in pool.endpoints
            if (observation := self._observations.get(member.id)) is not None
        }
