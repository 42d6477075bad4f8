"""What one Envoy is really doing for a pool, read from its admin interface. Pure.

From `/config_dump`, `/clusters?format=json` and `/stats?format=json`, as Envoy 1.35 to 1.40 write
them:

    EdsCluster      a cluster that takes the endpoints of a resource name, and from whom
    Asking          how a route to such a cluster asks a picker, if it does
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xds.istio.assignment import shadow_service
from xds.pool import EndpointId

Json = Mapping[str, Any]
POOL_HEADER = "x-weir-pool"
LOSES_OVERRIDES = ("envoy.filters.http.cors", "envoy.filters.http.fault")


@dataclass(frozen=True, slots=True)
class Host:
    """An endpoint as Envoy has it; `served` counts requests since Envoy knows it."""

    weight: int
    priority: int
    served: int


@dataclass(frozen=True, slots=True)
class EdsCluster:
    """A cluster of type EDS."""

    name: str
    service_name: str
    source: str  # the cluster through which the endpoints come; "" for the proxy's own ADS
    policy: str  # the load-balancing policy that Envoy uses: the first
    max_requests: int
    stat_name: str
    hosts: Mapping[EndpointId, Host] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asking:
    """One route that leads to a pool's cluster, and what its ext_proc does."""

    route: str
    cluster: str  # where the route leads
    picker: str = ""  # the cluster of the picker; "" where nobody is asked
    pools: tuple[str, ...] = ()  # that the picker is asked about
    fails_open: bool = False
    full_duplex: bool = False
    timeout_seconds: float = 0.2  # Envoy's default
    stat_prefix: str = ""
    has_lost: str = ""  # a filter for whose sake Istio drops the route's other overrides


@dataclass(frozen=True, slots=True)
class Proxy:
    """One Envoy, at one instant."""

    node: str
    clusters: Mapping[str, EdsCluster]
    askings: Sequence[Asking]
    limits: Mapping[str, int]  # of any cluster: requests at once
    stats: Mapping[str, float]

    def takes(self, resource: str) -> list[EdsCluster]:
        """Clusters that use the assignment of this name."""
        return [each for each in self.clusters.values() if each.service_name == resource]

    def resources(self, pool: str) -> list[str]:
        """Names of the pool's assignments, as far as this proxy's own configuration tells."""
        asked = {each.cluster for each in self.askings if pool in each.pools}
        namespace, _, name = pool.partition("/")
        host = f"||{shadow_service(name)}.{namespace}.svc."
        return sorted(
            {
                each.service_name
                for each in self.clusters.values()
                if each.name in asked or host in each.service_name
            }
        )

    def stat(self, name: str) -> float:
        return self.stats.get(name, 0.0)


def read(info: Json, dump: Json, statuses: Json, stats: Json) -> Proxy:
    """From `/server_info`, `/config_dump?include_eds`, `/clusters` and `/stats`."""
    configs = dump.get("configs", [])
    raw = list(_clusters(configs))
    hosts = {
        status["name"]: _hosts(status.get("host_statuses", []))
        for status in statuses.get("cluster_statuses", [])
    }
    clusters = {
        each["name"]: _eds(each, hosts.get(each["name"], {}))
        for each in raw
        if "eds_cluster_config" in each
    }
    return Proxy(
        node=info.get("node", {}).get("id", ""),
        clusters=clusters,
        askings=[asking for manager in _managers(configs) for asking in _askings(manager, configs)],
        limits={each["name"]: _max_requests(each) for each in raw},
        stats={
            each["name"]: float(each["value"])
            for each in stats.get("stats", [])
            if "name" in each and isinstance(each.get("value"), int | float)
        },
    )


def _of_type(configs: Sequence[Json], kind: str) -> Iterator[Json]:
    return (each for each in configs if each.get("@type", "").endswith(f".{kind}"))


def _clusters(configs: Sequence[Json]) -> Iterator[Json]:
    for section in _of_type(configs, "ClustersConfigDump"):
        for key in ("static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"):
            for each in section.get(key, []):
                if "cluster" in each:
                    yield each["cluster"]


def _eds(cluster: Json, hosts: Mapping[EndpointId, Host]) -> EdsCluster:
    config = cluster["eds_cluster_config"]
    policies = cluster.get("load_balancing_policy", {}).get("policies", [])
    first = policies[0]["typed_extension_config"]["name"] if policies else ""
    return EdsCluster(
        name=cluster["name"],
        service_name=config.get("service_name") or cluster["name"],
        source=_source(config.get("eds_config", {})),
        policy=first.rpartition(".")[2] or cluster.get("lb_policy", "ROUND_ROBIN").lower(),
        max_requests=_max_requests(cluster),
        stat_name=(cluster.get("alt_stat_name") or cluster["name"]).replace(":", "_"),
        hosts=hosts,
    )


