"""What may fail in a shape while requests flow, as a table: a row is a `Case`, a column a `Site`.

A site is one shape in a mesh of its own: the filters that `weir istio manifests` prints, `weir
serve`, `weir picker`, three Pods of capacities 1, 3 and 6. A case is an edge between two states of
a site. `drill` walks to where it begins, unless the site is there, and counts what becomes of the
requests that are sent while it runs, every other one on a new connection. In the order of the table
every case begins where the one before it ended.

    bare ─► well ◄─► picker-dead, picker-silent, weir-dead, weir-silent, all-dead, on-copy, changed

A site may be native too: what istiod alone makes of the operator's objects, with the same picker.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from integration.mesh import Mesh, mesh
from integration.mesh.istiod import SHAPES
from integration.mesh.traffic import Load
from integration.mesh.weir import SteeredPicker
from integration.wiring import Wiring, unwired
from weir.stack import wait_until

WEIGHTS = (1, 3, 6)
TIMES = 100  # what `weir serve` makes of a capacity
PATIENCE_SECONDS = 5.0  # of a client; a request without an answer by then has failed
FETCH_SECONDS = 2.0  # the shapes' initial_fetch_timeout
RATE = 100  # requests a second, all the while
BATCH = 100
STATS = ("streams_started", "stream_msgs_received", "failure_mode_allowed", "message_timeouts")


class State(Enum):
    BARE = "nothing of Weir's is installed"
    WELL = "all is there"
    PICKER_DEAD = "the picker is dead"
    PICKER_SILENT = "the picker says nothing"
    WEIR_DEAD = "the control plane is dead"
    WEIR_SILENT = "the control plane says nothing"
    ALL_DEAD = "both are dead"
    ON_COPY = "the proxy started without the control plane"
    CHANGED = "the pool's cluster changed without the control plane"


@dataclass(slots=True)
class Site:
    """One column: a mesh, and what state it is in; None where a drill broke off."""

    mesh: Mesh
    wiring: Wiring
    state: State | None
    start_seconds: float  # until the proxy was ready, with everything there
    native: bool = False
    weights: tuple[int, ...] = WEIGHTS

    async def counts(self):
        """What ext_proc filters counted so far."""
        names = "|".join(STATS)
        found = Counter()
        for name, value in (await self.mesh.proxy.stats(rf"ext_proc\.({names})$")).items():
            found[name.rpartition(".")[2]] += value
        return found

    async def send(self, load, count=BATCH, *, at_once=8):
        await self.mesh.traffic.send(load, count, at_once=at_once, patience=PATIENCE_SECONDS)

    async def amid(self, load, act):
        """Do it while many requests are under way, and send on when it is done."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.send(load, at_once=20))
            await asyncio.sleep(0.05)
            await act
        await self.send(load)

    async def takes_over(self, weights=WEIGHTS):
        """The control plane has new weights, and the proxy takes them."""
        self.mesh.weir.set(self.mesh.named(*weights))
        self.weights = weights
        await self.mesh.has(*(TIMES * each for each in weights))

    async def another(self):
        """Other weights than the proxy has."""
        await self.takes_over(WEIGHTS[::-1] if self.weights == WEIGHTS else WEIGHTS)

    async def picked_again(self, load):
        """Send until the picker answers."""
        before = (await self.counts())["stream_msgs_received"]

        async def answered():
            await self.send(load, 1)
            return (await self.counts())["stream_msgs_received"] > before

        await wait_until(answered)

    async def has(self):
        await self.mesh.has(*(TIMES * each for each in self.weights))


@dataclass(slots=True)
class Counts:
    """What a drill came to: requests, and what ext_proc made of them."""

    sent: int
    failures: Counter  # by status
    served: Counter  # by Pod
    asked: int  # streams to the picker
    answered: int  # messages from it
    passed: int  # requests that went on without it, because it failed
    late: int  # because it was silent
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self):
        return self.failures.total()


