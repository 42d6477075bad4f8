"""An Envoy with a configuration of the test's own, and in-process xDS servers for it.

`way` says how the Envoy gets the assignment of its one cluster, "ns/pool":

    ads-sotw, ads-delta      cluster and assignment from one ADS stream
    eds-sotw, eds-delta      a static cluster whose EDS is a stream of its own
"""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from weir.envoy import envoy_binary
from weir.ports import free
from weir.processes import Child, running
from weir.stack import wait_until
from xds.assignment import cluster_load_assignment
from xds.latest import Latest
from xds.pool import Endpoint, Share
from xds.snapshot import Snapshot, TypeUrl
from xds.standalone import upstream

NAME = "ns/pool"
WAYS = ["ads-sotw", "ads-delta", "eds-sotw", "eds-delta"]
H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}
ROUND_ROBIN = {
    "name": "envoy.load_balancing_policies.round_robin",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies."
        "round_robin.v3.RoundRobin"
    },
}


def endpoint(text):
    address, _, port = text.rpartition(":")
    return Endpoint(text, f"ns/{text}", address, int(port))


def assignment(weights, priorities=None, *, name=NAME, echo=False):
    """Serialised, from {"ip:port": weight}."""
    shares = {
        each: Share(weight, (priorities or {}).get(each, 0)) for each, weight in weights.items()
    }
    return cluster_load_assignment(name, map(endpoint, weights), shares, echo=echo)


def source(way, cluster="xds"):
    """A ConfigSource for EDS."""
    if way.startswith("ads"):
        return {"ads": {}, "resource_api_version": "V3"}
    return {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "2s",
        "api_config_source": {
            "api_type": "DELTA_GRPC" if way.endswith("delta") else "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": upstream(cluster)}],
        },
    }


def eds_cluster(eds_config, *, name=NAME, service_name=NAME, policy=ROUND_ROBIN, **more):
    return {
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"service_name": service_name, "eds_config": eds_config},
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        **more,
    }


def server_cluster(name, *ports):
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in ports
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": H2,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def serialised(cluster):
    """A cluster as bytes, from its JSON form."""
    return bytes(Cluster().from_dict(cluster))


def bootstrap(way, xds_ports, listen, admin, *, clusters=(), node="envoy"):
    """Static listener, one route to "ns/pool"; where that comes from is the `way`."""
    form = "DELTA_GRPC" if way.endswith("delta") else "GRPC"
    services = [{"envoy_grpc": upstream("xds")}]
    dynamic = {
        "ads_config": {
            "api_type": form,
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": services,
        },
        "cds_config": {"ads": {}, "resource_api_version": "V3"},
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "http_filters": [
            {
                "name": "envoy.filters.http.header_to_metadata",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http."
                    "header_to_metadata.v3.Config",
                    "request_rules": [
                        {
                            "header": "x-pick",
                            "on_header_present": {
                                "metadata_namespace": "envoy.lb",
                                "key": "x-gateway-destination-endpoint",
                            },
                        }
                    ],
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            },
        ],
        "route_config": {
            "name": "local",
            "validate_clusters": False,  # it comes later
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": NAME}}],
                }
            ],
        },
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": listen}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return {
        "node": {"id": node, "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {
            "listeners": [listener],
            "clusters": [server_cluster("xds", *xds_ports), *clusters],
        },
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": services,
            }
        },
        **({"dynamic_resources": dynamic} if way.startswith("ads") else {}),
    }


