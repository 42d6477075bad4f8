"""Who is connected, and who wants what: a change wakes those that it concerns, and nobody else."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from xds.session import Session
from xds.snapshot import ResourceName

Wake = Callable[[], None]


@dataclass(slots=True)
class _Interest:
    seen: int  # of the subscription
    names: frozenset[ResourceName]
    wildcard: bool


@dataclass(slots=True)
class Roster:
    """Sessions in the order of their arrival, and an index of what they subscribe to."""

    sessions: dict[Session, Wake] = field(default_factory=dict)
    _interests: dict[tuple[Session, str], _Interest] = field(default_factory=dict)
    _wanting: dict[tuple[str, ResourceName], set[Session]] = field(default_factory=dict)
    _wildcards: dict[str, set[Session]] = field(default_factory=dict)

    def add(self, session: Session, wake: Wake) -> None:
        self.sessions[session] = wake

    def remove(self, session: Session) -> None:
        for type_url in session.subscriptions:
            if (interest := self._interests.pop((session, type_url), None)) is not None:
                self._move(session, type_url, interest.names, frozenset())
                self._wildcards.get(type_url, set()).discard(session)
        del self.sessions[session]

    def note(self, session: Session, type_url: str) -> None:
        """Look again at what the session wants of a type; nearly free if that did not change."""
        subscription = session.subscriptions[type_url]
        before = self._interests.get((session, type_url))
        if before is not None and before.seen == subscription.interest:
            return
        names = frozenset(subscription.names)
        self._move(session, type_url, before.names if before else frozenset(), names)
        wildcards = self._wildcards.setdefault(type_url, set())
        (wildcards.add if subscription.wildcard else wildcards.discard)(session)
        self._interests[session, type_url] = _Interest(
            subscription.interest, names, subscription.wildcard
        )

    def wanting(self, type_url: str, name: ResourceName) -> set[Session]:
        """Those that asked for the resource, or for everything of its type."""
        return self._wanting.get((type_url, name), set()) | self._wildcards.get(type_url, set())

    def concerned(self, news: Mapping[str, Iterable[ResourceName]]) -> Iterator[Session]:
        """Each session once that wants something of the news, `Snapshot.changed`.

        Sessions may come and go meanwhile.
        """
        found: dict[Session, None] = {}
        for type_url, names in news.items():
            found.update(dict.fromkeys(self._wildcards.get(type_url, ())))
            for name in names:
                found.update(dict.fromkeys(self._wanting.get((type_url, name), ())))
        return (session for session in found if session in self.sessions)

    def _move(
        self,
        session: Session,
        type_url: str,
        before: frozenset[ResourceName],
        after: frozenset[ResourceName],
    ) -> None:
        for name in before - after:
            wanting = self._wanting[type_url, name]
            wanting.discard(session)
            if not wanting:
                del self._wanting[type_url, name]
        for name in after - before:
            self._wanting.setdefault((type_url, name), set()).add(session)
