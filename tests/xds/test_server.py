import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from xds import wire
from xds.client import Feed, Link, follow
from xds.latest import Latest
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService"
EDS = "/envoy.service.endpoint.v3.EndpointDiscoveryService"


def world(**loads):
    return Snapshot.of(
        {
            TypeUrl.ENDPOINT: {name: body.encode() for name, body in loads.items()},
            TypeUrl.POOL: {name: body.encode() for name, body in loads.items()},
        }
    )


@asynccontextmanager
async def connected(snapshot, address="127.0.0.1:0"):
    snapshots = Latest(snapshot)
    async with (
        serving(snapshots, address) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield snapshots, server, channel


def sotw(channel, method=f"{ADS}/StreamAggregatedResources"):
    return channel.stream_stream(
        method,
        request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
    )()


def delta(channel, method=f"{ADS}/DeltaAggregatedResources"):
    return channel.stream_stream(
        method,
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_state_of_the_world_over_ads():
    async with connected(world(a="1")) as (snapshots, server, channel):
        call = sotw(channel)
        ask = discovery_pb2.DiscoveryRequest(type_url=TypeUrl.ENDPOINT, resource_names=["a"])
        ask.node.id = "me"
        await call.write(ask)
        first = await call.read()
        assert [resource.value for resource in first.resources] == [b"1"]
        assert first.resources[0].type_url == TypeUrl.ENDPOINT
        ask.version_info, ask.response_nonce = first.version_info, first.nonce
        await call.write(ask)
        snapshots.publish(world(a="2"))
        second = await call.read()
        assert [resource.value for resource in second.resources] == [b"2"]
        assert server.clients[0].node.id == "me"


async def test_delta_over_ads_sends_what_changed():
    async with connected(world(a="1", b="1")) as (snapshots, _, channel):
        call = delta(channel)
        ask = discovery_pb2.DeltaDiscoveryRequest(
            type_url=TypeUrl.ENDPOINT, resource_names_subscribe=["a", "b"]
        )
        await call.write(ask)
        first = await call.read()
        assert {resource.name for resource in first.resources} == {"a", "b"}
        answer = discovery_pb2.DeltaDiscoveryRequest(
            type_url=TypeUrl.ENDPOINT, response_nonce=first.nonce
        )
        await call.write(answer)
        snapshots.publish(world(a="1", b="2"))
        second = await call.read()
        assert [(r.name, r.resource.value) for r in second.resources] == [("b", b"2")]


@pytest.mark.parametrize(
    ("opened", "method"), [(sotw, "StreamEndpoints"), (delta, "DeltaEndpoints")]
)
async def test_a_services_own_stream_needs_no_type(opened, method):
    async with connected(world(a="1")) as (_, _, channel):
        call = opened(channel, f"{EDS}/{method}")
        if opened is sotw:
            await call.write(discovery_pb2.DiscoveryRequest(resource_names=["a"]))
        else:
            await call.write(discovery_pb2.DeltaDiscoveryRequest(resource_names_subscribe=["a"]))
        assert (await call.read()).type_url == TypeUrl.ENDPOINT


async def test_a_nack_is_counted_and_shown_and_the_stream_goes_on():
    async with connected(world(a="1")) as (snapshots, server, channel):
        call = sotw(channel)
        ask = discovery_pb2.DiscoveryRequest(type_url=TypeUrl.ENDPOINT, resource_names=["a"])
        await call.write(ask)
        first = await call.read()
        ask.response_nonce = first.nonce
        ask.error_detail.message = "weights: too heavy"
        await call.write(ask)
        await until(lambda: server.traffic.nacks == 1)
        refusal = server.clients[0].refusals[TypeUrl.ENDPOINT]
        assert refusal.reason == "weights: too heavy"
        snapshots.publish(world(a="2"))
        assert [r.value for r in (await call.read()).resources] == [b"2"]


async def test_unknown_types_and_names_are_met_with_silence():
    async with connected(world(a="1")) as (_, _, channel):
        call = sotw(channel)
        await call.write(discovery_pb2.DiscoveryRequest(type_url="type.googleapis.com/x"))
        await call.write(
            discovery_pb2.DiscoveryRequest(type_url=TypeUrl.ENDPOINT, resource_names=["x"])
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.read(), 0.3)


async def test_a_client_that_goes_away_is_forgotten():
    async with connected(world(a="1")) as (_, server, channel):
        call = delta(channel)
        await call.write(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=TypeUrl.ENDPOINT, resource_names_subscribe=["a"]
            )
        )
        await call.read()
        assert len(server.clients) == 1
        call.cancel()
        await until(lambda: not server.clients)


async def test_two_servers_on_one_port_is_an_error_that_names_the_address():
    async with connected(world()) as (_, server, _):
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            async with serving(Latest(world()), f"127.0.0.1:{server.port}"):
                pass


async def test_health_is_served_beside():
    async with connected(world()) as (_, _, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


class Known:
    """What a client has been given; refuses bodies that begin with "bad"."""

    def __init__(self):
        self.bodies = {}
        self.applied = []
        self.feed = Feed(TypeUrl.POOL, self.apply, self.bodies.pop)

    def apply(self, name, body):
        if body.startswith(b"bad"):
            raise wire.MalformedResource("begins with bad")
        self.applied.append(name)
        self.bodies[name] = body


@asynccontextmanager
async def following(address, *feeds):
    link = Link()
    task = asyncio.create_task(follow(address, "picker", feeds, link))
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_our_client_follows_additions_changes_and_removals():
    known = Known()
    async with (
        connected(world(a="1", b="1")) as (snapshots, server, _),
        following(f"127.0.0.1:{server.port}", known.feed),
    ):
        await until(lambda: known.bodies == {"a": b"1", "b": b"1"})
        snapshots.publish(world(b="2", c="1"))
        await until(lambda: known.bodies == {"b": b"2", "c": b"1"})


async def test_our_client_refuses_what_it_cannot_read_and_keeps_the_last_good():
    known = Known()
    async with (
        connected(world(a="1")) as (snapshots, server, _),
        following(f"127.0.0.1:{server.port}", known.feed) as link,
    ):
        await until(lambda: known.bodies == {"a": b"1"})
        snapshots.publish(world(a="bad"))
        await until(lambda: server.traffic.nacks == 1)
        assert known.bodies == {"a": b"1"}
        assert link.nacks == 1
        snapshots.publish(world(a="3"))
        await until(lambda: known.bodies == {"a": b"3"})


async def test_our_client_keeps_what_it_has_while_the_server_is_away_and_resumes():
    known = Known()
    async with connected(world(a="1", b="1")) as (_, server, _):
        port = server.port
        task = asyncio.create_task(follow(f"127.0.0.1:{port}", "picker", [known.feed], Link()))
        await until(lambda: len(known.bodies) == 2)
    assert known.bodies == {"a": b"1", "b": b"1"}
    known.applied.clear()
    try:
        async with connected(world(a="1", b="2"), f"127.0.0.1:{port}"):
            await until(lambda: known.bodies["b"] == b"2")
            assert known.applied == ["b"], "only what differs is sent"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
