"""Tells operators what is wrong, through the API server: Events, and conditions of pools.

`xds.operators` says what to write; here is when, and what if it fails. `tell` replaces what there
is to say, and `run` says it one request after the other, never more than `REQUESTS_PER_SECOND`. A
replica needs no leader for that: Events have the same name on all, and a status that another has
written is found to be right.

Nothing waits for this, and nothing else stops with it. What cannot be written is logged once and
tried again for as long as it is true: after a pause for everything where the API server is away or
busy, and after one for itself where it alone is refused. Every status is looked at again once an
hour, in case somebody took our entry away.

    needs, of the API server     events: create, get, patch; inferencepools: get;
                                 inferencepools/status: patch
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl

import aiohttp
import structlog

from xds.istio.controller import Report
from xds.operators import (
    STATUS_VERSION,
    WIRED,
    Service,
    Subject,
    Told,
    conditions,
    counted,
    event,
    event_name,
    merge,
)
from xds.pool import PoolName
from xds.problems import Problem
from xds.sources.answers import is_away
from xds.sources.connection import Connection, Unreachable
from xds.sources.pause import LONGEST_SECONDS, Pause

REQUESTS_PER_SECOND = 5.0
TIMEOUT_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 3600.0
JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
MANAGER = "?fieldManager=weir"
OK, CREATED, GONE, CONFLICT = 200, 201, 404, 409


class Answer(NamedTuple):
    """What the API server said; the body is decoded JSON."""

    status: int
    body: Any = None


# method, path, body (JSON, or None), content type; raises OSError where there is no answer
Request: TypeAlias = Callable[[str, str, Any, str], Awaitable[Answer]]
Said: TypeAlias = Sequence[Mapping[str, str]]  # a pool's conditions

log = structlog.get_logger()


def through(connection: Connection) -> Request:
    """Requests by the connection that a source has."""

    async def request(method: str, path: str, body: Any, kind: str) -> Answer:
        where, _, query = path.partition("?")
        asked = dict(parse_qsl(query))
        try:
            async with connection.request(method, where, asked, body, content=kind) as answer:
                return Answer(answer.status, _decoded(await answer.body()))
        except Unreachable as error:
            raise ConnectionError(str(error)) from error

    return request


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


class _Away(Exception):
    """Nothing can be written now."""


class _Refused(Exception):
    """This cannot be written, or not now."""


class Writer:
    """Synchronous but for `run`; `clock` is the loop's, `wall` the calendar's."""

    def __init__(
        self,
        request: Request,
        service: Service,
        rng: Random,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._request = request
        self._service = service
        self._rng = rng
        self._clock, self._wall = clock, wall
        self._told = Told()
        self._problems: Sequence[Problem] = ()
        self._wanted: dict[Subject, Said] = {}
        self._leave: tuple[str, ...] = ()  # conditions that another replica writes
        self._written: dict[Subject, tuple[Said, float]] = {}
        self._pauses: dict[str, Pause] = {}  # of single Events and statuses
        self._pause = Pause()  # of everything
        self._failing = False
        self._changed = asyncio.Event()

    def tell(
        self,
        problems: Iterable[Problem],
        pools: Iterable[Subject],
        wiring: Mapping[PoolName, Sequence[Report]] | None = None,
    ) -> None:
        """What is wrong now, and the pools that there are: all that was to be said before goes.

        `wiring` has where that of pools stands; None where another replica says so.
        """
        self._problems = tuple(problems)
        self._leave = (WIRED,) if wiring is None else ()
        stands = wiring or {}
        of_pools: dict[tuple[str, str], list[Problem]] = {}
        for each in self._problems:
            if each.kind == "InferencePool":
                of_pools.setdefault((each.namespace, each.name), []).append(each)
        self._wanted = {
            each: conditions(
                of_pools.get((each.namespace, each.name), []),
                stands.get(f"{each.namespace}/{each.name}", ()),
            )
            for each in pools
        }
        self._written = {each: it for each, it in self._written.items() if each in self._wanted}
        known = {*map(_key, self._problems), *map(_key, self._wanted)}
        self._pauses = {key: pause for key, pause in self._pauses.items() if key in known}
        self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            self._changed.clear()
            job = self._next()
            if job is None:
                await self._idle()
                continue
            key = _key(job)
            try:
                await self._say(job)
            except _Away as error:
                self._pause.longer(self._clock(), self._rng)
                self._complain(key, str(error))
            except _Refused as error:
                self._pauses.setdefault(key, Pause()).longer(self._clock(), self._rng)
                self._complain(key, str(error))
            except Exception:
                self._pauses.setdefault(key, Pause()).longer(self._clock(), self._rng)
                if not self._failing:
                    self._failing = True
                    log.exception("what operators should know cannot be written", what=key)
            else:
                self._pauses.pop(key, None)
                self._pause = Pause()
                if self._failing and not self._pauses:
                    self._failing = False
                    log.info("what operators should know is written again")

    def _next(self) -> Problem | Subject | None:
        """What to say now; what was refused least comes first."""
        now = self._clock()
        if now < self._pause.until:
            return None
        ready = [
            (pause.attempts, number, job)
            for number, job in enumerate(self._due(now))
            if (pause := self._pauses.get(_key(job), Pause())).until <= now
        ]
        return min(ready)[2] if ready else None

    def _due(self, now: float) -> list[Problem | Subject]:
        statuses = [
            subject
            for subject, said in self._wanted.items()
            if subject not in self._written
            or self._written[subject][0] != said
            or now - self._written[subject][1] >= LOOK_AGAIN_SECONDS
        ]
        return [*self._told.due(self._problems, self._wall()), *statuses]

    async def _idle(self) -> None:
        """Until there is something else to say, or something that failed may be tried again."""
        now = self._clock()
        ends = [self._pause.until, *(each.until for each in self._pauses.values())]
        later = [each - now for each in ends if each > now]
        with suppress(TimeoutError):
            async with asyncio.timeout(min([LONGEST_SECONDS, *later])):
                await self._changed.wait()
        if self._clock() < self._pause.until:
            await asyncio.sleep(self._pause.until - self._clock())

    def _complain(self, key: str, reason: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "what operators should know cannot be written; trying on", what=key, reason=reason
            )

    async def _say(self, job: Problem | Subject) -> None:
        if isinstance(job, Subject):
            said = self._wanted[job]
            await self._say_status(job, said)
            self._written[job] = said, self._clock()
        else:
            await self._say_event(job)
            self._told.note(job, self._wall())

    async def _say_event(self, problem: Problem) -> None:
        events = f"/api/v1/namespaces/{problem.namespace}/events"
        answer = await self._ask("POST", events + MANAGER, event(problem, self._wall()), JSON)
        if answer.status != CONFLICT:
            return _done(answer)
        path = f"{events}/{event_name(problem)}"
        found = await self._ask("GET", path)
        _done(found)
        if found.status == GONE:
            return None
        patch = counted(found.body, self._wall())
        if patch is None:
            return None
        counting = await self._ask("PATCH", path + MANAGER, patch, MERGE_PATCH)
        return None if counting.status == CONFLICT else _done(counting)

    async def _say_status(self, subject: Subject, said: Said) -> None:
        path = _key(subject)
        found = await self._ask("GET", path)
        _done(found)
        if found.status == GONE:
            return
        parents = (found.body.get("status") or {}).get("parents") or []
        new = merge(
            parents,
            self._service,
            said,
            generation=subject.generation,
            now=self._wall(),
            leave=self._leave,
        )
        if new == parents:
            return
        version = found.body["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "status": {"parents": new}}
        _done(await self._ask("PATCH", f"{path}/status{MANAGER}", patch, MERGE_PATCH), (OK, GONE))

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, kind: str = JSON
    ) -> Answer:
        """One request, in its turn. Raises `_Away`."""
        await asyncio.sleep(1 / REQUESTS_PER_SECOND)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await self._request(method, path, body, kind)
        except (OSError, aiohttp.ClientError) as error:
            raise _Away(f"{method} {path}: {str(error) or type(error).__name__}") from error
        if is_away(answer.status):
            raise _Away(f"{method} {path}: status {answer.status}")
        return answer


def _done(answer: Answer, well: tuple[int, ...] = (OK, CREATED, GONE)) -> None:
    """What is gone needs no more telling. Raises `_Refused`."""
    if answer.status not in well:
        body = answer.body if isinstance(answer.body, Mapping) else {}
        raise _Refused(f"status {answer.status}: {body.get('message', 'no message')}")


def _key(job: Problem | Subject) -> str:
    """An Event's name, or a pool's path."""
    if isinstance(job, Subject):
        return f"/apis/{STATUS_VERSION}/namespaces/{job.namespace}/inferencepools/{job.name}"
    return event_name(job)
