"""Which of a pool's manifests may be applied or removed now, so that no request is lost. Pure.

A pool at a Gateway is wired in steps. A later step sends requests where an earlier one has made
ready, and "ready" is proven by the proxies themselves: each of them must have acknowledged our
assignment on a stream of its own.

    probe ─► step 1 ─► … ─► step n      each but the first when every proxy has acknowledged
    step n ─► … ─► step 1               on removal, each when it has been the last for a while

A cluster has a stream of its own: what a probe has acknowledged says nothing of the cluster that a
step patches, so after that both must have.

Where a first step touches what requests meet there is a probe before it: a cluster that nobody
routes to and that takes its endpoints from us; it may be one that the step has too. Where no proxy
reaches us, nothing else is ever applied. What is there stays while we cannot tell: proxies that
come or reconnect, a control plane that has just started, a pool whose route is ambiguous for the
moment.

What a step needs of the operator, an HTTPRoute or a Service, is asked for when its turn has come,
and is never ours to apply or remove.

There is no owner reference on what we make: Kubernetes would collect a deleted pool's objects all
at once, in any order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]  # kind, namespace, name
Place: TypeAlias = tuple[str, str]  # pool and Gateway, each "<namespace>/<name>"

POOL, GATEWAY, STEP = "weir.dev/pool", "weir.dev/gateway", "weir.dev/step"
SETTLE_SECONDS = 60.0  # connections stay under old routes while Istio drains them, for 45 s


def key_of(item: Object) -> Key:
    meta = item["metadata"]
    return item["kind"], meta.get("namespace", ""), meta["name"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One pool's manifests at one Gateway.

    `steps` are those of a shape, in order; objects that several pools share stand in each.
    `resources` are the assignments that the proxies must have acknowledged. `asks` says, by the
    number of a step, what the operator has yet to do for it.
    """

    pool: str
    gateway: str
    steps: tuple[tuple[Object, ...], ...]
    resources: frozenset[str]
    probe: tuple[Object, ...] = ()
    asks: Mapping[int, str] = field(default_factory=dict)

    @property
    def keys(self) -> set[Key]:
        return _keys([*self.probe, *(item for step in self.steps for item in step)])

    @property
    def place(self) -> Place:
        return self.pool, self.gateway


