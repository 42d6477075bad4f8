import asyncio
import ssl
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
import pytest

from tests.certificates import Authority
from tests.xds.talk import ack, ask, delta, ended, read, sotw, until
from tests.xds.test_server import Known
from xds.access import Grant
from xds.client import Credentials, Link, follow
from xds.latest import Latest
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.security import Security, StaticTokens, read_grants
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl
from xds.tls import SecurityError

ENDPOINT = TypeUrl.ENDPOINT.value
TEAM = "spiffe://cluster.local/ns/team/sa/proxy"


def world(text="1", previous=None):
    bodies = {"team/a": text.encode(), "other/b": text.encode()}
    return Snapshot.of({ENDPOINT: bodies}, previous, {name: name for name in bodies})


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "pki")


@asynccontextmanager
async def mutual(authority, **options):
    certificate, key = authority.issue("server")
    security = Security(certificate, key, authority.ca)
    snapshots = Latest(world())
    async with serving(snapshots, "127.0.0.1:0", security=security, **options) as server:
        yield server, snapshots


@asynccontextmanager
async def channel(server, authority, pair=None):
    key, certificate = (None, None) if pair is None else (p.read_bytes() for p in reversed(pair))
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes(), key, certificate)
    async with grpc.aio.secure_channel(
        f"localhost:{server.port}", credentials, [("grpc.use_local_subchannel_pool", 1)]
    ) as opened:
        yield opened


async def refused(opened):
    call = delta(opened)
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        await call.write(ask(ENDPOINT, "team/a"))
    return await ended(call)


async def test_a_certificate_says_who_it_is_and_that_decides_what_is_seen(authority):
    async with (
        mutual(authority) as (server, _),
        channel(server, authority, authority.issue("proxy", spiffe=TEAM)) as opened,
    ):
        call = delta(opened)
        await call.write(ask(ENDPOINT, "team/a", "other/b"))
        response = await read(call)
        assert [each.name for each in response.resources] == ["team/a"]
        await call.write(ack(response))
        assert str(server.clients[0].identity) == "team/proxy"
        assert server.traffic.out_of_scope == 1
        with pytest.raises(TimeoutError):
            await read(call, 0.2)


async def test_a_grant_opens_what_it_names(authority):
    grants = [Grant(pools=("other/*",), namespace="team")]
    async with (
        mutual(authority, grants=grants) as (server, _),
        channel(server, authority, authority.issue("proxy", spiffe=TEAM)) as opened,
    ):
        call = delta(opened)
        await call.write(ask(ENDPOINT, "team/a", "other/b"))
        assert len((await read(call)).resources) == 2
        assert server.traffic.out_of_scope == 0


@pytest.mark.parametrize("which", ["no", "expired", "foreign"])
async def test_no_an_expired_and_a_foreign_certificate_are_refused(authority, tmp_path, which):
    pair = None
    if which == "expired":
        pair = authority.issue("late", spiffe=TEAM, expired=True)
    elif which == "foreign":
        pair = Authority(tmp_path / "elsewhere", "somebody else").issue("x", spiffe=TEAM)
    async with mutual(authority) as (server, _), channel(server, authority, pair) as opened:
        assert await refused(opened) is grpc.StatusCode.UNAVAILABLE
        assert server.clients == []


async def test_a_certificate_without_an_identity_is_nobody(authority):
    async with (
        mutual(authority) as (server, _),
        channel(server, authority, authority.issue("nobody")) as opened,
    ):
        assert await refused(opened) is grpc.StatusCode.UNAUTHENTICATED
        assert server.traffic.turned_away["UNAUTHENTICATED"] == 1


async def test_a_node_of_another_namespace_than_its_certificate_is_turned_away(authority):
    async with (
        mutual(authority) as (server, _),
        channel(server, authority, authority.issue("proxy", spiffe=TEAM)) as opened,
    ):
        call = delta(opened)
        await call.write(ask(ENDPOINT, "team/a", node="router~1.2.3.4~pod.other~other.svc"))
        assert await ended(call) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_plaintext_client_of_a_tls_port_gets_nothing(authority):
    async with (
        mutual(authority) as (server, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as opened,
    ):
        assert await refused(opened) is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_served_and_open_streams_stay_open(authority):
    pair = authority.issue("proxy", spiffe=TEAM)
    async with (
        mutual(authority) as (server, snapshots),
        channel(server, authority, pair) as before,
    ):
        call = delta(before)
        await call.write(ask(ENDPOINT, "team/a"))
        await call.write(ack(await read(call)))
        first = await certificate_of(server.port)
        authority.issue("server")  # in place
        assert await certificate_of(server.port) != first
        snapshots.publish(world("2", snapshots.value))
        assert (await read(call)).resources[0].resource.value == b"2"
        async with channel(server, authority, pair) as after:
            second = delta(after)
            await second.write(ask(ENDPOINT, "team/a"))
            assert (await read(second)).resources
            assert len(server.clients) == 2


async def certificate_of(port):
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))


