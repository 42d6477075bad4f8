"""One test a tier, through a real Envoy that is configured by nothing but ADS."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from weir.bench import manifests
from weir.bench.picker import servers, session
from weir.stack import stack, wait_until

pytestmark = pytest.mark.envoy
ADDRESSES = 4


@asynccontextmanager
async def running(directory, *options, policy, annotations=None):
    async with session() as client, servers(directory, count=ADDRESSES) as endpoints:
        manifests.write(directory / "config", endpoints, policy=policy, annotations=annotations)
        async with stack(directory, client, *options) as parts:
            yield parts


async def send(parts, prompts, *, gap=0.0, **headers):
    """Send the prompts one after the other; the access log's line of each."""
    seen = len(parts.access_log.read_text().splitlines())
    for prompt in prompts:
        body = {"messages": [{"role": "user", "content": prompt}], "model": "base"}
        async with parts.client.post(parts.url(), json=body, headers=headers) as response:
            assert response.status == 200
            await response.read()
        await asyncio.sleep(gap)

    async def logged():
        return len(parts.access_log.read_text().splitlines()) == seen + len(prompts)

    await wait_until(logged)
    return [json.loads(line) for line in parts.access_log.read_text().splitlines()[seen:]]


def distinct(count):
    return [f"{number} is a prompt of its own " * 100 for number in range(count)]


async def test_picks_are_served_where_picked_and_keep_a_prefix_together(tmp_path):
    async with running(tmp_path, policy="pick") as parts:
        same = ["the same long beginning " * 200 + str(n) for n in range(8)]
        lines = await send(parts, same, gap=0.25)
        assert all(line["picked"] == line["served"] for line in lines)
        assert len({line["served"] for line in lines}) == 1
        lines = await send(parts, distinct(12))
        assert all(line["picked"] == line["served"] for line in lines)
        assert len({line["served"] for line in lines}) == ADDRESSES
        assert {line["model"] for line in lines} == {"base"}
        assert await parts.rejected() == 0


async def test_affinity_keeps_a_prefix_together_without_any_picker(tmp_path):
    async with running(tmp_path, policy="affinity") as parts:
        same = await send(parts, ["the same long beginning " * 200 + str(n) for n in range(12)])
        assert len({line["served"] for line in same}) == 1
        others = await send(parts, distinct(24))
        assert len({line["served"] for line in others}) > 1
        assert {line["picked"] for line in same + others} == {None}


async def test_a_client_cannot_choose_its_own_affinity(tmp_path):
    async with running(tmp_path, policy="affinity") as parts:
        lines = await send(parts, distinct(16), **{"x-weir-affinity": "mine"})
        assert len({line["affinity"] for line in lines}) == 16
        assert len({line["served"] for line in lines}) > 1


async def test_weights_follow_capacities(tmp_path):
    annotations = {"127.0.2.1": {"weir.dev/capacity": "3"}}
    async with running(tmp_path, policy="weights", annotations=annotations) as parts:
        served = Counter(line["served"] for line in await send(parts, ["x"] * 60))
        (first, most), *others = served.most_common()
        assert first.startswith("127.0.2.1:")
        assert 28 <= most <= 32
        assert all(8 <= count <= 12 for _, count in others)


@pytest.mark.parametrize("policy", ["round-robin", "least-request"])
async def test_the_baselines_are_uniform_whatever_the_capacities(tmp_path, policy):
    annotations = {"127.0.2.1": {"weir.dev/capacity": "9"}}
    async with running(tmp_path, policy=policy, annotations=annotations) as parts:
        lines = await send(parts, ["x"] * 40)
        served = Counter(line["served"] for line in lines)
        assert len(served) == ADDRESSES
        assert max(served.values()) <= (10 if policy == "round-robin" else 20)
        assert {line["affinity"] for line in lines} == {None}


async def test_one_process_can_be_both_programs(tmp_path):
    async with session() as client, servers(tmp_path, count=2) as endpoints:
        manifests.write(tmp_path / "config", endpoints)
        async with stack(tmp_path, client, "--with-picker", picker=False) as parts:

            async def synced():
                return await parts.settled(clients=2)

            await wait_until(synced)
            await asyncio.sleep(0.2)
            lines = await send(parts, ["x"] * 4)
            assert all(line["picked"] == line["served"] for line in lines)
