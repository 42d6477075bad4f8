"""An Envoy of the mesh: its process, to be stopped and started, and what its admin port says."""

import json
from typing import NamedTuple

import aiohttp
import yaml

from weir.envoy import envoy_binary
from weir.processes import start
from weir.stack import wait_until


class Host(NamedTuple):
    weight: int
    priority: int
    requests: int


class Envoy:
    """`bootstrap` is a document with an admin address.

    A filter chain that is replaced ends with its connections, `drain_seconds` later.
    """

    def __init__(self, name, bootstrap, directory, client, drain_seconds=45):
        self.name = name
        self.child = None
        self._path = directory / f"{name}.yaml"
        self._path.write_text(yaml.safe_dump(bootstrap))
        self._drain_seconds = drain_seconds
        self._log = directory / f"{name}.log"
        self._client = client
        address = bootstrap["admin"]["address"]["socket_address"]
        self.admin = f"{address['address']}:{address['port_value']}"

    async def start(self, *, wait=True):
        command = [
            *(str(envoy_binary()), "--config-path", str(self._path), "--concurrency", "1"),
            *("--use-dynamic-base-id", "--log-level", "warning"),
            *("--drain-strategy", "immediate", "--drain-time-s", str(self._drain_seconds)),
            *("--file-flush-interval-msec", "50"),  # of access logs
        ]
        self.child = await start(self.name, command, self._log)
        if wait:
            await self.child.until(self.live, what="it was live")

    async def stop(self):
        if self.child is not None:
            await self.child.kill()

    @property
    def running(self):
        return self.child is not None and self.child.running

    async def live(self):
        try:
            return "LIVE" in await self.get("ready")
        except aiohttp.ClientError:
            return False

    async def get(self, path, **params):
        async with self._client.get(f"http://{self.admin}/{path}", params=params) as response:
            return await response.text()

    async def hosts(self, cluster):
        """`Host` by "ip:port", captured ones too."""
        found = {}
        for each in json.loads(await self.get("clusters", format="json"))["cluster_statuses"]:
            if each["name"] == cluster:
                for host in each.get("host_statuses", ()):
                    stats = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
                    found[_address(host["address"])] = Host(
                        host.get("weight", 1), host.get("priority", 0), stats.get("rq_total", 0)
                    )
        return found

    async def weights(self, cluster):
        return {host: each.weight for host, each in (await self.hosts(cluster)).items()}

    async def has(self, cluster, weights, seconds=15):
        """Wait until the cluster has just these hosts with these weights."""

        async def does():
            return await self.weights(cluster) == weights

        try:
            await wait_until(does, seconds=seconds)
        except TimeoutError:
            found = await self.weights(cluster)
            raise AssertionError(f"{cluster} has {found} and not {weights}") from None

    async def stats(self, pattern):
        """Counters and gauges whose name matches the regular expression."""
        lines = (await self.get("stats", filter=pattern)).splitlines()
        found = dict(line.rsplit(": ", 1) for line in lines)
        return {name: int(value) for name, value in found.items() if value.isdigit()}

    async def dump(self, **params):
        """`config_dump`, with `include_eds=""` its assignments too."""
        return json.loads(await self.get("config_dump", **params))["configs"]


def _address(address):
    if internal := address.get("envoy_internal_address"):
        return internal["endpoint_id"]
    return f"{address['socket_address']['address']}:{address['socket_address']['port_value']}"


def node_of_proxy(proxy, places, account):
    """Who a waypoint or a gateway says it is to istiod."""
    kind, at = (
        ("waypoint", places.waypoint) if proxy.gateway == "waypoint" else ("router", places.gateway)
    )
    managed = "istio.io-mesh-controller" if kind == "waypoint" else "istio.io-gateway-controller"
    labels = {
        "gateway.networking.k8s.io/gateway-name": proxy.gateway,
        "gateway.istio.io/managed": managed,
    }
    pod, namespace = f"{proxy.gateway}-0", proxy.namespace
    return {
        "id": f"{kind}~{at}~{pod}.{namespace}~{namespace}.svc.cluster.local",
        "cluster": f"{proxy.gateway}.{namespace}",
        "metadata": {
            "NAME": pod,
            "NAMESPACE": namespace,
            "SERVICE_ACCOUNT": account,
            "WORKLOAD_NAME": account,
            "CLUSTER_ID": "Kubernetes",
            "ISTIO_VERSION": "1.32.0",
            "LABELS": labels,
        },
    }


def bootstrap_of_proxy(proxy, places, account):
    """As istio-agent starts a waypoint or a gateway: all else comes from istiod and the agent."""
    node = node_of_proxy(proxy, places, account)
    at = node["id"].split("~")[1]
    ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    return {
        "node": node,
        "admin": {"address": socket_address(at, 19000)},
        "static_resources": {
            "clusters": [
                static_cluster("xds-grpc", places.istiod, 15010, **HTTP2),
                static_cluster("sds-grpc", places.istiod, 15012, **HTTP2),
            ]
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap."
                    "internal_listener.v3.InternalListener"
                },
            }
        ],
    }


def socket_address(address, port):
    return {"socket_address": {"address": address, "port_value": port}}


def static_cluster(name, address, port, **more):
    endpoint = {"endpoint": {"address": socket_address(address, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **more,
    }


def http2(**options):
    """Options of a cluster that speaks HTTP/2."""
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "typed_extension_protocol_options": {
            kind: {
                "@type": f"type.googleapis.com/{kind}",
                "explicit_http_config": {"http2_protocol_options": options},
            }
        }
    }


HTTP2 = http2()
