"""Listener, RouteConfiguration and Cluster for an Envoy that is ours alone, and its bootstrap.

Authored with envoy-data-plane's typed classes: this is made when a pool or its policy changes, not
per push. The names that hold it together:

    listener "weir" ─► route configuration "weir" ─► cluster "<namespace>/<pool>" ─► EDS, same name
                │ filters: digest (Lua), ext_proc ─► cluster "weir-picker"

Both filters are off by default and switched on by the route, tier by tier:

    pick           digest, ext_proc    override_host ─► maglev with bounded load ─► EDS weights
    affinity       digest                               maglev with bounded load ─► EDS weights
    weights        -                                    round robin              ─► EDS weights
    round-robin    -                                    round robin, uniform weights
    least-request  -                                    least request, uniform weights

The digest filter replaces what a client sent under our names, and the picker trusts digests only on
streams whose initial metadata says that the filter ran. A picker that is gone fails open at once,
one that is silent after `MESSAGE_TIMEOUT`; affinity and weights then route.

A single pool gets every host name. Of several, a pool is reached as "<pool>.<namespace>".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from importlib.resources import files

import yaml
from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    LoadBalancingPolicy,
    LoadBalancingPolicyPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    Http2ProtocolOptions,
    KeepaliveSettings,
    RoutingPriority,
    SocketAddress,
    SubstitutionFormatString,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteActionHashPolicy,
    RouteActionHashPolicyHeader,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ExtProcOverrides,
    ExtProcPerRoute,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua, LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.common.v3 import (
    ConsistentHashingLbConfig,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 import (
    LeastRequest,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.maglev.v3 import Maglev
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import (
    OverrideHost,
    OverrideHostOverrideHostSource,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.ring_hash.v3 import (
    RingHash,
    RingHashHashFunction,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.round_robin.v3 import RoundRobin
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import (
    PreviousHostsPredicate,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.metadata.v3 import MetadataKey, MetadataKeyPathSegment
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct, Value

from xds.pool import Affinity, Body, Policy, Pool, PoolName, Tier
from xds.snapshot import TypeUrl

NAME = "weir"
PICKER_CLUSTER = "weir-picker"
LUA, EXT_PROC, ROUTER = "weir.digest", "weir.picker", "envoy.filters.http.router"
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
MESSAGE_TIMEOUT = timedelta(seconds=0.25)
CONNECT_TIMEOUT = timedelta(seconds=1)
FULL_DUPLEX_TIMEOUT = timedelta(seconds=10)
UNLIMITED = 2**32 - 1
BUFFER_BYTES = 1 << 20  # Envoy's default; the digest filter leaves larger bodies alone
FILTERED = frozenset({Tier.PICK, Tier.AFFINITY})

BODY_MODES = {
    "digests": ProcessingModeBodySendMode.NONE,
    "buffered": ProcessingModeBodySendMode.BUFFERED,
    "buffered-partial": ProcessingModeBodySendMode.BUFFERED_PARTIAL,
    "full-duplex": ProcessingModeBodySendMode.FULL_DUPLEX_STREAMED,
}


class Filters(Enum):
    """Which of our filters a picked route runs; benchmarks leave some out."""

    BOTH = "both"
    DIGEST = "digest"
    PICKER = "picker"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Standalone:
    """What a standalone Envoy is told beside the pools; addresses are "host:port"."""

    listen: str
    picker: str
    access_log: str | None = None  # a path that Envoy can write to
    body_mode: str = "digests"  # a key of BODY_MODES
    filters: Filters = Filters.BOTH

    @property
    def digests(self) -> bool:
        """Does the digest filter run before the picker is asked?"""
        return self.body_mode == "digests" and self.filters in (Filters.BOTH, Filters.DIGEST)

    @property
    def picks(self) -> bool:
        return self.filters in (Filters.BOTH, Filters.PICKER)


def resources(
    pools: Mapping[PoolName, Pool], standalone: Standalone
) -> dict[str, dict[str, bytes]]:
    """Serialised Listener, RouteConfiguration and Cluster resources by type and name."""
    clusters = [_cluster(pool) for pool in pools.values()]
    if standalone.picks:
        clusters.append(_picker_cluster(standalone.picker))
    return {
        TypeUrl.CLUSTER: {cluster.name: bytes(cluster) for cluster in clusters},
        TypeUrl.LISTENER: {NAME: bytes(_listener(standalone))},
        TypeUrl.ROUTE: {NAME: bytes(_routes(pools, standalone))},
    }


def upstream(cluster: str) -> dict[str, object]:
    """A cluster as an xDS client's way to its server, JSON: it is tried again within two seconds.

    Left to itself Envoy waits for up to 30 s, longer the longer the server was away.
    """
    back_off = {"base_interval": "0.25s", "max_interval": "2s"}
    return {"cluster_name": cluster, "retry_policy": {"retry_back_off": back_off}}


def bootstrap(xds_address: str, admin_port: int, node_id: str) -> str:
    """An Envoy bootstrap, as YAML, that knows nothing but where the control plane is."""
    host, port = _split(xds_address)
    ads = {"resource_api_version": "V3", "ads": {}}
    address = {"socket_address": {"address": host, "port_value": port}}
    http = {
        "@type": _type_url(HttpProtocolOptions),
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "5s", "timeout": "3s"}}
        },
    }
    cluster = {
        "name": "weir-xds",
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {_http_options_name(): http},
        "load_assignment": {
            "cluster_name": "weir-xds",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    admin = {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}
    return yaml.safe_dump(
        {
            "node": {"id": node_id, "cluster": NAME},
            "admin": {"address": admin},
            "static_resources": {"clusters": [cluster]},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": upstream("weir-xds")}],
                    "set_node_on_first_message_only": True,
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "cluster_manager": {
                "load_stats_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": upstream("weir-xds")}],
                }
            },
        },
        sort_keys=False,
    )


def _listener(standalone: Standalone) -> Listener:
    host, port = _split(standalone.listen)
    manager = HttpConnectionManager(
        stat_prefix=NAME,
        rds=Rds(route_config_name=NAME, config_source=_ads()),
        http_filters=[
            HttpFilter(name=LUA, typed_config=Any.pack(Lua())),
            HttpFilter(name=EXT_PROC, typed_config=Any.pack(_ext_proc(standalone)), disabled=True),
            HttpFilter(name=ROUTER, typed_config=Any.pack(Router())),
        ],
        access_log=[_access_log(standalone.access_log)] if standalone.access_log else [],
        stream_idle_timeout=timedelta(0),  # a model may think for longer than any idle timeout
    )
    chain = FilterChain(
        filters=[
            Filter(
                name="envoy.filters.network.http_connection_manager",
                typed_config=Any.pack(manager),
            )
        ]
    )
    return Listener(name=NAME, address=_address(host, port), filter_chains=[chain])


def _ext_proc(standalone: Standalone) -> ExternalProcessor:
    duplex = standalone.body_mode == "full-duplex"
    return ExternalProcessor(
        grpc_service=_picker_service(),
        failure_mode_allow=True,
        message_timeout=FULL_DUPLEX_TIMEOUT if duplex else MESSAGE_TIMEOUT,
        processing_mode=_processing_mode(standalone.body_mode),
        metadata_options=MetadataOptions(
            forwarding_namespaces=MetadataOptionsMetadataNamespaces(untyped=["envoy.lb"]),
            receiving_namespaces=MetadataOptionsMetadataNamespaces(untyped=["envoy.lb"]),
        ),
        request_attributes=["xds.cluster_name", "xds.route_name"],
    )


def _processing_mode(body_mode: str) -> ProcessingMode:
    mode = BODY_MODES[body_mode]
    duplex = mode == ProcessingModeBodySendMode.FULL_DUPLEX_STREAMED
    send, skip = ProcessingModeHeaderSendMode.SEND, ProcessingModeHeaderSendMode.SKIP
    return ProcessingMode(
        request_header_mode=send,
        # As istiod configures it for an InferencePool: both directions, trailers too.
        response_header_mode=send if duplex else skip,
        request_body_mode=mode,
        response_body_mode=mode if duplex else ProcessingModeBodySendMode.NONE,
        request_trailer_mode=send if duplex else skip,
        response_trailer_mode=send if duplex else skip,
    )


def _access_log(path: str) -> AccessLog:
    """One JSON line a request: what was picked, what was served, how it ended. No prompt bytes."""
    fields = {
        "start": "%START_TIME%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "duration_ms": "%DURATION%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "model": "%REQ(X-GATEWAY-MODEL-NAME)%",
        "affinity": "%REQ(X-WEIR-AFFINITY)%",
        "picked": f"%DYNAMIC_METADATA(envoy.lb:{DESTINATION})%",
        "served": "%UPSTREAM_HOST%",
    }
    form = Struct(fields={name: Value(string_value=text) for name, text in fields.items()})
    return AccessLog(
        name="envoy.access_loggers.file",
        typed_config=Any.pack(
            FileAccessLog(path=path, log_format=SubstitutionFormatString(json_format=form))
        ),
    )


def _routes(pools: Mapping[PoolName, Pool], standalone: Standalone) -> RouteConfiguration:
    alone = len(pools) == 1
    return RouteConfiguration(
        name=NAME,
        virtual_hosts=[
            VirtualHost(
                name=pool.name,
                domains=["*"] if alone else _domains(pool.name),
                routes=[_route(pool, standalone)],
            )
            for pool in pools.values()
        ],
    )


def _domains(pool: PoolName) -> list[str]:
    namespace, _, name = pool.partition("/")
    return [f"{name}.{namespace}", f"{name}.{namespace}:*"]


def _route(pool: Pool, standalone: Standalone) -> Route:
    tier = pool.policy.tier
    filters = {}
    if tier in FILTERED and standalone.filters in (Filters.BOTH, Filters.DIGEST):
        filters[LUA] = Any.pack(LuaPerRoute(source_code=DataSource(inline_string=_digest_source())))
    else:
        filters[LUA] = Any.pack(LuaPerRoute(disabled=True))
    if tier is Tier.PICK and standalone.picks:
        filters[EXT_PROC] = Any.pack(_asking(pool, standalone))
    retries = RetryPolicy(
        retry_on="connect-failure,refused-stream,reset-before-request",
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=Any.pack(PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=5,
        num_retries=2,
    )
    action = RouteAction(cluster=pool.name, timeout=timedelta(0), retry_policy=retries)
    return Route(
        name=pool.name,
        match=RouteMatch(prefix="/"),
        route=action,
        typed_per_filter_config=filters,
    )


def _asking(pool: Pool, standalone: Standalone) -> ExtProcPerRoute:
    """The route's ext_proc: which pool is asked about, whether the digest filter ran, and the body
    if the pool wants that sent and the listener does not send it anyway.
    """
    metadata = [HeaderValue(key="x-weir-pool", value=pool.name)]
    if standalone.digests:
        metadata.append(HeaderValue(key="x-weir-digests", value="v1"))
    overrides = ExtProcOverrides(
        grpc_service=_picker_service(), grpc_initial_metadata=metadata, failure_mode_allow=True
    )
    if pool.policy.body is Body.BUFFERED and standalone.body_mode == "digests":
        overrides.processing_mode = _processing_mode("buffered")
    return ExtProcPerRoute(overrides=overrides)


def _picker_service() -> GrpcService:
    return GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PICKER_CLUSTER), timeout=timedelta(seconds=10)
    )


def _cluster(pool: Pool) -> Cluster:
    return Cluster(
        name=pool.name,
        alt_stat_name=pool.name.replace("/", "."),
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=_ads(), service_name=pool.name),
        connect_timeout=CONNECT_TIMEOUT,
        load_balancing_policy=LoadBalancingPolicy(
            policies=[_policy(pool.policy), _for_grpc_clients()]
        ),
        common_lb_config=ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=0.0)),
        circuit_breakers=_unlimited(),
    )


def _policy(policy: Policy) -> LoadBalancingPolicyPolicy:
    if policy.tier is Tier.LEAST_REQUEST:
        return _extension("least_request", LeastRequest())
    if policy.tier in (Tier.WEIGHTS, Tier.ROUND_ROBIN):
        return _extension("round_robin", RoundRobin())
    affinity = _extension(
        "maglev",
        Maglev(
            consistent_hashing_lb_config=ConsistentHashingLbConfig(
                hash_balance_factor=policy.hash_balance_factor,
                hash_policy=_hash_keys(policy),
            )
        ),
    )
    if policy.tier is Tier.AFFINITY:
        return affinity
    return _extension(
        "override_host",
        OverrideHost(
            override_host_sources=[OverrideHostOverrideHostSource(metadata=_key(DESTINATION))],
            selected_host_key=_key(SERVED),
            fallback_policy=LoadBalancingPolicy(policies=[affinity]),
        ),
    )


def _hash_keys(policy: Policy) -> list[RouteActionHashPolicy]:
    """What keeps requests together; the first that a request has is its key."""
    names = ["x-weir-affinity"]
    if policy.affinity is Affinity.ADAPTER:
        names = ["x-gateway-model-name"]
    elif policy.affinity is Affinity.SESSION:
        names.insert(0, policy.session_header)
    return [
        RouteActionHashPolicy(
            header=RouteActionHashPolicyHeader(header_name=name), terminal=name != names[-1]
        )
        for name in names
    ]


def _for_grpc_clients() -> LoadBalancingPolicyPolicy:
    """A client takes the first policy that it knows. gRPC's own knows neither override_host nor
    maglev, refuses a cluster that has none that it knows, and honours our weights under this one.
    """
    return _extension("ring_hash", RingHash(hash_function=RingHashHashFunction.XX_HASH))


def _extension(name: str, config: object) -> LoadBalancingPolicyPolicy:
    return LoadBalancingPolicyPolicy(
        typed_extension_config=TypedExtensionConfig(
            name=f"envoy.load_balancing_policies.{name}",
            typed_config=Any.pack(config),  # type: ignore[arg-type]
        )
    )


def _key(name: str) -> MetadataKey:
    return MetadataKey(key="envoy.lb", path=[MetadataKeyPathSegment(key=name)])


def _picker_cluster(address: str) -> Cluster:
    host, port = _split(address)
    endpoint = LbEndpoint(endpoint=Endpoint(address=_address(host, port)))
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=Http2ProtocolOptions(
                connection_keepalive=KeepaliveSettings(
                    interval=timedelta(seconds=5), timeout=timedelta(seconds=2)
                )
            )
        )
    )
    return Cluster(
        name=PICKER_CLUSTER,
        type=ClusterDiscoveryType.STRICT_DNS,
        connect_timeout=MESSAGE_TIMEOUT,
        typed_extension_protocol_options={_http_options_name(): Any.pack(options)},
        load_assignment=ClusterLoadAssignment(
            cluster_name=PICKER_CLUSTER,
            endpoints=[LocalityLbEndpoints(lb_endpoints=[endpoint])],
        ),
        circuit_breakers=_unlimited(),
    )


def _unlimited() -> CircuitBreakers:
    """Envoy's default of 1,024 requests is what a busy pool has in flight on a quiet day."""
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                priority=RoutingPriority.DEFAULT,
                max_connections=UNLIMITED,
                max_pending_requests=UNLIMITED,
                max_requests=UNLIMITED,
                max_retries=UNLIMITED,
            )
        ]
    )


def _digest_source() -> str:
    return files("xds").joinpath("digest.lua").read_text("utf-8")


def _ads() -> ConfigSource:
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def _address(host: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _http_options_name() -> str:
    return _type_url(HttpProtocolOptions).partition("/")[2]


def _type_url(message: type[HttpProtocolOptions]) -> str:
    return Any.pack(message()).type_url
