"""Many delta EDS streams, 100 a connection, that come back together when their server does.

    python -m integration.storm PORT STREAMS NAME

Says "served N" when all have an assignment, "lost all" when all streams have ended, and "back JSON"
when all are served again: seconds since the server listened again, and streams refused on the way.
"""

import asyncio
import json
import sys

import grpc
import grpc.aio

from weir.running import run_loop
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.snapshot import TypeUrl

METHOD = "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
TOGETHER, RETRY_SECONDS = 100, 0.1
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
]


class Storm:
    def __init__(self, port, streams, name):
        self.port, self.streams, self.name = port, streams, name
        self.served, self.lost, self.refused = 0, 0, 0

    async def run(self):
        loop = asyncio.get_running_loop()
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=OPTIONS)
            for _ in range(-(-self.streams // TOGETHER))
        ]
        following = [
            asyncio.create_task(self.follow(channels[number // TOGETHER]))
            for number in range(self.streams)
        ]
        await self.until(lambda: self.served == self.streams)
        print(f"served {self.streams}", flush=True)
        self.refused = 0
        await self.until(lambda: self.lost == self.streams)
        self.served = 0
        print("lost all", flush=True)
        await self.listening()
        began = loop.time()
        await self.until(lambda: self.served == self.streams)
        seconds = round(loop.time() - began, 2)
        figures = {"served": self.served, "refused": self.refused, "seconds": seconds}
        print(f"back {json.dumps(figures)}", flush=True)
        await asyncio.gather(*following)

    async def follow(self, channel):
        while True:
            call = channel.stream_stream(
                METHOD,
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
            )()
            got = False
            try:
                await call.write(
                    discovery_pb2.DeltaDiscoveryRequest(
                        type_url=TypeUrl.ENDPOINT, resource_names_subscribe=[self.name]
                    )
                )
                while (response := await call.read()) is not grpc.aio.EOF:
                    if not got:
                        got, self.served = True, self.served + 1
                    await call.write(
                        discovery_pb2.DeltaDiscoveryRequest(
                            type_url=TypeUrl.ENDPOINT, response_nonce=response.nonce
                        )
                    )
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            if got:
                self.lost += 1
            elif await call.code() is not grpc.StatusCode.UNAVAILABLE:
                self.refused += 1
            await asyncio.sleep(RETRY_SECONDS)

    async def listening(self):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    run_loop(Storm(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).run())
