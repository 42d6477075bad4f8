"""The control plane as one program: policies on trial, verdicts, and what `/status` says."""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import grpc.aio
import pytest

from tests.certificates import Authority
from tests.xds.talk import ack, ask, delta, ended, read
from weir.bench import manifests
from weir.bench.apiserver import ApiServer, kubeconfig
from weir.ports import free
from xds.app import ServeOptions, serve
from xds.security import Security
from xds.snapshot import TypeUrl
from xds.sources import kinds
from xds.sources.connection import Cluster
from xds.sources.kubernetes import Watching
from xds.standalone import Standalone

CLUSTER, ENDPOINT = TypeUrl.CLUSTER.value, TypeUrl.ENDPOINT.value
POOL = "bench/pool"


class Plane:
    def __init__(self, config, channel, http, status_port):
        self.config, self.channel, self._http = config, channel, http
        self._url = f"http://127.0.0.1:{status_port}/"

    def write(self, policy, endpoints=("127.0.5.1:1", "127.0.5.2:1")):
        manifests.write(self.config, endpoints, policy=policy)

    async def pool(self):
        async with self._http.get(self._url + "status") as response:
            return (await response.json())["pools"][POOL]

    async def metrics(self):
        async with self._http.get(self._url + "metrics") as response:
            return await response.text()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition(await self.pool()):
                await asyncio.sleep(0.02)

    async def client(self, type_url=CLUSTER, *names):
        """A stream whose first response is accepted; that response too."""
        call = delta(self.channel)
        await call.write(ask(type_url, *names, node=f"client of {type_url}"))
        first = await read(call)
        await call.write(ack(first))
        return call, first


@asynccontextmanager
async def running(directory, policy="pick"):
    xds, status = free(), free()
    manifests.write(directory, ["127.0.5.1:1", "127.0.5.2:1"], policy=policy)
    options = ServeOptions(
        directory,
        f"127.0.0.1:{xds}",
        f"127.0.0.1:{status}",
        Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2"),
    )
    stopping = asyncio.Event()
    task = asyncio.create_task(serve(options, stopping))
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{xds}") as channel,
        aiohttp.ClientSession() as http,
    ):
        await channel.channel_ready()
        yield Plane(directory, channel, http, status)
        stopping.set()
        await task


def body(response, name=POOL):
    return next(each.resource.value for each in response.resources if each.name == name)


async def test_a_policy_that_its_first_client_refuses_reaches_nobody_else(tmp_path):
    async with running(tmp_path) as plane:
        (canary, _), (other, good) = await plane.client(), await plane.client()
        plane.write("weights")
        offered = await read(canary)
        await canary.write(ack(offered, error=f"{POOL}: no such policy"))
        await plane.until(lambda pool: pool["quarantined"])
        pool = await plane.pool()
        assert pool["policy"] == "pick"
        assert pool["quarantined"] == [{"what": "policy", "reason": f"{POOL}: no such policy"}]
        assert f'weir_pool_quarantined{{pool="{POOL}",what="policy"}} 1.0' in await plane.metrics()
        with pytest.raises(TimeoutError):
            await read(other, 0.3)
        _, late = await plane.client()
        assert body(late) == body(good)
        plane.write("affinity")
        assert body(await read(canary)) not in (body(good), body(offered))
        assert (await plane.pool())["quarantined"] == []


async def test_a_policy_that_its_first_client_accepts_is_everybodys(tmp_path):
    async with running(tmp_path) as plane:
        (canary, _), (other, good) = await plane.client(), await plane.client()
        plane.write("weights")
        offered = await read(canary)
        await canary.write(ack(offered))
        assert body(await read(other)) == body(offered) != body(good)
        await plane.until(lambda pool: pool["policy"] == "weights")


async def test_a_first_client_that_says_nothing_does_not_keep_the_others_waiting(tmp_path):
    async with running(tmp_path) as plane:
        (silent, _), (other, good) = await plane.client(), await plane.client()
        plane.write("weights")
        offered = await read(silent)
        assert body(await read(other)) == body(offered) != body(good)


async def test_what_most_clients_refuse_is_rolled_back_for_all(tmp_path):
    async with running(tmp_path) as plane:
        clients = [await plane.client() for _ in range(3)]
        (canary, good), *others = clients
        plane.write("weights")
        await canary.write(ack(await read(canary)))
        for call, _ in others:
            await call.write(ack(await read(call), error=f"{POOL}: too new"))
        assert body(await read(canary)) == body(good)
        pool = await plane.pool()
        assert (pool["policy"], pool["quarantined"][0]["what"]) == ("pick", "policy")


async def test_refused_weights_are_rolled_back_and_members_are_not(tmp_path):
    async with running(tmp_path, "weights") as plane:
        call, _ = await plane.client(ENDPOINT, POOL)
        plane.write("weights", ["127.0.5.1:1", "127.0.5.2:1", "127.0.5.3:1"])
        offered = await read(call)
        await call.write(ack(offered, error="too heavy"))
        await plane.until(lambda pool: pool["quarantined"])
        assert (await plane.pool())["quarantined"][0]["what"] == "weights"
        endpoints = [each["endpoint"] for each in (await plane.pool())["endpoints"]]
        assert len(endpoints) == 3, "membership is what it is"


