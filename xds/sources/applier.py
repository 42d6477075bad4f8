"""Puts objects of one kind into an API server as they should be, and takes them away.

Applied on the server's side, as the manager "weir" and by force: what somebody else wrote into a
field of ours is ours again, and what others add beside it stays theirs. Of the specification
nothing may be theirs, so what is left of it after that is replaced. Deleted is what was seen and no
other: the version that was looked at is a condition.

What is refused is tried again with pauses, each object for itself; where the API server is away or
busy, all wait. Both are logged when they begin and when they end, and `failing` says what is so
now. Nothing is raised.

    needs, of the API server     patch, update, delete on the kind
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import structlog

from xds.istio.controller import Key, Object, key_of
from xds.sources.answers import is_away
from xds.sources.connection import APPLY, Answer, Connection, Unreachable
from xds.sources.kinds import Kind
from xds.sources.pause import Pause

MANAGER = {"fieldManager": "weir"}
ANSWER_SECONDS = 10.0
LONGEST_AWAY_SECONDS = 30.0
WELL = {"DELETE": (200, 202, 404, 409)}

log = structlog.get_logger()


class _Away(Exception):
    """Nothing can be written now."""


class _Refused(Exception):
    """This cannot be written."""


class Applier:
    """One at a time; `clock` is the loop's."""

    def __init__(
        self, connection: Connection, kind: Kind, rng: Random, clock: Callable[[], float]
    ) -> None:
        self._connection, self._kind = connection, kind
        self._rng, self._clock = rng, clock
        self._pause = Pause()  # of everything
        self._pauses: dict[Key, Pause] = {}
        self.away = ""  # why nothing can be written now
        self.failing: dict[Key, str] = {}

    @property
    def resting(self) -> bool:
        """Is nothing tried now, because nothing could be written last time?"""
        return self._clock() < self._pause.until

    async def apply(self, item: Object) -> bool:
        """Whether it is so now."""
        return await self._try(key_of(item), "applied", self._apply, item)

    async def delete(self, key: Key, seen: Object) -> bool:
        """Whether the object as it was seen is gone now."""
        return await self._try(key, "removed", self._delete, key, seen)

    def forget(self, but: set[Key]) -> None:
        """Failures of all but these, which nobody wants written any more."""
        for key in self.failing.keys() - but:
            del self.failing[key]
        self._pauses = {key: each for key, each in self._pauses.items() if key in but}

    async def _try(self, key: Key, done: str, how: Callable[..., Any], *what: Any) -> bool:
        if self.resting or self._clock() < self._pauses.get(key, Pause()).until:
            return False
        name = f"{key[0]} {key[1]}/{key[2]}"
        try:
            well = bool(await how(*what))
        except _Away as error:
            self._pause.longer(self._clock(), self._rng, LONGEST_AWAY_SECONDS)
            if not self.away:
                log.warning("nothing can be written; trying on", object=name, reason=str(error))
            self.away = str(error)
            return False
        except _Refused as error:
            self._pauses.setdefault(key, Pause()).longer(self._clock(), self._rng)
            if self.failing.get(key) != str(error):
                log.warning("refused; trying on", object=name, reason=str(error))
            self.failing[key] = str(error)
            return False
        if self.away:
            log.info("written again", object=name)
        self.away, self._pause = "", Pause()
        self._pauses.pop(key, None)
        if self.failing.pop(key, None) or well:
            log.info(done, object=name)
        return well

    async def _apply(self, item: Object) -> bool:
        _, namespace, name = key_of(item)
        path = f"{self._kind.path(namespace)}/{name}"
        made = await self._ask("PATCH", path, MANAGER | {"force": "true"}, item, APPLY)
        if made.get("spec") != item["spec"]:
            whole = {**made, "spec": item["spec"]}
            made = await self._ask("PUT", path, MANAGER, whole)
            if made.get("spec") != item["spec"]:
                raise _Refused(
                    "the API server keeps another spec than was sent; is the CRD of "
                    f"{self._kind.resource} older than this Istio?"
                )
        return True

    async def _delete(self, key: Key, seen: Object) -> bool:
        meta = seen["metadata"]
        conditions = {part: meta[part] for part in ("uid", "resourceVersion") if part in meta}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        path = f"{self._kind.path(key[1])}/{key[2]}"
        return await self._ask("DELETE", path, {}, body) is not None

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        content: str = "",
    ) -> Any:
        """The JSON of a good answer; None for a 409, when somebody was faster."""
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._connection.request(method, path, query, body, content=content) as answer,
            ):
                if answer.status in WELL.get(method, (200, 201)):
                    return None if answer.status == 409 else json.loads(await answer.body())
                raise await self._wrong(answer, method)
        except (TimeoutError, Unreachable, json.JSONDecodeError) as error:
            raise _Away(f"{method} {path}: {str(error) or 'no answer'}") from error

    async def _wrong(self, answer: Answer, method: str) -> Exception:
        failure = await answer.failure()
        if is_away(failure.status):
            return _Away(f"status {failure.status}: {failure.message}")
        if failure.status == 403:
            return _Refused(f"forbidden; grant {method.lower()}: {failure.message}")
        return _Refused(f"status {failure.status}: {failure.message}")
