"""What operators are told of problems, as objects of Kubernetes: Warning Events, and a condition.

An Event (core/v1) stands on the object that is wrong. Its name follows from the problem, so that
replicas write the same one: the first creates it, the others find it there. A problem is not told
again within `REPEAT_SECONDS`, on whichever replica; then its Event is counted up, or made anew, as
API servers forget Events after an hour.

The condition stands in `status.parents` of an InferencePool (inference.networking.k8s.io/v1), a
list of at most 32 that all controllers share. Each entry has `parentRef`, `conditions` and, if the
CRD knows it, `controllerName`. Facts that decide how we write there:

- The list is atomic to the API server: server-side apply would take it over whole, with everybody's
  entries. So it is read, merged and patched with the resourceVersion that was read; who comes
  second reads again.
- istiod (86c9f01f, calculateInferencePoolStatus) tells its own entries by the namespace and name of
  the parentRef, whatever its kind and controllerName. One with the ref of a Gateway, or of a
  Service that a route has as its parent, would be rewritten or dropped. Ours names the Service of
  Weir's control plane, which no route has as its parent, and which is what serves the pool.
- A controller built before `controllerName` drops that field from entries that it writes back, and
  a CRD from before it prunes it: an entry with our parentRef and no controllerName is ours.
- v1alpha2 has no `controllerName`: no status is written there.

Entries of others are passed on as they were read. `now` is in seconds since the epoch.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from xds.istio.controller import Report
from xds.manifests import InferencePool, Manifest
from xds.problems import Problem, Reason

CONTROLLER = "weir.dev/controller"
COMPONENT = "weir"
STATUS_VERSION = "inference.networking.k8s.io/v1"
REPEAT_SECONDS = 3600.0
MESSAGE_CHARACTERS = 1024
MOST_PARENTS = 32
ACCEPTED, IN_EFFECT = "Accepted", "weir.dev/AnnotationsInEffect"
WIRED = "weir.dev/Wired"

Json: TypeAlias = Mapping[str, Any]


def event_name(problem: Problem) -> str:
    """The name of a problem's Event: a DNS subdomain that is the same on every replica."""
    said = (problem.kind, problem.uid, problem.reason.value, problem.knob, problem.value)
    digest = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
    return f"{problem.name[:230].rstrip('.-')}.{digest}"


def event(problem: Problem, now: float) -> dict[str, Any]:
    """The Event of a problem that is told for the first time."""
    involved = {
        "apiVersion": problem.api_version,
        "kind": problem.kind,
        "namespace": problem.namespace,
        "name": problem.name,
    }
    if problem.uid:
        involved["uid"] = problem.uid  # `kubectl describe` looks for it
    if problem.knob:
        involved["fieldPath"] = f"metadata.annotations[weir.dev/{problem.knob}]"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(problem), "namespace": problem.namespace},
        "involvedObject": involved,
        "type": "Warning",
        "reason": problem.reason.value,
        "message": problem.message[:MESSAGE_CHARACTERS],
        "source": {"component": COMPONENT},
        "reportingComponent": CONTROLLER,
        "reportingInstance": COMPONENT,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }


def counted(existing: Json, now: float) -> dict[str, Any] | None:
    """The merge patch that tells an Event once more; None if it was told lately, by anybody."""
    if now - instant(str(existing.get("lastTimestamp") or "")) < REPEAT_SECONDS:
        return None
    return {
        "metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]},
        "count": int(existing.get("count") or 1) + 1,
        "lastTimestamp": timestamp(now),
    }


@dataclass(slots=True)
class Told:
    """Which problems were told, and when; one owner, synchronous."""

    _at: dict[str, float] = field(default_factory=dict)

    def due(self, problems: Iterable[Problem], now: float) -> list[Problem]:
        """Those that were not told within the last hour, each once."""
        self._at = {name: at for name, at in self._at.items() if now - at < REPEAT_SECONDS}
        found = {event_name(each): each for each in problems}
        return [each for name, each in found.items() if name not in self._at]

    def note(self, problem: Problem, now: float) -> None:
        """It was told, by us or by another replica."""
        self._at[event_name(problem)] = now


@dataclass(frozen=True, slots=True)
class Service:
    """The Service of Weir's control plane: the parent of our entries."""

    namespace: str
    name: str

    @property
    def parent_ref(self) -> dict[str, str]:
        return {"group": "", "kind": "Service", "name": self.name, "namespace": self.namespace}


OURS = Service("weir", "weir-xds")  # unless it is said otherwise


