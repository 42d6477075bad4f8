"""One kind's objects, kept equal to what an API server has: list, then watch, then again.

Pure: what an answer means and what to do next. `xds.sources.feed` does it.

    LIST ── last page ──► WATCH ── closed in time, or broken ──► WATCH, from where it was
      ▲                     │
      └──── 410, ERROR, an answer that makes no sense ──────┘

A list asks for the most recent state (no resourceVersion), in pages. client-go's reflector asks for
"0", whatever age a server's cache has, to spare etcd for thousands of clients; we are two, and must
not go back in time. Nothing changes until the last page has come: then the list replaces all, and
objects that it does not have are gone. A continuation that has expired starts over, without pages.

A watch goes on from the last version seen, of an event or a bookmark. Versions are opaque: they are
handed back and never compared. A watch is asked to end after `timeout_seconds`; one that says
nothing for longer than that and `SLACK_SECONDS` is dead, whatever TCP thinks. 410, as a status or
as an ERROR event, says that the version is too old to go on from: list anew. A connection that
fails loses nothing, hence the same version is asked for again, for hours if need be. A server that
keeps answering with errors may mean our version (etcd restored from a backup): list anew after
`REFUSED_WATCHES`.

    answer                          then
    410                             list, at once the first time
    429, or any with Retry-After    the same again, not before that
    401, 5xx, no answer             the same again, backing off
    403                             list, every `FORBIDDEN_SECONDS`; objects stay
    404                             list, every `ABSENT_SECONDS`; objects are gone when it has been
                                    404 for that long, since a server that starts may answer it

Delays double to `LONGEST_SECONDS`, each taken from 0.5 to 1.5 of that. Only a watch that works
resets them: listing works, watching does not, is no reason to list without pause.

An object that cannot be read leaves its last good version standing, and is a problem until a later
version can. A line that is no event at all may have been anything: the rest of the watch goes on,
and the next thing after it is a list.

Sources: Kubernetes API concepts (efficient detection of changes, 410, bookmarks, "resource versions
are opaque"); client-go tools/cache/reflector.go (ListAndWatch, isWatchErrorRetriable, the pager's
fall back to a full list; 5 to 10 minutes' timeouts, 800 ms to 30 s of back-off).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeAlias, TypeVar

from msgspec import Raw

from xds.sources import answers
from xds.sources.answers import Event, Failure, Key, Malformed

T = TypeVar("T")

PAGE = 500  # objects; client-go's
WATCH_SECONDS = (120, 240)  # a dead connection is noticed after that at the latest
SLACK_SECONDS = 15.0
FIRST_SECONDS, LONGEST_SECONDS = 0.5, 30.0
LONGEST_RETRY_AFTER = 120.0
REFUSED_WATCHES = 5
FORBIDDEN_SECONDS = 30.0
ABSENT_SECONDS = 60.0
HEALTHY_SECONDS = 5.0  # a watch that lasted so long worked, even if it had nothing to say


class State(Enum):
    """What the API server last said of this kind."""

    STARTING = "starting"  # not asked yet
    LISTED = "listed"
    WATCHING = "watching"
    RETRYING = "retrying"  # no answer, or an error: what we have stands, and ages
    FORBIDDEN = "forbidden"
    ABSENT = "absent"  # no such kind there


@dataclass(frozen=True, slots=True)
class List:
    """Ask for a page of the list; `limit` 0 is all of it."""

    continuation: str = ""
    limit: int = PAGE


@dataclass(frozen=True, slots=True)
class Watch:
    version: str
    timeout_seconds: int


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


Action: TypeAlias = List | Watch | Wait


class Reflector(Generic[T]):
    """The objects of one kind, and what to do next to keep them so.

    `parse` makes an object of its JSON; it raises `Malformed`. Methods that change objects
    return the keys of those that changed.
    """

    def __init__(self, parse: Callable[[Raw], T]) -> None:
        self._parse = parse
        self.objects: dict[Key, T] = {}
        self.refused: dict[Key, str] = {}  # objects whose newest version cannot be read
        self.state = State.STARTING
        self.problem = ""  # why it is neither listed nor watched
        self.listed = False  # once, completely
        self.contact: float | None = None  # when the API server last said something sensible
        self.lists = self.failures = self.garbage = 0  # so far
        self._version = ""
        self._incoming: tuple[dict[Key, T], dict[Key, str]] = {}, {}  # of the list under way
        self._next: Action | None = List()
        self._limit = PAGE
        self._tries = self._refused_watches = 0
        self._wait: tuple[float, float] | None = None  # from, to
        self._opened: float | None = None
        self._absent_since: float | None = None
        self._suspect = False

    @property
    def troubled(self) -> bool:
        """Whether it failed again after it had failed."""
        return self._tries > 1

    def next(self, rng: random.Random) -> Action:
        """What to do now. A wait is named once; after it comes what was waited for."""
        if self._wait is not None:
            low, high = self._wait
            self._wait = None
            return Wait(rng.uniform(low, high))
        if self._next is None:
            return Watch(self._version, rng.randint(*WATCH_SECONDS))
        return self._next

    def page(self, body: bytes, now: float) -> frozenset[Key]:
        """A page of the list has come. Until it was the last one, nothing changes."""
        try:
            page = answers.page(body)
        except Malformed as error:
            return self.fail(Failure(500, f"a list that cannot be read: {error}"), now)
        self.contact = now
        for item in page.items or ():
            self._take(item, *self._incoming)
        if page.metadata.continuation:
            self._next = List(page.metadata.continuation, self._limit)
            return frozenset()
        return self._replace(page.metadata.version)

    def _replace(self, version: str) -> frozenset[Key]:
        before = self.objects
        self.objects, self.refused = self._incoming
        self._incoming = {}, {}
        self.lists += 1
        self.listed, self.state, self.problem = True, State.LISTED, ""
        self._version, self._next, self._limit = version, None, PAGE
        self._absent_since, self._suspect, self._refused_watches = None, False, 0
        changed = {key for key, each in self.objects.items() if before.get(key) != each}
        return frozenset(changed | (before.keys() - self.objects.keys()))

    def _take(self, item: Raw, objects: dict[Key, T], refused: dict[Key, str]) -> None:
        """Add an object, or the last version of it that could be read."""
        try:
            key = answers.head(item).key
        except Malformed:
            key = ("", "")
        if not key[1]:
            self.garbage += 1
            return
        try:
            objects[key] = self._parse(item)
        except Malformed as error:
            refused[key] = str(error)
            if key in self.objects:
                objects[key] = self.objects[key]
        else:
            refused.pop(key, None)

    def opened(self, now: float) -> None:
        """The API server accepted the watch."""
        self.contact = self._opened = now
        self.state, self.problem = State.WATCHING, ""

    def line(self, line: bytes, now: float) -> frozenset[Key]:
        """One line of a watch has come."""
        if not line.strip():
            return frozenset()
        try:
            event = answers.event(line)
            if event.type == "ERROR":
                return self._error(answers.error(event.object), now)
            head = answers.head(event.object)
        except Malformed:
            self.garbage += 1
            self._suspect = True
            return frozenset()
        self.contact = now
        self._works()
        self._version = head.version or self._version
        return frozenset() if event.type == "BOOKMARK" else self._apply(event, head.key)

    def _apply(self, event: Event, key: Key) -> frozenset[Key]:
        before = self.objects.get(key)
        match event.type:
            case "ADDED" | "MODIFIED":
                self._take(event.object, self.objects, self.refused)
            case "DELETED":
                self.refused.pop(key, None)
                self.objects.pop(key, None)
            case _:
                self.garbage += 1
                self._suspect = True
        return frozenset() if self.objects.get(key) == before else frozenset({key})

    def _error(self, error: Failure, now: float) -> frozenset[Key]:
        """An ERROR event: whatever it says but "wait", the way on is a list."""
        if error.status == 429:
            return self.fail(error, now)
        return self.fail(Failure(410, error.message, error.retry_after), now)

    def _works(self) -> None:
        self._tries = self._refused_watches = 0

    def ended(self, now: float) -> None:
        """The API server closed the watch in good order, as it does after the timeout."""
        if self.state is not State.WATCHING:
            return  # its last word was an error, which has been dealt with
        if self._suspect:
            self._suspect = False
            self._next = List()
        if self._lasted(now):
            self.contact = now
        else:  # or a proxy that closes at once would be asked without pause
            self.failures += 1
            self._back_off(None)

    def _lasted(self, now: float) -> bool:
        """Whether the watch that ends now had been going on for a while."""
        opened, self._opened = self._opened, None
        lasted = opened is not None and now - opened >= HEALTHY_SECONDS
        if lasted:
            self._works()
        return lasted

    def fail(self, why: Failure, now: float) -> frozenset[Key]:
        """A list or a watch failed; objects change only where their kind is gone."""
        self.failures += 1
        self._lasted(now)
        watched = self._next is None
        self._incoming = {}, {}
        self.problem = why.message
        if self._suspect:
            self._next = List("", self._limit)
        if why.status != 404:
            self._absent_since = None
        match why.status:
            case 410:
                self._expired(why, watched=watched)
            case 403:
                self.state, self._next = State.FORBIDDEN, List()
                self._wait = _around(FORBIDDEN_SECONDS)
            case 404:
                return self._absent(now)
            case status:
                self.state = State.RETRYING
                answered = bool(status) and status not in (401, 429)
                self._refused_watches += answered and watched
                senseless = answered and status < 500
                if not watched or senseless or self._refused_watches >= REFUSED_WATCHES:
                    self._next = List("", self._limit)
                self._back_off(why.retry_after)
        return frozenset()

    def _expired(self, why: Failure, *, watched: bool) -> None:
        paged = isinstance(self._next, List) and bool(self._next.continuation)
        if paged:
            self._limit = 0  # it may expire again: once, all in one
        self._next = List("", self._limit)
        self.state = State.RETRYING
        first = (watched or paged) and not self._tries and why.retry_after is None
        if first:
            self._tries += 1
        else:
            self._back_off(why.retry_after)

    def _absent(self, now: float) -> frozenset[Key]:
        self.contact = now
        if self._absent_since is None:
            self._absent_since = now
        self.state, self._next = State.ABSENT, List()
        if self.objects and now - self._absent_since < ABSENT_SECONDS:
            self._back_off(None)
            return frozenset()
        self._wait = _around(ABSENT_SECONDS)
        gone = frozenset(self.objects)
        self.objects, self.refused = {}, {}
        return gone

    def _back_off(self, retry_after: float | None) -> None:
        delay = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._tries, 10))
        self._tries += 1
        low, high = _around(delay)
        if retry_after is not None:
            least = min(retry_after, LONGEST_RETRY_AFTER)
            low, high = least, least + delay
        self._wait = low, high


def _around(seconds: float) -> tuple[float, float]:
    return 0.5 * seconds, 1.5 * seconds