async def test_a_renewal_that_cannot_be_read_keeps_the_last_good_one(authority):
    async with mutual(authority) as (server, _):
        first = await certificate_of(server.port)
        server.security.certificate.write_bytes(b"")
        assert await certificate_of(server.port) == first
        server.security.certificate.unlink()
        assert await certificate_of(server.port) == first


@asynccontextmanager
async def tokens(authority, tmp_path):
    (tmp_path / "tokens.yaml").write_text("s3cret: team/proxy\n")
    certificate, key = authority.issue("server")
    security = Security(certificate, key, verifier=StaticTokens(tmp_path / "tokens.yaml"))
    async with (
        serving(Latest(world()), "127.0.0.1:0", security=security) as server,
        channel(server, authority) as opened,
    ):
        yield server, opened


async def test_a_token_says_who_it_is(authority, tmp_path):
    async with tokens(authority, tmp_path) as (server, opened):
        call = delta(opened, metadata=(("authorization", "Bearer s3cret"),))
        await call.write(ask(ENDPOINT, "team/a", "other/b"))
        assert [each.name for each in (await read(call)).resources] == ["team/a"]
        assert server.clients[0].identity.how == "token"


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)])
async def test_no_token_and_a_wrong_token_are_refused(authority, tmp_path, metadata):
    async with tokens(authority, tmp_path) as (_, opened):
        call = delta(opened, metadata=metadata)
        assert await ended(call) is grpc.StatusCode.UNAUTHENTICATED


def test_security_that_is_no_whole_says_what_is_missing(tmp_path):
    some = tmp_path / "x"
    for security, words in (
        (Security(client_ca=some), "--tls-cert, --tls-key"),
        (Security(certificate=some), "--tls-key"),
        (Security(certificate=some, key=some), "--client-ca or --tokens"),
    ):
        with pytest.raises(SecurityError, match=words):
            security.check()
    with pytest.raises(SecurityError, match=f"{some}: No such file"):
        Security(some, some, some).credentials()


def test_wrong_files_name_themselves_and_never_a_token(tmp_path):
    path = tmp_path / "tokens.yaml"
    path.write_text("very-secret: nonsense\n")
    with pytest.raises(SecurityError, match=r"tokens\.yaml: entry 0") as caught:
        StaticTokens(path)
    assert "very-secret" not in str(caught.value)
    path.write_text("- {pools: 3}\n")
    with pytest.raises(SecurityError, match=r"tokens.yaml: \[0\].pools"):
        read_grants(path)


async def test_a_foreign_name_is_counted_when_it_is_asked_for_and_not_with_every_answer(authority):
    async with (
        mutual(authority) as (server, snapshots),
        channel(server, authority, authority.issue("proxy", spiffe=TEAM)) as opened,
    ):
        call = sotw(opened)
        request = discovery_pb2.DiscoveryRequest(
            type_url=ENDPOINT, resource_names=["team/a", "other/b"]
        )
        await call.write(request)
        for text in "23":
            request.response_nonce = (await read(call)).nonce
            await call.write(request)
            snapshots.publish(world(text, snapshots.value))
        await read(call)
        assert server.traffic.out_of_scope == 1


async def test_our_client_says_why_it_is_not_let_in_and_comes_in_when_it_may(authority):
    link, known = Link(), Known()
    missing = authority.ca.with_name("not-there.pem")
    snapshots = Latest(Snapshot.of({TypeUrl.POOL: {"team/a": b"1"}}, None, {"team/a": "team/a"}))
    certificate, key = authority.issue("server")
    security = Security(certificate, key, authority.ca)
    async with serving(snapshots, "127.0.0.1:0", security=security) as server:
        own, own_key = authority.issue("picker", spiffe=TEAM)
        own.rename(missing)
        credentials = Credentials(authority.ca, own, own_key)
        task = asyncio.create_task(
            follow(f"localhost:{server.port}", "picker", [known.feed], link, credentials)
        )
        try:
            await until(lambda: link.problem == f"{own}: No such file or directory")
            missing.rename(own)
            await until(lambda: known.bodies == {"team/a": b"1"})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_our_own_client_shows_its_certificate(authority):
    certificate, key = authority.issue("picker", spiffe=TEAM)
    credentials = Credentials(authority.ca, certificate, key)
    known = Known()
    known.feed.type_url = ENDPOINT
    async with mutual(authority) as (server, snapshots):
        pools = Snapshot.of(
            {TypeUrl.POOL: {"team/a": b"1", "other/b": b"1"}},
            None,
            {"team/a": "team/a", "other/b": "other/b"},
        )
        snapshots.publish(pools)
        known.feed.type_url = TypeUrl.POOL.value
        task = asyncio.create_task(
            follow(f"localhost:{server.port}", "picker", [known.feed], Link(), credentials)
        )
        try:
            await until(lambda: known.bodies == {"team/a": b"1"})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
