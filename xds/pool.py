"""What Weir knows of a pool, as values: members, policy, loads.

Everything else in the control plane is a function from and to these. They know nothing of
Kubernetes, of protobuf or of time; a `Load` carries the instant it was asked for, in the clock of
whoever scraped. `None` means *not known*, which is neither zero nor idle.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from msgspec import Struct

EndpointId: TypeAlias = str  # "10.0.0.7:8000", exactly what Envoy calls a host
PoolName: TypeAlias = str  # "<namespace>/<name>"


class Tier(Enum):
    """Who decides which endpoint a request goes to (annotation `weir.dev/policy`)."""

    PICK = "pick"  # the picker; affinity where it says nothing
    AFFINITY = "affinity"  # Envoy: maglev with bounded load over a digest of the prompt
    WEIGHTS = "weights"  # Envoy: round robin over our weights
    ROUND_ROBIN = "round-robin"  # Envoy, uniform weights: a baseline
    LEAST_REQUEST = "least-request"  # Envoy, uniform weights: a baseline


class Mode(Enum):
    """How much of what Weir decides has effect (annotation `weir.dev/mode`).

    Members, what drains, what is dead and the operator's own priorities are followed in all.
    """

    ACTIVE = "active"
    OBSERVE = "observe"  # nothing: weights are uniform and pickers let requests pass
    FREEZE = "freeze"  # the last weights stand
    UNIFORM = "uniform"  # weights are uniform


class Affinity(Enum):
    """What keeps requests together on an endpoint (annotation `weir.dev/affinity`)."""

    PREFIX = "prefix"  # the model and the beginning of the prompt
    ADAPTER = "adapter"  # the model, which is an adapter's name
    SESSION = "session"  # a header; where a request has none, its prefix


class Body(Enum):
    """What the picker is asked with (annotation `weir.dev/body`)."""

    DIGESTS = "digests"  # headers only: the prompt stays in the proxy
    BUFFERED = "buffered"  # the body too


@dataclass(frozen=True, slots=True)
class Mesh:
    """What Istio knows of a Pod; nothing, where there is no Istio."""

    captured: bool = False  # takes HBONE: by ztunnel, or a sidecar that does
    sidecar: bool = False  # with Istio's own mutual TLS
    plaintext: bool = False  # which a PeerAuthentication disables
    workload: str = ""  # as istiod writes it into metadata
    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class IstioCluster:
    """A cluster that istiod named, over a pool's endpoints, or over one target port of them."""

    name: str
    target_port: int | None = None
    vip: bool = False  # a waypoint's own cluster of a Service


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One port of one model server."""

    id: EndpointId
    pod: str  # "<namespace>/<name>"
    address: str
    port: int
    ready: bool = True
    draining: bool = False
    speed: float = 1.0  # relative capacity (annotation `weir.dev/capacity` on the Pod)
    priority: int = 0  # that the operator wants at best (`weir.dev/priority` on the Pod)
    engine: str = "vllm"
    mesh: Mesh = Mesh()


@dataclass(frozen=True, slots=True)
class Objective:
    """An InferenceObjective; a negative priority may be shed."""

    name: str
    priority: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator's annotations on the InferencePool ask for; see `xds.tuning`."""

    tier: Tier = Tier.PICK
    hash_balance_factor: int = 125  # per cent; maglev with bounded load
    scrape_interval_seconds: float = 0.2
    mode: Mode = Mode.ACTIVE
    affinity: Affinity = Affinity.PREFIX
    session_header: str = "x-session-id"
    body: Body = Body.DIGESTS
    queue_threshold: int | None = None  # requests waiting; saturated from here on
    kv_threshold: float | None = None  # 0 to 1, likewise
    smoothing: float = 0.3  # part of a second's new loads in the smoothed one
    weight_min: float = 0.1  # bounds of the controller's factor
    weight_max: float = 10.0
    shape: str | None = None  # of the EnvoyFilters that Weir keeps for it; None: it keeps none

    @property
    def of_proxies(self) -> "Policy":
        """The part that proxies are configured with; the rest changes nothing for them."""
        return Policy(
            tier=self.tier,
            hash_balance_factor=self.hash_balance_factor,
            affinity=self.affinity,
            session_header=self.session_header,
            body=self.body,
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """An InferencePool and the endpoints that its selector found, sorted by id."""

    name: PoolName
    endpoints: tuple[Endpoint, ...]
    policy: Policy = Policy()
    objectives: tuple[Objective, ...] = ()
    istio_clusters: tuple[IstioCluster, ...] = ()  # that are answered for beside our own


class Load(Struct, frozen=True):
    """What a model server last said of itself. Two are made a scrape: a Struct, for its speed.

    `at` is when the scrape began: the numbers are that old at least. A series that the page did
    not have is `None`.
    """

    at: float
    waiting: int | None = None
    running: int | None = None
    kv_cache_usage: float | None = None  # 0 to 1
    adapters: frozenset[str] = frozenset()
    max_adapters: int | None = None
    block_size: int | None = None  # tokens
    blocks: int | None = None
    prefix_queries: float | None = None  # tokens since the server started
    prefix_hits: float | None = None
    decode_gap_sum: float | None = None  # seconds between tokens, since the server started
    decode_gap_count: float | None = None
    answer_sum: float | None = None  # tokens of finished answers, since the server started
    answer_count: float | None = None
    decode_step_seconds: float | None = None  # mean gap since the last scrape
    output_tokens: float | None = None  # mean length of the answers that finished lately


class Reachability(Enum):
    """What the last scrape of an endpoint came to."""

    UNKNOWN = "unknown"  # not scraped yet
    ANSWERING = "answering"
    SILENT = "silent"  # slow, garbled or timed out: the last load stands, and ages
    REFUSED = "refused"  # nobody listens there: dead


@dataclass(frozen=True, slots=True)
class Observation:
    """An endpoint's last load, and whether it still answers."""

    load: Load | None = None
    reachability: Reachability = Reachability.UNKNOWN
    problem: str = ""  # why it is not answering, for people


@dataclass(frozen=True, slots=True)
class Share:
    """An endpoint's part in its pool's assignment: weight 1 to 2^32-1, priority from 0."""

    weight: int
    priority: int = 0
