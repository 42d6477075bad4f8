import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picker.pools import Pools
from picker.profile import PoolState
from picker.server import SERVICE, Picker, serving
from xds.proto.envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from xds.proto.envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from xds.wire import Member, PoolView, encode_view

BUFFERED = processing_mode_pb2.ProcessingMode.BUFFERED
FULL_DUPLEX = processing_mode_pb2.ProcessingMode.FULL_DUPLEX_STREAMED
VIEW = PoolView("ns/p", (Member("10.0.0.1:80"),))


@asynccontextmanager
async def running(*views, default_pool=""):
    clock = asyncio.get_running_loop().time
    pools = Pools(clock)
    pool_feed, _ = pools.feeds()
    for view in views:
        pool_feed.apply(view.name, encode_view(view))
    picker = Picker(pools, clock, Random(1), default_pool)
    async with (
        serving(picker.process, "127.0.0.1:0") as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield picker, channel, pools


def opened(channel, **metadata):
    pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    return channel.stream_stream(
        f"/{SERVICE}/Process",
        request_serializer=ext_proc.ProcessingRequest.SerializeToString,
        response_deserializer=ext_proc.ProcessingResponse.FromString,
    )(metadata=pairs)


def headers(mode=0, **pairs):
    message = ext_proc.ProcessingRequest()
    message.request_headers.headers.SetInParent()
    message.protocol_config.request_body_mode = mode
    for key, value in pairs.items():
        message.request_headers.headers.headers.add(
            key=key.replace("_", "-"), raw_value=value.encode()
        )
    return message


def body(data):
    message = ext_proc.ProcessingRequest()
    message.request_body.body, message.request_body.end_of_stream = data, True
    return message


async def whole(call):
    return [answer async for answer in call]


def destination(answer):
    return answer.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]


async def test_one_message_in_one_out_and_the_stream_is_closed():
    async with running(VIEW) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/p", x_weir_digests="v1")
        await call.write(headers(content_length="4"))
        (answer,) = await whole(call)
        assert destination(answer) == "10.0.0.1:80"
        assert await call.code() is grpc.StatusCode.OK
        assert picker.counts == {"picked": 1}


async def test_in_full_duplex_the_whole_body_comes_back():
    async with running(VIEW) as (_, channel, _):
        call = opened(channel, x_weir_pool="ns/p")
        data = json.dumps({"model": "m", "prompt": "x" * 100_000}).encode()
        await call.write(headers(FULL_DUPLEX))
        await call.write(body(data))
        first, *rest = await whole(call)
        assert destination(first) == "10.0.0.1:80"
        parts = [part.request_body.response.body_mutation.streamed_response for part in rest]
        assert b"".join(part.body for part in parts) == data


@pytest.mark.parametrize("data", [b"not json", b"{}", b"", b'{"prompt":' + b"x" * 5_000_000])
async def test_any_body_is_passed_on(data):
    async with running(VIEW) as (_, channel, _):
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers(FULL_DUPLEX))
        await call.write(body(data))
        first, *rest = await whole(call)
        assert destination(first) == "10.0.0.1:80"
        parts = [part.request_body.response.body_mutation.streamed_response for part in rest]
        assert b"".join(part.body for part in parts) == data


async def test_a_pool_that_is_not_known_lets_the_request_pass_and_harms_no_other():
    async with running(VIEW) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/other")
        await call.write(headers())
        (answer,) = await whole(call)
        assert answer.WhichOneof("response") == "request_headers"
        assert not answer.dynamic_metadata
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers())
        assert destination((await whole(call))[0]) == "10.0.0.1:80"
        assert picker.counts == {"unknown pool": 1, "picked": 1}


async def test_a_pool_without_endpoints_is_a_503_that_says_so():
    async with running(PoolView("ns/empty")) as (_, channel, _):
        call = opened(channel, x_weir_pool="ns/empty")
        await call.write(headers())
        (answer,) = await whole(call)
        assert answer.immediate_response.status.code == 503
        assert b"ns/empty" in answer.immediate_response.body


OTHER = PoolView("ns/q", (Member("10.0.1.1:80", captured=True),))


async def test_a_route_that_splits_between_pools_is_answered_with_one_endpoint_of_each():
    async with running(VIEW, OTHER) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/q,ns/p")
        await call.write(headers())
        (answer,) = await whole(call)
        both = "10.0.1.1:80,envoy://connect_originate/10.0.1.1:80,10.0.0.1:80"
        assert destination(answer) == both
        mutation = answer.request_headers.response.header_mutation
        assert mutation.set_headers[0].header.raw_value == both.encode()
        assert picker.picks == {("ns/q", "10.0.1.1:80"): 1, ("ns/p", "10.0.0.1:80"): 1}


