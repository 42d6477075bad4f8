"""A real Envoy against our xDS server: every transport and form, refusals, promotions, reports."""

import asyncio
import json
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from integration.proxy import (
    NAME,
    WAYS,
    assignment,
    eds_cluster,
    envoy,
    latest,
    serialised,
    server_cluster,
    source,
    world,
)
from weir.bench.picker import servers, session
from weir.stack import wait_until
from weir.status import differences
from xds.latest import Latest
from xds.loads import LoadReports
from xds.proto.envoy.config.endpoint.v3 import endpoint_pb2
from xds.proto.envoy.service.status.v3 import csds_pb2
from xds.report import _client as shown
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl

ENDPOINT, CLUSTER = TypeUrl.ENDPOINT.value, TypeUrl.CLUSTER.value
OVERRIDE = {
    "name": "envoy.load_balancing_policies.override_host",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies."
        "override_host.v3.OverrideHost",
        "override_host_sources": [
            {
                "metadata": {
                    "key": "envoy.lb",
                    "path": [{"key": "x-gateway-destination-endpoint"}],
                }
            }
        ],
        "fallback_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.round_robin",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions."
                            "load_balancing_policies.round_robin.v3.RoundRobin"
                        },
                    }
                }
            ]
        },
    },
}


@asynccontextmanager
async def running(directory, way, *, count=2, weights=(1, 3), **options):
    """Model servers, our xDS server, and an Envoy that is served by it."""
    async with session() as client, servers(directory, count=count) as endpoints:
        first = dict(zip(endpoints, weights, strict=True))
        snapshots = latest(first)
        reports = LoadReports()
        async with (
            serving(snapshots, "127.0.0.1:0", reports=reports) as server,
            envoy(directory, client, way, server.port, **options) as proxy,
        ):
            await proxy.has(first)
            yield server, snapshots, proxy, endpoints, reports


@pytest.mark.parametrize("way", WAYS)
async def test_weights_arrive_are_followed_and_change(tmp_path, way):
    async with running(tmp_path, way) as (server, snapshots, proxy, (one, two), _):
        assert await proxy.served(40) == {one: 10, two: 30}
        snapshots.publish(world({one: 3, two: 1}, snapshots.value))
        await proxy.has({one: 3, two: 1})
        assert await proxy.served(40) == {one: 30, two: 10}
        assert server.traffic.nacks == 0
        await wait_until_synced(server)
        assert all(s.accounts[ENDPOINT].stale == 0 for s in streams(server))


@pytest.mark.parametrize("way", WAYS)
async def test_a_refused_assignment_is_shown_with_its_reason_and_the_last_one_serves(tmp_path, way):
    async with running(tmp_path, way) as (server, snapshots, proxy, (one, two), _):
        good = snapshots.value.get(ENDPOINT, NAME).version
        async with proxy.under_load():
            publish(snapshots, too_light(one, two))
            await wait_until(count_of(lambda: server.traffic.of(ENDPOINT).nacks, 1))
            await asyncio.sleep(0.5)
        assert server.traffic.of(ENDPOINT).nacks == 1, "the same bytes are not sent again"
        (client,) = [each for each in streams(server) if each.refusals]
        assert "oadBalancingWeight" in client.refusals[ENDPOINT].reason
        (difference,) = differences(shown(client, server.view(client), server.clock()))
        assert (difference["name"], difference["has"]) == (NAME, good)
        assert "refused" in difference["why"]
        assert await proxy.weights() == {one: 1, two: 3}
        snapshots.publish(world({one: 5, two: 5}, snapshots.value))
        await proxy.has({one: 5, two: 5})
        await wait_until_synced(server)
        assert not any(each.refusals for each in server.clients)


