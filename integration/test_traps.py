"""Seven traps of Envoy and Istio, each shown, and our way round it.

| | the trap | our way round it | where it is tested besides here |
|---|---|---|---|
| 1 | the xDS client cannot go through HBONE | xDS Pods are not captured | rendering: `test_install.py` |
| 2 | without a fetch timeout no start without the server | 2 s in every shape | `test_shape_failures.py`, `proxy-starts-alone` |
| 3 | a cluster made anew without the server is empty | the twin | `test_shape_failures.py`, `cluster-changes` |
| 4 | who is promoted, and moves, is lost to picks | a Pod's place is its own; a second push | `tests/xds/test_weights.py`, `test_plane.py` |
| 5 | a captured Pod is not known as `ip:port` | picks in both forms | `test_shapes.py`, `test_doctor.py` |
| 6 | in full duplex a picker's failure is the request's | headers alone, and a timeout | `test_shape_failures.py`, `picker-…` |
| 7 | a close apart from the last answer repeats chunks | one batch | `test_failures.py`, every mode |
"""  # noqa: E501 - a table

import asyncio
from contextlib import asynccontextmanager
from copy import deepcopy

import aiohttp
import grpc.aio
import pytest

from integration.drills import CASES, drill
from integration.mesh import Tunnel, mesh
from integration.proxy import NAME, eds_cluster, envoy, serialised, source
from integration.sites import FETCH_SECONDS, site
from integration.test_xds_envoy import OVERRIDE
from integration.wiring import Wiring, printed
from picker.exchange import Exchange, Phase
from picker.server import SERVICE
from weir.bench import manifests
from weir.bench.load import Traffic, drive
from weir.bench.picker import servers, session
from weir.stack import stack, wait_until
from xds.latest import Latest
from xds.proto.envoy.config.endpoint.v3 import endpoint_pb2
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl

ENDS = ["gateway", "waypoint-own-cluster"]


@pytest.mark.parametrize("shape", ENDS)
async def test_1_a_control_plane_that_ztunnel_captured_is_never_reached_and_a_picker_is(
    tmp_path, shape
):
    """Fails when Envoy's main thread learns to use internal listeners: then the label may go.

    The charts' `istio.io/dataplane-mode: none` is held by
    `test_install.py::test_the_control_plane_is_never_captured_and_the_picker_is_where_asked`.
    """
    filters = printed(shape, tmp_path)
    async with mesh(tmp_path, shape, filters, captured=["xds", "picker"]) as made:
        xds = "outbound|15010||weir-xds.weir.svc.cluster.local"

        async def refused():
            return await made.stat("upstream_cx_connect_fail", xds) >= 3

        await wait_until(refused)
        await made.has(1, 1)  # istiod's, from the twin
        pod = made.pods["llm-0"]
        made.picker.target = pod.dual
        assert await made.traffic.served(10) == {pod.name: 10}
        await made.far.has(2)
        identity = made.identity
        assert set(made.far.tunnels) == {
            Tunnel(identity, made.places.picker),
            Tunnel(identity, pod.endpoint),
        }


@pytest.mark.parametrize("shape", ENDS)
async def test_2_without_a_fetch_timeout_a_proxy_waits_for_the_control_plane_for_ever(
    tmp_path, shape
):
    """With the shapes' own filters it is ready (`proxy-starts-alone` of the drills)."""
    patient = printed(shape, tmp_path)
    assert _set_timeouts(patient, "0s") >= 1
    async with mesh(tmp_path, shape, patient, weir=False, proxy=False) as made:
        await made.proxy.start(wait=False)

        async def waits():
            return await _state(made.proxy) == "PRE_INITIALIZING"

        await wait_until(waits)
        await asyncio.sleep(FETCH_SECONDS + 2)  # by when a proxy with the shapes' own is ready
        assert await waits()
        await made.weir.start()
        await wait_until(made.proxy.live)
        await made.has(1, 3)


@pytest.mark.parametrize("event", ["the cluster changes", "the proxy starts"])
async def test_3_without_its_twin_a_cluster_without_the_control_plane_is_empty(tmp_path, event):
    """With the twin no request fails (`cluster-changes` and `proxy-starts-alone`)."""
    untwinned = printed("gateway", tmp_path)
    _drop_twins(untwinned)
    async with mesh(tmp_path, "gateway", untwinned) as made:
        await made.has(1, 3)
        await made.weir.kill()
        if event == "the cluster changes":
            await made.apply(edit=lambda found: _retuned(found, made.shape.service))
        else:
            await made.proxy.stop()
            await made.proxy.start()
            await made.settled()
        async with made.traffic.under_load() as load:
            await asyncio.sleep(0.5)
        assert load.failures == {503: load.sent}
        await made.weir.start()
        await made.has(1, 3)


async def test_3_with_its_twin_it_is_not(tmp_path):
    """The same change of the same cluster, the twin in place: fails when the twin is left out."""
    async with mesh(tmp_path, "gateway", printed("gateway", tmp_path)) as made:
        await made.has(1, 3)
        await made.weir.kill()
        async with made.traffic.under_load() as load:
            await Wiring(made).retune(7)
        assert load.failures == {}