async def test_a_route_that_splits_between_pools_has_its_body_read_once():
    requests = []

    class Noting(PoolState):
        def pick(self, request, *rest):
            requests.append(request)
            return super().pick(request, *rest)

    async with running(VIEW, OTHER) as (_, channel, pools):
        pools._states |= {view.name: Noting(view) for view in (VIEW, OTHER)}
        call = opened(channel, x_weir_pool="ns/q,ns/p")
        await call.write(headers(FULL_DUPLEX))
        await call.write(body(b'{"model": "m", "prompt": "x"}'))
        await whole(call)
        one, other = requests
        assert one.model == "m"
        assert one is other


@pytest.mark.parametrize("left_out", ["ns/unknown", "ns/empty"])
async def test_of_several_pools_one_that_has_nobody_is_left_out(left_out):
    async with running(VIEW, PoolView("ns/empty")) as (_, channel, _):
        for order in (f"ns/p,{left_out}", f"{left_out},ns/p"):
            call = opened(channel, x_weir_pool=order)
            await call.write(headers())
            (answer,) = await whole(call)
            assert destination(answer) == "10.0.0.1:80"


async def test_several_pools_without_endpoints_are_a_503_that_names_them():
    async with running(PoolView("ns/a"), PoolView("ns/b")) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/a,ns/b")
        await call.write(headers())
        (answer,) = await whole(call)
        assert answer.immediate_response.status.code == 503
        assert b"ns/a,ns/b" in answer.immediate_response.body
        assert picker.unserved == {"ns/a": 1, "ns/b": 1}


async def test_an_unknown_pool_beside_an_empty_one_lets_the_request_pass():
    async with running(PoolView("ns/empty")) as (_, channel, _):
        call = opened(channel, x_weir_pool="ns/empty,ns/unknown")
        await call.write(headers())
        (answer,) = await whole(call)
        assert answer.WhichOneof("response") == "request_headers"
        assert not answer.dynamic_metadata


async def test_a_gateway_that_names_no_pool_gets_the_default_one():
    async with running(VIEW, default_pool="ns/p") as (_, channel, _):
        call = opened(channel)
        await call.write(headers())
        assert destination((await whole(call))[0]) == "10.0.0.1:80"


async def test_a_pick_that_fails_lets_the_request_pass(monkeypatch):
    class Broken(PoolState):
        def pick(self, *_, **__):
            raise ZeroDivisionError

    async with running(VIEW) as (picker, channel, pools):
        pools._states["ns/p"] = Broken(VIEW)
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers())
        (answer,) = await whole(call)
        assert not answer.dynamic_metadata
        assert picker.counts == {"failed": 1}


async def test_bytes_that_are_no_message_let_the_request_pass():
    async with running(VIEW) as (picker, channel, _):
        call = channel.stream_stream(f"/{SERVICE}/Process")(metadata=[("x-weir-pool", "ns/p")])
        await call.write(b"\xff\xff\xff")
        assert len(await whole(call)) == 1
        assert await call.code() is grpc.StatusCode.OK
        assert picker.counts == {"protocol error": 1}


async def test_a_proxy_that_goes_away_early_leaves_nothing_behind():
    async with running(VIEW) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers(FULL_DUPLEX))
        await asyncio.sleep(0.05)
        call.cancel()
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers())
        await whole(call)
        assert picker.counts["picked"] == 1


async def test_health_answers_under_the_names_that_gateways_ask_for():
    async with running(VIEW) as (_, channel, _):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE, "liveness", "readiness"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("mode", [0, BUFFERED, FULL_DUPLEX])
async def test_a_pool_that_is_observed_has_its_requests_passed_on(mode):
    async with running(replace(VIEW, observing=True)) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/p", x_weir_digests="v1")
        await call.write(headers(mode))
        if mode:
            await call.write(body(b'{"prompt": "x"}'))
        answers = await whole(call)
        assert not any(answer.dynamic_metadata for answer in answers)
        assert not any(answer.HasField("immediate_response") for answer in answers)
        assert picker.counts == {"observing": 1}
        assert not picker.picks


async def test_a_pool_that_is_observed_and_empty_is_not_the_pickers_business():
    async with running(PoolView("ns/p", observing=True)) as (_, channel, _):
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers())
        (answer,) = await whole(call)
        assert not answer.HasField("immediate_response")


async def test_a_pool_that_is_observed_no_more_is_picked_for_again():
    async with running(replace(VIEW, observing=True)) as (picker, channel, pools):
        pools.feeds()[0].apply("ns/p", encode_view(VIEW))
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers())
        assert destination((await whole(call))[0]) == "10.0.0.1:80"
        assert picker.counts == {"picked": 1}


@pytest.mark.parametrize(
    ("sent", "count"),
    [({"x_user": "u1"}, "session"), ({"x_user": ""}, "picked"), ({"x_other": "u1"}, "picked")],
)
async def test_a_session_is_left_to_the_proxys_hash_and_what_has_none_is_picked_for(sent, count):
    async with running(replace(VIEW, session_header="x-user")) as (picker, channel, _):
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers(**sent))
        (answer,) = await whole(call)
        assert bool(answer.dynamic_metadata) == (count == "picked")
        assert picker.counts == {count: 1}
