import asyncio
import contextlib
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.xds.far_end import far_end
from xds import hbone as hbone_module
from xds import hbone_connection, scraper
from xds.hbone import Hbone
from xds.hbone_tls import MeshCredentials, doubts
from xds.http1 import Http1, Interrupted, NobodyListens, NoPage
from xds.latest import Latest
from xds.pool import Endpoint, Mesh, Policy, Pool, Reachability
from xds.tls import SecurityError

US = "spiffe://cluster.local/ns/weir/sa/weir"
POD = "spiffe://cluster.local/ns/llm/sa/vllm"
PAGE = b"vllm:num_requests_waiting 2\nvllm:num_requests_running 1\n"


class Server:
    """A model server of which only the metrics page matters."""

    def __init__(self):
        self.body = PAGE
        self.connections = 0
        self.close_after = None  # requests on one connection
        self.server = None

    async def listen(self, port=0):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        return self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        self.connections += 1
        answered = 0
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                body = self.body
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                answered += 1
                if answered == self.close_after:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class World:
    """A model server behind a far end, and credentials for both."""

    def __init__(self, directory: Path):
        self.root = Authority(directory)
        self.other_root = Authority(directory / "other", "another mesh")
        self.ours = self.root.issue("ours", spiffe=US)
        self.pods = self.root.issue("pods", spiffe=POD)
        self.credentials = MeshCredentials(*self.ours, self.root.ca)
        self.server, self.port, self.far = Server(), 0, None

    def endpoint(self, port=None, pod="llm/vllm-0"):
        port = port or self.port
        return Endpoint(f"127.0.0.1:{port}", pod, "127.0.0.1", port, mesh=Mesh(captured=True))

    @asynccontextmanager
    async def running(self, **options):
        async with far_end(*self.pods, self.root.ca, **options) as self.far:
            self.port = await self.server.listen()
            try:
                yield self
            finally:
                self.server.server.close()

    @asynccontextmanager
    async def hbone(self, credentials=None):
        hbone = Hbone(replace(credentials or self.credentials, port=self.far.port))
        try:
            yield hbone
        finally:
            hbone.close()
            await asyncio.sleep(0)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def connect(hbone, endpoint):
    return await hbone.connect(lambda: Http1(endpoint.id, "/metrics", 1 << 20), endpoint)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_pages_come_through_one_tunnel_again_and_again(world):
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        world.server.body = bytes(200_000)
        for _ in range(30):
            assert await http.get() == bytes(200_000)
        assert world.far.peers == [US]
        assert world.far.authorities == [f"127.0.0.1:{world.port}"]
        assert world.server.connections == 1


async def test_the_ports_of_a_pod_share_one_connection_also_when_asked_for_at_once(world):
    second = Server()
    second.body = b"second"
    async with world.running(), world.hbone() as hbone:
        port = await second.listen()
        one, two = await asyncio.gather(
            connect(hbone, world.endpoint()), connect(hbone, world.endpoint(port))
        )
        assert await asyncio.gather(one.get(), two.get()) == [PAGE, b"second"]
        assert len(world.far.peers) == 1
        second.server.close()


async def test_nobody_behind_the_tunnel_is_nobody_who_listens(world):
    async with world.running(), world.hbone() as hbone:
        world.server.server.close()
        with pytest.raises(NobodyListens, match=f"127.0.0.1:{world.port}.*503"):
            await connect(hbone, world.endpoint())


@pytest.mark.parametrize("status", [401, 403])
async def test_being_kept_out_names_the_policy_and_is_not_dead(world, status):
    async with world.running(), world.hbone() as hbone:
        world.far.answers[world.endpoint().id] = status
        with pytest.raises(NoPage, match="AuthorizationPolicy") as caught:
            await connect(hbone, world.endpoint())
        assert not isinstance(caught.value, NobodyListens)


async def test_any_other_answer_is_told_and_is_not_dead(world):
    async with world.running(), world.hbone() as hbone:
        world.far.answers[world.endpoint().id] = 400
        with pytest.raises(NoPage, match=r"opens no tunnel.*400") as caught:
            await connect(hbone, world.endpoint())
        assert not isinstance(caught.value, NobodyListens)


async def test_nobody_at_the_far_end_says_nothing_of_the_server(world):
    async with world.running(), world.hbone() as hbone:
        world.far.vanish()
        with pytest.raises(NoPage, match="ztunnel") as caught:
            await connect(hbone, world.endpoint())
        assert not isinstance(caught.value, NobodyListens)


