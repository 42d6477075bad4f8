"""What a shape is built from: the proxy, the pools, the routes, and what this Istio can do."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from xds.istio.assignment import pool_cluster
from xds.istio.peer_authentication import ROOT_NAMESPACE
from xds.pool import Policy, PoolName, Tier

Object: TypeAlias = dict[str, Any]  # a manifest, or a part of Envoy's configuration, as JSON

PATCHING_LISTS = (1, 32)  # MERGE_AND_REPLACE_LIST: the first minor version that has it
SERVED_KEY = (1, 30)  # OverrideHost.selected_host_key
OLDEST = (1, 28)  # InferencePool v1


class ShapeError(ValueError):
    """What the operator has cannot be wired so; the message names the object and the way out."""


class Shape(Enum):
    GATEWAY = "gateway"
    GATEWAY_OWN_CLUSTER = "gateway-own-cluster"
    WAYPOINT_INFERENCEPOOL = "waypoint-inferencepool"
    WAYPOINT_SECOND_SERVICE = "waypoint-second-service"
    WAYPOINT_OWN_CLUSTER = "waypoint-own-cluster"

    @property
    def on_gateway(self) -> bool:
        return self in (Shape.GATEWAY, Shape.GATEWAY_OWN_CLUSTER)

    @property
    def own_cluster(self) -> bool:
        return self in (Shape.GATEWAY_OWN_CLUSTER, Shape.WAYPOINT_OWN_CLUSTER)


class Version(NamedTuple):
    """An Istio version, as far as we care."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class Host:
    """A port of a Service, as the mesh calls it."""

    namespace: str
    service: str
    port: int
    domain: str = "cluster.local"

    @property
    def fqdn(self) -> str:
        return f"{self.service}.{self.namespace}.svc.{self.domain}"

    @property
    def cluster(self) -> str:
        """istiod's name of the cluster that others reach it by."""
        return f"outbound|{self.port}||{self.fqdn}"

    @property
    def vip(self) -> str:
        """istiod's name of a waypoint's own cluster, and filter chain, of it."""
        return f"inbound-vip|{self.port}|http|{self.fqdn}"

    @property
    def reference(self) -> str:
        """As the annotation envoyfilter.istio.io/referenced-services lists it."""
        return f"{self.namespace}/{self.fqdn}"


@dataclass(frozen=True, slots=True)
class Istio:
    version: Version
    domain: str = "cluster.local"
    root_namespace: str = ROOT_NAMESPACE

    @property
    def replaces_lists(self) -> bool:
        return self.version >= PATCHING_LISTS

    @property
    def tells_served(self) -> bool:
        return self.version >= SERVED_KEY


@dataclass(frozen=True, slots=True)
class Member:
    """An InferencePool, as far as a shape cares."""

    namespace: str
    name: str
    picker: Host
    policy: Policy
    http2: bool = False

    @property
    def pool(self) -> PoolName:
        return f"{self.namespace}/{self.name}"

    @property
    def picks(self) -> bool:
        return self.policy.tier is Tier.PICK

    @property
    def digests(self) -> bool:
        """Does anything read what the digest filter writes?"""
        return self.policy.tier in (Tier.PICK, Tier.AFFINITY)

    def cluster(self, istio: Istio) -> str:
        """istiod's cluster of it."""
        return pool_cluster(self.namespace, self.name, istio.domain).name


@dataclass(frozen=True, slots=True)
class Proxy:
    """The Gateway object of a gateway or waypoint."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of an HTTPRoute that sends requests to pools, by the name that istiod gives it."""

    route: str  # "<namespace>/<name>"
    name: str
    pools: tuple[PoolName, ...]
    splits: bool = False  # between several backends
    lost_override: str = ""  # the filter for which Istio drops its picker: CORS or fault


class Protocol(Enum):
    """What a cluster speaks to its endpoints."""

    HTTP1 = "http1"
    HTTP2 = "http2"
    CLIENT = "client"  # what the client speaks


@dataclass(frozen=True, slots=True)
class Traffic:
    """What an operator's DestinationRule gives a cluster, as Envoy's fields."""

    cluster: Object = field(default_factory=dict)
    limits: Object = field(default_factory=dict)  # of the circuit breaker
    http: Object = field(default_factory=dict)  # common_http_protocol_options
    protocol: Protocol = Protocol.HTTP1
    concurrent_streams: int = 0
    panic_threshold: int = 0
    istio_mutual: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SecondService:
    """The Service that a waypoint's route goes to; `missing` where it is ours to print."""

    host: Host
    target_port: int | str
    selector: tuple[tuple[str, str], ...]
    missing: bool = True


@dataclass(frozen=True, slots=True)
class Shadow:
    """istiod's Service of a pool that is to be there before istiod makes it."""

    member: Member
    selector: tuple[tuple[str, str], ...]
    target_ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wiring:
    """One pool at one proxy: all that a shape needs to know."""

    shape: Shape
    proxy: Proxy
    istio: Istio
    xds: Host
    members: tuple[Member, ...]  # the pool that was asked for, then those its rules split with
    rules: tuple[Rule, ...] = ()
    service: Host | None = None  # a waypoint's
    service_http2: bool = False
    second: SecondService | None = None
    shadows: tuple[Shadow, ...] = ()
    route_missing: bool = False  # the shape's HTTPRoute is ours to print
    only_routes: tuple[str, ...] = ()  # where others of the Service's routes go elsewhere
    traffic: Traffic = Traffic()
    notes: tuple[str, ...] = ()

    @property
    def member(self) -> Member:
        return self.members[0]

    def of(self, pools: tuple[PoolName, ...]) -> tuple[Member, ...]:
        """The members of these names, in their order."""
        known = {member.pool: member for member in self.members}
        return tuple(known[pool] for pool in pools if pool in known)


@dataclass(frozen=True, slots=True)
class Step:
    """Objects that are applied together, and what must be so before the next step."""

    number: int
    title: str
    objects: tuple[Object, ...]
    then: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A pool's manifests at one proxy."""

    wiring: Wiring
    twin: str  # which cluster keeps istiod's assignment in the proxy
    assignments: tuple[str, ...]  # of Weir's, that the proxies acknowledge between the steps
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
