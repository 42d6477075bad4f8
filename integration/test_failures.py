"""Each failure, through a real Envoy, under load: what breaks costs latency, never a request."""

import asyncio
import io
import json
import signal
from contextlib import asynccontextmanager

import pytest

from weir.bench import manifests
from weir.bench.load import Traffic, drive
from weir.bench.picker import python, servers, session
from weir.ports import common
from weir.processes import running as process
from weir.stack import stack, wait_until

LOAD = Traffic(requests=120, prompt=3000, chunks=3, gap_ms=2, rate=60)


@asynccontextmanager
async def running(directory, *options, count=3, policy="pick"):
    async with session() as client, servers(directory, count=count) as endpoints:
        manifests.write(directory / "config", endpoints, policy=policy)
        async with stack(directory, client, *options) as parts:
            yield parts, endpoints


@asynccontextmanager
async def loaded(parts, traffic=LOAD):
    """Under load while the block runs; afterwards every answer must have been right."""
    driving = asyncio.create_task(drive(parts.client, parts.url(), traffic))
    await asyncio.sleep(0.3)
    try:
        yield
    finally:
        tally = await driving
    assert (tally.failed, tally.wrong) == (0, 0)
    assert tally.right == traffic.requests


async def logged(parts):
    """The access log, once Envoy has flushed it."""
    await asyncio.sleep(0.3)
    return [json.loads(line) for line in parts.access_log.read_text().splitlines()]


async def picks_again(parts):
    """Send until requests are picked again."""

    async def picked():
        await drive(parts.client, parts.url(), Traffic(requests=1, prompt=100))
        return (await logged(parts))[-1]["picked"] is not None

    await wait_until(picked)


async def test_a_killed_picker_fails_no_request_and_a_new_one_picks_again(tmp_path):
    async with running(tmp_path) as (parts, _):
        async with loaded(parts):
            await parts.children["picker"].kill()
        assert (await logged(parts))[-1]["picked"] is None
        await parts.start_picker()
        await picks_again(parts)


async def test_a_silent_picker_costs_the_message_timeout_and_fails_no_request(tmp_path):
    async with running(tmp_path) as (parts, _):
        async with loaded(parts):
            parts.children["picker"].pause()
            await asyncio.sleep(1.0)
        slow = (await logged(parts))[-1]
        assert slow["picked"] is None
        assert 240 <= slow["duration_ms"] < 1000
        parts.children["picker"].resume()
        await picks_again(parts)


async def test_a_picker_that_drains_fails_no_request(tmp_path):
    async with running(tmp_path) as (parts, _):
        async with loaded(parts):
            assert await parts.children["picker"].stop() == 0
        await parts.start_picker()
        await picks_again(parts)


async def test_without_the_control_plane_picks_go_on(tmp_path):
    async with running(tmp_path) as (parts, _):
        async with loaded(parts):
            await parts.children["serve"].kill()
            await asyncio.sleep(1.0)
        assert (await logged(parts))[-1]["picked"] is not None
        await parts.start_serve()
        await wait_until(parts.settled)
        assert await parts.rejected() == 0


async def test_a_silent_control_plane_changes_nothing(tmp_path):
    async with running(tmp_path) as (parts, _):
        async with loaded(parts):
            parts.children["serve"].pause()
            await asyncio.sleep(1.0)
        assert (await logged(parts))[-1]["picked"] is not None
        parts.children["serve"].resume()
        await wait_until(parts.settled)


@pytest.mark.parametrize("policy", ["pick", "affinity", "weights"])
async def test_a_model_server_that_refuses_connections_is_gone_round(tmp_path, policy):
    address = "127.0.3.1"
    async with session() as client, servers(tmp_path, count=2) as endpoints:
        port = int(endpoints[0].rpartition(":")[2])
        dying = f"{address}:{port}"
        manifests.write(tmp_path / "config", [*endpoints, dying], policy=policy)
        command = python("weir.bench.backend", dying)
        async with (
            process("dying", command, tmp_path / "dying.log") as child,
            stack(tmp_path, client) as parts,
        ):
            await child.until_logged("listening")
            # While it is quiet: what is under way on a server that dies is lost, and not retried.
            await child.kill()
            async with loaded(parts, Traffic(requests=150, prompt=2000, rate=60)):
                pass

            async def last():
                (pool,) = (await parts.status())["pools"].values()
                return {each["endpoint"]: each["priority"] for each in pool["endpoints"]}[
                    dying
                ] == 1

            await wait_until(last)
            await drive(client, parts.url(), Traffic(requests=30, prompt=2000))
            assert dying not in {line["served"] for line in (await logged(parts))[-30:]}


