"""The scraper through HBONE, to a real Envoy in ztunnel's place."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
import uvloop

from integration.far_end import far_end
from tests.certificates import Authority
from weir.bench import manifests
from weir.ports import free
from weir.processes import running, weir
from xds import scraper
from xds.hbone_tls import MeshCredentials
from xds.latest import Latest
from xds.pool import Endpoint, Mesh, Policy, Pool, Reachability

pytestmark = pytest.mark.envoy

US = "spiffe://cluster.local/ns/weir/sa/weir"
POD = "spiffe://cluster.local/ns/llm/sa/vllm"


class App:
    """A model server's metrics page; `waiting` of the requests are on it."""

    def __init__(self, waiting):
        self.waiting = waiting
        self.port = free()
        self.bulk = b"# " + b"x" * 60_000 + b"\n"
        self.requests = 0
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                page = self.bulk + b"vllm:num_requests_waiting %d\n" % self.waiting
                head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(page)
                writer.write(head + page)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def up(self):
        server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()


class StrictPod:
    """Two ports of one captured Pod that only its far end can reach, and everybody's papers."""

    def __init__(self, directory, client):
        self.directory = directory
        self.client = client
        self.root = Authority(directory / "mesh", "the mesh")
        self.stranger = Authority(directory / "stranger", "another mesh")
        self.ours = self.root.issue("ours", spiffe=US)
        self.pods = self.root.issue("pods", spiffe=POD)
        self.port = free()
        self.credentials = MeshCredentials(*self.ours, self.root.ca, port=self.port)
        self.apps = [App(1), App(2)]
        self.endpoints = [
            Endpoint(f"127.0.0.1:{port}", "llm/vllm-0", "127.0.0.1", port, mesh=Mesh(captured=True))
            for port in (free(), free())  # nobody listens there: the Pod is STRICT
        ]

    def far_end(self, *, files=None, **options):
        behind = zip(self.endpoints, self.apps, strict=True)
        apps = {endpoint.id: ("127.0.0.1", app.port) for endpoint, app in behind}
        return far_end(
            self.directory,
            self.client,
            (*(files or self.pods), self.root.ca),
            apps,
            ("127.0.0.1", self.port),
            **options,
        )

    @asynccontextmanager
    async def scraped(self, credentials, count=2, interval=0.1):
        """What is seen of the first endpoints, by their order."""
        members = tuple(self.endpoints[:count])
        pool = Pool("llm/pool", members, Policy(scrape_interval_seconds=interval))
        seen = {}
        latest = Latest({pool.name: pool})
        task = asyncio.create_task(scraper.scrape(latest, seen.__setitem__, credentials))
        try:
            yield lambda number: seen.get(members[number].id)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def strict_pod(directory):
    async with aiohttp.ClientSession() as client:
        mesh = StrictPod(directory, client)
        async with mesh.apps[0].up(), mesh.apps[1].up():
            yield mesh


@pytest.fixture
async def mesh(tmp_path):
    async with strict_pod(tmp_path) as mesh:
        yield mesh


async def until(condition, seconds=15):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def answers(observation):
    return observation is not None and observation.reachability is Reachability.ANSWERING


def silent(observation):
    return observation is not None and observation.reachability is Reachability.SILENT


async def test_a_strict_pod_is_scraped_through_hbone_and_not_in_plaintext(mesh):
    async with mesh.far_end() as far:
        async with mesh.scraped(None) as seen:
            await until(lambda: seen(0) and seen(1))
            assert not answers(seen(0))
        async with mesh.scraped(mesh.credentials) as seen:
            await until(lambda: answers(seen(0)) and answers(seen(1)))
            assert [seen(each).load.waiting for each in (0, 1)] == [1, 2]
            await until(lambda: mesh.apps[0].requests > 20)
            assert answers(seen(0))
            await until(lambda: len(far.seen()) >= 2)
    logged = {line[:2] for line in far.seen()}
    assert logged == {(US, each.id) for each in mesh.endpoints}, "our identity, and their addresses"
    assert len({line[3] for line in far.seen()}) == 1, "both ports share one connection"
    assert [app.connections for app in mesh.apps] == [1, 1], "and each has one tunnel"


async def test_the_far_end_asks_everybody_for_a_certificate(mesh):
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname = False
    nobody.load_verify_locations(mesh.root.ca)
    nobody.set_alpn_protocols(["h2"])
    async with mesh.far_end():
        reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port, ssl=nobody)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await reader.read()
        writer.close()


def test_it_is_the_same_on_uvloop_which_has_a_tls_of_its_own(tmp_path):
    async def both():
        async with strict_pod(tmp_path / "good") as mesh:
            await test_a_strict_pod_is_scraped_through_hbone_and_not_in_plaintext(mesh)
        async with strict_pod(tmp_path / "bad") as mesh:
            await test_a_certificate_that_the_far_end_refuses_makes_nobody_dead(mesh, "unknown ca")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())


@pytest.mark.parametrize("reason", ["unknown ca", "certificate expired"])
async def test_a_certificate_that_the_far_end_refuses_makes_nobody_dead(mesh, reason):
    authority = mesh.stranger if reason == "unknown ca" else mesh.root
    files = authority.issue("bad", spiffe=US, expired=reason == "certificate expired")
    credentials = replace(mesh.credentials, certificate=files[0], key=files[1])
    async with mesh.far_end() as far, mesh.scraped(credentials) as seen:
        await until(lambda: silent(seen(0)) and silent(seen(1)))
        assert "refuses our certificate" in seen(0).problem
        assert reason in seen(0).problem
        assert far.seen() == []


