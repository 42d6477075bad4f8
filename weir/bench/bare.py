"""A bare ext_proc server: the least that an endpoint picker in Python can cost.

No pools, no parsing of prompts, no scoring: the next endpoint of its command line, in turn. The
benchmark puts the picker beside it, in the same mode, through the same Envoy, in the same run.

    python -m weir.bench.bare 127.0.0.1:9002 127.0.1.1:8000 127.0.1.2:8000 …
"""

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import grpc
import grpc.aio

from xds.proto.envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from xds.proto.envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

KEY = "x-gateway-destination-endpoint"
FULL_DUPLEX = processing_mode_pb2.ProcessingMode.FULL_DUPLEX_STREAMED
Context: TypeAlias = grpc.aio.ServicerContext[Any, bytes]
Process: TypeAlias = Callable[[object, Context], Awaitable[bytes]]


def _pick(endpoint: str) -> bytes:
    response = ext_proc.ProcessingResponse()
    header = response.request_headers.response.header_mutation.set_headers.add()
    header.header.key, header.header.raw_value = KEY, endpoint.encode()
    response.dynamic_metadata.update({"envoy.lb": {KEY: endpoint}})
    return response.SerializeToString()


def _process(endpoints: Iterator[str]) -> Process:
    async def process(_: object, context: Context) -> bytes:
        first = ext_proc.ProcessingRequest.FromString(await context.read())
        pick = _pick(next(endpoints))
        duplex = first.protocol_config.request_body_mode == FULL_DUPLEX
        if not duplex or first.request_headers.end_of_stream:
            return pick
        body = []
        while (raw := await context.read()) is not grpc.aio.EOF:
            message = ext_proc.ProcessingRequest.FromString(raw)
            body.append(message.request_body.body)
            if message.request_body.end_of_stream:
                break
        await context.write(pick)
        whole = b"".join(body)
        for start in range(0, len(whole), 62_000):
            response = ext_proc.ProcessingResponse()
            streamed = response.request_body.response.body_mutation.streamed_response
            streamed.body = whole[start : start + 62_000]
            if start + 62_000 >= len(whole):
                streamed.end_of_stream = True
                return response.SerializeToString()
            await context.write(response.SerializeToString())
        return pick

    return process


async def _main(address: str, endpoints: list[str]) -> None:
    server = grpc.aio.server()
    method: Any = grpc.stream_unary_rpc_method_handler(_process(itertools.cycle(endpoints)))
    service = "envoy.service.ext_proc.v3.ExternalProcessor"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Process": method}),)
    )
    server.add_insecure_port(address)
    await server.start()
    print("listening", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2:]))
