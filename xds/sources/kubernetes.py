"""An API server as the source of pools.

    feeds (list and watch, one a kind and namespace) ─► debounce ─► Assembly ─► Latest[pools]

A burst of events becomes one new mapping of pools: after `QUIET_SECONDS` without another, and
`LONGEST_SECONDS` after the first at the latest. Only the namespaces that changed are looked at.

When pools are published for the first time: every feed has listed, or was told that its kind is not
installed (404). One that fails for another reason (a permission that is missing, a conversion
webhook that is broken) holds the others up for `EXCUSE_SECONDS` at most, counted from when the Pods
and InferencePools (of one version at least) of a namespace are known. Pools of namespaces where
these are not are withheld until they are. Where nothing at all is known, nothing is published, for
as long as it takes: clients cannot connect and keep what they have, which is better than to be told
that there is nothing.

Who wires pools into istiod's proxies looks at objects as they are: `stirred` is set by every change
of any, `revision` says whether some kinds changed, and `doubt` why they may be other than they
seem.

After that nothing is taken back because the API server is away, for hours if need be. Its age is
said, and it is stale once its last word is older than a watch may be silent or the last try failed.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from xds.istio.assignment import locality
from xds.istio.peer_authentication import ROOT_NAMESPACE
from xds.latest import Latest
from xds.manifests import Manifest
from xds.operators import Subject, subjects
from xds.problems import Problem
from xds.sources.answers import Key
from xds.sources.assembly import Assembly
from xds.sources.connection import Connection
from xds.sources.feed import Feed
from xds.sources.kinds import (
    ALWAYS,
    MAKE_POOLS,
    MESH,
    MOVED,
    NODE,
    PEER_AUTHENTICATION,
    POD,
    POOL,
    POOLS,
    SOURCE,
    Document,
    Item,
    Kind,
)
from xds.sources.reflector import SLACK_SECONDS, WATCH_SECONDS, State
from xds.sources.source import Holding, Pools, describe
from xds.tuning import KNOBS, Knob

QUIET_SECONDS, LONGEST_SECONDS = 0.1, 1.0
EXCUSE_SECONDS = 30.0
SILENCE_SECONDS = WATCH_SECONDS[1] + SLACK_SECONDS

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watching:
    """What to ask an API server for."""

    namespaces: tuple[str, ...] = ()  # all, where none is named
    more: tuple[Kind, ...] = ()  # kinds beyond those that pools are made of


class KubernetesSource:
    """The pools of an API server, through an open connection."""

    def __init__(
        self,
        connection: Connection,
        watching: Watching = Watching(),
        istio_domain: str = "",
        rng: random.Random | None = None,
        knobs: Sequence[Knob] = KNOBS,
    ) -> None:
        self.pools: Latest[Pools] = Latest({})
        self.stirred = asyncio.Event()  # for one listener, who clears it
        self._connection = connection
        self._namespaces = tuple(dict.fromkeys(watching.namespaces)) or ("",)
        self._clock = asyncio.get_running_loop().time
        self._assembly = Assembly(istio_domain, knobs)
        self._revisions: Counter[Kind] = Counter()
        self._dirty: set[str] = set()
        self._touched = asyncio.Event()
        self._complete = asyncio.Event()
        self._standing: frozenset[Feed] = frozenset()  # as of the last `_build`
        self._everything = False  # is it more than some namespaces that changed?
        self._known_since: float | None = None
        self._nodes: dict[str, Manifest] = {}
        self.feeds = [
            Feed(kind, namespace, connection, self._on_change, rng)
            for kind in dict.fromkeys((*ALWAYS, *(MESH if istio_domain else ()), *watching.more))
            for namespace in self._namespaces
            if not (kind.of_cluster and namespace)
        ]

    @property
    def problems(self) -> tuple[str, ...]:
        found: list[str] = []
        for feed in self.feeds:
            found += feed.reflector.refused.values()
            if feed.reflector.state is State.FORBIDDEN and feed.kind.in_effect:
                remedy = feed.kind.permission(feed.namespace)
                found.append(f"{SOURCE}: {feed.kind.resource}: forbidden; grant {remedy}")
        if all(feed.reflector.state is State.ABSENT for feed in self.feeds if feed.kind in POOLS):
            found.append(
                f"{SOURCE}: no InferencePool is installed; apply its CRD ({POOL.resource})"
            )
        return tuple(found)

    @property
    def faults(self) -> Sequence[Problem]:
        return self._assembly.problems

    def subjects(self) -> list[Subject]:
        """The pools that have a status for us to write."""
        return subjects(
            each for feed in self.feeds if feed.kind == POOL for each in _manifests(feed)
        )

    def documents(self, kind: Kind) -> list[Document]:
        """The objects of a kind that stays JSON: Gateway, HTTPRoute, and what was asked for."""
        return [
            each
            for feed in self.feeds
            if feed.kind == kind
            for _, each in sorted(feed.reflector.objects.items())
            if isinstance(each, dict)
        ]

    def objects(self, kind: Kind) -> list[Manifest]:
        """Those of a kind that is read as what it is: InferencePool, Pod, Service."""
        return [each for feed in self.feeds if feed.kind == kind for each in _manifests(feed)]

    def unreadable(self, kinds: Iterable[Kind]) -> dict[tuple[str, Key], str]:
        """Objects of which no version could be read: kind, namespace and name, and why."""
        return {
            (feed.kind.name, key): why
            for feed in self.feeds
            if feed.kind in kinds
            for key, why in feed.reflector.refused.items()
            if key not in feed.reflector.objects
        }

    def revision(self, kinds: Iterable[Kind]) -> int:
        """A number that grows with every change of these kinds."""
        return sum(self._revisions[each] for each in kinds)

    def doubt(self, kinds: Iterable[Kind], now: float) -> str:
        """Why objects of these kinds may be other than we think; nothing if we know them.

        That a kind is not installed is to know it.
        """
        for feed in self.feeds:
            reflector = feed.reflector
            if feed.kind not in kinds or reflector.state is State.ABSENT:
                continue
            what = feed.kind.resource
            if reflector.state is State.FORBIDDEN:
                return f"{what}: forbidden; grant {feed.kind.permission(feed.namespace)}"
            if not reflector.listed or reflector.contact is None:
                return f"{what}: not known yet"
            failing = reflector.state is State.RETRYING and reflector.troubled
            if failing or now - reflector.contact > SILENCE_SECONDS:
                why = reflector.problem or "nothing was heard for long"
                return f"{what}: may have changed meanwhile: {why}"
        return ""

    async def complete(self) -> None:
        await self._complete.wait()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for feed in self.feeds:
                tasks.create_task(feed.run(), name=f"watch {feed.kind.resource}")
            tasks.create_task(self._publish(), name="pools")

    async def _publish(self) -> None:
        while not self._is_complete():
            await self._touch(1.0)
        self._build(None)
        log.info("first pools known", pools=sorted(self.pools.value))
        self._complete.set()
        while True:
            await self._burst()
            self._build(self._dirty)

    def _is_complete(self) -> bool:
        if not any(self._knows(each) for each in self._namespaces):
            return False
        if self._known_since is None:
            self._known_since = self._clock()
        if self._clock() - self._known_since >= EXCUSE_SECONDS:
            return True
        answered = (
            each.reflector.listed or each.reflector.state is State.ABSENT for each in self.feeds
        )
        return all(answered)

    def _knows(self, namespace: str) -> bool:
        """Whether its pools are all there, with all their Pods."""
        covering = [feed for feed in self.feeds if feed.covers(namespace)]
        return any(feed.kind in POOLS and feed.reflector.listed for feed in covering) and any(
            feed.kind == POD and feed.reflector.listed for feed in covering
        )

    def _on_change(self, feed: Feed, keys: frozenset[Key]) -> None:
        if keys:
            self._revisions[feed.kind] += 1
            self.stirred.set()
        if feed.kind in MAKE_POOLS:
            self._dirty |= {namespace for namespace, _ in keys}
        if feed.kind == PEER_AUTHENTICATION and any(place == ROOT_NAMESPACE for place, _ in keys):
            self._everything = True
        if feed.kind == NODE and self._nodes_moved(feed, keys):
            self._everything = True
        if _stands(feed) != (feed in self._standing):
            self._everything = True
        if self._dirty or self._everything:
            self._touched.set()

    def _nodes_moved(self, feed: Feed, keys: Iterable[Key]) -> bool:
        """Whether Nodes are elsewhere now; their status, which changes all the time, is nothing."""
        moved = False
        for key in keys:
            before, now = self._nodes.get(key[1]), feed.reflector.objects.get(key)
            if isinstance(now, Manifest):
                self._nodes[key[1]] = now
            else:
                self._nodes.pop(key[1], None)
            moved = moved or _place(before) != _place(now)
        return moved

    async def _touch(self, seconds: float) -> bool:
        """Wait for a change, not longer than so; whether there was one."""
        self._touched.clear()
        try:
            async with asyncio.timeout(seconds):
                return await self._touched.wait()
        except TimeoutError:
            return False

    async def _burst(self) -> None:
        """Wait for changes, and until they cease for a moment or have gone on for long."""
        while not self._dirty and not self._everything:
            self._touched.clear()
            await self._touched.wait()
        last = self._clock() + LONGEST_SECONDS
        while (left := last - self._clock()) > 0 and await self._touch(min(QUIET_SECONDS, left)):
            pass

    def _build(self, namespaces: Iterable[str] | None) -> None:
        before = set(self._assembly.problems)
        self._standing = frozenset(feed for feed in self.feeds if _stands(feed))
        self._assembly.build(
            self._manifests(),
            None if self._everything else namespaces,
            self._knows,
            self._nodes,
            self._of_the_mesh(),
        )
        self._dirty, self._everything = set(), False
        for each in self._assembly.problems:
            if each not in before:
                log.warning("object is wrong", object=each.where, problem=each.message)
        self.pools.publish(self._assembly.pools)

    def _manifests(self) -> Iterator[Iterable[Manifest]]:
        installed = {feed.kind for feed in self._standing}
        for feed in self.feeds:
            if feed.kind in MAKE_POOLS and MOVED.get(feed.kind) not in installed:
                yield _manifests(feed)

    def _of_the_mesh(self) -> list[Manifest]:
        """What the root namespace says of Pods everywhere."""
        policies = self.objects(PEER_AUTHENTICATION)
        return [each for each in policies if each.object.metadata.namespace == ROOT_NAMESPACE]

    def status(self, now: float) -> dict[str, Any]:
        return describe(
            f"{SOURCE} {self._connection.host}",
            [_holding(feed, now) for feed in self.feeds],
            complete=self._complete.is_set(),
            not_in_effect=[
                manifest.where
                for feed in self.feeds
                if not feed.kind.in_effect
                for manifest in _manifests(feed)
            ],
        )


def _stands(feed: Feed) -> bool:
    """Whether a feed's objects count. Which of others do, and what is known, follows from that."""
    return feed.reflector.listed and feed.reflector.state is not State.ABSENT


def _place(item: Item | None) -> tuple[str, str, str]:
    labels = item.object.metadata.labels if isinstance(item, Manifest) else {}
    return locality({}, labels)


def _manifests(feed: Feed) -> list[Manifest]:
    return [each for each in feed.reflector.objects.values() if isinstance(each, Manifest)]


def _holding(feed: Feed, now: float) -> Holding:
    reflector = feed.reflector
    age = None if reflector.contact is None else now - reflector.contact
    failing = reflector.state is State.FORBIDDEN or (
        reflector.state is State.RETRYING and reflector.troubled
    )
    return Holding(
        kind=feed.kind.resource,
        objects=len(reflector.objects),
        namespace=feed.namespace,
        in_effect=feed.kind.in_effect,
        state=reflector.state.value,
        age_seconds=None if age is None else round(age, 3),
        stale=failing or (age is not None and age > SILENCE_SECONDS),
        lists=reflector.lists,
        failures=reflector.failures,
        refused=len(reflector.refused) + reflector.garbage,
        problem=reflector.problem,
    )
