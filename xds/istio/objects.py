"""Objects of the Gateway API and of Istio that say how an operator wired a pool.

Read leniently: of each only the fields below are looked at, and what is unknown is passed over,
since these belong to others and grow. Where a field that we do look at has another type than it
should, reading says so. `KINDS` goes to `xds.manifests.read`; what serves pools does not read them.

Schemas: gateway.networking.k8s.io/v1, networking.istio.io/v1 and v1alpha3, apps/v1, core/v1.
"""

from typing import Any

from msgspec import Struct, field

from xds.manifests import KINDS as POOL_KINDS
from xds.manifests import Kinds, Metadata

GATEWAY_GROUP = "gateway.networking.k8s.io"
ISTIO_GROUP = "networking.istio.io"


class Condition(Struct, frozen=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class ParentRef(Struct, frozen=True):
    name: str
    group: str = GATEWAY_GROUP
    kind: str = "Gateway"
    namespace: str = ""
    section: str = field(default="", name="sectionName")
    port: int | None = None


class BackendRef(Struct, frozen=True):
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str = ""
    port: int | None = None
    weight: int = 1


class RouteFilter(Struct, frozen=True):
    type: str


class RouteRule(Struct, frozen=True):
    name: str = ""
    matches: list[Any] = []
    filters: list[RouteFilter] = []
    backend_refs: list[BackendRef] = field(default_factory=list, name="backendRefs")
    timeouts: Any = None


class RouteSpec(Struct, frozen=True):
    parent_refs: list[ParentRef] = field(default_factory=list, name="parentRefs")
    hostnames: list[str] = []
    rules: list[RouteRule] = []


class RouteParent(Struct, frozen=True):
    """What a controller says of a route at one of its parents."""

    parent_ref: ParentRef = field(name="parentRef")
    controller: str = field(default="", name="controllerName")
    conditions: list[Condition] = []


class RouteStatus(Struct, frozen=True):
    parents: list[RouteParent] = []


class HTTPRoute(Struct, frozen=True):
    metadata: Metadata
    spec: RouteSpec = RouteSpec()
    status: RouteStatus = RouteStatus()
    kind: str = "HTTPRoute"


class GatewaySpec(Struct, frozen=True):
    class_name: str = field(name="gatewayClassName")
    listeners: list[Any] = []


class Gateway(Struct, frozen=True):
    metadata: Metadata
    spec: GatewaySpec
    kind: str = "Gateway"


class GatewayClassSpec(Struct, frozen=True):
    controller: str = field(name="controllerName")


class GatewayClass(Struct, frozen=True):
    metadata: Metadata
    spec: GatewayClassSpec
    kind: str = "GatewayClass"


class Keepalive(Struct, frozen=True):
    probes: int = 0
    time: str = ""
    interval: str = ""


class TcpSettings(Struct, frozen=True):
    max_connections: int = field(default=0, name="maxConnections")
    connect_timeout: str = field(default="", name="connectTimeout")
    max_connection_duration: str = field(default="", name="maxConnectionDuration")
    idle_timeout: str = field(default="", name="idleTimeout")
    keepalive: Keepalive | None = field(default=None, name="tcpKeepalive")


class HttpSettings(Struct, frozen=True):
    max_pending: int = field(default=0, name="http1MaxPendingRequests")
    max_requests: int = field(default=0, name="http2MaxRequests")
    max_retries: int = field(default=0, name="maxRetries")
    requests_per_connection: int = field(default=0, name="maxRequestsPerConnection")
    concurrent_streams: int = field(default=0, name="maxConcurrentStreams")
    idle_timeout: str = field(default="", name="idleTimeout")
    h2_upgrade: str = field(default="DEFAULT", name="h2UpgradePolicy")
    use_client_protocol: bool = field(default=False, name="useClientProtocol")


class ConnectionPool(Struct, frozen=True):
    tcp: TcpSettings = TcpSettings()
    http: HttpSettings = HttpSettings()


class OutlierDetection(Struct, frozen=True):
    errors_5xx: int | None = field(default=None, name="consecutive5xxErrors")
    gateway_errors: int | None = field(default=None, name="consecutiveGatewayErrors")
    local_failures: int | None = field(default=None, name="consecutiveLocalOriginFailures")
    split_local: bool = field(default=False, name="splitExternalLocalOriginErrors")
    interval: str = ""
    base_ejection_time: str = field(default="", name="baseEjectionTime")
    max_ejection_percent: int = field(default=0, name="maxEjectionPercent")
    min_health_percent: int = field(default=0, name="minHealthPercent")


class LocalitySettings(Struct, frozen=True):
    distribute: list[Any] = []
    failover: list[Any] = []
    failover_priority: list[str] = field(default_factory=list, name="failoverPriority")
    enabled: bool | None = None


class LoadBalancer(Struct, frozen=True):
    simple: str = ""
    consistent_hash: Any = field(default=None, name="consistentHash")
    locality: LocalitySettings | None = field(default=None, name="localityLbSetting")
    warmup: Any = None
    warmup_seconds: Any = field(default=None, name="warmupDurationSecs")


class ClientTls(Struct, frozen=True):
    mode: str = "DISABLE"


class PortNumber(Struct, frozen=True):
    number: int


class PortPolicy(Struct, frozen=True):
    """What replaces a DestinationRule's policy at one port: all of it, nothing is inherited."""

    port: PortNumber
    connection_pool: ConnectionPool | None = field(default=None, name="connectionPool")
    outlier_detection: OutlierDetection | None = field(default=None, name="outlierDetection")
    load_balancer: LoadBalancer | None = field(default=None, name="loadBalancer")
    tls: ClientTls | None = None


class TrafficPolicy(Struct, frozen=True):
    connection_pool: ConnectionPool | None = field(default=None, name="connectionPool")
    outlier_detection: OutlierDetection | None = field(default=None, name="outlierDetection")
    load_balancer: LoadBalancer | None = field(default=None, name="loadBalancer")
    tls: ClientTls | None = None
    ports: list[PortPolicy] = field(default_factory=list, name="portLevelSettings")
    proxy_protocol: Any = field(default=None, name="proxyProtocol")
    retry_budget: Any = field(default=None, name="retryBudget")
    tunnel: Any = None


class DestinationRuleSpec(Struct, frozen=True):
    host: str
    traffic_policy: TrafficPolicy | None = field(default=None, name="trafficPolicy")
    subsets: list[Any] = []
    workload_selector: Any = field(default=None, name="workloadSelector")


class DestinationRule(Struct, frozen=True):
    metadata: Metadata
    spec: DestinationRuleSpec
    kind: str = "DestinationRule"


class VirtualServiceSpec(Struct, frozen=True):
    hosts: list[str] = []
    gateways: list[str] = []


class VirtualService(Struct, frozen=True):
    metadata: Metadata
    spec: VirtualServiceSpec = VirtualServiceSpec()
    kind: str = "VirtualService"


class TargetRef(Struct, frozen=True):
    kind: str
    name: str
    group: str = ""


class ConfigPatch(Struct, frozen=True):
    apply_to: str = field(name="applyTo")
    match: Any = None
    patch: Any = None


class EnvoyFilterSpec(Struct, frozen=True):
    target_refs: list[TargetRef] = field(default_factory=list, name="targetRefs")
    workload_selector: Any = field(default=None, name="workloadSelector")
    patches: list[ConfigPatch] = field(default_factory=list, name="configPatches")


class EnvoyFilter(Struct, frozen=True):
    metadata: Metadata
    spec: EnvoyFilterSpec = EnvoyFilterSpec()
    kind: str = "EnvoyFilter"


class Namespace(Struct, frozen=True):
    metadata: Metadata
    kind: str = "Namespace"


class EnvironmentVariable(Struct, frozen=True):
    name: str
    value: str = ""


class Container(Struct, frozen=True):
    name: str = ""
    image: str = ""
    env: list[EnvironmentVariable] = []


class PodTemplateSpec(Struct, frozen=True):
    containers: list[Container] = []


class PodTemplate(Struct, frozen=True):
    spec: PodTemplateSpec = PodTemplateSpec()


class DeploymentSpec(Struct, frozen=True):
    template: PodTemplate = PodTemplate()


class Deployment(Struct, frozen=True):
    """Looked at for istiod's own: its version and its flags."""

    metadata: Metadata
    spec: DeploymentSpec = DeploymentSpec()
    kind: str = "Deployment"


KINDS: Kinds = {
    **POOL_KINDS,
    (GATEWAY_GROUP, "Gateway"): Gateway,
    (GATEWAY_GROUP, "GatewayClass"): GatewayClass,
    (GATEWAY_GROUP, "HTTPRoute"): HTTPRoute,
    (ISTIO_GROUP, "DestinationRule"): DestinationRule,
    (ISTIO_GROUP, "EnvoyFilter"): EnvoyFilter,
    (ISTIO_GROUP, "VirtualService"): VirtualService,
    ("", "Namespace"): Namespace,
    ("apps", "Deployment"): Deployment,
}
