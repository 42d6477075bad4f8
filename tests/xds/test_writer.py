"""The writer against a small API server that keeps what it is given, in time that costs nothing."""

import asyncio
import json
from contextlib import asynccontextmanager
from random import Random

import pytest
from structlog.testing import capture_logs

from xds.istio.controller import Report
from xds.operators import CONTROLLER, Service, Subject
from xds.problems import Problem, Reason
from xds.sources.writer import Answer, Writer

pytestmark = pytest.mark.looptime
WEIR = Service("weir-system", "weir-xds")
EVENTS, POOLS = "/api/v1/namespaces/ns/events", "/apis/inference.networking.k8s.io/v1/namespaces/ns"
GATEWAY = {"parentRef": {"name": "gw"}, "controllerName": "istio.io/gateway-controller"}
START = 1_800_000_000.0
LLAMA = Subject("ns", "llama", 4)


def problem(number=0, kind="InferencePool", **changes):
    said = {"namespace": "ns", "name": "llama", "right": "one of active", "knob": "mode"}
    return Problem(kind, **said | {"reason": Reason.BAD_VALUE, "value": f"bad {number}"} | changes)


class ApiServer:
    """Events and pools by path, with versions; `refuse` gives a status instead, or raises."""

    def __init__(self, clock):
        self.clock, self.objects, self.asked, self.times = clock, {}, [], []
        self.version = 1
        self.refuse = lambda method, path: None
        self.before = lambda method, path: None

    def wall(self):
        return START + self.clock()

    def put(self, path, content):
        self.version += 1
        metadata = content.get("metadata", {}) | {"resourceVersion": str(self.version)}
        self.objects[path] = json.loads(json.dumps(content | {"metadata": metadata}))

    def pool(self, name="llama"):
        return self.objects[f"{POOLS}/inferencepools/{name}"]

    def events(self):
        return [each for path, each in sorted(self.objects.items()) if path.startswith(EVENTS)]

    async def request(self, method, path, body, content_type):
        await asyncio.sleep(0)
        path, _, query = path.partition("?")
        self.asked.append((method, path))
        self.times.append(self.clock())
        self.before(method, path)
        refusal = self.refuse(method, path)
        if refusal is not None:
            return Answer(refusal, {"message": "no"})
        assert method == "GET" or query == "fieldManager=weir"
        if method == "POST":
            assert content_type == "application/json"
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return Answer(409, {"reason": "AlreadyExists"})
            self.put(path, body)
            return Answer(201, self.objects[path])
        path = path.removesuffix("/status")
        there = self.objects.get(path)
        if there is None:
            return Answer(404, {"message": "not found"})
        if method == "PATCH":
            assert content_type == "application/merge-patch+json"
            if body["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
                return Answer(409, {"reason": "Conflict"})
            self.put(path, there | body | {"metadata": there["metadata"]})
        return Answer(200, json.loads(json.dumps(self.objects[path])))


@asynccontextmanager
async def running(server=None, *, parents=()):
    clock = asyncio.get_running_loop().time
    if server is None:
        server = ApiServer(clock)
        server.put(f"{POOLS}/inferencepools/llama", {"status": {"parents": list(parents)}})
    writer = Writer(server.request, WEIR, Random(1), clock=clock, wall=server.wall)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(writer.run())
        yield server, writer
        assert not task.done()
        task.cancel()


async def test_a_problem_is_an_event_and_the_pools_status_says_so():
    async with running(parents=[GATEWAY]) as (server, writer):
        writer.tell([problem(), problem(kind="Pod", name="llama-0")], [LLAMA])
        await asyncio.sleep(5)
        involved = {each["involvedObject"]["kind"] for each in server.events()}
        assert involved == {"Pod", "InferencePool"}
        gateway, ours = server.pool()["status"]["parents"]
        assert gateway == GATEWAY
        assert ours["controllerName"] == CONTROLLER
        assert [each["status"] for each in ours["conditions"]] == ["True", "False"]
        assert {each["observedGeneration"] for each in ours["conditions"]} == {4}
        writer.tell([], [Subject("ns", "llama", 5)])
        await asyncio.sleep(5)
        _, ours = server.pool()["status"]["parents"]
        assert [each["status"] for each in ours["conditions"]] == ["True", "True"]


async def test_what_was_said_is_not_said_again_within_an_hour_and_then_counted():
    async with running() as (server, writer):
        for _ in range(5):
            writer.tell([problem()], [LLAMA])
            await asyncio.sleep(600)
        assert [method for method, _ in server.asked] == ["POST", "GET", "PATCH"]
        assert server.events()[0]["count"] == 1
        await asyncio.sleep(1500)
        assert server.events()[0]["count"] == 2


async def test_replicas_write_one_event_and_one_status():
    async with running(parents=[GATEWAY]) as (server, one), running(server) as (_, two):
        for writer in (one, two):
            writer.tell([problem()], [LLAMA])
        await asyncio.sleep(30)
        assert len(server.events()) == 1
        assert server.events()[0]["count"] == 1
        assert len(server.pool()["status"]["parents"]) == 2


async def test_a_status_that_changed_meanwhile_is_read_again():
    async with running() as (server, writer):

        def istiod(method, path):
            if method == "PATCH" and GATEWAY not in server.pool()["status"]["parents"]:
                server.put(
                    f"{POOLS}/inferencepools/llama",
                    server.pool() | {"status": {"parents": [GATEWAY]}},
                )

        server.before = istiod
        writer.tell([], [LLAMA])
        await asyncio.sleep(30)
        gateway, ours = server.pool()["status"]["parents"]
        assert (gateway, ours["controllerName"]) == (GATEWAY, CONTROLLER)


async def test_the_replica_that_keeps_the_wiring_says_where_it_stands_and_others_leave_it():
    async with running() as (server, acting), running(server) as (_, other):
        done = Report("ns/llama", "ns/gw", done=True, says="in place")
        acting.tell([], [LLAMA], {"ns/llama": [done]})
        other.tell([], [LLAMA], None)
        await asyncio.sleep(30)
        for problems in ([problem()], []):
            other.tell(problems, [LLAMA], None)
            await asyncio.sleep(30)
            (ours,) = server.pool()["status"]["parents"]
            types = [each["type"] for each in ours["conditions"]]
            assert types.count("weir.dev/Wired") == 1
        acting.tell([], [LLAMA], {})
        await asyncio.sleep(30)
        (ours,) = server.pool()["status"]["parents"]
        assert "weir.dev/Wired" not in [each["type"] for each in ours["conditions"]]


async def test_an_entry_that_somebody_takes_away_is_back_within_the_hour():
    async with running() as (server, writer):
        writer.tell([], [LLAMA])
        await asyncio.sleep(30)
        server.put(f"{POOLS}/inferencepools/llama", {"status": {}})
        await asyncio.sleep(4000)
        assert len(server.pool()["status"]["parents"]) == 1


async def test_no_more_than_five_requests_a_second_whatever_there_is_to_say():
    async with running() as (server, writer):
        writer.tell([problem(number) for number in range(200)], [])
        await asyncio.sleep(60)
        assert len(server.events()) == 200
        gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
        assert min(gaps) == pytest.approx(0.2)


@pytest.mark.parametrize("failure", [500, 503, 429, 401, ConnectionRefusedError, TimeoutError])
async def test_an_api_server_that_is_away_is_logged_once_and_asked_less_and_less(failure):
    def refuse(method, path):
        if isinstance(failure, int):
            return failure
        raise failure

    with capture_logs() as logs:
        async with running() as (server, writer):
            server.refuse = refuse
            writer.tell([problem(number) for number in range(50)], [LLAMA])
            await asyncio.sleep(3600)
            assert len(server.asked) < 30
            assert [each["event"] for each in logs] == [
                "what operators should know cannot be written; trying on"
            ]
            server.refuse = lambda method, path: None
            await asyncio.sleep(400)
            assert len(server.events()) == 50
            assert server.pool()["status"]["parents"]
    assert [each["log_level"] for each in logs] == ["warning", "info"]


async def test_a_server_that_never_answers_costs_a_request_ten_seconds():
    async with running() as (server, writer):
        answering, hangs = server.request, [asyncio.Event()]

        async def request(*arguments):
            if hangs:
                await hangs.pop().wait()
            return await answering(*arguments)

        writer._request = request
        writer.tell([problem()], [])
        await asyncio.sleep(20)
        assert len(server.events()) == 1


async def test_what_is_refused_by_itself_waits_by_itself():
    with capture_logs() as logs:
        async with running() as (server, writer):
            server.refuse = lambda method, path: 403 if method == "POST" else None
            writer.tell([problem()], [LLAMA])
            await asyncio.sleep(600)
            assert server.pool()["status"]["parents"], "which may be written"
            assert server.asked.count(("POST", EVENTS)) < 12
            server.refuse = lambda method, path: None
            await asyncio.sleep(400)
            assert len(server.events()) == 1
    assert [each["log_level"] for each in logs] == ["warning", "info"]
    assert "403: no" in logs[0]["reason"]


async def test_an_answer_that_makes_no_sense_ends_nothing():
    with capture_logs() as logs:
        async with running() as (server, writer):
            server.put(f"{POOLS}/inferencepools/llama", {"status": {"parents": ["what?"]}})
            writer.tell([problem()], [LLAMA])
            await asyncio.sleep(60)
            assert len(server.events()) == 1
            server.put(f"{POOLS}/inferencepools/llama", {"status": None})
            await asyncio.sleep(400)
            assert len(server.pool()["status"]["parents"]) == 1
    assert [each["log_level"] for each in logs] == ["error", "info"]


async def test_what_is_gone_or_mended_is_not_written():
    async with running() as (server, writer):
        gone = Subject("ns", "gone", 1)
        writer.tell([problem()], [gone])
        await asyncio.sleep(30)
        assert server.asked.count(("GET", f"{POOLS}/inferencepools/gone")) == 1
        server.refuse = lambda method, path: 500
        writer.tell([problem(1), problem(2)], [gone])
        await asyncio.sleep(30)
        server.refuse = lambda method, path: None
        writer.tell([], [])
        await asyncio.sleep(900)
        assert len(server.events()) == 1
