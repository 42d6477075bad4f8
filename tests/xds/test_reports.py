"""Load reports, client status and metrics: what the server says of its clients, and to whom."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc.aio
from prometheus_client import CollectorRegistry, generate_latest

from picker.reports import Ledger
from tests.xds.talk import ack, ask, delta, read, until
from xds.access import Identity
from xds.csds import client_status
from xds.latest import Latest
from xds.loads import FORGET_SECONDS, LoadReports
from xds.proto.envoy.service.load_stats.v3 import lrs_pb2
from xds.proto.envoy.service.status.v3 import csds_pb2
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl
from xds.xds_metrics import XdsMetrics

ENDPOINT = TypeUrl.ENDPOINT.value
LRS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
OWNERS = {"ns/a": "ns/a", "ns/b": "ns/b"}


def world(previous=None, **bodies):
    named = {f"ns/{name}": text.encode() for name, text in bodies.items()}
    return Snapshot.of({ENDPOINT: named}, previous, OWNERS)


@asynccontextmanager
async def running():
    snapshots, reports = Latest(world(a="1", b="1")), LoadReports()
    async with (
        serving(snapshots, "127.0.0.1:0", reports=reports) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, snapshots, reports, channel


def stats(picks, unserved=()):
    picker = SimpleNamespace(picks=Counter(picks), unserved=Counter(unserved))
    return picker, Ledger(picker)


def test_a_pickers_report_has_what_happened_since_the_one_before():
    picker, ledger = stats({("ns/a", "10.0.0.1:80"): 2, ("ns/a", "[::1]:80"): 1}, ["ns/b"])
    reports = LoadReports()
    for _ in range(2):
        for each in ledger.report("picker").cluster_stats:
            reports.add("picker", each.cluster_name, each, 1.0)
        picker.picks["ns/a", "10.0.0.1:80"] += 3
    a, b = reports
    assert (a.issued, a.endpoints) == (6, {"10.0.0.1:80": 5, "[::1]:80": 1})
    assert (b.pool, b.issued, b.dropped) == ("ns/b", 0, 1)


def test_reports_age_and_are_forgotten():
    reports = LoadReports()
    _, ledger = stats({("ns/a", "10.0.0.1:80"): 1})
    reports.add("n", "ns/a", ledger.report("n").cluster_stats[0], 10.0)
    reports.expire(10.0 + FORGET_SECONDS)
    assert [row.at for row in reports] == [10.0]
    reports.expire(10.1 + FORGET_SECONDS)
    assert list(reports) == []


async def test_a_report_is_booked_and_one_of_an_unknown_cluster_is_not():
    async with running() as (_, _, reports, channel):
        call = channel.stream_stream(
            LRS,
            request_serializer=lrs_pb2.LoadStatsRequest.SerializeToString,
            response_deserializer=lrs_pb2.LoadStatsResponse.FromString,
        )()
        request = lrs_pb2.LoadStatsRequest()
        request.node.id = "envoy"
        await call.write(request)
        wanted = await read(call)
        assert wanted.send_all_clusters
        assert wanted.report_endpoint_granularity
        for name in ("ns/a", "somebody-elses"):
            row = request.cluster_stats.add(cluster_name=name)
            row.upstream_locality_stats.add(total_issued_requests=7, total_error_requests=1)
        await call.write(request)
        await until(lambda: len(list(reports)) == 1)
        (row,) = reports
        assert (row.node, row.pool, row.issued, row.failed) == ("envoy", "ns/a", 7, 1)
        call.cancel()


async def test_client_status_has_every_state_a_resource_can_be_in():
    async with running() as (server, snapshots, _, channel):
        call = delta(channel)
        await call.write(ask(ENDPOINT, "ns/a", "ns/b", "ns/unknown", node="me"))
        await call.write(ack(await read(call)))
        await until(lambda: server.traffic.of(ENDPOINT).acks == 1)
        snapshots.publish(world(snapshots.value, a="2", b="1"))
        offered = await read(call)
        states = config_states(server)
        assert states["ns/a"] == csds_pb2.ConfigStatus.STALE
        assert states["ns/b"] == csds_pb2.ConfigStatus.SYNCED
        assert states["ns/unknown"] == csds_pb2.ConfigStatus.NOT_SENT
        await call.write(ack(offered, error="no"))
        await until(lambda: server.traffic.nacks == 1)
        assert config_states(server)["ns/a"] == csds_pb2.ConfigStatus.ERROR


def config_states(server, identity=None):
    configs = client_status(server, identity, b"").config
    return {each.name: each.config_status for c in configs for each in c.generic_xds_configs}


async def test_client_status_shows_a_tenant_the_clients_of_its_own_namespace_only():
    async with running() as (server, _, _, channel):
        call = delta(channel)
        await call.write(ask(ENDPOINT, "ns/a"))
        await read(call)
        (session,) = server.clients
        session.identity = Identity("ns", "proxy")
        assert config_states(server, Identity("ns", "other")) != {}
        assert config_states(server, Identity("elsewhere", "x")) == {}
        assert config_states(server) != {}, "the plaintext port sees everything"


async def test_metrics_are_there_under_our_names_and_istiods():
    async with running() as (server, snapshots, _, channel):
        registry = CollectorRegistry()
        registry.register(XdsMetrics(server))
        call = delta(channel)
        await call.write(ask(ENDPOINT, "ns/a"))
        await call.write(ack(await read(call)))
        snapshots.publish(world(snapshots.value, a="2", b="1"))
        await call.write(ack(await read(call), error="no"))
        await until(lambda: server.traffic.nacks == 1)
        await asyncio.sleep(0)
        lines = generate_latest(registry).decode().splitlines()
        for line in (
            'weir_xds_pushes_total{type="ClusterLoadAssignment"} 2.0',
            'weir_xds_nacks_total{type="ClusterLoadAssignment"} 1.0',
            'weir_xds_ack_seconds_count{type="ClusterLoadAssignment"} 1.0',
            'pilot_xds_pushes_total{type="eds"} 2.0',
            'pilot_total_xds_rejects_total{type="eds"} 1.0',
            "pilot_proxy_convergence_time_count 1.0",
            "pilot_xds 1.0",
            'pilot_xds_config_size_bytes{type="eds"} 2.0',
        ):
            assert line in lines, line