def _source(config: Json) -> str:
    services = config.get("api_config_source", {}).get("grpc_services", [])
    if not services:
        return ""
    service = services[0]
    envoy = service.get("envoy_grpc", {}).get("cluster_name", "")
    return str(envoy or service.get("google_grpc", {}).get("target_uri", ""))


def _max_requests(cluster: Json) -> int:
    for each in cluster.get("circuit_breakers", {}).get("thresholds", []):
        if each.get("priority", "DEFAULT") == "DEFAULT" and "max_requests" in each:
            return int(each["max_requests"])
    return 1024


def _hosts(statuses: Sequence[Json]) -> dict[EndpointId, Host]:
    found = {}
    for status in statuses:
        counts = {each.get("name"): int(each.get("value", 0)) for each in status.get("stats", [])}
        found[_address(status.get("address", {}))] = Host(
            int(status.get("weight", 1)), int(status.get("priority", 0)), counts.get("rq_total", 0)
        )
    return found


def _address(address: Json) -> EndpointId:
    internal = address.get("envoy_internal_address")
    if internal is not None:
        return str(internal.get("endpoint_id", ""))
    socket = address.get("socket_address", {})
    host = str(socket.get("address", ""))
    return (
        f"[{host}]:{socket.get('port_value')}"
        if ":" in host
        else f"{host}:{socket.get('port_value')}"
    )


def _managers(configs: Sequence[Json]) -> Iterator[Json]:
    """Every HTTP connection manager of a listener that takes connections."""
    for section in _of_type(configs, "ListenersConfigDump"):
        states = [each.get("active_state", {}) for each in section.get("dynamic_listeners", [])]
        for state in (*section.get("static_listeners", []), *states):
            listener = state.get("listener", {})
            chains = [*listener.get("filter_chains", []), listener.get("default_filter_chain", {})]
            for chain in chains:
                for each in chain.get("filters", []):
                    config = each.get("typed_config", {})
                    if config.get("@type", "").endswith(".HttpConnectionManager"):
                        yield config


def _routes(manager: Json, configs: Sequence[Json]) -> Iterator[Json]:
    tables = [manager.get("route_config", {})]
    if name := manager.get("rds", {}).get("route_config_name"):
        tables += [
            each["route_config"]
            for section in _of_type(configs, "RoutesConfigDump")
            for key in ("static_route_configs", "dynamic_route_configs")
            for each in section.get(key, [])
            if each.get("route_config", {}).get("name") == name
        ]
    for table in tables:
        for host in table.get("virtual_hosts", []):
            yield from host.get("routes", [])


def _askings(manager: Json, configs: Sequence[Json]) -> Iterator[Asking]:
    filters = [
        each
        for each in manager.get("http_filters", [])
        if each.get("typed_config", {}).get("@type", "").endswith(".ExternalProcessor")
    ]
    for route in _routes(manager, configs):
        action = route.get("route", {})
        weighted = action.get("weighted_clusters", {}).get("clusters", [])
        own = route.get("typed_per_filter_config", {})
        for target in [action, *weighted]:
            name = target.get("cluster") or target.get("name")
            if name:
                overrides = {**own, **target.get("typed_per_filter_config", {})}
                yield _asking(route, str(name), filters, overrides, manager.get("stat_prefix", ""))


def _asking(
    route: Json, cluster: str, filters: Sequence[Json], overrides: Json, stat_prefix: str
) -> Asking:
    title = str(route.get("name") or route.get("match", {}).get("prefix", ""))
    lost = next((name for name in LOSES_OVERRIDES if name in overrides), "")
    for each in filters:
        config, own = each["typed_config"], overrides.get(each["name"], {})
        # Istio's filter asks nobody ("dummy") where the route does not say whom.
        if own.get("disabled") or (
            not own and (each.get("disabled") or _picker(config) == "dummy")
        ):
            continue
        said = {**config, **own.get("overrides", {})}
        mode = said.get("processing_mode", {})
        metadata = [
            *said.get("grpc_service", {}).get("initial_metadata", []),
            *said.get("grpc_initial_metadata", []),
        ]
        pools = next((m.get("value", "") for m in metadata if m.get("key") == POOL_HEADER), "")
        return Asking(
            route=title,
            cluster=cluster,
            picker=_picker(said),
            pools=tuple(filter(None, pools.split(","))),
            fails_open=bool(said.get("failure_mode_allow", False)),
            full_duplex="FULL_DUPLEX_STREAMED" in mode.values(),
            timeout_seconds=_seconds(config.get("message_timeout", "0.2s")),
            stat_prefix=stat_prefix,
        )
    return Asking(title, cluster, stat_prefix=stat_prefix, has_lost=lost)


def _picker(config: Json) -> str:
    return str(config.get("grpc_service", {}).get("envoy_grpc", {}).get("cluster_name", ""))


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))
