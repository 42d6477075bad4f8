"""Keeps the wiring of pools that ask for it (`weir.dev/shape`) in an API server.

    source ─► what there is ─► keep ─► decide ─► applier ─► API server
    server, peers ─► who acknowledged what ──┘

A round looks at everything anew and does what may be done now: when something changed, and every
few seconds. Every replica goes through it; only one acts (`replicas.leads`), and the others
know all that it knows when they have to take over. Where a kind of object is not known for certain
nothing is done at all: what is out of date may look as if nobody wanted it. So it is with all that
a replica knew and meant to do before it stood still (`pulse`).

Nothing waits for this, and nothing else stops with it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import structlog

from xds.istio.controller import (
    SETTLE_SECONDS,
    Decision,
    Key,
    Object,
    Place,
    Report,
    decide,
    key_of,
)
from xds.istio.keeping import ENVOY_FILTER, KEPT_BY, Have, Keeping, is_kept_by, istio_version, keep
from xds.istio.reading import Reading
from xds.istio.replicas import Replica, Seen, leads, proxies
from xds.istio.shapes.wiring import Host, Istio, ShapeError, Version
from xds.manifests import Pod
from xds.peers import Peers
from xds.pool import PoolName
from xds.problems import Problem, Reason
from xds.pulse import BEAT_SECONDS, Pulse
from xds.sources import kinds
from xds.sources.applier import Applier
from xds.sources.connection import Connection
from xds.sources.kubernetes import KubernetesSource

ROUND_SECONDS, QUIET_SECONDS = 2.0, 0.2
PATIENCE_SECONDS = 30.0  # before operators are told of what is not in place
DOCUMENTS = (kinds.GATEWAY, kinds.ROUTE, *kinds.ISTIO)
WIRING = (kinds.POOL, kinds.SERVICE, *DOCUMENTS)

START = "no round is over yet"
STOOD_STILL = "this replica stood still, and first learns what happened meanwhile"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """`xds` is our own Service as proxies call it, `replica` our Pod's name.

    `picker` is asked instead of the one that each pool names: that is one of the pool's namespace.
    """

    xds: Host
    replica: str
    peers: tuple[str, ...] = ()  # HOST:PORT of status ports
    istio_version: Version | None = None  # None: as istiod's Pods say
    picker: Host | None = None
    settle_seconds: float = SETTLE_SECONDS
    round_seconds: float = ROUND_SECONDS
    patience_seconds: float = PATIENCE_SECONDS


class Keeper:
    """`seen` says what our own clients hold."""

    def __init__(
        self,
        source: KubernetesSource,
        connection: Connection,
        options: KeeperOptions,
        seen: Callable[[], Seen],
        rng: Random | None = None,
    ) -> None:
        self._source, self._options, self._seen = source, options, seen
        self._clock = asyncio.get_running_loop().time
        self._applier = Applier(connection, kinds.ENVOY_FILTER, rng or Random(), self._clock)
        self._peers = Peers(options.replica, options.peers)
        self._pulse = Pulse(self._clock())
        self._reading = Reading()
        self._looked_at: Any = None  # what `_keeping` was made of
        self._have: Have | None = None
        self._keeping = Keeping()
        self._decision: Decision | None = None
        self._paused, self._paused_at = START, self._clock()  # why nothing is decided now
        self._acting = False
        self._reports: Sequence[Report] = ()
        self._undone: dict[Place, float] = {}  # since when
        self._broken = False

    @property
    def me(self) -> Replica:
        """What the other replicas are told."""
        able = not self._paused and not self._applier.resting and self._is_well()
        return Replica(self._options.replica, able, self._seen())

    @property
    def wiring(self) -> Mapping[PoolName, Sequence[Report]] | None:
        """What conditions say; None where another replica says it."""
        if not self._acting:
            return None
        found: dict[PoolName, list[Report]] = {}
        for each in self._reports:
            found.setdefault(each.pool, []).append(each)
        return found

    @property
    def problems(self) -> Sequence[Problem]:
        """What operators are told of by Events: what is not in place for a while.

        Where nothing is known for certain no replica acts, and each says so of all pools that ask.
        """
        late = self._clock() - self._options.patience_seconds
        if self._paused and self._paused_at <= late:
            asking = [name for name, pool in self._source.pools.value.items() if pool.policy.shape]
            return [self._problem(name, "", self._paused) for name in asking]
        if not self._acting:
            return ()
        return [
            self._problem(each.pool, each.gateway, each.says)
            for each in self._reports
            if not each.done and self._undone.get((each.pool, each.gateway), late + 1) <= late
        ]

    def _problem(self, pool: PoolName, gateway: str, says: str) -> Problem:
        namespace, _, name = pool.partition("/")
        known = self._have.inventory.pools.get(pool) if self._have else None
        return Problem(
            "InferencePool",
            namespace,
            name,
            Reason.NOT_WIRED,
            f"Gateway {gateway}: {says}" if gateway else says,
            value=gateway,
            uid=known.metadata.uid if known else "",
            api_version=f"{kinds.POOL.group}/{kinds.POOL.version}",
        )

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        decision = self._decision or Decision()
        return {
            "replica": self._options.replica,
            "acting": self._acting,
            "paused": self._paused,
            "away": self._applier.away,
            "silent": dict(self._peers.silent),
            "places": [
                {
                    "pool": each.pool,
                    "gateway": each.gateway,
                    "shape": self._keeping.shapes.get((each.pool, each.gateway), ""),
                    "done": each.done,
                    "says": each.says,
                    "notes": list(self._keeping.notes.get((each.pool, each.gateway), ())),
                }
                for each in self._reports
            ],
            "leaving": [
                {"pool": pool, "gateway": gateway, "step": step}
                for (pool, gateway), step in sorted(decision.since)
            ],
        }

    async def run(self) -> None:
        """Until cancelled."""
        wait = self._options.round_seconds
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                self._source.stirred.clear()
                try:
                    await self._round()
                    self._broken = False
                except Exception:
                    self._pause("an error of ours; the log has it")
                    if not self._broken:
                        log.exception("wiring is not looked after; trying on")
                    self._broken = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):  # `wait_for` may lose a cancellation
                        await self._source.stirred.wait()
                await asyncio.sleep(min(QUIET_SECONDS, wait))  # what comes together is one round
        finally:
            beating.cancel()
            await self._peers.close()

    async def _beat(self) -> None:
        while True:
            self._is_well()
            await asyncio.sleep(BEAT_SECONDS)

    def _is_well(self) -> bool:
        return self._pulse.feel(self._clock())

    async def _round(self) -> None:
        others = await self._peers.ask()
        now = self._clock()
        still = "" if self._is_well() else STOOD_STILL
        if doubt := still or self._source.doubt((*WIRING, kinds.POD), now):
            self._pause(doubt)
            return
        try:
            keeping = self._look()
        except ShapeError as error:
            self._pause(str(error))
            return
        if self._paused not in ("", START):
            log.info("wiring is looked after again")
        self._paused = ""
        self._lead(acting=leads(self.me, others))
        ours = {key: each for key, each in self._kept() if is_kept_by(each, self._options.xds)}
        self._decision = decide(
            keeping.wanted,
            ours,
            proxies(self._pods(), [self.me, *others]),
            now,
            kept=keeping.kept,
            before=self._decision,
            settle=self._options.settle_seconds,
        )
        if self._acting:
            await self._do(self._decision, ours)
        self._tell([*keeping.reports, *self._decision.reports])

    def _look(self) -> Keeping:
        """What is to be kept, made anew if something changed. Raises `ShapeError`."""
        version = istio_version(self._options.istio_version, self._pods())
        policies = {name: pool.policy for name, pool in self._source.pools.value.items()}
        source = self._source
        unreadable = source.unreadable(WIRING)
        looked_at = version, policies, source.revision(WIRING), unreadable
        if looked_at == self._looked_at:
            return self._keeping
        objects = [*source.objects(kinds.POOL), *source.objects(kinds.SERVICE)]
        documents = {(each.group, each.name): source.documents(each) for each in DOCUMENTS}
        inventory, unread = self._reading.inventory(objects, documents)
        for (kind, (namespace, name)), why in unreadable.items():
            unread.setdefault(namespace, f"{kind} {namespace}/{name}: {why}")
        self._have = Have(inventory, policies, dict(self._kept()), unread)
        istio = Istio(version, self._options.xds.domain)
        self._keeping = keep(self._have, istio, self._options.xds, self._options.picker)
        self._looked_at = looked_at
        return self._keeping

    def _pods(self) -> list[Pod]:
        found = (each.object for each in self._source.objects(kinds.POD))
        return [each for each in found if isinstance(each, Pod)]

    def _kept(self) -> list[tuple[Key, Object]]:
        """EnvoyFilters that some Weir keeps."""
        return [
            ((ENVOY_FILTER, meta.get("namespace", ""), meta["name"]), each)
            for each in self._source.documents(kinds.ENVOY_FILTER)
            if KEPT_BY in ((meta := each["metadata"]).get("labels") or {})
        ]

    async def _do(self, decision: Decision, ours: Mapping[Key, Object]) -> None:
        self._applier.forget({*map(key_of, decision.apply), *decision.delete})
        for item in decision.apply:
            if self._is_well():
                await self._applier.apply(item)
        for key in decision.delete:
            if self._is_well():
                await self._applier.delete(key, ours[key])

    def _pause(self, why: str) -> None:
        """Nothing is known for certain; what was not needed before has its time again."""
        if self._paused in ("", START):
            log.warning("wiring is left as it is", reason=why)
            self._paused_at = self._clock()
        self._paused, self._decision = why, None
        self._lead(acting=False)

    def _lead(self, *, acting: bool) -> None:
        if acting != self._acting:
            log.info("this replica keeps the wiring" if acting else "another replica keeps it")
        self._acting = acting

    def _tell(self, reports: Sequence[Report]) -> None:
        before, now = set(self._reports), self._clock()
        self._reports = [self._explained(each) for each in reports]
        for each in self._reports:
            if each not in before:
                log.info("wiring", pool=each.pool, gateway=each.gateway, says=each.says)
        undone = {(each.pool, each.gateway) for each in self._reports if not each.done}
        self._undone = {place: self._undone.get(place, now) for place in undone}

    def _explained(self, report: Report) -> Report:
        """With why what it says could not be written."""
        failing = self._applier.failing
        for wanted in self._keeping.wanted:
            if report.done or wanted.place != (report.pool, report.gateway):
                continue
            for key in sorted(wanted.keys & failing.keys()):
                says = f"{report.says}: {key[0]} {key[1]}/{key[2]}: {failing[key]}"
                return replace(report, says=says)
        return report