@dataclass(frozen=True, slots=True)
class Proxies:
    """A Gateway's proxies: the Pods that are ready, and who of them acknowledged what.

    By resource and Pod, on how many streams: a proxy has one for each cluster that takes it.
    """

    pods: frozenset[str] = frozenset()
    acknowledged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def missing(self, resources: Iterable[str], streams: int = 1) -> frozenset[str]:
        """Those that have not acknowledged all of these, on as many streams."""
        return frozenset(
            pod
            for resource in resources
            for pod in self.pods
            if self.acknowledged.get(resource, {}).get(pod, 0) < streams
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Where the wiring of a pool at a Gateway stands, for status and Events."""

    pool: str
    gateway: str
    done: bool
    says: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. `since` is for the next call: how long each last step has not been needed."""

    apply: tuple[Object, ...] = ()
    delete: tuple[Key, ...] = ()
    reports: tuple[Report, ...] = ()
    since: Mapping[tuple[Place, int], float] = field(default_factory=dict)


def decide(  # noqa: PLR0913 - the whole of what there is to know
    wanted: Sequence[Wanted],
    present: Mapping[Key, Object],
    gateways: Mapping[str, Proxies],
    now: float,
    *,
    kept: Mapping[str, str] | None = None,
    before: Decision | None = None,
    settle: float = SETTLE_SECONDS,
) -> Decision:
    """One round. `present` are the objects that carry our label, as the API server has them.

    `kept` names pools whose objects must stay for now, and why: the wiring cannot be told, or an
    HTTPRoute that only works with it is still there. `settle` is how long a last step stays that
    nobody needs.
    """
    kept = kept or {}
    apply: dict[Key, Object] = {}
    needed: set[Key] = set()
    reports = []
    for each in wanted:
        report, objects, keys = _advance(each, present, gateways.get(each.gateway, Proxies()))
        reports.append(report)
        apply |= {key_of(item): item for item in objects}
        needed |= keys
    for pool, reason in sorted(kept.items()):
        reports.append(Report(pool, "", done=False, says=reason))
        needed |= {key for key, item in present.items() if note(item, POOL) == pool}
        # What is shared with others stays too: nobody can tell that it is not needed.
        needed |= {key for key, item in present.items() if not note(item, POOL)}
    orphans = {key: item for key, item in present.items() if key not in needed | apply.keys()}
    delete, since = _retreat(orphans, before.since if before else {}, now, settle)
    return Decision(tuple(apply.values()), tuple(sorted(delete)), tuple(reports), since)


def _advance(
    wanted: Wanted, present: Mapping[Key, Object], proxies: Proxies
) -> tuple[Report, Sequence[Object], set[Key]]:
    """How far one place is, what to apply next, and which objects it needs meanwhile."""
    first = wanted.probe or wanted.steps[0]
    for number, step in enumerate(wanted.steps, 1):
        news = [item for item in step if not _is_there(item, present)]
        ask = wanted.asks.get(number, "")
        if not news and not ask:
            continue
        title = f"step {number} of {len(wanted.steps)}"
        begun = any(_keys(each) <= present.keys() for each in (first, step))
        if number == 1 and not begun and not ask:
            # Nobody is sent to what a place begins with: it needs no proof.
            return _report(wanted, "the probe" if wanted.probe else title), first, wanted.keys
        reason = ask if number == 1 else ""
        # Beside the probe, the cluster of the step before must have proven itself.
        streams = 2 if number > 1 and _is_probed(wanted, present) else 1
        if reason := reason or _unproven(wanted, proxies, streams) or ask:
            return _report(wanted, f"{title} waits: {reason}"), (), wanted.keys
        return _report(wanted, title), news, wanted.keys
    lasting = {key for step in wanted.steps for key in _keys(step)}
    return _report(wanted, "in place", done=True), (), lasting


def _is_probed(wanted: Wanted, present: Mapping[Key, Object]) -> bool:
    """Is there a probe of its own, which no step has?"""
    probe = _keys(wanted.probe)
    return bool(probe) and probe <= present.keys() and not probe <= _keys(wanted.steps[0])


def _unproven(wanted: Wanted, proxies: Proxies, streams: int) -> str:
    if not proxies.pods:
        return f"Gateway {wanted.gateway} has no proxy that is ready"
    missing = proxies.missing(wanted.resources, streams)
    if not missing:
        return ""
    names = ", ".join(sorted(missing)[:3])
    return (
        f"{len(missing)} of {len(proxies.pods)} proxies of Gateway {wanted.gateway} have not "
        f"acknowledged Weir's assignment ({names})"
    )


def _retreat(
    orphans: Mapping[Key, Object],
    before: Mapping[tuple[Place, int], float],
    now: float,
    settle: float,
) -> tuple[set[Key], dict[tuple[Place, int], float]]:
    """What may go now: the last step of each place, once it has been the last for a while.

    What several pools shared has no pool, and goes after what each of them had of its own.
    """
    delete: set[Key] = set()
    since: dict[tuple[Place, int], float] = {}
    places: dict[Place, dict[Key, int]] = {}
    for key, item in orphans.items():
        place = note(item, POOL), note(item, GATEWAY)
        places.setdefault(place, {})[key] = _step(item)
    for place, steps in places.items():
        pool, gateway = place
        if not pool and any(other and at == gateway for other, at in places):
            continue
        last = max(steps.values())
        since[place, last] = before.get((place, last), now)
        if now - since[place, last] >= settle:
            delete |= {key for key, step in steps.items() if step == last}
    return delete, since


def _report(wanted: Wanted, says: str, *, done: bool = False) -> Report:
    return Report(wanted.pool, wanted.gateway, done, says)


def _keys(items: Iterable[Object]) -> set[Key]:
    return {key_of(item) for item in items}


def _is_there(item: Object, present: Mapping[Key, Object]) -> bool:
    """Is the object as we would apply it? What others add to its metadata does not count."""
    known = present.get(key_of(item))
    return (
        known is not None
        and known.get("spec") == item.get("spec")
        and all(
            known["metadata"].get(part, {}).get(name) == value
            for part in ("labels", "annotations")
            for name, value in item["metadata"].get(part, {}).items()
        )
    )


def note(item: Object, name: str) -> str:
    """An annotation; nothing where there is none."""
    return str(item["metadata"].get("annotations", {}).get(name, ""))


def _step(item: Object) -> int:
    said = note(item, STEP)
    return int(said) if said.isdecimal() else 0
