"""gRPC's own xDS client against our server: an independent reading of the same protocol."""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    LoadBalancingPolicy,
    LoadBalancingPolicyPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.config.listener.v3 import ApiListener, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.round_robin.v3 import RoundRobin
from envoy_data_plane.envoy.extensions.load_balancing_policies.wrr_locality.v3 import WrrLocality
from envoy_data_plane.google.protobuf import Any

from integration.proxy import NAME
from weir.stack import wait_until
from xds.latest import Latest
from xds.pool import Policy, Pool, Tier
from xds.proto.envoy.config.endpoint.v3 import endpoint_pb2
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl
from xds.standalone import Standalone, resources


def by_locality():
    """A cluster whose policy follows locality weights."""
    inner = TypedExtensionConfig(name="round_robin", typed_config=Any.pack(RoundRobin()))
    outer = WrrLocality(
        endpoint_picking_policy=LoadBalancingPolicy(
            policies=[LoadBalancingPolicyPolicy(typed_extension_config=inner)]
        )
    )
    policy = TypedExtensionConfig(name="wrr_locality", typed_config=Any.pack(outer))
    cluster = Cluster.parse(ours(Tier.WEIGHTS))
    cluster.load_balancing_policy = LoadBalancingPolicy(
        policies=[LoadBalancingPolicyPolicy(typed_extension_config=policy)]
    )
    return bytes(cluster)


def listener():
    route = Route(match=RouteMatch(prefix=""), route=RouteAction(cluster=NAME))
    manager = HttpConnectionManager(
        route_config=RouteConfiguration(
            name="r", virtual_hosts=[VirtualHost(name="v", domains=["*"], routes=[route])]
        ),
        http_filters=[HttpFilter(name="router", typed_config=Any.pack(Router()))],
    )
    return bytes(Listener(name="who", api_listener=ApiListener(api_listener=Any.pack(manager))))


def ours(tier):
    """The cluster as the control plane serves it for a standalone Envoy."""
    pool = Pool(NAME, (), Policy(tier=tier))
    standalone = Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2")
    return resources({NAME: pool}, standalone)[TypeUrl.CLUSTER][NAME]


def assignment(*localities):
    """From (zone, priority, locality weight, {port: weight})."""
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=NAME)
    for zone, priority, weight, ports in localities:
        locality = message.endpoints.add(priority=priority)
        locality.locality.zone = zone
        locality.load_balancing_weight.value = weight
        for port, own in ports.items():
            item = locality.lb_endpoints.add()
            item.load_balancing_weight.value = own
            address = item.endpoint.address.socket_address
            address.address, address.port_value = "127.0.0.1", port
    return message.SerializeToString()


def world(cluster, assigned, previous=None):
    return Snapshot.of(
        {
            TypeUrl.LISTENER: {"who": listener()},
            TypeUrl.CLUSTER: {NAME: cluster},
            TypeUrl.ENDPOINT: {NAME: assigned},
        },
        previous,
    )


@asynccontextmanager
async def backend():
    """A gRPC server that says its port; stopped by the first who leaves."""
    server = grpc.aio.server()

    async def who(_request, _context):
        return str(port).encode()

    handler = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("weir.test.Echo", handler),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, server
    finally:
        await server.stop(0)


@asynccontextmanager
async def client(directory, xds_port):
    """Sends RPCs when called with a number; returns the answers by port."""
    path = directory / "bootstrap.json"
    path.write_text(
        json.dumps(
            {
                "xds_servers": [
                    {
                        "server_uri": f"127.0.0.1:{xds_port}",
                        "channel_creds": [{"type": "insecure"}],
                        "server_features": ["xds_v3"],
                    }
                ],
                "node": {"id": "grpc-client"},
            }
        )
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "integration.grpc_client", "xds:///who"),
        stdin=pipe,
        stdout=pipe,
        env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(path)},
    )

    async def send(count):
        process.stdin.write(f"{count}\n".encode())
        async with asyncio.timeout(60):
            answers = json.loads(await process.stdout.readline())
        return {int(key) if key.isdecimal() else key: value for key, value in answers.items()}

    try:
        yield send
    finally:
        process.kill()
        await process.wait()


