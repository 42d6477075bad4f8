"""What can happen to an xDS server, under traffic: no request fails, all are served again."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import pytest

from integration.proxy import NAME, envoy, latest, world
from weir.bench.picker import servers, session
from weir.ports import free
from weir.processes import running
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.server import serving
from xds.snapshot import TypeUrl

ENDPOINT = TypeUrl.ENDPOINT.value
METHOD = "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
STORM = 2_000


@asynccontextmanager
async def replica(directory, port, weights):
    """The xDS server as a process of its own, which can be killed and paused."""
    path = directory / f"weights-{port}.json"
    path.write_text(json.dumps(weights))
    command = [sys.executable, "-m", "integration.xds_replica", str(port), str(path)]
    async with running(f"replica-{port}", command, directory / f"replica-{port}.log") as child:
        await child.until_logged("serving")
        yield child, path


def rewrite(path, weights):
    path.write_text(json.dumps(weights))


@pytest.mark.parametrize("way", ["ads-delta", "ads-sotw", "eds-delta"])
async def test_a_killed_and_restarted_server_costs_no_request_and_its_weights_take_over(
    tmp_path, way
):
    async with session() as client, servers(tmp_path, count=2) as (one, two):
        port = free()
        async with AsyncExitStack() as stack:
            child, _ = await stack.enter_async_context(replica(tmp_path, port, {one: 1, two: 3}))
            proxy = await stack.enter_async_context(envoy(tmp_path, client, way, port))
            await proxy.has({one: 1, two: 3})
            async with proxy.under_load():
                await child.kill()
                await asyncio.sleep(1.0)
                assert await proxy.weights() == {one: 1, two: 3}
                await stack.enter_async_context(replica(tmp_path, port, {one: 3, two: 1}))
                await proxy.has({one: 3, two: 1})


async def test_all_replicas_restarted_at_once_cost_no_request(tmp_path):
    async with session() as client, servers(tmp_path, count=2) as (one, two):
        ports = free(), free()
        async with AsyncExitStack() as stack:
            children = [
                (await stack.enter_async_context(replica(tmp_path, port, {one: 1, two: 3})))[0]
                for port in ports
            ]
            proxies = [
                await stack.enter_async_context(
                    envoy(tmp_path, client, "ads-delta", *ports, node=f"envoy-{number}")
                )
                for number in range(2)
            ]
            for proxy in proxies:
                await proxy.has({one: 1, two: 3})
            async with proxies[0].under_load(), proxies[1].under_load():
                for child in children:
                    await child.kill()
                await asyncio.sleep(0.5)
                for port in ports:
                    await stack.enter_async_context(replica(tmp_path, port, {one: 2, two: 2}))
                for proxy in proxies:
                    await proxy.has({one: 2, two: 2})


async def test_a_server_paused_for_twenty_seconds_costs_no_request(tmp_path):
    async with session() as client, servers(tmp_path, count=2) as (one, two):
        port = free()
        async with (
            replica(tmp_path, port, {one: 1, two: 3}) as (child, path),
            envoy(tmp_path, client, "ads-delta", port) as proxy,
        ):
            await proxy.has({one: 1, two: 3})
            async with proxy.under_load(rate=20):
                child.pause()
                await asyncio.sleep(20)
                assert await proxy.weights() == {one: 1, two: 3}
                child.resume()
                rewrite(path, {one: 3, two: 1})
                await proxy.has({one: 3, two: 1})


async def test_a_client_that_never_reads_keeps_no_other_from_its_weights(tmp_path):
    async with session() as client, servers(tmp_path, count=2) as (one, two):
        snapshots = latest({one: 1, two: 3})
        async with (
            serving(snapshots, "127.0.0.1:0") as server,
            envoy(tmp_path, client, "ads-delta", server.port) as proxy,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            call = channel.stream_stream(METHOD)()
            await call.write(
                discovery_pb2.DeltaDiscoveryRequest(
                    type_url=ENDPOINT, resource_names_subscribe=[NAME]
                ).SerializeToString()
            )
            await proxy.has({one: 1, two: 3})
            async with proxy.under_load():
                for number in range(1, 20):
                    snapshots.publish(world({one: number, two: 3}, snapshots.value))
                    await proxy.has({one: number, two: 3})
            call.cancel()


async def test_two_thousand_streams_come_back_at_once_and_none_is_refused(tmp_path):
    """Their server dies and listens again; each tries every 100 ms until it is served."""
    async with session() as client, servers(tmp_path, count=2) as (one, two):
        port = free()
        async with AsyncExitStack() as stack:
            child, _ = await stack.enter_async_context(replica(tmp_path, port, {one: 1, two: 3}))
            proxy = await stack.enter_async_context(envoy(tmp_path, client, "ads-delta", port))
            await proxy.has({one: 1, two: 3})
            command = [sys.executable, "-m", "integration.storm", str(port), str(STORM), NAME]
            log = tmp_path / "storm.log"
            storm = await stack.enter_async_context(running("storm", command, log))
            await storm.until_logged(f"served {STORM}")
            async with proxy.under_load(rate=20):
                await child.kill()
                await storm.until_logged("lost all")
                await stack.enter_async_context(replica(tmp_path, port, {one: 3, two: 1}))
                await storm.until_logged("back")
                await proxy.has({one: 3, two: 1})
            (line,) = [each for each in log.read_text().splitlines() if each.startswith("back")]
            figures = json.loads(line.partition(" ")[2])
            assert figures["refused"] == 0
            assert figures["served"] == STORM
            assert figures["seconds"] < 4, "go-control-plane: 1.9 to 3.2"
