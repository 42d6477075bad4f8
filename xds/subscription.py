"""One client's view of one resource type, in state-of-the-world or delta form.

Fed with requests and with what a snapshot has of the type, answers with responses; knows nothing
of gRPC, of time, or of the other types on the same stream.

Terms. A resource is *wanted* if its name was asked for, or if the client asked for everything (a
wildcard: possible for clusters, listeners and our own types, never for assignments and routes).
*Held* is what the client accepted, or said that it has. *Refused* is what it answered with a NACK,
removals included. A resource is *due* if it is wanted and its version is neither held nor refused;
a removal is due if a held resource is known to be gone. Of *complete* types (the same four) a
state-of-the-world response lists everything, as what is missing from it is deleted; of the others
it brings only what is due, and removals cannot be said.

Invariants
1. At most one response is outstanding. What changes meanwhile is not queued: the next response is
   made from the newest snapshot.
2. A nonce is used once, and only the nonce of the outstanding response accepts or refuses it.
3. The same version of a resource is not sent twice, unless the client asks for it anew (a new
   stream, a name subscribed again) or the owner of the subscription says `again`, or a complete
   response has to list it beside something else that is due, or it was refused in company (4).
4. Refused bytes are not offered again by themselves; the next different version is. A complete
   response lists, in the place of a refused version, the one that was accepted before it, if any.
   A NACK is of a whole response: where several resources were new in it, only those that its reason
   names are refused; where it names none or all, each is offered once more alone, so that each gets
   a verdict of its own.
5. What is not known is not answered: no response for a type without a snapshot, for names that we
   do not manage, or about names that a returning client has and we have not (but a wildcard is
   answered with everything there is, be it nothing).

                        ┌───────────── respond ─────────────┐
    first request       │                                   ▼
    ──────────────► SETTLED ◄──── request: ACK, NACK ─── OUTSTANDING
                      │  ▲                                 │  ▲
                      └──┘ names; nothing due              └──┘ names; stale nonce; respond waits

Transitions
    SETTLED     -> OUTSTANDING  [respond]  something is due, or it is a wildcard's first answer
    OUTSTANDING -> SETTLED      [request]  its nonce came back: ACKED or REFUSED
    any         -> the same     [request]  ASKED: names. STALE: of a delta request its names count,
                                           of a state-of-the-world request nothing does
What may be relied upon
    SETTLED      What is held is what the client has, as far as it told.
    OUTSTANDING  What is held is what the client had before; it may have the new versions already.
                 A name asked for or given up since is struck out of the response's account, so
                 that its ACK does not make it held: asked for again, it is sent again.

https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xds.discovery import DeltaRequest, Nonce, Outcome, Response, SotwRequest, plain_acks
from xds.snapshot import Resource, ResourceName, Resources, TypeUrl, Version, version_of

WILDCARD: ResourceName = "*"
GONE: Version = ""  # the version of a resource that is removed
NONE: Sequence[ResourceName] = ()
COMPLETE = frozenset({TypeUrl.CLUSTER, TypeUrl.LISTENER, TypeUrl.POOL, TypeUrl.POOL_LOAD})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A NACK that stands: `version` and `nonce` of the response, and the client's reason."""

    version: Version
    nonce: Nonce
    reason: str


class _Outstanding(NamedTuple):
    response: Response
    given: Mapping[ResourceName, Resource | None]  # what an ACK makes held; None is removed