async def test_a_certificate_of_another_mesh_or_an_expired_one_is_refused_by_the_far_end(world):
    stranger = world.other_root.issue("stranger", spiffe=US)
    expired = world.root.issue("expired", spiffe=US, expired=True)
    for files in (stranger, expired):
        async with (
            world.running(),
            world.hbone(MeshCredentials(*files, world.root.ca)) as hbone,
        ):
            with pytest.raises(NoPage, match=f"refuses our certificate {files[0]}"):
                await connect(hbone, world.endpoint())
            assert world.far.authorities == []


async def test_a_dial_that_failed_is_not_tried_again_at_once(world, monkeypatch):
    monkeypatch.setattr(hbone_module, "PAUSE_SECONDS", 0.3)
    credentials = MeshCredentials(*world.ours, world.other_root.ca)
    async with world.running(), world.hbone(credentials) as hbone:
        for _ in range(50):
            with pytest.raises(NoPage, match="does not vouch for"):
                await connect(hbone, world.endpoint())
        assert world.far.handshakes == 1
        shutil.copy(world.root.ca, world.other_root.ca)
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(NoPage):
                    http = await connect(hbone, world.endpoint())
                    break
                await asyncio.sleep(0.01)
        assert await http.get() == PAGE


async def test_pods_that_are_gone_are_forgotten(world, monkeypatch):
    monkeypatch.setattr(hbone_module, "PAUSE_SECONDS", 0.0)
    async with world.running(), world.hbone() as hbone:
        world.far.vanish()
        for number in range(200):
            with pytest.raises(NoPage):
                await connect(hbone, world.endpoint(pod=f"namespace-{number}/vllm-0"))
        assert len(hbone._pods) <= 32


async def test_a_far_end_of_another_mesh_is_not_believed(world):
    credentials = MeshCredentials(*world.ours, world.other_root.ca)
    async with world.running(), world.hbone(credentials) as hbone:
        with pytest.raises(NoPage, match="does not vouch for"):
            await connect(hbone, world.endpoint())


async def test_a_far_end_of_another_namespace_or_trust_domain_is_told_nothing(world):
    elsewhere = MeshCredentials(*world.ours, world.root.ca, trust_domain="elsewhere")
    async with world.running():
        async with world.hbone() as hbone:
            with pytest.raises(NoPage, match="not of namespace 'other'"):
                await connect(hbone, world.endpoint(pod="other/vllm-0"))
        async with world.hbone(elsewhere) as hbone:
            with pytest.raises(NoPage, match="not of trust domain 'elsewhere'"):
                await connect(hbone, world.endpoint())
        assert world.far.authorities == []


async def test_a_far_end_without_http2_is_no_ztunnel(world):
    async with world.running(alpn=["http/1.1"]), world.hbone() as hbone:
        with pytest.raises(NoPage, match="no HTTP/2"):
            await connect(hbone, world.endpoint())


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://cluster.local/ns/llm",),
        ("https://cluster.local/ns/llm/sa/vllm",),
        (POD, "spiffe://cluster.local/ns/other/sa/vllm"),
    ],
)
def test_only_the_one_spiffe_id_of_a_workload_is_believed(uris):
    names = (("DNS", "vllm"), *(("URI", uri) for uri in uris))
    assert "no SPIFFE id" in doubts({"subjectAltName": names}, "llm", "")
    assert not doubts({"subjectAltName": (("URI", POD),)}, "llm", "cluster.local")


async def test_a_far_end_that_goes_away_is_dialled_again(world):
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        assert await http.get() == PAGE
        world.far.goodbye()
        await until(lambda: not http.open)
        again = await connect(hbone, world.endpoint())
        assert await again.get() == PAGE
        assert len(world.far.peers) == 2


async def test_a_kept_connection_that_was_gone_already_costs_a_second_dial_and_no_scrape(world):
    second = Server()
    async with world.running(), world.hbone() as hbone:
        endpoint = world.endpoint(await second.listen())
        await connect(hbone, world.endpoint())
        world.far.hang_up_on = endpoint.id
        assert await (await connect(hbone, endpoint)).get() == PAGE
        assert len(world.far.peers) == 2
        second.server.close()


async def test_who_waits_for_a_page_hears_that_the_connection_is_lost(world):
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        world.far.mute = True
        page = asyncio.ensure_future(http.get())
        await asyncio.sleep(0.05)
        world.far.vanish()
        with pytest.raises(Interrupted, match="hangs up"):
            await page


async def test_a_server_that_closes_its_connection_ends_the_tunnel_and_not_the_connection(world):
    async with world.running(), world.hbone() as hbone:
        world.server.close_after = 1
        http = await connect(hbone, world.endpoint())
        assert await http.get() == PAGE
        await until(lambda: not http.open)
        assert await (await connect(hbone, world.endpoint())).get() == PAGE
        assert len(world.far.peers) == 1