@dataclass(frozen=True, slots=True)
class Case:
    """One row: `run(site, load)` leads from one state to another, and may return facts.

    `prepare(site)` is what no request could survive, such as a new proxy; nothing is counted.
    """

    title: str
    before: State
    after: State
    run: Callable[[Site, Load], Awaitable[dict[str, Any] | None]]
    prepare: Callable[[Site], Awaitable[dict[str, Any] | None]] | None = None


async def drill(site, case):
    """Run one case under load. Raises what a case does that does not come to its end."""
    await _walk(site, case.before)
    site.state = None
    facts = await _prepared(site, case)
    before = await site.counts()
    async with site.mesh.traffic.under_load(RATE, patience=PATIENCE_SECONDS) as load:
        facts |= await case.run(site, load) or {}
    grown = await site.counts()
    grown.subtract(before)
    site.state = case.after
    counts = (max(0, grown[name]) for name in STATS)
    return Counts(load.sent, load.failures, load.served, *counts, facts)


async def _prepared(site, case):
    return (await case.prepare(site) or {}) if case.prepare is not None else {}


async def _walk(site, goal):
    """By the shortest way over other cases, whose requests are not counted."""
    if site.state is None:
        raise RuntimeError(f"{site.mesh.shape.name}: an earlier drill did not come to its end")
    ways, seen = deque([(site.state, ())]), {site.state}
    while ways:
        state, way = ways.popleft()
        if state is goal:
            break
        for case in CASES.values():
            if case.before is state and case.after not in seen:
                seen.add(case.after)
                ways.append((case.after, (*way, case)))
    else:
        raise RuntimeError(f"no case leads from {site.state} to {goal}")
    for case in way:
        await _prepared(site, case)
        await case.run(site, Load())
        site.state = case.after


async def installed(site, load):
    await site.amid(load, site.wiring.install(*(TIMES * each for each in site.weights)))


async def removed(site, load):
    await site.amid(load, site.wiring.remove())


async def nothing_fails(site, load):
    await site.send(load, 2 * BATCH)


async def picker_killed(site, load):
    await site.amid(load, site.mesh.picker.kill())


async def weights_hold(site, load):
    await site.takes_over(WEIGHTS)
    follows = Load()
    await site.send(follows, 600)
    _add(load, follows)
    return {"served": follows.served}


async def picks_of_a_captured_pod(site, load):
    """By a picker that answers what it is told, where ours was."""
    pod = next(iter(site.mesh.pods.values()))
    assert pod.captured
    picker = SteeredPicker(site.mesh.places)
    await picker.start()
    try:
        await site.picked_again(load)
        found = {}
        for form in ("endpoint", "dual"):
            picker.target = getattr(pod, form)
            got = Load()
            await site.send(got, 20)
            _add(load, got)
            found[form] = got.served[pod.name]
    finally:
        await picker.stop()
    return found


async def picker_back(site, load):
    await site.mesh.picker.start()
    await site.picked_again(load)
    await site.send(load)


async def picker_paused(site, load):
    """All of these are answered before it goes on, if they are."""
    site.mesh.picker.pause()
    while_silent = Load()
    await site.send(while_silent, at_once=BATCH)
    _add(load, while_silent)
    return {"answered while silent": while_silent.served.total()}


async def picker_goes_on(site, load):
    site.mesh.picker.resume()
    await site.picked_again(load)
    await site.send(load)


async def weir_killed(site, load):
    await site.amid(load, site.mesh.weir.kill())


async def weir_cold(site, load):
    await site.mesh.weir.start()
    await site.send(load)
    await site.another()
    await site.send(load)


async def weir_paused(site, load):
    site.mesh.weir.pause()
    await site.send(load, 2 * BATCH)


async def weir_goes_on(site, load):
    site.mesh.weir.resume()
    await site.another()
    await site.send(load)


async def all_killed(site, load):
    await site.mesh.weir.kill()
    await site.amid(load, site.mesh.picker.kill())
    await site.has()


async def all_back(site, load):
    await site.mesh.weir.start()
    await site.mesh.picker.start()
    await site.picked_again(load)
    await site.another()
    await site.send(load)


async def proxy_restarts_without_weir(site):
    await site.mesh.proxy.stop()
    await site.mesh.weir.kill()
    seconds = await _started(site.mesh)
    return {"ready seconds": seconds}


