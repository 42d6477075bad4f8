import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from tests.xds.talk import EDS, ack, ask, delta, ended, read, sotw, until
from xds.latest import Latest
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl
from xds.streams import Limits

CLUSTER, ENDPOINT = TypeUrl.CLUSTER.value, TypeUrl.ENDPOINT.value


def world(previous=None, **bodies):
    return Snapshot.of({ENDPOINT: {name: text.encode() for name, text in bodies.items()}}, previous)


@asynccontextmanager
async def connected(snapshot, **limits):
    snapshots = Latest(snapshot)
    async with (
        serving(snapshots, "127.0.0.1:0", limits=Limits(**limits)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield snapshots, server, channel


async def served(channel, *names):
    call = delta(channel)
    await call.write(ask(ENDPOINT, *names))
    await call.write(ack(await read(call)))
    return call


def subscriptions(server):
    return [each for session in server.clients for each in session.subscriptions.values()]


async def test_a_change_wakes_those_that_want_it_and_nobody_else():
    async with connected(world(a="1", b="1")) as (snapshots, server, channel):
        one, two = await served(channel, "a"), await served(channel, "b")
        await until(lambda: all(s.synced(snapshots.value) for s in server.clients))
        woken = []
        for session, wake in server.roster.sessions.items():
            server.roster.sessions[session] = lambda s=session, w=wake: (woken.append(s), w())
        snapshots.publish(world(snapshots.value, a="2", b="1"))
        assert (await read(one)).resources[0].name == "a"
        assert [session.subscriptions[ENDPOINT].names for session in woken] == [{"a"}]
        two.cancel()


async def test_a_client_that_never_reads_costs_one_response_and_is_cut_off_alone():
    big = "x" * 3_000_000  # more than the windows of HTTP/2 take in
    async with connected(world(a=big, b="1"), send_timeout_seconds=0.5) as (
        snapshots,
        server,
        channel,
    ):
        well = await served(channel, "b")
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]
        ) as other:
            stuck = delta(other)
            await stuck.write(ask(ENDPOINT, "a"))
            await until(lambda: any("a" in each.names for each in subscriptions(server)))
            for number in range(20):
                snapshots.publish(world(snapshots.value, a=f"{number}{big}", b="1"))
                await asyncio.sleep(0)
            (slow,) = (s for s in server.clients if "a" in s.subscriptions[ENDPOINT].names)
            assert slow.accounts[ENDPOINT].sent == 1, "one outstanding, the rest coalesced"
            await until(lambda: len(server.clients) == 1)
            assert server.traffic.turned_away["DEADLINE_EXCEEDED"] == 1
            stuck.cancel()
        snapshots.publish(world(snapshots.value, a="1", b="2"))
        assert (await read(well)).resources[0].resource.value == b"2"


async def test_a_slow_client_gets_the_newest_state_and_none_between():
    async with connected(world(a="1")) as (snapshots, _, channel):
        call = delta(channel)
        await call.write(ask(ENDPOINT, "a"))
        first = await read(call)
        for number in range(2, 50):
            snapshots.publish(world(snapshots.value, a=str(number)))
            await asyncio.sleep(0)
        await call.write(ack(first))
        assert (await read(call)).resources[0].resource.value == b"49"


async def test_too_many_names_end_that_stream_alone():
    async with connected(world(a="1"), names_per_subscription=10) as (snapshots, _, channel):
        well = await served(channel, "a")
        greedy = delta(channel)
        await greedy.write(ask(ENDPOINT, *map(str, range(11))))
        assert await ended(greedy) is grpc.StatusCode.RESOURCE_EXHAUSTED
        snapshots.publish(world(snapshots.value, a="2"))
        assert (await read(well)).resources


async def test_names_add_up_over_requests():
    async with connected(world(a="1"), names_per_subscription=10) as (_, _, channel):
        greedy = delta(channel)
        for start in (0, 6):
            await greedy.write(ask(ENDPOINT, *map(str, range(start, start + 6))))
        assert await ended(greedy) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_message_too_large_ends_that_stream_alone():
    async with connected(world(a="1"), message_bytes=10_000) as (snapshots, _, channel):
        well = await served(channel, "a")
        greedy = delta(channel)
        await greedy.write(ask(ENDPOINT, "x" * 20_000))
        assert await ended(greedy) is grpc.StatusCode.RESOURCE_EXHAUSTED
        snapshots.publish(world(snapshots.value, a="2"))
        assert (await read(well)).resources


async def test_too_many_streams_of_one_client_are_refused_and_the_others_stay():
    async with connected(world(a="1"), streams_per_client=2) as (snapshots, server, channel):
        first, second = await served(channel, "a"), await served(channel, "a")
        third = delta(channel)
        assert await ended(third) is grpc.StatusCode.RESOURCE_EXHAUSTED
        second.cancel()
        await until(lambda: len(server.clients) == 1)
        await served(channel, "a")
        snapshots.publish(world(snapshots.value, a="2"))
        assert (await read(first)).resources


async def test_garbage_ends_that_stream_alone():
    async with connected(world(a="1")) as (snapshots, _, channel):
        well = await served(channel, "a")
        call = channel.stream_stream(f"{EDS}/DeltaEndpoints")()
        await call.write(b"\xff\xff\xff")
        assert await ended(call) is grpc.StatusCode.INVALID_ARGUMENT
        snapshots.publish(world(snapshots.value, a="2"))
        assert (await read(well)).resources