async def test_a_silent_far_end_is_pinged_and_then_given_up(world, monkeypatch):
    monkeypatch.setattr(hbone_connection, "QUIET_SECONDS", 0.1)
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        await asyncio.sleep(0.5)
        assert http.open, "pings that are answered keep it"
        world.far.mute = True
        with pytest.raises(Interrupted, match="has not answered a ping"):
            await http.get()


async def test_a_connection_without_tunnels_is_closed_after_a_while(world, monkeypatch):
    monkeypatch.setattr(hbone_connection, "QUIET_SECONDS", 0.1)
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        assert await http.get() == PAGE
        http.close()
        await until(lambda: not world.far.connections)


async def test_a_connect_without_an_answer_is_given_up(world, monkeypatch):
    monkeypatch.setattr(hbone_connection, "CONNECT_SECONDS", 0.2)
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        world.far.mute = True
        with pytest.raises(NoPage, match="not answered CONNECT") as caught:
            await connect(hbone, world.endpoint())
        assert not isinstance(caught.value, NobodyListens)
        world.far.mute = False
        assert await http.get() == PAGE, "the other tunnel is not concerned"


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(world):
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        renewed = world.root.issue("renewed", spiffe=US + "-2")
        for new, old in zip(renewed, world.ours, strict=True):
            new.replace(old)
        assert await http.get() == PAGE, "open connections stay"
        world.far.goodbye()
        await until(lambda: not http.open)
        await connect(hbone, world.endpoint())
        assert world.far.peers == [US, US + "-2"]


async def test_a_renewal_that_does_not_fit_together_leaves_the_last_one(world):
    async with world.running(), world.hbone() as hbone:
        http = await connect(hbone, world.endpoint())
        other = world.root.issue("other", spiffe=US + "-2")
        other[0].replace(world.ours[0])  # and its key comes later
        world.far.goodbye()
        await until(lambda: not http.open)
        await connect(hbone, world.endpoint())
        assert world.far.peers == [US, US]


def test_credentials_that_can_never_work_are_told_at_the_start(world):
    missing = MeshCredentials(world.ours[0].with_name("none.pem"), world.ours[1], world.root.ca)
    with pytest.raises(SecurityError, match=r"none\.pem"):
        missing.check()
    swapped = MeshCredentials(world.ours[0], world.pods[1], world.root.ca)
    with pytest.raises(SecurityError, match=r"ours\.pem.*pods\.key"):
        swapped.check()
    with pytest.raises(SecurityError, match=r"ours\.key holds no certificate"):
        MeshCredentials(*world.ours, world.ours[1]).check()
    world.credentials.check()


@asynccontextmanager
async def scraping(endpoint, mesh):
    policy = Policy(scrape_interval_seconds=0.05)
    seen = {}
    latest = Latest({"llm/pool": Pool("llm/pool", (endpoint,), policy)})
    task = asyncio.create_task(scraper.scrape(latest, seen.__setitem__, mesh))
    try:
        await until(lambda: endpoint.id in seen)
        yield lambda: seen[endpoint.id]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_captured_pod_is_scraped_through_hbone(world):
    async with world.running():
        mesh = replace(world.credentials, port=world.far.port)
        async with scraping(world.endpoint(), mesh) as seen:
            await until(lambda: seen().reachability is Reachability.ANSWERING)
            assert seen().load.waiting == 2
            assert world.far.authorities == [world.endpoint().id]
            world.server.server.close()
            for each in list(world.far.connections):
                each.writer.transport.abort()
            await until(lambda: seen().reachability is Reachability.REFUSED)
            world.far.vanish()
            await until(lambda: seen().reachability is Reachability.SILENT)
            assert "is ztunnel running" in seen().problem
            assert seen().load.waiting == 2


async def test_a_pod_that_is_not_captured_is_asked_in_plaintext(world):
    async with world.running():
        endpoint = replace(world.endpoint(), mesh=Mesh())
        async with scraping(endpoint, world.credentials) as seen:
            await until(lambda: seen().reachability is Reachability.ANSWERING)
            assert world.far.authorities == []


async def test_a_captured_pod_without_our_having_an_identity_is_asked_in_plaintext(world):
    async with world.running(), scraping(world.endpoint(), None) as seen:
        await until(lambda: seen().reachability is Reachability.ANSWERING)
        assert world.far.authorities == []


async def test_a_captured_pod_that_hangs_up_on_plaintext_says_what_to_do(world):
    async def refuse(_, writer):
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with scraping(world.endpoint(port), None) as seen:
        await until(lambda: seen().reachability is Reachability.SILENT)
        assert "--mesh-cert" in seen().problem
    server.close()
