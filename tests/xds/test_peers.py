"""Peers, asked over real HTTP: by address, and by a name that stands for one or several."""

from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from xds.istio.replicas import Replica
from xds.peers import Peers


@asynccontextmanager
async def answering(*replicas, status=200, host="127.0.0.1"):
    """A status port for each, which says what that replica saw; gives their ports."""
    ports, runners = [], []
    for replica in replicas:
        app = web.Application()
        body = replica.encode() if isinstance(replica, Replica) else replica

        async def handle(_, body=body):
            return web.json_response(body, status=status)

        app.router.add_get("/acknowledged", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, host, 0)
        await site.start()
        runners.append(runner)
        ports.append(site._server.sockets[0].getsockname()[1])
    try:
        yield ports
    finally:
        for runner in runners:
            await runner.cleanup()


@asynccontextmanager
async def peers(*addresses, name="me"):
    found = Peers(name, addresses)
    try:
        yield found
    finally:
        await found.close()


async def test_a_name_is_looked_up_and_our_own_answer_is_left_out():
    async with (
        answering(Replica("other"), Replica("me")) as (other, own),
        peers(f"localhost:{other}", f"localhost:{own}") as asked,
    ):
        assert [each.name for each in await asked.ask()] == ["other"]
        assert not any(each.startswith("127.0.0.1") for each in asked.silent)


async def test_two_ways_to_one_replica_are_one_replica():
    async with (
        answering(Replica("other")) as (port,),
        peers(f"localhost:{port}", f"127.0.0.1:{port}") as asked,
    ):
        assert [each.name for each in await asked.ask()] == ["other"]


@pytest.mark.parametrize(
    ("answer", "status"), [({"no": "replica"}, 200), ([1], 200), (Replica("other"), 503)]
)
async def test_who_answers_nothing_that_we_understand_has_said_nothing(answer, status):
    async with (
        answering(answer, status=status) as (port,),
        peers(f"127.0.0.1:{port}") as asked,
    ):
        assert await asked.ask() == []
        assert list(asked.silent) == [f"127.0.0.1:{port}"]


async def test_a_name_that_nobody_has_is_silent_and_the_others_are_heard():
    async with (
        answering(Replica("other")) as (port,),
        peers("nobody.invalid:1", f"127.0.0.1:{port}") as asked,
    ):
        assert [each.name for each in await asked.ask()] == ["other"]
        assert list(asked.silent) == ["nobody.invalid:1"]


async def test_without_peers_nobody_is_asked():
    async with peers() as asked:
        assert await asked.ask() == []
