"""What was asked, and what both kinds of proxy need to answer it: members, status, notes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from xds.istio.objects import Condition, HTTPRoute, ParentRef
from xds.istio.objects import RouteRule as ObjectRule
from xds.istio.shapes.inventory import CONTROLLERS, Inventory
from xds.istio.shapes.wiring import (
    Host,
    Istio,
    Member,
    Proxy,
    Shape,
    ShapeError,
)
from xds.manifests import POOL_GROUP, InferencePool
from xds.pool import Body, Policy, PoolName

PICKER_PORT = 9002
ALPHA_GROUP = "inference.networking.x-k8s.io"
INVALID_KIND = "InvalidKind"  # of ResolvedRefs: a kind that this istiod does not know


@dataclass(slots=True)
class Aside:
    """What was not wired: `skipped` is said in any case, `hints` where nothing else was found."""

    skipped: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Question:
    """One pool, in what an operator has."""

    pool: InferencePool
    inventory: Inventory
    policies: Mapping[PoolName, Policy]
    istio: Istio
    xds: Host
    picker: Host | None = None  # instead of the one that each pool names
    shape: Shape | None = None  # instead of the one that fits

    @property
    def name(self) -> PoolName:
        return f"{self.pool.metadata.namespace}/{self.pool.metadata.name}"

    def member(self, name: PoolName) -> Member:
        pool = self.inventory.pool(name)
        return Member(
            namespace=pool.metadata.namespace,
            name=pool.metadata.name,
            picker=self.picker or self._picker(pool, name),
            policy=self.policies.get(name, Policy()),
            http2=pool.spec.app_protocol.endswith("h2c"),
        )

    def _picker(self, pool: InferencePool, name: PoolName) -> Host:
        ref = pool.spec.endpoint_picker_ref
        if ref is None:
            raise ShapeError(
                f"InferencePool {name}: spec.endpointPickerRef: missing; name the Service of "
                "Weir's picker there, or say --picker HOST:PORT"
            )
        if ref.kind != "Service":
            raise ShapeError(f"InferencePool {name}: spec.endpointPickerRef.kind: must be Service")
        port = ref.port.number if ref.port else PICKER_PORT
        return Host(pool.metadata.namespace, ref.name, port, self.istio.domain)

    def members(self, others: list[PoolName]) -> tuple[Member, ...]:
        """The pool that was asked for, then the others."""
        names = dict.fromkeys([self.name, *others])
        return tuple(self.member(name) for name in names)

    def notes(self, members: tuple[Member, ...], proxy: Proxy) -> Iterator[str]:
        """What may surprise, of the pools and of what others do to the proxy."""
        for member in members:
            ref = self.inventory.pool(member.pool).spec.endpoint_picker_ref
            if member.picks and ref is not None and ref.failure_mode == "FailClose":
                yield (
                    f"InferencePool {member.pool}: spec.endpointPickerRef.failureMode: FailClose "
                    "is not kept; without a picker affinity and weights route"
                )
            if member.picks and member.policy.body is Body.BUFFERED:
                yield (
                    f"InferencePool {member.pool}: its picker is sent bodies; one that is longer "
                    "than what the proxy buffers (1 MiB, unless set) is answered with 413"
                )
        for other in members[1:]:
            if other.picker != members[0].picker:
                yield (
                    f"InferencePool {other.pool}: its picker {other.picker.fqdn} is not asked "
                    f"beside {members[0].pool}; {members[0].picker.fqdn} must serve both"
                )
        for name, kind in self.inventory.foreign_filters(proxy, self.istio.root_namespace):
            if kind in ("CLUSTER", "HTTP_FILTER", "HTTP_ROUTE", "VIRTUAL_HOST"):
                yield (
                    f"EnvoyFilter {name}: applies to {kind} of Gateway {proxy} too, and may undo "
                    "what Weir's says; `istioctl proxy-config` shows what came of both"
                )


def pools_of(route: HTTPRoute, rule: ObjectRule) -> list[PoolName]:
    """The InferencePools that a rule sends requests to."""
    found = [
        f"{ref.namespace or route.metadata.namespace}/{ref.name}"
        for ref in rule.backend_refs
        if ref.kind == "InferencePool" and ref.group in (POOL_GROUP, ALPHA_GROUP)
    ]
    return list(dict.fromkeys(found))


def leads_to(route: HTTPRoute, pool: PoolName) -> bool:
    return any(pool in pools_of(route, rule) for rule in route.spec.rules)


def rule_name(route: HTTPRoute, number: int) -> str:
    """What istiod calls the route that it makes of a rule."""
    rule = route.spec.rules[number]
    return rule.name or f"{route.metadata.namespace}.{route.metadata.name}.{number}"


def name_of(route: HTTPRoute) -> str:
    return f"{route.metadata.namespace}/{route.metadata.name}"


def accepted(route: HTTPRoute, ref: ParentRef) -> str:
    """A note of what is not known, or not resolved. Raises `ShapeError` where Istio refused it.

    An istiod that knows no InferencePools accepts the route, and leads it nowhere.
    """
    where = f"HTTPRoute {name_of(route)}: status.parents"
    for parent in route.status.parents:
        same = (parent.parent_ref.kind, parent.parent_ref.name) == (ref.kind, ref.name)
        if not same or parent.controller not in CONTROLLERS:
            continue
        not_true = {each.type: each for each in parent.conditions if each.status != "True"}
        if condition := not_true.get("Accepted"):
            raise ShapeError(
                f"{where}: {ref.kind} {ref.name} has not accepted it ({_why(condition)}); mend the "
                "route first"
            )
        if condition := not_true.get("ResolvedRefs"):
            said = f"{where}: {ref.kind} {ref.name} has not resolved it ({_why(condition)})"
            if condition.reason == INVALID_KIND:
                raise ShapeError(said)
            return said
        return ""
    return (
        f"{where}: nothing of Istio for {ref.kind} {ref.name}; whether it is accepted is not known"
    )


def _why(condition: Condition) -> str:
    said = ": ".join(part for part in (condition.reason, condition.message) if part)
    return said or "no reason given"
