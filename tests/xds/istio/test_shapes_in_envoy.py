"""A real Envoy takes every cluster and filter that shapes make, and leaves other routes alone."""

import asyncio
import io
import json
import re
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from tests.xds.istio.test_shapes_traffic import KEPT, rule
from tests.xds.istio.wired import (
    AT_SERVICE,
    HAVE,
    SERVICE,
    WAYPOINT,
    patches,
    plan,
    plan_of,
    pool,
    route,
    to,
    values,
)
from weir.envoy import envoy_binary
from weir.ports import free
from weir.processes import running
from weir.stack import wait_until
from xds.istio.shapes.build import probe
from xds.istio.shapes.wiring import Shape

pytestmark = pytest.mark.envoy

T = "type.googleapis.com/envoy.extensions."
H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": f"{T}upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}
NEEDED = (
    "outbound|15010||weir-xds.weir.svc.cluster.local",
    "outbound|9002||llm-epp.ns.svc.cluster.local",
    "xds-grpc",
    "sds-grpc",
)
EXT_PROC = "envoy.filters.http.ext_proc"
ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{T}filters.http.router.v3.Router"},
}


def static(name, port=1, **more):
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        **more,
    }


def listener(name, port, filters, routes):
    """One HTTP listener; a route is (path, name, per filter configuration)."""
    manager = {
        "@type": f"{T}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [*filters, ROUTER],
        "route_config": {
            "name": name,
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "name": called,
                            "match": {"prefix": path},
                            "route": {"cluster": "upstream"},
                            "typed_per_filter_config": per_filter,
                        }
                        for path, called, per_filter in routes
                    ],
                }
            ],
        },
    }
    http = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [http]}],
    }


def bootstrap(listeners, clusters, upstream=1, admin=None):
    admin = {"socket_address": {"address": "127.0.0.1", "port_value": admin or free()}}
    internal = (
        "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    )
    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": admin},
        "bootstrap_extensions": [
            {"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": internal}}
        ],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            }
        },
        "static_resources": {
            "listeners": listeners,
            "clusters": [
                *(static(name, typed_extension_protocol_options=H2) for name in NEEDED),
                static("upstream", upstream),
                *clusters,
            ],
        },
    }


def clusters_of(made):
    """Those that are added, and those that are patched, upon the least that istiod writes."""
    probes = [each for item in probe(made) for each in item["spec"]["configPatches"]]
    found = []
    for each in [*patches(made, apply_to="CLUSTER"), *probes]:
        value = each["patch"]["value"]
        name = each["match"].get("cluster", {}).get("name")
        if name:
            common = {"healthy_panic_threshold": {}}
            base = {"type": "EDS", "connect_timeout": "10s", "common_lb_config": common}
            value = {"name": name, "lb_policy": "CLUSTER_PROVIDED", **base, **value}
        found.append(value)
    return found


def istiods_ext_proc(merged):
    """istiod's filter on a gateway, with what is merged into it."""
    base = {
        "grpc_service": {"envoy_grpc": {"cluster_name": NEEDED[1]}},
        "failure_mode_allow": True,
        "processing_mode": {"request_header_mode": "SKIP", "response_header_mode": "SKIP"},
        "metadata_options": {"receiving_namespaces": {"untyped": ["envoy.lb"]}},
    }
    return {"name": EXT_PROC, "typed_config": base | merged["typed_config"]}


def listener_of(made, port):
    lua, ext_proc = values(made, apply_to="HTTP_FILTER")
    if not made.wiring.shape.on_gateway:
        routes = [("/pool", "ns.llm-route.0", {}), ("/", "ns.llm-route.1", {})]
        return listener("waypoint", port, [lua, ext_proc], routes)
    (value,) = values(made, apply_to="HTTP_ROUTE")
    routes = [("/pool", "pool", value["typed_per_filter_config"]), ("/", "other", {})]
    return listener("gateway", port, [lua, istiods_ext_proc(ext_proc)], routes)