class Subscription(ABC):
    """What both forms share. Owned by one stream; synchronous."""

    __slots__ = (
        "_again",
        "_answered",
        "_held",
        "_nonce",
        "_outstanding",
        "_refused",
        "_settled_on",
        "_started",
        "_suspects",
        "accepted",
        "blamed",
        "interest",
        "names",
        "refusal",
        "type_url",
        "wildcard",
    )

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.names: set[ResourceName] = set()
        self.wildcard = False
        self.interest = 0  # goes up when names or wildcard change
        self.accepted: Version = ""  # of the last response that was ACKed
        self.refusal: Refusal | None = None
        self._held: dict[ResourceName, Version] = {}
        self._refused: dict[ResourceName, Version] = {}
        self._again: set[ResourceName] = set()
        self._suspects: set[ResourceName] = set()  # refused in company: to be offered alone
        self.blamed: Mapping[ResourceName, Version] = {}  # by the last request, if it was a NACK
        self._outstanding: _Outstanding | None = None
        self._nonce = 0
        self._started = False
        self._answered = False
        # The resources of which all that is due was sent: no news costs one comparison.
        self._settled_on: Resources | None = None

    @property
    def outstanding(self) -> bool:
        return self._outstanding is not None

    @property
    def held(self) -> Mapping[ResourceName, Version]:
        """What the client has, as far as it told."""
        return self._held

    @property
    def refused(self) -> Mapping[ResourceName, Version]:
        """Versions that NACKs stand against; `GONE` for a removal."""
        return self._refused

    def wanted(self, known: Resources | None) -> Mapping[ResourceName, Version]:
        """What of `known` the client should have."""
        return {} if known is None else {each.name: each.version for each in self._wanted(known)}

    def settled(self, known: Resources | None) -> bool:
        """Has the client answered for everything that `known` has for it?"""
        return self._outstanding is None and not self.stirred(known)

    def stirred(self, known: Resources | None) -> bool:
        """Is anything of `known` due? Costs a look at everything that is wanted, once a version."""
        if known is None or known is self._settled_on or not self._started:
            return False
        return (
            self._greeting
            or any(self._is_due(resource) for resource in self._wanted(known))
            or bool(self._gone(known))
        )

    def again(self, names: Iterable[ResourceName]) -> None:
        """Send these once more, even if held: the client may have dropped them unasked."""
        wanted = [name for name in names if self.wildcard or name in self.names]
        if wanted:
            self._again.update(wanted)
            self._settled_on = None

    def hold_back(self, name: ResourceName, version: Version) -> bool:
        """Keep the version that is held, as if this other one had been refused.

        Only where there is one to keep and nobody has been asked yet.
        """
        if self._held.get(name, version) == version or self._refused.get(name) == version:
            return False
        if self._outstanding is not None and name in self._outstanding.given:
            return False
        self._refused[name] = version
        return True

    def respond(self, known: Resources | None, *, keep_removed: bool = False) -> Response | None:
        """What is due of `known`, now outstanding; None if nothing is or a response still is.

        With `keep_removed` what is gone from `known` is not taken from the client yet.
        """
        if known is None or known is self._settled_on or self._outstanding or not self._started:
            return None
        due = [resource for resource in self._wanted(known) if self._is_due(resource)]
        gone, kept = self._gone(known), NONE
        alone = self._alone(due) if self._suspects else []
        if keep_removed or alone:
            gone, kept = kept, gone
        greeting = self._greeting
        self._settled_on = None if kept or alone else known
        if not due and not gone and not greeting:
            return None
        due = alone or due
        self._nonce += 1
        self._outstanding = self._compose(known, due, gone, kept)
        if self._again:
            self._again.difference_update(resource.name for resource in due)
        self._answered = True
        return self._outstanding.response

    @property
    def _greeting(self) -> bool:
        return self.wildcard and not self._answered and not self._held

    def _alone(self, due: list[Resource]) -> list[Resource]:
        """The one suspect whose turn it is; none where nothing due is suspected."""
        self._suspects.intersection_update([resource.name for resource in due])
        return [resource for resource in due if resource.name in self._suspects][:1]

    @abstractmethod
    def _compose(
        self,
        known: Resources,
        due: list[Resource],
        gone: Sequence[ResourceName],
        kept: Sequence[ResourceName],
    ) -> _Outstanding: ...

    def _gone(self, known: Resources) -> Sequence[ResourceName]:
        if self._held.keys() <= known.by_name.keys():
            return NONE
        return [
            name
            for name in self._held
            if name not in known.by_name and self._refused.get(name) != GONE
        ]

    def _wanted(self, known: Resources) -> Iterable[Resource]:
        if self.wildcard:
            return known.by_name.values()
        names = sorted(self.names) if len(self.names) > 1 else self.names
        return [found for name in names if (found := known.by_name.get(name)) is not None]

    def _is_due(self, resource: Resource) -> bool:
        name, version = resource.name, resource.version
        return self._refused.get(name) != version and (
            self._held.get(name) != version or name in self._again
        )

    def _answer(self, outstanding: _Outstanding, error: str | None) -> Outcome:
        self._outstanding = None
        if error is not None:
            self._refuse(outstanding, error)
            return Outcome.REFUSED
        for name, resource in outstanding.given.items():
            version = GONE if resource is None else resource.version
            if self._held.get(name, GONE) != version:
                self._refused.pop(name, None)
            if resource is None:
                self._held.pop(name, None)
                self._refused.pop(name, None)
            else:
                self._held[name] = version
        self.accepted = outstanding.response.version
        if not self._refused:
            self.refusal = None
        return Outcome.ACKED

    def _refuse(self, outstanding: _Outstanding, error: str) -> None:
        # What it had already it does not refuse now: something beside it was wrong.
        new = {
            name: version
            for name, resource in outstanding.given.items()
            if self._held.get(name, GONE)
            != (version := GONE if resource is None else resource.version)
        }
        blamed = {name: version for name, version in new.items() if _names(error, name)}
        offered = [name for name, version in new.items() if version != GONE]
        if len(new) == 1 or not offered:
            blamed = new
        elif len(blamed) in (0, len(new)):
            blamed = {}
            self._suspects.update(offered)
        self._refused |= blamed
        self.blamed = blamed
        self._settled_on = None
        response = outstanding.response
        self.refusal = Refusal(response.version, response.nonce, error)

    def _forget(self, names: Iterable[ResourceName]) -> None:
        """Take nothing for held or refused of these; if wanted, they are due."""
        names = set(names)
        for name in names:
            self._held.pop(name, None)
            self._refused.pop(name, None)
            self._again.discard(name)
            self._suspects.discard(name)
        if self._outstanding:
            given = {n: each for n, each in self._outstanding.given.items() if n not in names}
            self._outstanding = self._outstanding._replace(given=given)
        if not self._refused:
            self.refusal = None
        self._settled_on = None