async def test_client_status_agrees_with_envoys_own_dump_also_after_a_nack(tmp_path):
    async with running(tmp_path, "ads-delta") as (server, snapshots, proxy, (one, two), _):
        for body in (assignment({one: 7, two: 3}), too_light(one, two)):
            pushes = server.traffic.of(ENDPOINT).pushes
            publish(snapshots, body)
            await wait_until(count_of(lambda: server.traffic.of(ENDPOINT).pushes, pushes + 1))
            await wait_until(settled(server))
            ours = {
                item.name: item for item in await status_of(server) if item.type_url == ENDPOINT
            }
            (own,) = [
                each["endpoint_config"]
                for each in dumped(await proxy.dump(), "EndpointsConfigDump")[
                    "dynamic_endpoint_configs"
                ]
                if each["endpoint_config"]["cluster_name"] == NAME
            ]
            has = {
                f"{host['endpoint']['address']['socket_address']['address']}:"
                f"{host['endpoint']['address']['socket_address']['port_value']}": host[
                    "load_balancing_weight"
                ]
                for locality in own["endpoints"]
                for host in locality["lb_endpoints"]
            }
            assert has == {one: 7, two: 3}
            held = Snapshot.of({ENDPOINT: {NAME: assignment(has)}}).get(ENDPOINT, NAME)
            assert ours[NAME].version_info == held.version
        assert ours[NAME].config_status == csds_pb2.ConfigStatus.ERROR
        assert "oadBalancingWeight" in ours[NAME].error_state.details
        clusters = {i.name: i for i in await status_of(server) if i.type_url == CLUSTER}
        (dump,) = dumped(await proxy.dump(), "ClustersConfigDump")["dynamic_active_clusters"]
        assert dump["version_info"] == clusters[NAME].version_info
        assert clusters[NAME].config_status == csds_pb2.ConfigStatus.SYNCED


async def test_a_promoted_endpoint_is_picked_once_its_assignment_was_pushed_twice(tmp_path):
    """Between the two pushes some Envoys lose sight of it; what counts is that they end."""
    cluster = eds_cluster(source("ads"), policy=OVERRIDE)
    async with session() as client, servers(tmp_path, count=3) as (one, two, three):
        both = {one: 1, two: 1, three: 1}
        snapshots = Latest(world(both, cluster=cluster, priorities={two: 1, three: 1}))
        async with (
            serving(snapshots, "127.0.0.1:0") as server,
            envoy(tmp_path, client, "ads-delta", server.port) as proxy,
        ):
            await proxy.has(both)
            pick = {"x-pick": two}
            assert await proxy.served(5, **pick) == {two: 5}
            after = {"cluster": cluster, "priorities": {three: 1}}
            snapshots.publish(world(both, snapshots.value, **after))
            await wait_until_synced(server)
            snapshots.publish(world(both, snapshots.value, **after, echo=True))
            await wait_until_synced(server)
            assert await proxy.served(20, **pick) == {two: 20}


async def test_reported_loads_agree_with_the_requests_that_were_sent(tmp_path):
    async with running(tmp_path, "ads-delta") as (_, _, proxy, (_one, _two), reports):
        await wait_until(count_of(lambda: len(list(reports)), 1))  # from here on Envoy counts
        served = await proxy.served(200)

        def issued():
            return sum(row.issued for row in reports)

        await wait_until(count_of(issued, 200))
        (row,) = reports
        assert (row.pool, row.node, row.failed, row.dropped) == (NAME, "envoy", 0, 0)
        assert row.issued == row.succeeded == sum(served.values())
        assert row.endpoints == served


