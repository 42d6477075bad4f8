"""One kind in one namespace, or in all: does what its reflector says, for ever.

A watch that is silent for longer than its timeout and some slack is dropped. What changes in how
the kind is doing is logged once, when it changes: the kind that is not installed, the permission
that is missing and how to give it, the API server that went away and came back.
"""

import asyncio
import random
from collections.abc import Callable

import structlog

from xds.manifests import Manifest
from xds.sources.answers import Failure, Key
from xds.sources.connection import Connection, Unreachable
from xds.sources.kinds import Item, Kind
from xds.sources.reflector import SLACK_SECONDS, List, Reflector, State, Wait, Watch

OnChange = Callable[["Feed", frozenset[Key]], None]
log = structlog.get_logger()


class Feed:
    """Keeps a kind's objects; `on_change` gets the keys of those that changed."""

    def __init__(
        self,
        kind: Kind,
        namespace: str,
        connection: Connection,
        on_change: OnChange,
        rng: random.Random | None = None,
    ) -> None:
        self.kind = kind
        self.namespace = namespace  # "" is all of them
        self.reflector: Reflector[Item] = Reflector(kind.parse)
        self._path = kind.path(namespace)
        self._connection = connection
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._clock = asyncio.get_running_loop().time
        self._told = State.STARTING, False
        self._refused: dict[Key, str] = {}
        self._passed_over: set[str] = set()

    def covers(self, namespace: str) -> bool:
        return self.namespace in ("", namespace)

    async def run(self) -> None:
        while True:
            match self.reflector.next(self._rng):
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case List() as action:
                    await self._list(action)
                case Watch() as action:
                    await self._watch(action)

    async def _list(self, action: List) -> None:
        query = {"fieldSelector": self.kind.fields} if self.kind.fields else {}
        if action.limit:
            query["limit"] = str(action.limit)
        if action.continuation:
            query["continue"] = action.continuation
        try:
            async with self._connection.request("GET", self._path, query) as answer:
                if answer.status == 200:
                    self._changed(self.reflector.page(await answer.body(), self._clock()))
                else:
                    self._failed(await answer.failure())
        except Unreachable as error:
            self._failed(Failure(0, str(error)))

    async def _watch(self, action: Watch) -> None:
        query = {"watch": "true", "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = str(action.timeout_seconds)
        if action.version:
            query["resourceVersion"] = action.version
        if self.kind.fields:
            query["fieldSelector"] = self.kind.fields
        silence = action.timeout_seconds + SLACK_SECONDS
        try:
            async with asyncio.timeout(silence) as patience:
                await self._follow(query, patience, silence)
        except TimeoutError:
            self._failed(Failure(0, f"the watch said nothing for {silence:.0f} s"))
        except Unreachable as error:
            self._failed(Failure(0, str(error)))

    async def _follow(
        self, query: dict[str, str], patience: asyncio.Timeout, silence: float
    ) -> None:
        connection, reflector = self._connection, self.reflector
        async with connection.request("GET", self._path, query, seconds=None) as answer:
            if answer.status != 200:
                self._failed(await answer.failure())
                return
            reflector.opened(self._clock())
            self._tell()
            async for line in answer.lines():
                now = self._clock()
                patience.reschedule(now + silence)
                self._changed(reflector.line(line, now))
                if reflector.state is not State.WATCHING:
                    return
        reflector.ended(self._clock())

    def _failed(self, why: Failure) -> None:
        self._changed(self.reflector.fail(why, self._clock()))

    def _changed(self, keys: frozenset[Key]) -> None:
        self._tell()
        self._tell_of_objects(keys)
        self._on_change(self, keys)

    def _tell_of_objects(self, keys: frozenset[Key]) -> None:
        refused = self.reflector.refused
        for key, why in refused.items():
            if why != self._refused.get(key):
                log.error("object refused; what was good stands", problem=why)
        self._refused = dict(refused)
        for key in keys:
            item = self.reflector.objects.get(key)
            for path in item.passed_over if isinstance(item, Manifest) else ():
                if path not in self._passed_over:
                    self._passed_over.add(path)
                    log.warning("field newer than we are", kind=self.kind.resource, field=path)

    def _tell(self) -> None:
        """Log how the kind is doing, if it is doing otherwise than before."""
        reflector = self.reflector
        before, now = self._told, (reflector.state, reflector.listed)
        usual = (State.STARTING, State.LISTED, State.WATCHING)
        if now == before or (before[0] in usual and now[0] in usual and now[1] == before[1]):
            return
        if reflector.state is State.RETRYING and not reflector.troubled:
            return  # one failure is nothing
        self._told = now
        about = {"kind": self.kind.resource, "namespace": self.namespace or "*"}
        match reflector.state:
            case State.FORBIDDEN:
                remedy = self.kind.permission(self.namespace)
                log.error("forbidden", **about, problem=reflector.problem, grant=remedy)
            case State.ABSENT:
                log.info("not installed; looked for now and then", **about)
            case State.RETRYING:
                log.warning("no list or watch; what we have stands", **about, why=reflector.problem)
            case _:
                log.info("listed", **about, objects=len(reflector.objects))
