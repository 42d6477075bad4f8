"""Raw discovery streams against a running server, for tests."""

import asyncio

from xds.proto.envoy.service.discovery.v3 import discovery_pb2

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService"
EDS = "/envoy.service.endpoint.v3.EndpointDiscoveryService"


def sotw(channel, method=f"{ADS}/StreamAggregatedResources", **options):
    return channel.stream_stream(
        method,
        request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
    )(**options)


def delta(channel, method=f"{ADS}/DeltaAggregatedResources", **options):
    return channel.stream_stream(
        method,
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )(**options)


def ask(type_url, *names, node=""):
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names)
    request.node.id = node
    return request


def ack(response, error=""):
    request = discovery_pb2.DeltaDiscoveryRequest(
        type_url=response.type_url, response_nonce=response.nonce
    )
    if error:
        request.error_detail.message = error
    return request


async def read(call, seconds=10):
    async with asyncio.timeout(seconds):
        return await call.read()


async def ended(call, seconds=10):
    """The status that the server ended the call with."""
    async with asyncio.timeout(seconds):
        return await call.code()


async def until(condition, seconds=10):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