async def test_a_server_whose_metrics_are_garbage_keeps_its_place(tmp_path):
    address = "127.0.3.2"
    async with session() as client, servers(tmp_path, count=2) as endpoints:
        port = common([address])

        async def garbage(reader, writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not head.startswith(b"GET"):
                    break
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\xff\xfe\n")
            writer.close()

        odd = await asyncio.start_server(garbage, address, port)
        two = tmp_path / "config"
        manifests.write(two, endpoints)
        text = (two / "pool.yaml").read_text().replace("bench", "odd")
        manifests.write(two, [f"{address}:{port}"])
        (two / "odd.yaml").write_text((two / "pool.yaml").read_text().replace("bench", "odd"))
        manifests.write(two, endpoints)
        assert "odd" in text
        async with stack(tmp_path, client) as parts:

            async def shown():
                pools = (await parts.status())["pools"]
                (endpoint,) = pools["odd/pool"]["endpoints"]
                return (
                    endpoint["reachability"] == "silent"
                    and endpoint["priority"] == 0
                    and "none of vllm:num_requests_waiting" in endpoint["problem"]
                    and all(e["waiting"] == 0 for e in pools["bench/pool"]["endpoints"])
                )

            await wait_until(shown)
        odd.close()


async def test_a_manifest_that_breaks_while_running_changes_nothing_and_is_shown(tmp_path):
    async with running(tmp_path) as (parts, endpoints):
        async with loaded(parts):
            (tmp_path / "config" / "pool.yaml").write_text("spec: [")

            async def shown():
                return (await parts.status())["problems"] != []

            await wait_until(shown)
        (problem,) = (await parts.status())["problems"]
        assert problem.startswith("pool.yaml: not YAML")
        manifests.write(tmp_path / "config", endpoints, policy="affinity")

        async def mended():
            status = await parts.status()
            return not status["problems"] and status["pools"]["bench/pool"]["policy"] == "affinity"

        await wait_until(mended)


async def test_endpoints_come_and_go_under_load(tmp_path):
    async with running(tmp_path, count=4) as (parts, endpoints):
        async with loaded(parts, Traffic(requests=240, prompt=2000, rate=80)):
            for members in (endpoints[:2], endpoints, endpoints[1:]):
                manifests.write(tmp_path / "config", members)
                await asyncio.sleep(0.6)
        await wait_until(parts.settled)
        await drive(parts.client, parts.url(), Traffic(requests=20, prompt=500))
        assert endpoints[0] not in {line["served"] for line in (await logged(parts))[-20:]}


@pytest.mark.parametrize("mode", ["digests", "buffered", "buffered-partial", "full-duplex"])
async def test_every_mode_is_picked_and_gives_back_every_byte(tmp_path, mode):
    async with running(tmp_path, "--body-mode", mode) as (parts, _):
        traffic = Traffic(requests=200, prompt=20_000, chunks=4, in_flight=16)
        async with loaded(parts, traffic):
            pass
        assert all(line["picked"] == line["served"] for line in (await logged(parts)))


@pytest.mark.parametrize("mode", ["digests", "buffered-partial", "full-duplex"])
@pytest.mark.parametrize(
    "body",
    [b"not json", b"{}", b'{"prompt":"x"}', b"", b'{"model":"m","prompt":"' + b"x" * 5_000_000],
    ids=["not json", "nothing", "no model", "empty", "5 MB"],
)
async def test_odd_bodies_are_passed_on(tmp_path, mode, body):
    async with running(tmp_path, "--body-mode", mode, count=1) as (parts, _):

        async def picked():
            # On a busy machine the picker may miss its quarter of a second: that is another test.
            async with parts.client.post(parts.url(), data=io.BytesIO(body)) as response:
                assert response.status == 200, "the server has the last word, and it takes all"
                assert await response.read()
            return (await logged(parts))[-1]["picked"] is not None

        await wait_until(picked)


async def test_a_pool_without_endpoints_says_so_and_harms_no_other(tmp_path):
    async with running(tmp_path) as (parts, _):
        empty = (tmp_path / "config" / "pool.yaml").read_text().split("---")[0]
        (tmp_path / "config" / "empty.yaml").write_text(empty.replace("bench", "empty"))
        headers = {"host": "pool.bench"}

        async def both():
            return len((await parts.status())["pools"]) == 2 and await parts.settled()

        await wait_until(both)
        url = parts.url()
        async with parts.client.post(url, json={}, headers={"host": "pool.empty"}) as response:
            assert response.status == 503
        async with parts.client.post(url, json={}, headers=headers) as response:
            assert response.status == 200


async def test_sigterm_drains_both_programs(tmp_path):
    async with running(tmp_path) as (parts, _):
        for name in ("picker", "serve"):
            child = parts.children[name]
            child._process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child._process.wait(), 10) == 0
            assert "draining" in child.tail()