POD = {
    "metadata": {"name": "a", "namespace": "bench", "labels": {"app": "it"}},
    "status": {"podIP": "127.0.5.1", "phase": "Running"},
}
INFERENCE_POOL = {
    "metadata": {"name": "pool", "namespace": "bench"},
    "spec": {"selector": {"matchLabels": {"app": "it"}}, "targetPorts": [{"number": 1}]},
}


@asynccontextmanager
async def watching(tmp_path, api):
    xds, status = free(), free()
    options = ServeOptions(
        Watching(),
        f"127.0.0.1:{xds}",
        f"127.0.0.1:{status}",
        Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2"),
        cluster=Cluster(kubeconfig(tmp_path / "kubeconfig", api.url)),
    )
    stopping = asyncio.Event()
    async with (
        asyncio.TaskGroup() as tasks,
        grpc.aio.insecure_channel(f"127.0.0.1:{xds}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{status}") as http,
    ):
        tasks.create_task(serve(options, stopping))
        yield channel, http
        stopping.set()


async def answers(http, path):
    try:
        async with http.get(path) as response:
            return response.status, await response.text()
    except aiohttp.ClientError:
        return 0, ""


async def until_answered(http, path, words):
    async with asyncio.timeout(10):
        while words not in (await answers(http, path))[1]:
            await asyncio.sleep(0.02)


async def test_nobody_is_served_before_all_pools_of_a_cluster_are_known(tmp_path):
    api = ApiServer([f"{kinds.POOL.plural}.{kinds.POOL.group}", "services."])
    api.store.put(f"{kinds.POOL.plural}.{kinds.POOL.group}", INFERENCE_POOL)
    api.store.put("pods.", POD)
    api.forbidden.add("pods.")
    await api.start()
    try:
        async with watching(tmp_path, api) as (channel, http):
            await until_answered(http, "/status", "forbidden; grant get, list and watch on 'pods'")
            assert (await answers(http, "/healthz"))[0] == 200
            assert (await answers(http, "/readyz"))[0] == 503
            assert "weir_source_complete 0.0" in (await answers(http, "/metrics"))[1]
            assert channel.get_state(try_to_connect=True) != grpc.ChannelConnectivity.READY
    finally:
        await api.stop()


async def test_tokens_are_checked_by_the_api_server(tmp_path):
    authority = Authority(tmp_path / "certificates")
    certificate, key = authority.issue("server")
    api = ApiServer([])
    api.reviews = lambda spec: {
        "authenticated": spec["token"] == "good",
        "user": {"username": "system:serviceaccount:bench:proxy"},
        "audiences": spec["audiences"],
    }
    await api.start()
    config, xds = tmp_path / "config", free()
    config.mkdir()
    manifests.write(config, ["127.0.5.1:1"], policy="pick")
    options = ServeOptions(
        config,
        f"127.0.0.1:{xds}",
        f"127.0.0.1:{free()}",
        Standalone(listen="127.0.0.1:1", picker="127.0.0.1:2"),
        Security(certificate, key),
        cluster=Cluster(kubeconfig(tmp_path / "kubeconfig", api.url)),
        audiences=("weir",),
    )
    stopping = asyncio.Event()
    roots = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    try:
        async with (
            asyncio.TaskGroup() as tasks,
            grpc.aio.secure_channel(f"127.0.0.1:{xds}", roots) as channel,
        ):
            tasks.create_task(serve(options, stopping))
            await channel.channel_ready()
            call = delta(channel, metadata=[("authorization", "Bearer good")])
            await call.write(ask(ENDPOINT, POOL, node="client"))
            assert b"127.0.5.1" in body(await read(call))
            call = delta(channel, metadata=[("authorization", "Bearer forged")])
            await call.write(ask(ENDPOINT, POOL, node="client"))
            assert await ended(call) == grpc.StatusCode.UNAUTHENTICATED
            stopping.set()
    finally:
        await api.stop()


async def test_the_pools_of_a_cluster_are_served(tmp_path):
    api = ApiServer([f"{kinds.POOL.plural}.{kinds.POOL.group}", "pods.", "services."])
    api.store.put(f"{kinds.POOL.plural}.{kinds.POOL.group}", INFERENCE_POOL)
    api.store.put("pods.", POD)
    await api.start()
    try:
        async with watching(tmp_path, api) as (channel, http):
            await until_answered(http, "/readyz", "ok")
            call = delta(channel)
            await call.write(ask(ENDPOINT, POOL, node="client"))
            first = await read(call)
            assert b"127.0.5.1" in body(first)
            await call.write(ack(first))
            metrics = (await answers(http, "/metrics"))[1]
            for line in (
                'weir_source_objects{kind="pods"} 1.0',
                'weir_source_lists_total{kind="pods"} 1.0',
                'weir_source_stale{kind="pods"} 0.0',
                'weir_source_age_seconds{kind="pods"}',
                "weir_source_complete 1.0",
            ):
                assert line in metrics
            api.store.put("pods.", POD | {"status": {"podIP": "127.0.5.2", "phase": "Running"}})
            assert b"127.0.5.2" in body(await read(call))
    finally:
        await api.stop()