async def proxy_lives_on_the_copy(site, load):
    await site.send(load, 2 * BATCH)
    return await _copied(site, 0)


async def cluster_changes_without_weir(site, load):
    before = await site.mesh.stat("assignment_use_cached")
    await site.mesh.weir.kill()
    await site.amid(load, site.wiring.retune(7))
    timeouts = {
        section["cluster"]["connect_timeout"]
        for config in await site.mesh.proxy.dump()
        for section in config.get("dynamic_active_clusters", ())
        if section["cluster"]["name"] in (site.mesh.shape.service, site.mesh.shape.cluster)
    }
    assert timeouts == {"7s"}, "the new cluster is in use"
    return await _copied(site, before)


CASES = {
    "installed": Case("installed in the documented order", State.BARE, State.WELL, installed),
    "well": Case("nothing fails", State.WELL, State.WELL, nothing_fails),
    "picker-killed": Case("picker killed", State.WELL, State.PICKER_DEAD, picker_killed),
    "weights": Case(
        "weights 1:3:6, nobody picks", State.PICKER_DEAD, State.PICKER_DEAD, weights_hold
    ),
    "captured": Case(
        "a captured Pod picked as `ip:port`, then in the dual form",
        State.PICKER_DEAD,
        State.PICKER_DEAD,
        picks_of_a_captured_pod,
    ),
    "picker-back": Case("picker back", State.PICKER_DEAD, State.WELL, picker_back),
    "picker-paused": Case("picker paused", State.WELL, State.PICKER_SILENT, picker_paused),
    "picker-goes-on": Case("picker goes on", State.PICKER_SILENT, State.WELL, picker_goes_on),
    "weir-killed": Case("control plane killed", State.WELL, State.WEIR_DEAD, weir_killed),
    "weir-cold": Case(
        "control plane started cold, then new weights", State.WEIR_DEAD, State.WELL, weir_cold
    ),
    "weir-paused": Case("control plane paused", State.WELL, State.WEIR_SILENT, weir_paused),
    "weir-goes-on": Case(
        "control plane goes on, with new weights", State.WEIR_SILENT, State.WELL, weir_goes_on
    ),
    "all-killed": Case("control plane and picker killed", State.WELL, State.ALL_DEAD, all_killed),
    "all-back": Case("both back, with new weights", State.ALL_DEAD, State.WELL, all_back),
    "proxy-starts-alone": Case(
        "proxy started while the control plane is away",
        State.WELL,
        State.ON_COPY,
        proxy_lives_on_the_copy,
        proxy_restarts_without_weir,
    ),
    "back-for-the-proxy": Case(
        "control plane back: its weights take over", State.ON_COPY, State.WELL, weir_cold
    ),
    "cluster-changes": Case(
        "pool's cluster changed while the control plane is away",
        State.WELL,
        State.CHANGED,
        cluster_changes_without_weir,
    ),
    "back-for-the-cluster": Case(
        "control plane back: its weights take over", State.CHANGED, State.WELL, weir_cold
    ),
    "removed": Case("removed in the documented order", State.WELL, State.BARE, removed),
}


@asynccontextmanager
async def site(directory, shape, *, native=False):
    """One column until the block ends; bare, or native."""
    shape = SHAPES[shape]
    async with mesh(
        directory,
        shape,
        [],
        start=shape.start if native else unwired(shape),
        weights=WEIGHTS,
        picker="real",
        program=True,
        proxy=False,
        drain_seconds=2,
    ) as made:
        seconds = await _started(made)
        state = State.WELL if native else State.BARE
        yield Site(made, Wiring(made), state, seconds, native)


async def _started(made):
    loop = asyncio.get_running_loop()
    began = loop.time()
    await made.proxy.start()
    seconds = loop.time() - began
    await made.settled()
    return seconds


async def _copied(site, before):
    """The proxy uses istiod's assignment, which knows no weights."""
    await site.mesh.has(*(1 for _ in WEIGHTS))
    return {"copies used": await site.mesh.stat("assignment_use_cached") - before}


def _add(load, other):
    load.sent += other.sent
    load.served += other.served
    load.failures += other.failures