@dataclass(slots=True)
class Proxy:
    """A running Envoy."""

    child: Child
    client: aiohttp.ClientSession
    listen: int
    admin: int
    seen: Counter = field(default_factory=Counter)

    async def get(self, path, **params):
        url = f"http://127.0.0.1:{self.admin}/{path}"
        async with self.client.get(url, params=params) as response:
            return await response.text()

    async def hosts(self, cluster=NAME):
        """Weight, priority and requests so far of each host, as Envoy says."""
        found = {}
        for each in json.loads(await self.get("clusters", format="json"))["cluster_statuses"]:
            if each["name"] == cluster:
                for host in each.get("host_statuses", ()):
                    address = host["address"]["socket_address"]
                    stats = {s["name"]: int(s.get("value", 0)) for s in host["stats"]}
                    found[f"{address['address']}:{address['port_value']}"] = (
                        host.get("weight", 1),
                        host.get("priority", 0),
                        stats.get("rq_total", 0),
                    )
        return found

    async def weights(self, cluster=NAME):
        return {host: weight for host, (weight, _, _) in (await self.hosts(cluster)).items()}

    async def served(self, count, **headers):
        """Requests by host, of `count` sent one after the other; all must be answered with 200."""
        before = {host: total for host, (_, _, total) in (await self.hosts()).items()}
        for _ in range(count):
            assert await self.post(**headers) == 200
        after = await self.hosts()
        return {
            host: total - before.get(host, 0)
            for host, (_, _, total) in after.items()
            if total > before.get(host, 0)
        }

    async def post(self, **headers):
        url = f"http://127.0.0.1:{self.listen}/v1/completions"
        body = {"model": "m", "prompt": "x"}
        async with self.client.post(url, json=body, headers=headers) as response:
            await response.read()
            return response.status

    async def has(self, weights, cluster=NAME, seconds=15):
        async def does():
            return await self.weights(cluster) == weights

        await wait_until(does, seconds=seconds)

    async def stat(self, name):
        text = await self.get("stats", filter=f"^{name}$")
        return int(text.rpartition(": ")[2] or 0)

    async def dump(self):
        return json.loads(await self.get("config_dump", include_eds=""))["configs"]

    @asynccontextmanager
    async def under_load(self, rate=50):
        """Requests all the while; afterwards none of them must have failed."""
        failed, sent, stop = [], 0, False

        async def one():
            try:
                status = await self.post()
            except aiohttp.ClientError as error:
                status = repr(error)
            if status != 200:
                failed.append(status)

        async def drive():
            nonlocal sent
            tasks = []
            while not stop:
                tasks.append(asyncio.create_task(one()))
                sent += 1
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*tasks)

        driving = asyncio.create_task(drive())
        try:
            yield
        finally:
            stop = True
            await driving
        assert failed == []
        assert sent > rate / 5, "too short to say anything"


@asynccontextmanager
async def envoy(directory: Path, client, way, *xds_ports, clusters=(), node="envoy", ready=True):
    """An Envoy until the block ends; waits until it is live, and served where `ready`."""
    listen, admin = free(), free()
    if way.startswith("eds") and not clusters:
        clusters = [eds_cluster(source(way))]
    document = bootstrap(way, xds_ports, listen, admin, clusters=clusters, node=node)
    path = directory / f"{node}.yaml"
    path.write_text(yaml.safe_dump(document))
    command = [
        *(str(envoy_binary()), "--config-path", str(path), "--concurrency", "1"),
        *("--use-dynamic-base-id", "--log-level", "warning"),
    ]
    async with running(node, command, directory / f"{node}.log") as child:
        proxy = Proxy(child, client, listen, admin)

        async def live():
            try:
                return not ready or "LIVE" in await proxy.get("ready")
            except aiohttp.ClientError:
                return False

        await child.until(live, what="it was live")
        yield proxy


def world(weights, previous=None, *, cluster=None, **options):
    """The snapshot of one pool; with its cluster where Envoy gets that from us too."""
    bodies = {TypeUrl.ENDPOINT: {NAME: assignment(weights, **options)}}
    bodies[TypeUrl.CLUSTER] = {NAME: serialised(cluster or eds_cluster(source("ads")))}
    return Snapshot.of(bodies, previous, {NAME: NAME})


def latest(weights, **options):
    return Latest(world(weights, **options))
