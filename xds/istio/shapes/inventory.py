"""What the operator has, by kind and name, and the few questions that shapes ask of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xds.istio.assignment import shadow_service
from xds.istio.objects import (
    GATEWAY_GROUP,
    Deployment,
    DestinationRule,
    EnvoyFilter,
    Gateway,
    GatewayClass,
    HTTPRoute,
    Namespace,
    ParentRef,
    VirtualService,
)
from xds.istio.shapes.manifest import MANAGED_BY
from xds.istio.shapes.wiring import Proxy, ShapeError, Version
from xds.manifests import InferencePool, Manifest, Service

CONTROLLERS = ("istio.io/gateway-controller", "istio.io/mesh-controller")
CLASSES = ("istio", "istio-remote", "istio-waypoint", "istio-east-west")
USE_WAYPOINT, WAYPOINT_NAMESPACE = "istio.io/use-waypoint", "istio.io/use-waypoint-namespace"
ISTIOD = "istiod"
SHELVES: Mapping[type[Any], str] = {
    InferencePool: "pools",
    Service: "services",
    Gateway: "gateways",
    HTTPRoute: "routes",
    DestinationRule: "rules",
    EnvoyFilter: "filters",
    VirtualService: "virtual_services",
    GatewayClass: "classes",
    Namespace: "namespaces",
    Deployment: "istiods",
}
UNSPACED = frozenset({"classes", "namespaces"})  # these have no namespace
INFERENCE = "ENABLE_GATEWAY_API_INFERENCE_EXTENSION"


@dataclass(slots=True)
class Inventory:
    """Objects by "<namespace>/<name>"."""

    pools: dict[str, InferencePool] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    routes: dict[str, HTTPRoute] = field(default_factory=dict)
    rules: dict[str, DestinationRule] = field(default_factory=dict)
    filters: dict[str, EnvoyFilter] = field(default_factory=dict)
    virtual_services: dict[str, VirtualService] = field(default_factory=dict)
    classes: dict[str, GatewayClass] = field(default_factory=dict)
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    istiods: dict[str, Deployment] = field(default_factory=dict)

    def pool(self, name: str) -> InferencePool:
        """By "<namespace>/<name>", or by its name alone where that is enough. `ShapeError`."""
        found = [key for key in self.pools if name in (key, key.partition("/")[2])]
        if len(found) > 1:
            raise ShapeError(f"InferencePool {name}: say which, {' or '.join(sorted(found))}")
        if not found:
            known = ", ".join(sorted(self.pools)) or "none"
            raise ShapeError(f"InferencePool {name}: not found; the configuration has {known}")
        return self.pools[found[0]]

    def is_istios(self, gateway: Gateway) -> bool:
        name = gateway.spec.class_name
        if (said := self.classes.get(name)) is not None:
            return said.spec.controller in CONTROLLERS
        return name in CLASSES

    def waypoint_of(self, service: Service) -> Proxy | None:
        """Where the Service's requests go first: its own label, else its Namespace's."""
        meta = service.metadata
        spaces = self.namespaces.get(meta.namespace)
        for labels in (meta.labels, spaces.metadata.labels if spaces else {}):
            if name := labels.get(USE_WAYPOINT):
                if name == "none":
                    return None
                return Proxy(labels.get(WAYPOINT_NAMESPACE) or meta.namespace, name)
        return None

    def alike(self, pool: InferencePool) -> list[Service]:
        """Services over the pool's Pods, but the one that istiod makes of the pool."""
        return [
            service
            for _, service in sorted(self.services.items())
            if service.metadata.namespace == pool.metadata.namespace
            and service.metadata.name != shadow_service(pool.metadata.name)
            and service.spec.selector == pool.spec.selector.match_labels
        ]

    def routes_of(self, service: Service, port: int) -> list[HTTPRoute]:
        """HTTPRoutes whose parent the Service is, at this port."""
        return [
            route
            for _, route in sorted(self.routes.items())
            if any(
                is_service(ref)
                and ref.name == service.metadata.name
                and (ref.namespace or route.metadata.namespace) == service.metadata.namespace
                and ref.port in (None, port)
                for ref in route.spec.parent_refs
            )
        ]

    def virtual_service_of(self, fqdn: str, name: str, namespace: str) -> VirtualService | None:
        for key, each in sorted(self.virtual_services.items()):
            short = [name] if key.startswith(f"{namespace}/") else []
            if "mesh" in (each.spec.gateways or ["mesh"]) and (
                fqdn in each.spec.hosts or any(host in short for host in each.spec.hosts)
            ):
                return each
        return None

    def foreign_filters(self, proxy: Proxy, root_namespace: str) -> Iterator[tuple[str, str]]:
        """Patches of others that reach this proxy: the EnvoyFilter, and what it applies to."""
        for name, each in sorted(self.filters.items()):
            namespace = each.metadata.namespace
            targets = [ref.name for ref in each.spec.target_refs if ref.kind == "Gateway"]
            here = namespace == proxy.namespace and (not targets or proxy.name in targets)
            if is_ours(each) or not (here or (namespace == root_namespace and not targets)):
                continue
            for kind in dict.fromkeys(patch.apply_to for patch in each.spec.patches):
                yield name, kind

    def versions(self) -> Mapping[str, Version]:
        """What each istiod says it is, by its name."""
        found = {name: _version(each) for name, each in sorted(self.istiods.items())}
        return {name: version for name, version in found.items() if version is not None}

    def flag(self, name: str) -> str | None:
        """An environment variable of istiod's; None where no istiod, or not this, is known."""
        for each in self.istiods.values():
            for container in each.spec.template.spec.containers:
                for variable in container.env:
                    if variable.name == name:
                        return variable.value
        return None


