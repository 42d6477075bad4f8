"""Taking a pool's wiring away again, in the order that loses no request.

It goes by what is there: Weir's objects say by annotations which pool, shape and step they are of.

    gateway, own clusters     the route patch; then clusters and filters
    waypoint-inferencepool    the HTTPRoute, which Istio alone answers with 503; then the patches;
                              then the pool's own Service, if it was printed and nobody needs it
    waypoint-second-service   the HTTPRoute; then the patches; then the second Service

Between two steps open connections must drain: a waypoint's routes are part of its listener, and a
connection keeps those that it began with. What other pools share stays.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xds.istio.objects import EnvoyFilter, HTTPRoute
from xds.istio.shapes.inventory import Inventory, is_ours, is_service
from xds.istio.shapes.manifest import POOL, POOLS, SHAPE, STEP, object_name
from xds.istio.shapes.question import leads_to, name_of
from xds.istio.shapes.wiring import Proxy, Shape, ShapeError
from xds.manifests import Service
from xds.pool import PoolName

DRAIN = (
    "wait until `istioctl proxy-status` shows every proxy of Gateway {} as SYNCED, and then the "
    "drain time (45 s, unless drainDuration says otherwise): open connections keep their old routes"
)


class WrongOrder(ShapeError):
    """Something must go first; the message names it."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Objects that go together: kind, namespace, name. None are left of a step that is done."""

    number: int
    title: str
    objects: tuple[tuple[str, str, str], ...]
    then: str = ""

    @property
    def commands(self) -> list[str]:
        return [
            f"kubectl delete {kind.lower()} -n {namespace} {name}"
            for kind, namespace, name in self.objects
        ]


@dataclass(frozen=True, slots=True)
class Unwiring:
    """A pool's way out of one proxy."""

    proxy: Proxy
    shape: Shape
    steps: tuple[Removal, ...]
    notes: tuple[str, ...] = ()


def unwirings(inventory: Inventory, pool: PoolName) -> list[Unwiring]:
    """One for each proxy. Raises `ShapeError` where there is nothing of Weir's for this pool."""
    found: dict[tuple[Proxy, Shape], list[EnvoyFilter]] = {}
    for item in _ours(inventory):
        said = item.metadata.annotations
        if said.get(POOL) == pool:
            found.setdefault((_proxy(item), _shape(item)), []).append(item)
    if not found:
        raise ShapeError(
            f"InferencePool {pool}: the configuration has no EnvoyFilter of Weir's for it; export "
            "them: kubectl get envoyfilter,httproute,service -A -o yaml"
        )
    return [
        _unwiring(inventory, pool, *key, items) for key, items in sorted(found.items(), key=str)
    ]


def refuse_wrong_order(unwiring: Unwiring, number: int) -> None:
    """Raises `WrongOrder` where something of an earlier step is still there."""
    for step in unwiring.steps:
        if step.number < number and step.objects:
            kind, namespace, name = step.objects[0]
            raise WrongOrder(
                f"{kind} {namespace}/{name}: goes first, in step {step.number}; removing what it "
                f"leads to before it fails requests: {step.commands[0]}"
            )


def _unwiring(
    inventory: Inventory, pool: PoolName, proxy: Proxy, shape: Shape, items: list[EnvoyFilter]
) -> Unwiring:
    shared, notes = _shared(inventory, pool, proxy)
    by_step = {
        step: [each for each in items if each.metadata.annotations.get(STEP) == step]
        for step in ("1", "2")
    }
    patches = _keys("EnvoyFilter", [*by_step["1"], *shared])
    wait = DRAIN.format(proxy)
    if shape.on_gateway or shape.own_cluster:
        first = Removal(1, "the route patch", _keys("EnvoyFilter", by_step["2"]), wait)
        return Unwiring(
            proxy, shape, (first, Removal(2, "clusters and filters", patches)), tuple(notes)
        )
    to_pool = shape is Shape.WAYPOINT_INFERENCEPOOL
    routes = list(_to_the_pool(inventory, pool) if to_pool else _to_seconds(inventory, pool))
    notes += [
        f"HTTPRoute {name_of(route)} is yours: instead of deleting it, its backendRefs may be "
        "pointed at the Service itself again"
        for route in routes
        if not is_ours(route)
    ]
    title = "the HTTPRoute, which leads to what is patched"
    steps = [
        Removal(1, title, _keys("HTTPRoute", routes), wait),
        Removal(2, "clusters and filters", patches),
    ]
    own = [
        each
        for _, each in sorted(inventory.services.items())
        if is_ours(each)
        and each.metadata.annotations.get(POOL) == pool
        and each.metadata.annotations.get(SHAPE) == shape.value
    ]
    if to_pool and own and (others := _others(inventory, pool, routes)):
        notes.append(
            f"Service {own[0].metadata.namespace}/{own[0].metadata.name} stays: "
            f"HTTPRoute {others[0]} leads to the pool too, and istiod needs it for that"
        )
    elif own or not to_pool:
        title = "the pool's own Service" if to_pool else "the second Service"
        steps.append(Removal(3, title, _keys("Service", own)))
    return Unwiring(proxy, shape, tuple(steps), tuple(notes))