class SotwSubscription(Subscription):
    """The state-of-the-world form."""

    __slots__ = ("_kept", "_unnamed")

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._unnamed = True  # no request has named anything yet
        # Of a complete type: what the client holds, to be listed where something newer is refused.
        self._kept: dict[ResourceName, Resource] = {}

    def request(self, request: SotwRequest) -> Outcome:
        self.blamed = {}
        first, self._started = not self._started, True
        current = str(self._nonce) if self._nonce else ""
        outcome = Outcome.ASKED
        if first:
            pass  # version and nonce are another stream's: it is told everything
        elif request.nonce == "" != current:
            if self._outstanding is None:
                self._forget(list(self._held | self._refused))  # it has begun anew
        elif request.nonce != current:
            return Outcome.STALE
        elif self._outstanding:
            given = self._outstanding.given
            outcome = self._answer(self._outstanding, request.error)
            if outcome is Outcome.ACKED and self.type_url in COMPLETE:
                self._kept = {n: resource for n, resource in given.items() if resource}
        self._name(set(request.names))
        return outcome

    def _name(self, names: set[ResourceName]) -> None:
        # An empty first request is a wildcard, and so are those that follow it until one names
        # something; after that an empty one gives everything up.
        self._unnamed = self._unnamed and not names
        wildcard = self.type_url in COMPLETE and (self._unnamed or WILDCARD in names)
        names.discard(WILDCARD)
        changed = names ^ self.names
        if changed:
            self._forget(changed)
        if changed or wildcard != self.wildcard:
            self.interest += 1
        if self.wildcard and not wildcard:
            self._forget(self._held.keys() - names)
        elif wildcard and not self.wildcard:
            self._settled_on = None
        self.names, self.wildcard = names, wildcard

    def _gone(self, known: Resources) -> Sequence[ResourceName]:
        return super()._gone(known) if self.type_url in COMPLETE else NONE

    def _compose(
        self,
        known: Resources,
        due: list[Resource],
        gone: Sequence[ResourceName],  # noqa: ARG002 - a complete response says it by omission
        kept: Sequence[ResourceName],
    ) -> _Outstanding:
        view = list(self._wanted(known))
        given: dict[ResourceName, Resource | None] = {}
        if self.type_url in COMPLETE:
            chosen = {resource.name for resource in due}
            offered = [self._acceptable(resource, chosen) for resource in view]
            view = [resource for resource in offered if resource is not None]
            view += [self._kept[name] for name in kept if name in self._kept]
            due = view
            given = dict.fromkeys(self._held)
        given |= {resource.name: resource for resource in due}
        response = Response(self.type_url, version_of(view), str(self._nonce), tuple(due))
        return _Outstanding(response, given)

    def _acceptable(self, resource: Resource, chosen: set[ResourceName]) -> Resource | None:
        """It, or what the client accepted in its place, or nothing, if that is what it has."""
        name = resource.name
        waits = name in self._suspects and name not in chosen
        if waits or self._refused.get(name) == resource.version:
            return self._kept.get(name)
        return resource

    def _forget(self, names: Iterable[ResourceName]) -> None:
        names = list(names)
        super()._forget(names)
        for name in names:
            self._kept.pop(name, None)