def inventory(manifests: Iterable[Manifest]) -> Inventory:
    """Raises `ShapeError` for an object that stands twice."""
    found = Inventory()
    seen: dict[tuple[str, str, str], Manifest] = {}
    for manifest in manifests:
        if (twin := seen.setdefault(manifest.key, manifest)) is not manifest:
            raise ShapeError(f"{manifest.where}: already in {twin.source}; remove one")
        _put(found, manifest.object)
    return found


def _put(found: Inventory, item: Any) -> None:
    shelf = SHELVES.get(type(item))
    if shelf is None or (
        isinstance(item, Deployment) and item.metadata.labels.get("app") != ISTIOD
    ):
        return
    meta = item.metadata
    key = meta.name if shelf in UNSPACED else f"{meta.namespace}/{meta.name}"
    getattr(found, shelf)[key] = item


def is_ours(item: EnvoyFilter | HTTPRoute | Service) -> bool:
    """Did `weir istio manifests` print it?"""
    return item.metadata.labels.get(MANAGED_BY) == "weir"


def is_service(ref: ParentRef) -> bool:
    return ref.kind == "Service" and ref.group in ("", "core")


def is_gateway(ref: ParentRef) -> bool:
    return ref.kind == "Gateway" and ref.group == GATEWAY_GROUP


def parse_version(text: str) -> Version | None:
    """ "1.32.1", "v1.30", "1.32-alpha.0" """
    parts = text.strip().removeprefix("v").split(".")
    numbers = [part.partition("-")[0] for part in parts[:2]]
    if len(numbers) == 2 and all(number.isdigit() for number in numbers):
        return Version(int(numbers[0]), int(numbers[1]))
    return None


def _version(istiod: Deployment) -> Version | None:
    """From the image's tag, which is what runs; else from the labels that charts set."""
    for container in istiod.spec.template.spec.containers:
        tag = container.image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        if (found := parse_version(tag)) is not None:
            return found
    labels = istiod.metadata.labels
    for label in ("app.kubernetes.io/version", "operator.istio.io/version"):
        if (found := parse_version(labels.get(label, ""))) is not None:
            return found
    return None