def _others(inventory: Inventory, pool: PoolName, going: list[HTTPRoute]) -> list[str]:
    """Routes that lead to the pool and stay."""
    return [
        name_of(route)
        for _, route in sorted(inventory.routes.items())
        if route not in going and leads_to(route, pool)
    ]


def _shared(
    inventory: Inventory, pool: PoolName, proxy: Proxy
) -> tuple[list[EnvoyFilter], list[str]]:
    """Filters that go with this pool, and notes on those that others need."""
    here = [item for item in _ours(inventory) if _proxy(item) == proxy]
    others = {item.metadata.annotations.get(POOL, pool) for item in here} - {pool}
    going, notes = [], []
    for item in here:
        said, name = item.metadata.annotations, item.metadata.name
        if POOL in said:
            continue
        users = set(said[POOLS].split(",")) if POOLS in said else {pool, *others}
        if users == {pool}:
            going.append(item)
        elif pool in users:
            rest = ", ".join(sorted(users - {pool}))
            print_anew = "" if name == object_name(proxy) else "; print it anew for them"
            notes.append(
                f"EnvoyFilter {item.metadata.namespace}/{name} stays, for {rest}{print_anew}"
            )
    return going, notes


def _to_the_pool(inventory: Inventory, pool: PoolName) -> Iterator[HTTPRoute]:
    for _, route in sorted(inventory.routes.items()):
        if any(is_service(ref) for ref in route.spec.parent_refs) and leads_to(route, pool):
            yield route


def _to_seconds(inventory: Inventory, pool: PoolName) -> Iterator[HTTPRoute]:
    """Routes of a Service to another over the pool's Pods that is past the waypoint."""
    known = inventory.pools.get(pool)  # it may be gone already
    seconds = {
        f"{each.metadata.namespace}/{each.metadata.name}"
        for each in (inventory.alike(known) if known else inventory.services.values())
        if inventory.waypoint_of(each) is None
        and (known or each.metadata.annotations.get(POOL) == pool)
    }
    for _, route in sorted(inventory.routes.items()):
        led = {
            f"{ref.namespace or route.metadata.namespace}/{ref.name}"
            for rule in route.spec.rules
            for ref in rule.backend_refs
        }
        if led & seconds and any(is_service(ref) for ref in route.spec.parent_refs):
            yield route


def _ours(inventory: Inventory) -> Iterator[EnvoyFilter]:
    for _, item in sorted(inventory.filters.items()):
        if is_ours(item):
            yield item


def _proxy(item: EnvoyFilter) -> Proxy:
    names = [ref.name for ref in item.spec.target_refs if ref.kind == "Gateway"]
    return Proxy(item.metadata.namespace, names[0] if names else "")


def _shape(item: EnvoyFilter) -> Shape:
    said = item.metadata.annotations.get(SHAPE, "")
    try:
        return Shape(said)
    except ValueError:
        where = f"EnvoyFilter {item.metadata.namespace}/{item.metadata.name}"
        known = ", ".join(shape.value for shape in Shape)
        raise ShapeError(
            f"{where}: metadata.annotations[{SHAPE}]: one of {known}, not {said!r}"
        ) from None


def _keys(
    kind: str, items: Iterable[EnvoyFilter | HTTPRoute | Service]
) -> tuple[tuple[str, str, str], ...]:
    return tuple((kind, each.metadata.namespace, each.metadata.name) for each in items)