class DeltaSubscription(Subscription):
    """The delta form."""

    __slots__ = ("_claimed",)

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._claimed = False  # what is held is what the client says, and nothing was compared yet

    def request(self, request: DeltaRequest) -> Outcome:
        self.blamed = {}
        first, self._started = not self._started, True
        outcome = Outcome.ASKED
        if request.nonce and not first:
            outcome = Outcome.STALE
            if self._outstanding and request.nonce == self._outstanding.response.nonce:
                outcome = self._answer(self._outstanding, request.error)
        if first:
            self._held = dict(request.initial_versions)
            self._claimed = bool(self._held)
        self._subscribe(set(request.subscribe), first=first)
        self._unsubscribe(set(request.unsubscribe))
        if first and not self.wildcard:
            self._forget(self._held.keys() - self.names)
        return outcome

    def acknowledge(self, raw: bytes) -> bool:
        """Is this exactly the ACK of what is outstanding? If so it is applied."""
        if self._outstanding is None:
            return False
        if raw not in plain_acks(self.type_url, self._outstanding.response.nonce):
            return False
        self.blamed = {}
        self._answer(self._outstanding, None)
        return True

    def _subscribe(self, names: set[ResourceName], *, first: bool) -> None:
        if names or first:
            self.interest += 1
        # An empty first request is a wildcard; a later one is only an answer.
        if (WILDCARD in names or (first and not names)) and self.type_url in COMPLETE:
            self.wildcard = True
            self._settled_on = None
        names.discard(WILDCARD)
        self.names |= names
        # Whoever subscribes to a name anew may have dropped what it had, and must be sent it.
        fresh = names - self._held.keys() if first else names
        if fresh:
            self._forget(fresh)

    def _unsubscribe(self, names: set[ResourceName]) -> None:
        if names:
            self.interest += 1
        if WILDCARD in names:
            names.discard(WILDCARD)
            self.wildcard = False
            self._forget(self._held.keys() - self.names)
        if names:
            self.names -= names
            self._forget(names)  # still wanted by a wildcard, it is due again

    def _gone(self, known: Resources) -> Sequence[ResourceName]:
        if self._claimed and not self.wildcard:
            # A server that has just started may not know these yet; that does not remove them.
            self._forget(self._held.keys() - known.by_name.keys())
        self._claimed = False
        return super()._gone(known)

    def _compose(
        self,
        known: Resources,
        due: list[Resource],
        gone: Sequence[ResourceName],
        kept: Sequence[ResourceName],  # noqa: ARG002 - what is not said stays
    ) -> _Outstanding:
        nonce = str(self._nonce)
        shared = due[0].alone if len(due) == 1 and not gone else None
        if isinstance(shared, _Outstanding):
            response = shared.response
            if response.nonce == nonce and response.version == known.version:
                return shared
        given: dict[ResourceName, Resource | None] = {each.name: each for each in due}
        if gone:
            given |= dict.fromkeys(gone)
        response = Response(self.type_url, known.version, nonce, tuple(due), tuple(gone))
        made = _Outstanding(response, given)
        if len(due) == 1 and not gone:
            due[0].alone = made
        return made


def _names(reason: str, name: ResourceName) -> bool:
    """Does the reason name the resource, and not just one whose name contains it?"""
    if name not in reason:
        return False
    return re.search(rf"(?<![\w/.|~-]){re.escape(name)}(?![\w/|~-]|\.\w)", reason) is not None