async def test_a_far_end_whose_certificate_is_not_the_pods_is_asked_nothing(mesh):
    strange = mesh.stranger.issue("pods", spiffe=POD)
    other = mesh.root.issue("other", spiffe=POD.replace("/ns/llm/", "/ns/other/"))
    for files, problem in ((strange, "does not vouch"), (other, "not of namespace 'llm'")):
        async with mesh.far_end(files=files) as far, mesh.scraped(mesh.credentials) as seen:
            await until(lambda: silent(seen(0)))
            assert problem in seen(0).problem
            assert far.seen() == []
    assert mesh.apps[0].connections == 0


async def test_a_far_end_that_restarts_is_back_with_the_next_scrape(mesh):
    async with mesh.scraped(mesh.credentials) as seen:
        async with mesh.far_end() as far:
            await until(lambda: answers(seen(0)) and answers(seen(1)))
            await far.child.kill()
            await until(lambda: silent(seen(0)) and silent(seen(1)))
            assert "is ztunnel running" in seen(0).problem
            assert seen(0).load.waiting == 1, "unknown is not dead, stale is not empty"
        async with mesh.far_end(name="again"):
            await until(lambda: answers(seen(0)) and answers(seen(1)))


async def test_a_far_end_that_sends_us_away_costs_no_scrape(mesh):
    async with (
        mesh.far_end(connection_seconds=0.5) as far,
        mesh.scraped(mesh.credentials, interval=0.02) as seen,
    ):
        await until(lambda: answers(seen(0)) and answers(seen(1)))
        while len({line[3] for line in far.seen()}) < 5:
            await asyncio.sleep(0.005)
            assert answers(seen(0)), seen(0).problem
            assert answers(seen(1)), seen(1).problem


async def test_a_renewed_certificate_is_shown_by_the_next_connection(mesh):
    async with mesh.scraped(mesh.credentials) as seen:
        async with mesh.far_end():
            await until(lambda: answers(seen(0)))
            renewed = mesh.root.issue("renewed", spiffe=US + "-renewed")
            for new, old in zip(renewed, mesh.ours, strict=True):
                new.replace(old)
            requests = mesh.apps[0].requests
            await until(lambda: mesh.apps[0].requests > requests + 3)
            assert answers(seen(0)), "the open connection stays"
        async with mesh.far_end(name="again") as far:
            await until(lambda: answers(seen(0)))
            await until(far.seen)
            assert {line[0] for line in far.seen()} == {US + "-renewed"}


async def test_an_app_that_is_down_is_refused_and_its_neighbour_is_not(mesh):
    gone = App(3)
    mesh.apps[1] = gone
    async with mesh.far_end(), mesh.scraped(mesh.credentials) as seen:
        await until(lambda: seen(1) and seen(1).reachability is Reachability.REFUSED)
        assert "503" in seen(1).problem
        await until(lambda: answers(seen(0)))
        async with gone.up():
            await until(lambda: answers(seen(1)))


async def test_an_authorization_policy_that_keeps_us_out_is_named_and_makes_nobody_dead(mesh):
    denied = [mesh.endpoints[1].id]
    async with mesh.far_end(denied=denied), mesh.scraped(mesh.credentials) as seen:
        await until(lambda: silent(seen(1)) and answers(seen(0)))
        assert "403 RBAC: access denied" in seen(1).problem
        assert "AuthorizationPolicy" in seen(1).problem


async def test_weir_serve_scrapes_a_captured_pod_with_the_identity_that_it_was_given(mesh):
    pod = "127.15.0.8"  # HBONE's port is the same everywhere, so this Pod has its own address
    number, app = free(), mesh.apps[0]
    config = mesh.directory / "config"
    annotations = {pod: {"ambient.istio.io/redirection": "enabled"}}
    manifests.write(config, [f"{pod}:{number}"], annotations=annotations)
    certificate, key = mesh.ours
    status = free()
    command = weir(
        *("serve", "--plaintext", "--config", str(config)),
        *("--listen", f"127.0.0.1:{free()}", "--status", f"127.0.0.1:{status}"),
        *("--mesh-cert", str(certificate), "--mesh-key", str(key), "--mesh-ca", str(mesh.root.ca)),
    )
    pods = mesh.root.issue("bench", spiffe="spiffe://cluster.local/ns/bench/sa/vllm")
    apps = {f"{pod}:{number}": ("127.0.0.1", app.port)}
    async with (
        far_end(mesh.directory, mesh.client, (*pods, mesh.root.ca), apps, (pod, 15008)) as far,
        running("weir", command, mesh.directory / "weir.log") as child,
    ):

        async def answering():
            try:
                async with mesh.client.get(f"http://127.0.0.1:{status}/status") as response:
                    return "answering" in await response.text()
            except aiohttp.ClientError:
                return False

        await child.until(answering, what="the Pod answered")
        assert {line[:2] for line in far.seen()} == {(US, f"{pod}:{number}")}