async def test_istios_way_delta_eds_through_a_cluster_that_came_over_xds_with_a_twin(tmp_path):
    """The pool's cluster is istiod's, its endpoints are ours; its twin has istiod's endpoints."""
    async with session() as client, servers(tmp_path, count=2) as (one, two):
        ours = latest({one: 1, two: 3})
        async with serving(ours, "127.0.0.1:0") as server:
            port = server.port
            pool = eds_cluster(source("eds-delta", "weir-xds"))
            twin = eds_cluster(source("ads"), name="twin")
            istiod = Latest(
                Snapshot.of(
                    {
                        TypeUrl.CLUSTER: {
                            "weir-xds": serialised(server_cluster("weir-xds", port)),
                            NAME: serialised(pool),
                            "twin": serialised(twin),
                        },
                        TypeUrl.ENDPOINT: {NAME: assignment({one: 1, two: 1})},
                    },
                    None,
                    {NAME: NAME},
                )
            )
            async with (
                serving(istiod, "127.0.0.1:0") as other,
                envoy(tmp_path, client, "ads-delta", other.port) as proxy,
            ):
                await proxy.has({one: 1, two: 3})
                assert await proxy.weights("twin") == {one: 1, two: 1}
                assert await proxy.served(40) == {one: 10, two: 30}
                assert other.traffic.nacks == server.traffic.nacks == 0
                assert len(server.clients) == 1, "one delta stream for the one cluster"
        # Weir is away while the proxy starts: it begins with istiod's endpoints.
        async with (
            serving(istiod, "127.0.0.1:0") as other,
            envoy(tmp_path, client, "ads-delta", other.port, node="cold") as proxy,
        ):
            await proxy.has({one: 1, two: 1})
            assert await proxy.stat(f"cluster.{NAME}.assignment_use_cached") >= 1
            async with proxy.under_load(), serving(ours, f"127.0.0.1:{port}"):
                await proxy.has({one: 1, two: 3})


async def test_a_gone_cluster_and_a_new_one_are_swapped_without_an_error(tmp_path):
    async with running(tmp_path, "ads-delta") as (server, snapshots, proxy, (one, two), _):
        async with proxy.under_load():
            for number in range(3):
                before = snapshots.value
                extra = {
                    f"ns/extra-{number}": serialised(
                        eds_cluster(source("ads"), name=f"ns/extra-{number}", service_name=NAME)
                    )
                }
                pool = {NAME: before.get(CLUSTER, NAME).body}
                snapshots.publish(
                    Snapshot.of(
                        {
                            CLUSTER: pool | extra,
                            ENDPOINT: {NAME: assignment({one: 1 + number, two: 2})},
                        },
                        before,
                        {NAME: NAME},
                    )
                )
                await wait_until_synced(server)
                await asyncio.sleep(0.2)
        assert await proxy.weights("ns/extra-2") == {one: 3, two: 2}
        assert await proxy.weights("ns/extra-1") == {}


def too_light(one, two):
    """An assignment with a weight of 0, which Envoy refuses."""
    message = endpoint_pb2.ClusterLoadAssignment.FromString(assignment({one: 1, two: 3}))
    message.endpoints[0].lb_endpoints[0].load_balancing_weight.value = 0
    return message.SerializeToString()


def publish(snapshots, body):
    before = snapshots.value
    clusters = {name: each.body for name, each in before.types[CLUSTER].by_name.items()}
    snapshots.publish(
        Snapshot.of({CLUSTER: clusters, ENDPOINT: {NAME: body}}, before, before.owners)
    )


def streams(server):
    return [each for each in server.clients if ENDPOINT in each.subscriptions]


def settled(server):
    async def are():
        return bool(streams(server)) and not any(each.outstanding for each in streams(server))

    return are


async def wait_until_synced(server):
    async def synced():
        return bool(streams(server)) and all(
            each.synced(server.view(each)) for each in streams(server)
        )

    await wait_until(synced)


def count_of(count, wanted):
    async def reached():
        return count() >= wanted

    return reached


def dumped(configs, kind):
    return next(each for each in configs if each["@type"].endswith(kind))


async def status_of(server):
    method = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        fetch = channel.unary_unary(
            method,
            request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
            response_deserializer=csds_pb2.ClientStatusResponse.FromString,
        )
        request = csds_pb2.ClientStatusRequest()
        request.node_matchers.add().node_id.exact = "envoy"
        (config,) = (await fetch(request)).config
        assert json.dumps(config.node.id) == '"envoy"'
        return config.generic_xds_configs
