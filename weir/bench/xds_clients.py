"""The clients of `weir bench xds`: delta EDS streams that ACK whatever comes.

    python -m weir.bench.xds_clients PORT STREAMS STREAMS_PER_CONNECTION POOLS

Stream n subscribes to pool n modulo POOLS. Runs until stdin is closed.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import grpc.aio

from weir.running import run_loop
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.snapshot import TypeUrl

METHOD = "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


async def follow(
    channel: grpc.aio.Channel, pool: str, came: Callable[[], object] = lambda: None
) -> None:
    """ACK an assignment for ever; `came` is called for every response."""
    call = channel.stream_stream(
        METHOD,
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )()
    first = discovery_pb2.DeltaDiscoveryRequest(
        type_url=TypeUrl.ENDPOINT, resource_names_subscribe=[pool]
    )
    first.node.id = "bench"
    await call.write(first)
    while True:
        response: Any = await call.read()
        if response is grpc.aio.EOF:
            return
        came()
        await call.write(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=TypeUrl.ENDPOINT, response_nonce=response.nonce
            )
        )


async def main(port: int, streams: int, together: int, pools: int) -> None:
    target = f"127.0.0.1:{port}"
    channels = [
        grpc.aio.insecure_channel(target, options=OPTIONS) for _ in range(-(-streams // together))
    ]
    following = [
        asyncio.create_task(follow(channels[n // together], f"bench/pool-{n % pools}"))
        for n in range(streams)
    ]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)


if __name__ == "__main__":
    run_loop(main(*map(int, sys.argv[1:5])))
