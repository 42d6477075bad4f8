"""What is to be kept in istiod's proxies: pools that ask for it → the controller's `Wanted`. Pure.

    objects, policies ─► keep ─► wanted, kept ─► controller.decide ─► apply, delete, reports

A pool asks by the annotation `weir.dev/shape`. What is kept for it is what `weir istio manifests`
prints, with a label that says who keeps it: other EnvoyFilters of Weir's are an operator's, and are
neither changed nor removed.

Where a pool's wiring cannot be told, what is there stays, and the reason is said:

    it is ambiguous or cannot work         `ShapeError`, as the command says it
    an object that matters is unreadable   in the pool's namespace
    two pools want one object otherwise    the first by name has it
    another Weir keeps an object           it alone does
    it is no pool that can be served       as long as it asks
    its HTTPRoute relies on it             until the HTTPRoute is gone; see `removal`

A pool that gets another shape loses the old one first: both may name objects alike, and a step of
the new would take away what a later step of the old relies on.

Until every proxy has proven that it has Weir's assignments nothing comes but clusters that nobody
routes to: a probe, or where a shape has a cluster of its own, that.

Services and HTTPRoutes are the operator's. The step that needs one asks for it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from xds.istio.controller import (
    POOL,
    STEP,
    Key,
    Object,
    Place,
    Report,
    Wanted,
    key_of,
    note,
)
from xds.istio.shapes.build import build, probe
from xds.istio.shapes.choice import wirings
from xds.istio.shapes.inventory import ISTIOD, Inventory, is_ours, parse_version
from xds.istio.shapes.manifest import SHAPE
from xds.istio.shapes.question import Question
from xds.istio.shapes.removal import Unwiring, refuse_wrong_order, unwirings
from xds.istio.shapes.wiring import Host, Istio, Plan, Shape, ShapeError, Version, Wiring
from xds.manifests import Pod
from xds.pool import Policy, PoolName

AUTO = "auto"  # the shape that fits
ASKING = "weir.dev/shape"
KEPT_BY = "weir.dev/kept-by"
LABEL_CHARACTERS = 63
VERSION_LABELS = ("app.kubernetes.io/version", "operator.istio.io/version")
ENVOY_FILTER = "EnvoyFilter"
HELD = "nothing of this namespace is changed until it can be read"
# Shapes of which an HTTPRoute may have to go before the patches.
HELD_BY_ROUTES = (Shape.WAYPOINT_INFERENCEPOOL.value, Shape.WAYPOINT_SECOND_SERVICE.value)
SHELVES = {"Service": "services", "HTTPRoute": "routes"}  # of an inventory


@dataclass(frozen=True, slots=True)
class Have:
    """What there is.

    `present` are EnvoyFilters that somebody keeps, this Weir or another; `unread` says by namespace
    which object there cannot be read.
    """

    inventory: Inventory
    policies: Mapping[PoolName, Policy]
    present: Mapping[Key, Object] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keeping:
    """What to keep, and what is told of it."""

    wanted: tuple[Wanted, ...] = ()
    kept: Mapping[PoolName, str] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()  # of places where another shape has to go first
    shapes: Mapping[Place, str] = field(default_factory=dict)
    notes: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)


def keep(have: Have, istio: Istio, xds: Host, picker: Host | None = None) -> Keeping:
    """For the Weir that proxies reach at `xds`; its `picker` is asked instead of each pool's."""
    wanted: list[Wanted] = []
    kept: dict[PoolName, str] = {}
    reports: list[Report] = []
    shapes: dict[Place, str] = {}
    notes: dict[Place, tuple[str, ...]] = {}
    taken: dict[Key, tuple[Object, PoolName]] = {}
    for pool, policy in sorted(have.policies.items()):
        if policy.shape is None:
            continue
        try:
            plans = [build(each) for each in _wirings(have, istio, xds, picker, pool)]
            made = [_wanted(plan, have.inventory, xds) for plan in plans]
            _refuse_others(made, xds, have.present, taken)
        except ShapeError as error:
            kept[pool] = str(error)
            continue
        taken |= {key_of(item): (item, pool) for each in made for item in _objects(each)}
        for plan, each in zip(plans, made, strict=True):
            shapes[each.place] = plan.wiring.shape.value
            notes[each.place] = tuple(dict.fromkeys([*notes.get(each.place, ()), *plan.notes]))
            if old := _old_shape(each, plan.wiring.shape, have.present):
                says = f"{old} is taken away before {plan.wiring.shape.value} comes"
                reports.append(Report(*each.place, done=False, says=says))
            else:
                wanted.append(each)
    needed = {key for each in wanted for key in each.keys}
    for pool, why in _held(have, xds, needed):
        kept.setdefault(pool, why)
    for pool in _unserved(have):
        kept.setdefault(pool, f"InferencePool {pool}: it cannot be served as it is; `weir status`")
    return Keeping(tuple(wanted), kept, tuple(reports), shapes, notes)


