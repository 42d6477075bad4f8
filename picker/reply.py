"""Answers of the picker, as bytes: where to go, in a header and in metadata, and the body back.

Endpoint picker protocol 1.0 (gateway-api-inference-extension, proposal 004): the destination stands
in the header and in dynamic metadata `envoy.lb`, equal in both. What depends on the endpoint alone
is serialised once for each endpoint.
"""

from collections.abc import Iterator
from functools import lru_cache

from xds.pool import EndpointId
from xds.proto.envoy.config.core.v3 import base_pb2
from xds.proto.envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from xds.proto.envoy.type.v3 import http_status_pb2

DESTINATION = "x-gateway-destination-endpoint"
NAMESPACE = "envoy.lb"
CHUNK = 62_000  # bytes of body a message, as the reference does: gRPC proxies cut at 64 KiB
OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
REASON = "x-llm-d-request-dropped-reason"


@lru_cache(maxsize=4096)
def on_headers(endpoint: EndpointId, *, clear_route_cache: bool = False) -> bytes:
    """The destination, as the answer to the request's headers."""
    response = ext_proc.ProcessingResponse()
    _direct(response, response.request_headers.response, endpoint)
    response.request_headers.response.clear_route_cache = clear_route_cache
    return response.SerializeToString()


@lru_cache(maxsize=4096)
def on_body(endpoint: EndpointId) -> bytes:
    """The destination, as the answer to a buffered body, which passes unchanged."""
    response = ext_proc.ProcessingResponse()
    _direct(response, response.request_body.response, endpoint)
    response.request_body.response.clear_route_cache = True
    return response.SerializeToString()


@lru_cache(maxsize=2)
def carry_on(*, body: bool = False) -> bytes:
    """Nothing to say about these headers, or this body."""
    response = ext_proc.ProcessingResponse()
    common = response.request_body if body else response.request_headers
    common.response.SetInParent()
    return response.SerializeToString()


def body_back(body: bytes, *, end_of_stream: bool) -> Iterator[bytes]:
    """A body that the proxy gave away whole (full duplex), in chunks; at least one."""
    for start in range(0, len(body) or 1, CHUNK):
        response = ext_proc.ProcessingResponse()
        streamed = response.request_body.response.body_mutation.streamed_response
        streamed.body = body[start : start + CHUNK]
        streamed.end_of_stream = end_of_stream and start + CHUNK >= len(body)
        yield response.SerializeToString()


def trailers_back() -> bytes:
    response = ext_proc.ProcessingResponse()
    response.request_trailers.SetInParent()
    return response.SerializeToString()


def unavailable(reason: str) -> bytes:
    """503: the pool has nobody to send the request to."""
    response = ext_proc.ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = http_status_pb2.ServiceUnavailable
    immediate.body = f"inference error: ServiceUnavailable - {reason}".encode()
    header = immediate.headers.set_headers.add(append_action=OVERWRITE)
    header.header.key, header.header.raw_value = REASON, b"rejected-no-endpoints"
    immediate.details = "weir_no_endpoint"
    return response.SerializeToString()


def _direct(
    response: ext_proc.ProcessingResponse, common: ext_proc.CommonResponse, endpoint: EndpointId
) -> None:
    header = common.header_mutation.set_headers.add(append_action=OVERWRITE)
    header.header.key, header.header.raw_value = DESTINATION, endpoint.encode()
    response.dynamic_metadata.update({NAMESPACE: {DESTINATION: endpoint}})