@pytest.mark.parametrize("moves", [True, False])
async def test_4_who_is_promoted_is_lost_until_the_next_push_if_it_moves_with_it(tmp_path, moves):
    """`moves`: the promoted endpoint changes its locality too, which our assignments never do.

    Envoy then makes another host of it, and forgets the address when the old one goes. So ours name
    a Pod's own place whatever its priority, and are pushed again after a promotion all the same.
    """
    cluster = eds_cluster(source("ads"), policy=OVERRIDE)
    async with session() as client, servers(tmp_path, count=2) as (one, two):

        def world(previous, places, weight):
            body = _assignment(places, weight)
            bodies = {TypeUrl.CLUSTER: {NAME: serialised(cluster)}, TypeUrl.ENDPOINT: {NAME: body}}
            return Snapshot.of(bodies, previous, {NAME: NAME})

        far = "b" if moves else "a"
        before = {one: (0, "a"), two: (1, far)}
        after = {one: (0, "a"), two: (0, "a")}
        snapshots = Latest(world(None, before, 1))
        async with (
            serving(snapshots, "127.0.0.1:0") as server,
            envoy(tmp_path, client, "ads-delta", server.port) as proxy,
        ):
            pick = {"x-pick": two}
            await proxy.has({one: 1, two: 1})
            assert await proxy.served(10, **pick) == {two: 10}
            snapshots.publish(world(snapshots.value, after, 2))
            await proxy.has({one: 2, two: 2})
            served = await proxy.served(10, **pick)
            assert served == ({one: 5, two: 5} if moves else {two: 10})
            snapshots.publish(world(snapshots.value, after, 3))
            await proxy.has({one: 3, two: 3})
            assert await proxy.served(10, **pick) == {two: 10}


async def test_4_our_promotion_is_picked(tmp_path):
    """`weir serve`, and a Pod whose `weir.dev/priority` is 0 again.

    Fails when an assignment gives each priority a locality of its own, as `moves` above.
    """
    filters = printed("gateway", tmp_path)
    async with mesh(tmp_path, "gateway", filters, weights=(1, 1), program=True) as made:
        pod = made.pods["llm-1"]
        made.picker.target = pod.dual
        for _ in range(3):
            for priority in (1, 0):
                made.weir.set(made.named((1, 0), (1, priority)))
                await _ranks(made, 0, priority)
                assert await made.traffic.served(10) == {pod.name: 10}


async def test_6_in_full_duplex_a_silent_picker_hangs_requests_and_a_dead_one_fails_them(tmp_path):
    """Istio's gateway alone, with our picker. The shapes: `picker-paused`, `picker-killed`."""
    async with site(tmp_path, "gateway", native=True, patience_seconds=2.0) as here:
        counts = await drill(here, CASES["well"])
        assert counts.failures == {}
        counts = await drill(here, CASES["picker-paused"])
        assert counts.facts["answered while silent"] == 0
        assert counts.late == 0, "its message_timeout does not end it"
        await drill(here, CASES["picker-goes-on"])
        counts = await drill(here, CASES["picker-killed"])
        assert counts.failures.keys() == {500}


async def test_7_a_close_apart_from_the_last_answer_repeats_chunks_and_ours_never_does(tmp_path):
    """In full duplex, with servers that answer at once.

    Fails when `picker.server` registers stream-stream: that is what `_apart` does.
    """
    traffic = Traffic(requests=2000, prompt=800, chunks=4)
    async with session() as client, servers(tmp_path, count=3) as endpoints:
        manifests.write(tmp_path / "config", endpoints)
        async with stack(tmp_path, client, "--body-mode", "full-duplex") as parts:
            tally = await drive(client, parts.url(), traffic)
            assert (tally.right, tally.wrong, tally.failed) == (2000, 0, 0)
            await parts.children["picker"].kill()
            async with _closing_apart(f"127.0.0.1:{parts.picker_port}"):
                tally = await drive(client, parts.url(), traffic)
            assert tally.failed == 0
            assert tally.wrong > 0


async def _state(proxy):
    """Envoy's own word for how far it is; None before it says any."""
    try:
        return (await proxy.get("ready")).strip()
    except aiohttp.ClientError:
        return None


def _patches(filters):
    return [patch for each in filters for patch in each["spec"]["configPatches"]]


def _set_timeouts(filters, seconds):
    """Of assignments that come from Weir; how many there are."""
    found = [
        patch["patch"]["value"]["eds_cluster_config"]["eds_config"]
        for patch in _patches(filters)
        if "eds_cluster_config" in patch["patch"]["value"]
    ]
    ours = [each for each in found if "api_config_source" in each]
    for each in ours:
        each["initial_fetch_timeout"] = seconds
    return len(ours)


def _drop_twins(filters):
    for each in filters:
        patches = each["spec"]["configPatches"]
        kept = [
            patch
            for patch in patches
            if not patch["patch"]["value"].get("name", "").startswith("weir-twin|")
        ]
        each["spec"]["configPatches"] = kept


def _retuned(configuration, name):
    found = deepcopy(configuration)
    for each in found.clusters:
        if each["name"] == name:
            each["connect_timeout"] = "7s"
    return found


def _assignment(places, weight):
    """From {"ip:port": (priority, region)}."""
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=NAME)
    for endpoint, (priority, region) in places.items():
        locality = message.endpoints.add(priority=priority)
        locality.locality.region = region
        item = locality.lb_endpoints.add()
        item.load_balancing_weight.value = weight
        address = item.endpoint.address.socket_address
        address.address, _, port = endpoint.rpartition(":")
        address.port_value = int(port)
    return message.SerializeToString()


async def _ranks(made, *priorities):
    async def has():
        hosts = await made.proxy.hosts(made.shape.cluster)
        return {name: host.priority for name, host in hosts.items()} == made.named(*priorities)

    await wait_until(has)


@asynccontextmanager
async def _closing_apart(address):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method = grpc.stream_stream_rpc_method_handler(_apart)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),)
    )
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def _apart(_, context):
    """Our exchange, its answers written, and then the end."""
    exchange = Exchange(digests=False)
    while exchange.phase is Phase.WAITING:
        raw = await context.read()
        if raw is grpc.aio.EOF:
            return
        now = exchange.receive(raw)
        if now is not None:
            await context.write(now)
    for answer in exchange.answers(None):
        await context.write(answer)