def is_kept_by(item: Object, xds: Host) -> bool:
    return _keeper(item) == keeper(xds)


def keeper(xds: Host) -> str:
    """How a Weir is called in the label of what it keeps, by its xDS Service."""
    return f"{xds.service}.{xds.namespace}"[:LABEL_CHARACTERS].rstrip(".-")


def istio_version(said: Version | None, pods: Iterable[Pod]) -> Version:
    """As said, or as the labels of istiod's Pods say. Raises `ShapeError`."""
    if said is not None:
        return said
    found = {
        version
        for pod in pods
        if pod.metadata.labels.get("app") == ISTIOD
        for label in VERSION_LABELS
        if (version := parse_version(pod.metadata.labels.get(label, ""))) is not None
    }
    if len(found) == 1:
        return found.pop()
    if found:
        several = " and ".join(map(str, sorted(found)))
        raise ShapeError(f"istiod's Pods are of Istio {several}; say which with --istio-version")
    raise ShapeError(
        "the Istio version is not known: no Pod with the label app=istiod says it in "
        f"{VERSION_LABELS[0]}; say it with --istio-version"
    )


def _wirings(
    have: Have, istio: Istio, xds: Host, picker: Host | None, pool: PoolName
) -> list[Wiring]:
    known = have.inventory.pools.get(pool)
    if known is None:
        raise ShapeError(
            f"InferencePool {pool}: not there as inference.networking.k8s.io/v1, the one version "
            "that istiod routes to"
        )
    if why := have.unread.get(pool.partition("/")[0]):
        raise ShapeError(f"{why}; {HELD}")
    said = have.policies[pool].shape
    shape = None if said in (None, AUTO) else Shape(said)
    return wirings(Question(known, have.inventory, have.policies, istio, xds, picker, shape))


def _wanted(plan: Plan, inventory: Inventory, xds: Host) -> Wanted:
    wiring = plan.wiring
    return Wanted(
        pool=wiring.member.pool,
        gateway=str(wiring.proxy),
        steps=tuple(
            tuple(_labelled(item, xds) for item in step.objects if item["kind"] == ENVOY_FILTER)
            for step in plan.steps
        ),
        resources=frozenset(plan.assignments),
        probe=tuple(_labelled(item, xds) for item in probe(plan) or _clusters(plan)),
        asks=dict(_asks(plan, inventory)),
    )


def _clusters(plan: Plan) -> Iterator[Object]:
    """The first step of a shape with a cluster of its own, without what requests meet of it."""
    for item in plan.steps[0].objects:
        if all(each["applyTo"] == "CLUSTER" for each in item["spec"]["configPatches"]):
            yield item


def _labelled(item: Object, xds: Host) -> Object:
    meta = item["metadata"]
    return {**item, "metadata": {**meta, "labels": {**meta["labels"], KEPT_BY: keeper(xds)}}}


