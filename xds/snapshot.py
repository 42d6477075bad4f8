"""Everything the control plane currently says, as bytes: type → name → resource.

A `Snapshot` is a value. The next one is made from the bodies of the day and the snapshot before
it; what did not change keeps its `Resource`, and a type in which nothing changed keeps its whole
mapping, so that "is there news?" is one identity test for a stream. A resource is serialised by
whoever made it and framed here at most once for each protocol variant: a response to any number of
streams is a small head and these frames, one after the other.

Versions are hashes of the bytes. Replicas that compute the same resources, and a restarted one,
therefore agree on versions, and a client that reconnects anywhere is sent only what differs.

A type that a snapshot does not have is *not known* and is not answered for; a type that it has
without resources is known to be empty.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from google.protobuf.any_pb2 import Any
from xxhash import xxh3_64_hexdigest

from xds.pool import PoolName
from xds.proto.envoy.service.discovery.v3 import discovery_pb2

ResourceName: TypeAlias = str
Version: TypeAlias = str  # 16 hexadecimal digits
Bodies: TypeAlias = Mapping[str, Mapping[ResourceName, bytes]]  # by type and name


class TypeUrl(StrEnum):
    """The resource types that we serve."""

    CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
    ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
    POOL = "type.googleapis.com/weir.v1.Pool"
    POOL_LOAD = "type.googleapis.com/weir.v1.PoolLoad"


class Resource:
    """One version of one resource. Equal where type, name and bytes are."""

    __slots__ = (
        "_delta",
        "_sotw",
        "alone",
        "body",
        "framings",
        "name",
        "plain",
        "type_url",
        "version",
    )

    def __init__(self, type_url: str, name: ResourceName, body: bytes) -> None:
        self.type_url = type_url
        self.name = name
        self.body = body  # the serialised message: the value of its Any
        self.version: Version = xxh3_64_hexdigest(body)
        self.framings = 0  # how often it was framed: at most once for each variant
        # The last response that was this resource alone, kept by `xds.subscription`: streams that
        # are in step with each other are sent the same.
        self.alone: object = None
        # The same for clients that open no tunnels, made by `xds.scoping` for the first of them.
        self.plain: Resource | None = None
        self._sotw: bytes | None = None
        self._delta: bytes | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Resource):
            return NotImplemented
        return (
            self.version == other.version
            and self.name == other.name
            and self.type_url == other.type_url
            and self.body == other.body
        )

    def __hash__(self) -> int:
        return hash((self.type_url, self.name, self.version))

    def __repr__(self) -> str:
        return f"Resource({self.type_url!r}, {self.name!r}, version={self.version!r})"

    @property
    def sotw_frame(self) -> bytes:
        """The resource as the field `resources` of a DiscoveryResponse."""
        if self._sotw is None:
            self.framings += 1
            frame = discovery_pb2.DiscoveryResponse(resources=[self._any()])
            self._sotw = frame.SerializeToString()
        return self._sotw

    @property
    def delta_frame(self) -> bytes:
        """The resource as the field `resources` of a DeltaDiscoveryResponse."""
        if self._delta is None:
            self.framings += 1
            resource = discovery_pb2.Resource(
                name=self.name, version=self.version, resource=self._any()
            )
            frame = discovery_pb2.DeltaDiscoveryResponse(resources=[resource])
            self._delta = frame.SerializeToString()
        return self._delta

    def _any(self) -> Any:
        return Any(type_url=self.type_url, value=self.body)


@dataclass(frozen=True, slots=True)
class Resources:
    """All resources of one type, and the version that stands for the whole of them."""

    version: Version
    by_name: Mapping[ResourceName, Resource] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An immutable state of the world; equal where the versions of all types are.

    `owners` says which pool a resource belongs to, by the resource's name; `tenants` has, for a
    namespace, the types that were composed for whoever sees that namespace and no other.
    """

    types: Mapping[str, Resources]
    owners: Mapping[ResourceName, PoolName] = field(default_factory=dict)
    tenants: Mapping[str, Mapping[str, Resources]] = field(default_factory=dict)

    @staticmethod
    def of(
        bodies: Bodies,
        previous: "Snapshot | None" = None,
        owners: Mapping[ResourceName, PoolName] | None = None,
        tenants: Mapping[str, Bodies] | None = None,
    ) -> "Snapshot":
        """Serialised resources by type and name; what is as in `previous` is taken from there.

        Returns `previous` itself where nothing changed.
        """
        before = previous if previous is not None else Snapshot({})
        types = _types(bodies, before.types)
        own = {
            namespace: _types(own, before.tenants.get(namespace, {}))
            for namespace, own in (tenants or {}).items()
        }
        owners = owners or {}
        if (
            previous is not None
            and owners == before.owners
            and _same(types, before.types)
            and own.keys() == before.tenants.keys()
            and all(_same(each, before.tenants[name]) for name, each in own.items())
        ):
            return previous
        return Snapshot(types, owners, own)

    def updated(self, bodies: Bodies) -> "Snapshot":
        """This snapshot, with other bodies of some of its resources.

        What `of` would make of all bodies together, at the cost of those that are given.
        Returns itself where nothing changed.
        """
        types = dict(self.types)
        for type_url, named in bodies.items():
            types[type_url] = _updated(type_url, named, self.types[type_url])
        return self if _same(types, self.types) else replace(self, types=types)

    def get(self, type_url: str, name: ResourceName) -> Resource | None:
        """None where the type or the name is not known."""
        resources = self.types.get(type_url)
        return None if resources is None else resources.by_name.get(name)

    def changed(self, since: "Snapshot") -> dict[str, set[ResourceName]]:
        """By type, the names that were added, changed or removed since; types without are left out.

        A type that is new here has all its names, be it none.
        """
        news = {}
        for type_url, resources in self.types.items():
            before = since.types.get(type_url)
            if resources is before:
                continue
            old = before.by_name if before is not None else {}
            names = {name for name, each in resources.by_name.items() if old.get(name) is not each}
            names.update(old.keys() - resources.by_name.keys())
            news[type_url] = names
        return news


def version_of(resources: Iterable[Resource]) -> Version:
    """One version for several resources, whatever their order."""
    lines = sorted(f"{resource.name}\0{resource.version}\0" for resource in resources)
    return xxh3_64_hexdigest("".join(lines).encode())


def _types(bodies: Bodies, before: Mapping[str, Resources]) -> dict[str, Resources]:
    return {
        str(type_url): _resources(str(type_url), named, before.get(type_url))
        for type_url, named in bodies.items()
    }


def _same(types: Mapping[str, Resources], before: Mapping[str, Resources]) -> bool:
    return types.keys() == before.keys() and all(
        resources is before[type_url] for type_url, resources in types.items()
    )


def _updated(type_url: str, bodies: Mapping[ResourceName, bytes], previous: Resources) -> Resources:
    before = previous.by_name
    news = {
        name: Resource(type_url, name, body)
        for name, body in bodies.items()
        if before[name].body != body
    }
    if not news:
        return previous
    named = {**before, **news}
    return Resources(version_of(named.values()), named)


def _resources(
    type_url: str, bodies: Mapping[ResourceName, bytes], previous: Resources | None
) -> Resources:
    before = previous.by_name if previous is not None else {}
    named = {}
    changed = previous is None or len(bodies) != len(before)
    for name, body in bodies.items():
        known = before.get(name)
        if known is not None and known.body == body:
            named[name] = known
        else:
            named[name] = Resource(type_url, name, body)
            changed = True
    if previous is not None and not changed:
        return previous
    return Resources(version_of(named.values()), named)
