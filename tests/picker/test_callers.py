"""Who may ask: proven by a mesh certificate, named by the operator."""

import asyncio
from contextlib import asynccontextmanager
from random import Random

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from picker.callers import Callers
from picker.metrics import PickerMetrics
from picker.pools import Pools
from picker.server import Picker, serving
from tests.certificates import Authority
from tests.picker.test_server import VIEW, headers, opened
from xds.client import Link
from xds.tls import SecurityError
from xds.wire import encode_view

GATEWAY = "spiffe://cluster.local/ns/team/sa/gateway"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "pki")


@asynccontextmanager
async def running(authority, *allowed):
    clock = asyncio.get_running_loop().time
    pools = Pools(clock)
    pools.feeds()[0].apply(VIEW.name, encode_view(VIEW))
    picker = Picker(pools, clock, Random(1))
    callers = Callers(*authority.issue("picker"), authority.ca, allowed)
    async with serving(picker.process, "127.0.0.1:0", callers) as port:
        yield picker, port


async def ask(authority, port, pair):
    key, certificate = (path.read_bytes() for path in reversed(pair))
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), key, certificate)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        call = opened(channel, x_weir_pool="ns/p")
        await call.write(headers())
        answer = await call.read()
        await call.code()
        return answer, await call.code()


async def test_a_gateway_that_is_named_gets_a_pick(authority):
    async with running(authority, "team/*") as (picker, port):
        answer, code = await ask(authority, port, authority.issue("gw", spiffe=GATEWAY))
        assert code is grpc.StatusCode.OK
        assert answer.HasField("dynamic_metadata")
        assert picker.counts["picked"] == 1


@pytest.mark.parametrize(
    ("spiffe", "code"),
    [
        ("spiffe://cluster.local/ns/other/sa/gateway", grpc.StatusCode.PERMISSION_DENIED),
        ("", grpc.StatusCode.UNAUTHENTICATED),
    ],
)
async def test_others_get_nothing_and_are_not_booked(authority, spiffe, code):
    async with running(authority, "team/*") as (picker, port):
        pair = authority.issue("x", spiffe=spiffe)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ask(authority, port, pair)
        assert raised.value.code() is code
        assert not picker.counts


async def test_a_foreign_certificate_does_not_come_in(authority, tmp_path):
    async with running(authority, "*") as (picker, port):
        pair = Authority(tmp_path / "elsewhere", "else").issue("x", spiffe=GATEWAY)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(authority, port, pair)
        assert not picker.counts


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": "k"}, "--tls-cert"),
        ({"certificate": "c"}, "--tls-key"),
        ({"certificate": "c", "key": "k", "client_ca": "a"}, "give both"),
        ({"certificate": "c", "key": "k", "allowed": ("a/b",)}, "give both"),
    ],
)
def test_half_a_setting_is_refused(options, says):
    with pytest.raises(SecurityError, match=says):
        Callers(**options).credentials()


async def test_metrics_say_what_was_picked_and_that_the_control_plane_is_away(authority):
    async with running(authority, "team/*") as (picker, port):
        await ask(authority, port, authority.issue("gw", spiffe=GATEWAY))
    registry = CollectorRegistry()
    link = Link(connected=False, lost_at=10.0, nacks=2)
    registry.register(PickerMetrics(picker, Pools(lambda: 0.0), link, lambda: 25.0))
    text = generate_latest(registry).decode()
    assert 'weir_picker_picks_total{endpoint="10.0.0.1:80",pool="ns/p"} 1.0' in text
    assert 'weir_picker_streams_total{outcome="picked"} 1.0' in text
    assert "weir_picker_control_plane_away_seconds 15.0" in text
    assert "weir_picker_nacks_total 2.0" in text