def _asks(plan: Plan, inventory: Inventory) -> Iterator[tuple[int, str]]:
    """By its place among the steps, what of a step is the operator's and not there as printed."""
    wiring = plan.wiring
    for number, step in enumerate(plan.steps, 1):
        missing = []
        for item in step.objects:
            kind, namespace, name = key_of(item)
            if kind not in SHELVES:
                continue
            known = getattr(inventory, SHELVES[kind]).get(f"{namespace}/{name}")
            labels = item["metadata"]["labels"].items()
            if known is None or not labels <= known.metadata.labels.items():
                missing.append(f"{kind} {namespace}/{name}")
        if missing:
            command = f"{wiring.member.pool} --shape {wiring.shape.value} --step {step.number}"
            what = " and ".join(missing)
            printed = f"`weir istio manifests {command}` prints it"
            yield number, f"apply {what}, which is yours; {printed}"


def _objects(wanted: Wanted) -> Iterator[Object]:
    yield from wanted.probe
    for step in wanted.steps:
        yield from step


def _refuse_others(
    made: Iterable[Wanted],
    xds: Host,
    present: Mapping[Key, Object],
    taken: Mapping[Key, tuple[Object, PoolName]],
) -> None:
    """Raises `ShapeError` for an object that is somebody else's, or that another pool has."""
    for wanted in made:
        for item in _objects(wanted):
            key = key_of(item)
            where = f"{key[0]} {key[1]}/{key[2]}"
            other = _keeper(present[key]) if key in present else keeper(xds)
            if other != keeper(xds):
                raise ShapeError(
                    f"{where}: metadata.labels[{KEPT_BY}]: {other} keeps it, another Weir; have "
                    "one of them watch other namespaces, or remove the label"
                )
            first, pool = taken.get(key, (item, ""))
            if first != item:
                raise ShapeError(
                    f"{where}: {pool} wants it otherwise; two pools cannot have one Service of a "
                    "waypoint, give each its own"
                )


def _old_shape(wanted: Wanted, shape: Shape, present: Mapping[Key, Object]) -> str:
    """The shape that objects of these names have now, if it is another."""
    for key in sorted(wanted.keys & present.keys()):
        said = note(present[key], SHAPE)
        if said and said != shape.value and note(present[key], STEP) != "0":
            return said
    return ""


def _held(have: Have, xds: Host, needed: set[Key]) -> Iterator[tuple[PoolName, str]]:
    """Pools of which something may not go yet that nobody asks for, and why."""
    going = {
        key: item
        for key, item in have.present.items()
        if key not in needed and is_kept_by(item, xds)
    }
    for key, item in sorted(going.items()):
        pool = note(item, POOL)
        if not pool:
            continue  # it stays as long as anything is held
        spaces = (key[1], pool.partition("/")[0])
        if why := next((have.unread[each] for each in spaces if each in have.unread), ""):
            yield pool, f"{why}; {HELD}"
        elif note(item, SHAPE) in HELD_BY_ROUTES:
            try:
                for way in unwirings(have.inventory, pool):
                    if _relies_on_patches(way, have.inventory):
                        refuse_wrong_order(way, 2)
            except ShapeError as error:
                yield pool, str(error)


def _relies_on_patches(way: Unwiring, inventory: Inventory) -> bool:
    """Would a route that is there fail without them, or when it goes after them?

    To the pool it is answered with 503. To a second Service istiod carries it out alone, but takes
    the cluster away before the route, when that goes: one that we printed goes, so it goes first.
    """
    if way.shape is Shape.WAYPOINT_SECOND_SERVICE:
        routes = [f"{each[1]}/{each[2]}" for each in way.steps[0].objects]
        return any(is_ours(inventory.routes[name]) for name in routes)
    return way.shape is Shape.WAYPOINT_INFERENCEPOOL


def _unserved(have: Have) -> Iterator[PoolName]:
    """Pools that ask to be kept, and of which nothing else is known."""
    for name, pool in sorted(have.inventory.pools.items()):
        if name not in have.policies and ASKING in pool.metadata.annotations:
            yield name


def _keeper(item: Object) -> str:
    return str(item["metadata"].get("labels", {}).get(KEPT_BY, ""))