async def test_an_old_stream_is_ended_well_so_that_its_client_comes_again():
    async with connected(world(a="1"), stream_age_seconds=0.3) as (_, server, channel):
        call = await served(channel, "a")
        assert await read(call) is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert server.clients == []


async def test_new_streams_get_their_first_answers_at_a_bounded_rate_and_none_is_refused():
    async with connected(world(a="1"), first_answers_per_second=50) as (_, server, channel):
        loop = asyncio.get_running_loop()
        began = loop.time()
        calls = [delta(channel) for _ in range(30)]
        for call in calls:
            await call.write(ask(ENDPOINT, "a"))
        for call in calls:
            assert (await read(call)).resources
        assert loop.time() - began >= 29 / 50 * 0.9
        assert server.traffic.turned_away == {}


async def test_pushes_are_handed_out_a_bounded_number_at_a_time():
    async with connected(world(a="1"), pushes_in_preparation=3) as (snapshots, server, channel):
        calls = [await served(channel, "a") for _ in range(12)]
        await until(lambda: all(s.synced(snapshots.value) for s in server.clients))
        most = 0

        def watched(wake):
            def woken():
                nonlocal most
                wake()
                most = max(most, len(server._in_preparation))

            return woken

        for session, wake in server.roster.sessions.items():
            server.roster.sessions[session] = watched(wake)
        snapshots.publish(world(snapshots.value, a="2"))
        for call in calls:
            assert (await read(call)).resources[0].resource.value == b"2"
        assert most == 3


async def test_a_nack_of_most_clients_is_a_verdict_and_others_streams_go_on():
    verdicts = []
    async with connected(world(a="1", b="1")) as (snapshots, server, channel):
        server.on_verdict = verdicts.append
        calls = [await served(channel, "a") for _ in range(3)]
        stranger = await served(channel, "b")
        accepted = snapshots.value.get(ENDPOINT, "a").version
        snapshots.publish(world(snapshots.value, a="2", b="2"))
        for call in calls[:2]:
            await call.write(ack(await read(call), error="a is too heavy"))
        await until(lambda: verdicts)
        assert [(v.name, v.accepted, v.refusing, v.clients) for v in verdicts] == [
            ("a", accepted, 2, 3)
        ]
        assert (await read(stranger)).resources


async def test_a_canary_alone_sees_what_is_tried_and_its_refusal_is_returned():
    stable = Snapshot.of({CLUSTER: {"c": b"1"}})
    tried = Snapshot.of({CLUSTER: {"c": b"2"}}, stable)
    async with connected(stable) as (snapshots, server, channel):
        calls = []
        for _ in range(3):
            call = delta(channel)
            await call.write(ask(CLUSTER))
            await call.write(ack(await read(call)))
            calls.append(call)
        await until(lambda: all(s.synced(stable) for s in server.clients))
        trial = asyncio.create_task(server.try_out(tried, "c"))
        offered = await read(calls[0])
        assert offered.resources[0].resource.value == b"2"
        await calls[0].write(ack(offered, error="c: no such policy"))
        assert await trial == "c: no such policy"
        server.end_trial()
        snapshots.publish(Snapshot.of({CLUSTER: {"c": b"3"}}, stable))
        for call in calls:
            assert (await read(call)).resources[0].resource.value == b"3", "2 was seen by one"


async def test_an_accepted_trial_is_not_sent_to_its_canary_again():
    stable = Snapshot.of({CLUSTER: {"c": b"1"}})
    tried = Snapshot.of({CLUSTER: {"c": b"2"}}, stable)
    async with connected(stable) as (snapshots, server, channel):
        call = delta(channel)
        await call.write(ask(CLUSTER))
        await call.write(ack(await read(call)))
        await until(lambda: server.clients[0].synced(stable))
        trial = asyncio.create_task(server.try_out(tried, "c"))
        await call.write(ack(await read(call)))
        assert await trial is None
        snapshots.publish(Snapshot.of({CLUSTER: {"c": b"2"}}, stable))
        server.end_trial()
        with pytest.raises(TimeoutError):
            await read(call, 0.3)


async def test_a_trial_without_clients_is_over_at_once():
    async with connected(world(a="1")) as (_, server, _):
        assert await server.try_out(Snapshot.of({CLUSTER: {"c": b"2"}}), "c") is None


async def test_state_of_the_world_streams_are_scoped_woken_and_counted_alike():
    async with connected(world(a="1")) as (snapshots, server, channel):
        call = sotw(channel, f"{EDS}/StreamEndpoints")
        request = discovery_pb2.DiscoveryRequest(resource_names=["a"])
        await call.write(request)
        first = await read(call)
        request.response_nonce, request.version_info = first.nonce, first.version_info
        await call.write(request)
        await until(lambda: server.traffic.of(ENDPOINT).acks == 1)
        snapshots.publish(world(snapshots.value, a="2"))
        assert (await read(call)).resources[0].value == b"2"
        traffic = server.traffic.of(ENDPOINT)
        assert (traffic.pushes, traffic.nacks) == (2, 0)
        assert traffic.bytes > 0