@dataclass(frozen=True, slots=True)
class Subject:
    """An InferencePool that has a status for us to write, as it was when it was looked at."""

    namespace: str
    name: str
    generation: int = 0  # 0 is not known


def subjects(manifests: Iterable[Manifest]) -> list[Subject]:
    """The pools among these objects whose status can say who wrote it."""
    return [
        Subject(
            each.object.metadata.namespace,
            each.object.metadata.name,
            int(getattr(each.object.metadata, "generation", 0)),
        )
        for each in manifests
        if isinstance(each.object, InferencePool) and each.object.api_version == STATUS_VERSION
    ]


def conditions(problems: Sequence[Problem], wiring: Sequence[Report] = ()) -> list[dict[str, str]]:
    """What we say of a pool with these problems of its own, without times.

    Of one whose EnvoyFilters are kept, also where its wiring stands.
    """
    invalid = [each for each in problems if each.reason is Reason.INVALID]
    knobs = [each for each in problems if each.knob]
    accepted = _condition(ACCEPTED, "Accepted", "Weir serves this pool", invalid)
    good = "every weir.dev annotation has the effect that it asks for"
    said = [accepted, _condition(IN_EFFECT, "InEffect", good, knobs)]
    return [*said, _wired(wiring)] if wiring else said


def _wired(wiring: Sequence[Report]) -> dict[str, str]:
    done = all(each.done for each in wiring)
    places = sorted(
        f"Gateway {each.gateway}: {each.says}" if each.gateway else each.says
        for each in wiring
        if done or not each.done
    )
    return {
        "type": WIRED,
        "status": "True" if done else "False",
        "reason": "InPlace" if done else Reason.NOT_WIRED.value,
        "message": "; ".join(places)[:MESSAGE_CHARACTERS],
    }


def _condition(kind: str, reason: str, good: str, wrong: Sequence[Problem]) -> dict[str, str]:
    if not wrong:
        return {"type": kind, "status": "True", "reason": reason, "message": good}
    reasons = sorted({each.reason.value for each in wrong})
    messages = "; ".join(sorted(each.message for each in wrong))
    return {
        "type": kind,
        "status": "False",
        "reason": reasons[0] if len(reasons) == 1 else "SeveralProblems",
        "message": messages[:MESSAGE_CHARACTERS],
    }


def merge(  # noqa: PLR0913 - what was there, what is to be, and when
    parents: Sequence[Json],
    service: Service,
    said: Sequence[Mapping[str, str]],
    *,
    generation: int,
    now: float,
    leave: Collection[str] = (),
) -> list[Json]:
    """The pool's `status.parents` with our entry as it should be; without it, if `said` is empty.

    Of the types in `leave`, which another replica writes, conditions stay as they are.

    `lastTransitionTime` is when a condition's status last changed, `observedGeneration` what was
    looked at. Where 32 others have filled the list, it stays as it is.
    """
    place = next((number for number, each in enumerate(parents) if _is_ours(each, service)), None)
    others = [each for each in parents if not _is_ours(each, service)]
    if not said:
        return others
    if place is None and len(others) >= MOST_PARENTS:
        return list(parents)
    before = [] if place is None else parents[place].get("conditions") or []
    entry = {
        "parentRef": service.parent_ref,
        "controllerName": CONTROLLER,
        "conditions": [
            *(_dated(each, before, generation, now) for each in said),
            *(each for each in before if each.get("type") in leave),
        ],
    }
    place = len(others) if place is None else place
    return [*others[:place], entry, *others[place:]]


def _is_ours(parent: Json, service: Service) -> bool:
    ref = parent.get("parentRef") or {}
    same = all(ref.get(key, "") == value for key, value in service.parent_ref.items())
    return same and parent.get("controllerName") in (None, "", CONTROLLER)


def _dated(
    condition: Mapping[str, str], before: Sequence[Json], generation: int, now: float
) -> dict[str, Any]:
    since = timestamp(now)
    for each in before:
        if each.get("type") == condition["type"] and each.get("status") == condition["status"]:
            since = str(each.get("lastTransitionTime") or since)
    dated: dict[str, Any] = {**condition, "lastTransitionTime": since}
    if generation:
        dated["observedGeneration"] = generation
    return dated


def timestamp(now: float) -> str:
    """As Kubernetes writes it: RFC 3339, whole seconds, UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(text: str) -> float:
    """Seconds since the epoch; 0 where there is none that can be read."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", text):
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