async def test_locality_weights_are_followed(tmp_path):
    cluster = by_locality()
    async with backend() as (one, _), backend() as (two, _):
        assigned = assignment(("a", 0, 1, {one: 1}), ("b", 0, 3, {two: 1}))
        async with (
            serving(Latest(world(cluster, assigned)), "127.0.0.1:0") as server,
            client(tmp_path, server.port) as send,
        ):
            answers = await send(400)
            assert sum(answers.values()) == 400
            assert 60 <= answers[one] <= 140
            assert 260 <= answers[two] <= 340
            assert server.traffic.nacks == 0


@pytest.mark.parametrize("tier", [Tier.PICK, Tier.AFFINITY])
async def test_our_own_cluster_is_accepted_and_endpoint_weights_are_followed(tmp_path, tier):
    """override_host and maglev are unknown to it: it takes the ring_hash listed after them."""
    async with backend() as (one, _), backend() as (two, _):
        snapshots = Latest(world(ours(tier), assignment(("a", 0, 1, {one: 1, two: 3}))))
        async with (
            serving(snapshots, "127.0.0.1:0") as server,
            client(tmp_path, server.port) as send,
        ):
            answers = await send(600)
            assert sum(answers.values()) == 600
            assert 90 <= answers[one] <= 210, "a quarter, with the ring's own error"
            assert server.traffic.nacks == 0
            swapped = assignment(("a", 0, 1, {one: 3, two: 1}))
            snapshots.publish(world(ours(tier), swapped, snapshots.value))

            async def followed():
                answers = await send(100)
                return answers.get(one, 0) > 60

            await wait_until(followed)
            assert all(each.synced(snapshots.value) for each in server.clients)


async def test_it_fails_over_to_the_next_priority_and_comes_back(tmp_path):
    cluster = ours(Tier.WEIGHTS)
    async with AsyncExitStack() as stack:
        one, first = await stack.enter_async_context(backend())
        two, _ = await stack.enter_async_context(backend())
        assigned = assignment(("a", 0, 1, {one: 1}), ("b", 1, 1, {two: 1}))
        snapshots = Latest(world(cluster, assigned))
        server = await stack.enter_async_context(serving(snapshots, "127.0.0.1:0"))
        send = await stack.enter_async_context(client(tmp_path, server.port))
        assert await send(20) == {one: 20}
        await first.stop(0)
        answers = await send(40)
        assert answers.get(two, 0) >= 39, "at most the one that was on its way is lost"
        assert await send(20) == {two: 20}
        third, _ = await stack.enter_async_context(backend())
        revived = assignment(("a", 0, 1, {third: 1}), ("b", 1, 1, {two: 1}))
        snapshots.publish(world(cluster, revived, snapshots.value))

        async def back():
            return await send(10) == {third: 10}

        await wait_until(back)


async def test_it_keeps_what_it_has_while_the_server_is_away_and_refuses_garbage(tmp_path):
    cluster = ours(Tier.WEIGHTS)
    async with backend() as (one, _), backend() as (two, _):
        snapshots = Latest(world(cluster, assignment(("a", 0, 1, {one: 1}))))
        async with AsyncExitStack() as stack:
            async with serving(snapshots, "127.0.0.1:0") as server:
                port = server.port
                send = await stack.enter_async_context(client(tmp_path, port))
                assert await send(10) == {one: 10}
                bad = assignment(("a", 5, 1, {two: 1}))  # no priorities 0 to 4
                snapshots.publish(world(cluster, bad, snapshots.value))

                async def refused():
                    return server.traffic.of(TypeUrl.ENDPOINT.value).nacks == 1

                await wait_until(refused)
                assert await send(10) == {one: 10}
            assert await send(10) == {one: 10}, "nobody is there to ask"
            snapshots.publish(world(cluster, assignment(("a", 0, 1, {two: 1})), snapshots.value))
            async with serving(snapshots, f"127.0.0.1:{port}"):

                async def taken():
                    return await send(10) == {two: 10}

                await wait_until(taken)


def test_every_cluster_that_we_serve_lists_a_policy_that_grpc_knows():
    known = {"ring_hash", "round_robin"}
    for tier in Tier:
        cluster = Cluster.parse(ours(tier))
        names = [
            each.typed_extension_config.name.rpartition(".")[2]
            for each in cluster.load_balancing_policy.policies
        ]
        assert known & set(names), tier
