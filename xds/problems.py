"""What is wrong with one object, as a value: for Events, conditions, metrics and `weir status`.

A problem says which object, which annotation of it if it is one, what was said and what would have
been right. It never says what stands instead: replicas that started at different times may hold
different last good values, and what they write of one fault must be the same.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

VALUE_CHARACTERS = 100  # of a bad value that are repeated


class Reason(Enum):
    """CamelCase, as Kubernetes wants the reasons of Events and conditions."""

    UNKNOWN = "UnknownAnnotation"
    BAD_VALUE = "BadValue"
    NOT_IN_EFFECT = "NotInEffect"  # a good value, of a part that is not built or not switched on
    INVALID = "Invalid"  # the object: its last good form stands, if there was one
    DUPLICATE = "Duplicate"  # another object of this kind, namespace and name
    INVALID_ADDRESS = "InvalidAddress"  # of a Pod, which is no member
    NO_PODS = "NoPods"
    SHARED_ENDPOINTS = "SharedEndpoints"  # with another pool
    NOT_WIRED = "NotWired"  # a pool whose EnvoyFilters we keep, into some gateway or waypoint
    ADDRESS_CONFLICT = "AddressConflict"  # with another Pod


ANNOTATIONS = frozenset({Reason.UNKNOWN, Reason.BAD_VALUE, Reason.NOT_IN_EFFECT})
_STANDS = {
    Reason.BAD_VALUE: "; the last good value stands, or the default",
    Reason.INVALID: "; the last good object stands, if there was one",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Equal problems are the same one, told once."""

    kind: str
    namespace: str
    name: str
    reason: Reason
    right: str  # what would be, or what to do
    knob: str = ""  # the annotation, without its prefix
    value: str = ""  # as it was said
    uid: str = ""
    api_version: str = ""

    @property
    def message(self) -> str:
        """For people; the same words on every replica."""
        value = self.value[:VALUE_CHARACTERS]
        where = f"weir.dev/{self.knob}: " if self.knob else ""
        said = f", not {value!r}" if self.reason is Reason.BAD_VALUE else ""
        return f"{where}{self.right}{said}{_STANDS.get(self.reason, '')}"

    @property
    def where(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    def row(self) -> dict[str, Any]:
        """As `/status` has it."""
        return asdict(self) | {"reason": self.reason.value, "message": self.message}
