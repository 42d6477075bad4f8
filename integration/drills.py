"""What may fail in a shape while requests flow, as a table: a row is a `Case`, a column a site.

A case is an edge between two states of a site. `drill` walks to where it begins, unless the site
is there, and counts what becomes of the requests that are sent while it runs, every other one on a
new connection. In the order of the table every case begins where the one before it ended.

    bare ─► well ◄─► picker-dead, picker-silent, weir-dead, weir-silent, all-dead, on-copy, changed
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from integration.mesh.traffic import Load
from integration.mesh.weir import SteeredPicker
from integration.sites import BATCH, RATE, STATS, TIMES, WEIGHTS, Site, State, started


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
    async with site.mesh.traffic.under_load(RATE, patience=site.patience_seconds) as load:
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
    seconds = await started(site.mesh)
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


async def _copied(site, before):
    """The proxy uses istiod's assignment, which knows no weights."""
    await site.mesh.has(*(1 for _ in WEIGHTS))
    return {"copies used": await site.mesh.stat("assignment_use_cached") - before}


def _add(load, other):
    load.sent += other.sent
    load.served += other.served
    load.failures += other.failures