async def validated(config, directory):
    file = directory / "envoy.json"
    file.write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        envoy_binary(),
        *("--mode", "validate", "--use-dynamic-base-id", "-c", file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("shape", list(Shape))
async def test_envoy_takes_what_a_shape_makes(shape, tmp_path):
    made = plan_of(shape)
    config = bootstrap([listener_of(made, free())], clusters_of(made))
    status, output = await validated(config, tmp_path)
    assert status == 0, output


async def test_envoy_takes_what_is_kept_of_destination_rules(tmp_path):
    clusters = []
    for number, (policy, _) in enumerate(KEPT.values()):
        made = plan(*HAVE[Shape.WAYPOINT_OWN_CLUSTER], rule(policy))
        clusters += [cluster | {"name": f"c{number}"} for cluster in clusters_of(made)]
    tls = rule("tls: {mode: ISTIO_MUTUAL}", host="llm-pool-ip-1c222a41.ns.svc.cluster.local")
    clusters += clusters_of(plan(*HAVE[Shape.GATEWAY_OWN_CLUSTER], tls, version="1.30"))
    status, output = await validated(bootstrap([], clusters), tmp_path)
    assert status == 0, output


async def test_envoy_would_refuse_a_field_that_it_does_not_know(tmp_path):
    made = plan_of(Shape.WAYPOINT_OWN_CLUSTER)
    (cluster,) = clusters_of(made)
    status, output = await validated(bootstrap([], [cluster | {"alt_name": "x"}]), tmp_path)
    assert status != 0
    assert "alt_name" in output


@asynccontextmanager
async def echo():
    """Answers with the headers and the length of what came."""

    async def answer(request):
        length = 0
        async for chunk in request.content.iter_any():
            length += len(chunk)
        return web.json_response({"headers": dict(request.headers), "length": length})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


@asynccontextmanager
async def proxied(made, directory):
    """An Envoy with the plan's filters before an echo; the picker is away."""
    port, admin = free(), free()
    async with echo() as upstream, aiohttp.ClientSession() as client:
        config = bootstrap([listener_of(made, port)], [], upstream, admin)
        (directory / "envoy.json").write_text(json.dumps(config))
        command = [
            envoy_binary(),
            *("--concurrency", "1", "--use-dynamic-base-id", "-c", directory / "envoy.json"),
        ]
        async with running("envoy", command, directory / "envoy.log"):

            async def ready():
                try:
                    async with client.get(f"http://127.0.0.1:{admin}/ready") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            await wait_until(ready)

            async def post(path, **options):
                url = f"http://127.0.0.1:{port}{path}"
                async with client.post(url, **options) as response:
                    assert response.status == 200, await response.text()
                    said = await response.json()
                    return {k.lower(): v for k, v in said["headers"].items()}, said["length"]

            yield post


BODY = {"model": "base", "prompt": "a prompt " * 300}
FORGED = {
    "x-weir-digest": "v1;1;1;00000000",
    "x-weir-affinity": "mine",
    "x-gateway-model-name": "m",
}


async def upload():
    """2 MiB that nobody said the length of: more than any proxy would hold."""
    for _ in range(64):
        yield b"x" * 32_768


async def test_a_gateways_other_routes_are_neither_held_nor_read_nor_changed(tmp_path):
    async with proxied(plan_of(Shape.GATEWAY), tmp_path) as post:
        headers, _ = await post("/pool", json=BODY, headers=FORGED)
        assert headers["x-gateway-model-name"] == "base"
        assert re.fullmatch(r"v1;\d+;\d+;[\da-f.]+", headers["x-weir-digest"])
        assert headers["x-weir-affinity"] != "mine"
        headers, _ = await post("/other", json=BODY, headers=FORGED)
        assert {name: headers[name] for name in FORGED} == FORGED
        headers, length = await post("/other", data=upload())
        assert length == 2 << 20
        assert headers["transfer-encoding"] == "chunked"
        assert not FORGED.keys() & headers.keys()


async def test_a_waypoints_other_routes_are_not_read_and_cannot_forge(tmp_path):
    rules = (to("llm-pool"), "{backendRefs: [{name: web, port: 80}]}")
    made = plan(pool(), WAYPOINT, SERVICE, route(*rules, parents=[AT_SERVICE]))
    async with proxied(made, tmp_path) as post:
        headers, _ = await post("/pool", json=BODY, headers=FORGED)
        assert headers["x-gateway-model-name"] == "base"
        assert headers["x-weir-digest"].startswith("v1;")
        headers, _ = await post("/other", json=BODY, headers=FORGED)
        assert not FORGED.keys() & headers.keys()
        _, length = await post("/other", data=upload())
        assert length == 2 << 20


async def test_a_large_body_passes_the_pools_own_route_too(tmp_path):
    async with proxied(plan_of(Shape.GATEWAY), tmp_path) as post:
        _, length = await post("/pool", data=upload())
        assert length == 2 << 20
        _, length = await post("/pool", data=io.BytesIO(b"x" * (2 << 20)))
        assert length == 2 << 20
