"""What refusals lead to, beyond the client that refused.

Each client keeps what it accepted, and is not offered the refused bytes again: `Subscription` sees
to that. Here is what concerns others:

    the same build      A client that runs what the refusing one runs would refuse too. Those that
                        have an accepted version keep it, until the resource changes.
    the whole pool      When more than half of a resource's clients refuse one version of it (not
                        counting those held back), that is a verdict: whoever made it takes it back.

Clients of a resource are those that are connected and want it; what they may want is decided by
scope, so nobody's refusal weighs on a pool that is not theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from xds.roster import Roster
from xds.session import Session
from xds.snapshot import ResourceName, Version


@dataclass(frozen=True, slots=True)
class Verdict:
    """Most clients refuse `version`; `accepted` is what most of those have instead, or ""."""

    type_url: str
    name: ResourceName
    version: Version
    accepted: Version
    refusing: int
    clients: int
    reason: str


@dataclass(slots=True)
class _Case:
    """One resource's newest refused version."""

    version: Version
    refusing: set[Session] = field(default_factory=set)
    held_back: set[Session] = field(default_factory=set)
    judged: bool = False


@dataclass(slots=True)
class Court:
    """One owner; synchronous."""

    _cases: dict[tuple[str, ResourceName], _Case] = field(default_factory=dict)

    def hear(
        self,
        roster: Roster,
        session: Session,
        type_url: str,
        blamed: Mapping[ResourceName, Version],
        reason: str,
    ) -> list[Verdict]:
        """A NACK came; returns the verdicts that it completes."""
        verdicts = []
        for name, version in blamed.items():
            case = self._cases.get((type_url, name))
            if case is None or case.version != version:
                case = self._cases[type_url, name] = _Case(version)
            case.refusing.add(session)
            clients = roster.wanting(type_url, name)
            self._hold_back(case, clients, session, type_url, name)
            if not case.judged and (verdict := _verdict(case, clients, type_url, name, reason)):
                case.judged = True
                verdicts.append(verdict)
        return verdicts

    def forget(self, session: Session) -> None:
        """The client is gone, and has no voice any more."""
        empty = []
        for key, case in self._cases.items():
            case.refusing.discard(session)
            case.held_back.discard(session)
            if not case.refusing:
                empty.append(key)
        for key in empty:
            del self._cases[key]

    def _hold_back(
        self,
        case: _Case,
        clients: set[Session],
        refusing: Session,
        type_url: str,
        name: ResourceName,
    ) -> None:
        for other in clients:
            if other is refusing or other.node.build != refusing.node.build or not other.node.build:
                continue
            if other.subscriptions[type_url].hold_back(name, case.version):
                case.held_back.add(other)


def _verdict(
    case: _Case, clients: set[Session], type_url: str, name: ResourceName, reason: str
) -> Verdict | None:
    refusing = case.refusing & clients
    voters = clients - case.held_back | refusing
    if 2 * len(refusing) <= len(voters):
        return None
    held = [session.subscriptions[type_url].held.get(name, "") for session in refusing]
    accepted = max(sorted(set(held)), key=held.count)
    return Verdict(type_url, name, case.version, accepted, len(refusing), len(clients), reason)
