"""Annotations of a pool through a real Envoy: what the operator says is what requests see."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import yaml

from weir.bench import manifests
from weir.bench.picker import servers, session
from weir.stack import stack, wait_until

pytestmark = pytest.mark.envoy


def annotate(config, **annotations):
    """Say this of the pool, beside what is said of it."""
    documents = list(yaml.safe_load_all((config / "pool.yaml").read_text()))
    said = {f"weir.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    documents[0]["metadata"]["annotations"] |= said
    (config / "pool.new").write_text(yaml.safe_dump_all(documents))
    (config / "pool.new").rename(config / "pool.yaml")


@asynccontextmanager
async def running(directory, *, policy="pick", **annotations):
    async with session() as client, servers(directory, count=4) as endpoints:
        manifests.write(directory / "config", endpoints, policy=policy)
        annotate(directory / "config", **annotations)
        async with stack(directory, client) as parts:
            yield parts
            assert await parts.rejected() == 0


async def send(parts, prompts, *, chunked=False, headers=(), gap=0.0):
    """The access log's line of each, sent one after the other."""
    seen = len(parts.access_log.read_text().splitlines())
    sent = 0
    for prompt, more in zip(prompts, headers or [{}] * len(prompts), strict=True):
        content = json.dumps({"prompt": prompt, "model": "base", "max_tokens": 1}).encode()

        async def pieces(content=content):
            yield content

        async with parts.client.post(
            f"http://127.0.0.1:{parts.envoy_port}/v1/completions",
            data=pieces() if chunked else content,
            headers={"content-type": "application/json", **more},
        ) as response:
            assert response.status == 200, await response.text()
            await response.read()
        sent += 1
        await asyncio.sleep(gap)

    async def logged():
        return len(parts.access_log.read_text().splitlines()) == seen + sent

    await wait_until(logged)
    return [json.loads(line) for line in parts.access_log.read_text().splitlines()[seen:]]


def different(count):
    return [f"{number} is a prompt of its own " * 100 for number in range(count)]


@pytest.mark.parametrize("policy", ["pick", "affinity"])
async def test_a_session_stays_where_it_is_whatever_it_says(tmp_path, policy):
    said = {"affinity": "session", "session_header": "x-user", "hash_balance_factor": "2"}
    async with running(tmp_path, policy=policy, **said) as parts:
        users = [{"x-user": f"user {number % 8}"} for number in range(48)]
        lines = await send(parts, different(48), headers=users)
        homes = [{line["served"] for line in lines[user::8]} for user in range(8)]
        assert [len(home) for home in homes] == [1] * 8
        assert len(set.union(*homes)) > 1
        assert {line["picked"] for line in lines} == {None}
        without = await send(parts, ["the same beginning " * 200] * 6)
        assert {line["picked"] is None for line in without} == {policy == "affinity"}
        if policy == "affinity":
            assert len({line["served"] for line in without}) == 1, "by prefix"


async def test_requests_of_one_model_are_together_with_affinity_adapter(tmp_path):
    said = {"affinity": "adapter", "hash_balance_factor": "10"}
    async with running(tmp_path, policy="affinity", **said) as parts:
        lines = await send(parts, different(16))
        assert len({line["served"] for line in lines}) == 1


async def test_a_body_that_has_no_length_is_picked_for_where_bodies_are_sent(tmp_path):
    """The digest filter passes over it, so that only the picker itself can know its prefix."""
    async with running(tmp_path, body="buffered") as parts:
        prompts = [f"prompt {number % 3} " * 600 for number in range(12)]
        lines = await send(parts, prompts, chunked=True, gap=0.25)
        assert {line["affinity"] for line in lines} == {None}
        assert all(line["picked"] == line["served"] for line in lines)
        homes = [{line["served"] for line in lines[number::3]} for number in range(3)]
        assert [len(home) for home in homes] == [1] * 3


async def test_a_pool_that_is_observed_is_not_picked_for_until_it_is_active(tmp_path):
    async with running(tmp_path, mode="observe") as parts:
        lines = await send(parts, different(12))
        assert {line["picked"] for line in lines} == {None}
        assert len({line["served"] for line in lines}) > 1
        same = await send(parts, ["the same beginning " * 200] * 6)
        assert len({line["served"] for line in same}) == 1, "Envoy's affinity routes"
        status = await parts.status()
        assert status["pools"]["bench/pool"]["mode"] == "observe"
        annotate(tmp_path / "config", mode="active")

        async def picks():
            (line,) = await send(parts, ["x"])
            return line["picked"] is not None

        await wait_until(picks)


async def test_modes_that_change_under_load_lose_no_request(tmp_path):
    async with running(tmp_path) as parts:
        for mode in ("freeze", "observe", "uniform", "active", "freeze", "active"):
            annotate(tmp_path / "config", mode=mode)

            async def changed(mode=mode):
                await send(parts, different(3))
                status = await parts.status()
                return status["pools"]["bench/pool"]["mode"] == mode

            await wait_until(changed)
        lines = await send(parts, different(8))
        assert Counter(line["status"] for line in lines) == {200: 8}
