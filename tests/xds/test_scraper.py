import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds import scraper
from xds.latest import Latest
from xds.pool import Endpoint, Policy, Pool, Reachability

PAGE = b"vllm:num_requests_waiting 2\nvllm:num_requests_running 1\n"


def answer(body, status="200 OK"):
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


class Server:
    """A model server of which only the metrics page matters."""

    def __init__(self):
        self.page = answer(PAGE)
        self.delay = 0.0
        self.connections = 0
        self.asked = 0
        self.requests_a_connection = None

    async def serve(self, reader, writer):
        self.connections += 1
        asked = 0
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if asked == self.requests_a_connection:
                    break
                self.asked += 1
                await asyncio.sleep(self.delay)
                writer.write(self.page)
                asked += 1
                if not self.page:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def pools(*ports, interval=0.05):
    members = tuple(Endpoint(f"127.0.0.1:{port}", "d/p", "127.0.0.1", port) for port in ports)
    return {"d/p": Pool("d/p", members, Policy(scrape_interval_seconds=interval))}


@asynccontextmanager
async def scraping(*servers):
    running = [await asyncio.start_server(each.serve, "127.0.0.1", 0) for each in servers]
    ports = [each.sockets[0].getsockname()[1] for each in running]
    latest, seen = Latest(pools(*ports)), {}
    task = asyncio.create_task(scraper.scrape(latest, seen.__setitem__))
    try:
        yield latest, seen, [f"127.0.0.1:{port}" for port in ports], running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for each in running:
            each.close()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_endpoint_is_asked_again_and_again_over_one_connection():
    server = Server()
    async with scraping(server) as (_, seen, (name,), _):
        await until(lambda: server.asked > 5)
        assert seen[name].reachability is Reachability.ANSWERING
        assert (seen[name].load.waiting, seen[name].load.running) == (2, 1)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (answer(b"<html>"), "none of vllm:num_requests_waiting"),
        (answer(PAGE, "404 Not Found"), "status 404"),
        (b"garbage\r\n\r\n", ""),
        (b"", ""),
    ],
)
async def test_an_endpoint_that_answers_garbage_or_nothing_keeps_its_last_load(page, problem):
    bad, good = Server(), Server()
    async with scraping(bad, good) as (_, seen, (name, other), _):
        await until(lambda: len(seen) == 2)
        first = seen[name].load
        assert first.waiting == 2
        bad.page = page
        await until(lambda: seen[name].reachability is Reachability.SILENT)
        assert seen[name].load.waiting == 2
        assert problem in seen[name].problem
        asked = good.asked
        await until(lambda: good.asked > asked + 3)
        assert seen[other].reachability is Reachability.ANSWERING, "the other is not concerned"


async def test_slow_is_stale_and_not_dead(monkeypatch):
    monkeypatch.setattr(scraper, "SILENT_AFTER_SECONDS", 0.2)
    server = Server()
    async with scraping(server) as (_, seen, (name,), _):
        await until(lambda: name in seen)
        server.delay = 0.8
        await until(lambda: seen[name].reachability is Reachability.SILENT)
        assert seen[name].load.waiting == 2
        asked = server.asked
        await until(lambda: seen[name].reachability is Reachability.ANSWERING)
        assert server.asked == asked, "a slow page is waited for, not asked for twice"


async def test_refused_is_dead_at_once():
    server = Server()
    async with scraping(server) as (_, seen, (name,), (running,)):
        await until(lambda: name in seen)
        running.close()
        server.page = b""
        await until(lambda: seen[name].reachability is Reachability.REFUSED)


async def test_an_endpoint_that_no_pool_has_is_forgotten_and_a_new_one_asked():
    one, two = Server(), Server()
    async with scraping(one, two) as (latest, seen, (name, other), _):
        await until(lambda: len(seen) == 2)
        latest.publish(pools(int(other.rpartition(":")[2])))
        await until(lambda: seen[name] is None)
        asked = one.asked
        await asyncio.sleep(0.2)
        assert one.asked <= asked + 1


async def test_an_endpoint_that_is_to_be_asked_otherwise_keeps_its_last_load():
    server = Server()
    async with scraping(server) as (latest, seen, (name,), _):
        await until(lambda: name in seen)
        server.page = answer(b"<html>")
        latest.publish(pools(int(name.rpartition(":")[2]), interval=0.06))
        await until(lambda: seen[name].reachability is Reachability.SILENT)
        assert seen[name].load.waiting == 2


async def test_another_pod_at_the_same_address_has_no_load_yet():
    server = Server()
    async with scraping(server) as (latest, seen, (name,), _):
        await until(lambda: name in seen)
        server.page = answer(b"<html>")
        (pool,) = latest.value.values()
        (member,) = pool.endpoints
        latest.publish({"d/p": replace(pool, endpoints=(replace(member, pod="d/q"),))})
        await until(lambda: seen[name].reachability is Reachability.SILENT and server.asked > 2)
        await until(lambda: seen[name].load is None)


async def test_a_server_that_closes_a_kept_connection_is_asked_again_at_once():
    server = Server()
    server.requests_a_connection = 1
    async with scraping(server) as (_, seen, (name,), _):
        await until(lambda: name in seen)
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert seen[name].reachability is Reachability.ANSWERING
        assert server.connections > 3


def test_scrapes_are_spread_over_the_interval():
    offsets = sorted(scraper.offset(f"10.0.{n // 256}.{n % 256}:8000", 1.0) for n in range(1000))
    assert all(0 <= offset < 1 for offset in offsets)
    gaps = [later - earlier for earlier, later in itertools.pairwise(offsets)]
    assert max(gaps) < 0.02


@given(
    st.floats(0, 1e6),
    st.floats(0.05, 10),
    st.floats(0, 1),
    st.lists(st.floats(-0.002, 3), max_size=20),
)
def test_no_turn_is_taken_twice_though_timers_come_early_or_late(start, interval, part, errors):
    phase = part * interval
    last, now, taken = start, start, []
    for error in errors:
        due = scraper.next_due(last, now, phase, interval)
        assert due > now - 0.02 * interval
        assert due <= max(last, now) + 1.01 * interval
        taken.append(round((due - phase) / interval))
        assert due == pytest.approx(phase + taken[-1] * interval)
        last, now = due, due + error
    assert len(set(taken)) == len(taken)
