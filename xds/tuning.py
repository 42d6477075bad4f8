"""The operator's annotations, `weir.dev/…`: one table, a row a knob.

From a row follow how a value is read and refused, what a misspelt name is taken for, the tables of
docs/annotations.md and `weir annotations`, and the field of `Policy` or `Endpoint` that it sets;
the weigher, the scraper, the proxies' configuration and the pickers' take their parameters from
those fields. A later knob is one row, and the field. One whose part is not built yet stands here
with `built=False`: it is known, its value is checked, and it is told that it has no effect. So is
one that `needs` a flag of `weir serve` which was not given.

Each knob is read by itself: a bad one leaves its neighbours as they are. What becomes of a bad one
is the reader's business. A manifest from a file is refused. Of an object of the API server, which
is there whether we like it or not, `LastGood` says what stands.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

from xds.exposition import ENGINES
from xds.istio.keeping import AUTO
from xds.istio.shapes.wiring import Shape
from xds.notation import Kind, factor, header, number, of, one_of, seconds, truth, whole
from xds.pool import Affinity, Body, Mode, Policy, Tier
from xds.problems import Reason

PREFIX = "weir.dev/"
MANAGE = "--manage-envoyfilters"
ObjectKey: TypeAlias = tuple[str, str, str]  # kind, namespace, name


class On(Enum):
    """What an annotation stands on."""

    POOL = "InferencePool"
    POD = "Pod"


@dataclass(frozen=True, slots=True)
class Knob:
    """One row."""

    name: str
    on: On
    sets: str  # a field of Policy, or of Endpoint
    kind: Kind
    default: str  # as an operator would write it; "" where nothing is the default
    meaning: str
    built: bool = True
    needs: str = ""  # a flag of `weir serve`

    @property
    def said(self) -> str:
        """What it means, and what it takes to have effect."""
        if self.needs:
            return f"{self.meaning} With `weir serve {self.needs}` only."
        return self.meaning if self.built else f"{self.meaning} Not in effect yet."


@dataclass(frozen=True, slots=True)
class Fault:
    """An annotation that does not have the effect that it asks for."""

    knob: str
    value: str
    reason: Reason
    right: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What an object's annotations say: values by field, texts by knob, and faults."""

    values: Mapping[str, Any]
    texts: Mapping[str, str]
    faults: Sequence[Fault]


KNOBS: tuple[Knob, ...] = (
    Knob(
        "policy",
        On.POOL,
        "tier",
        of(Tier),
        "pick",
        "Who decides which endpoint a request goes to.",
    ),
    Knob(
        "mode",
        On.POOL,
        "mode",
        of(Mode),
        "active",
        "How much of what Weir decides has effect: see Modes.",
    ),
    Knob(
        "queue-threshold",
        On.POOL,
        "queue_threshold",
        whole(1, 1_000_000, "a number of requests"),
        "",
        "Requests waiting in a model server at which it counts as saturated: see Saturation.",
    ),
    Knob(
        "kv-threshold",
        On.POOL,
        "kv_threshold",
        number(0.01, 1, "a share of the KV memory"),
        "",
        "Share of its KV memory in use at which a model server counts as saturated.",
    ),
    Knob(
        "smoothing",
        On.POOL,
        "smoothing",
        number(0.01, 1, "a part"),
        "0.3",
        "Part of a second's new loads in the smoothed one that weights follow; 1 is none.",
    ),
    Knob(
        "weight-min",
        On.POOL,
        "weight_min",
        number(0.01, 1, "a factor"),
        "0.1",
        "The least that load can make of an endpoint's ordinary weight.",
    ),
    Knob(
        "weight-max",
        On.POOL,
        "weight_max",
        number(1, 100, "a factor"),
        "10",
        "The most that load can make of an endpoint's ordinary weight.",
    ),
    Knob(
        "affinity",
        On.POOL,
        "affinity",
        of(Affinity),
        "prefix",
        "What keeps requests together on an endpoint: see Affinity.",
    ),
    Knob(
        "session-header",
        On.POOL,
        "session_header",
        header(),
        "x-session-id",
        "The header that names a session; with affinity session.",
    ),
    Knob(
        "hash-balance-factor",
        On.POOL,
        "hash_balance_factor",
        factor(1, 10),
        "1.25",
        "Times the mean load at which affinity gives way; 2 or more suits adapters and sessions.",
    ),
    Knob(
        "scrape-interval",
        On.POOL,
        "scrape_interval_seconds",
        seconds(0.05, 60),
        "200ms",
        "Between two looks at a model server's metrics.",
    ),
    Knob(
        "engine",
        On.POOL,
        "engine",
        one_of(ENGINES),
        "",
        "Whose metrics the model servers have; else a label of the Pod says, else vllm.",
    ),
    Knob(
        "body",
        On.POOL,
        "body",
        of(Body),
        "digests",
        "What the picker is asked with: digests in headers, or the whole body of each request.",
    ),
    Knob(
        "shape",
        On.POOL,
        "shape",
        one_of([AUTO, *(shape.value for shape in Shape)]),
        "",
        "Weir keeps the EnvoyFilters that wire the pool into its gateways and waypoints, in the "
        "shape that fits or in this one; without, `weir istio manifests` prints them.",
        needs=MANAGE,
    ),
    Knob(
        "capacity",
        On.POD,
        "speed",
        number(0.01, 100, "a relative capacity"),
        "1",
        "How much this Pod can do beside an ordinary one of its pool.",
    ),
    Knob(
        "priority",
        On.POD,
        "priority",
        whole(0, 2, "a priority"),
        "0",
        "Where this Pod may be at best: 0 serves, 1 is spill-over, 2 the last resort.",
    ),
    Knob(
        "drain",
        On.POD,
        "draining",
        truth(),
        "false",
        "Whether this Pod is to get no new requests while others are left.",
    ),
)


def with_flags(flags: Collection[str], knobs: Sequence[Knob] = KNOBS) -> tuple[Knob, ...]:
    """The table of a `weir serve` that was given these flags, of those that knobs need."""
    return tuple(
        replace(each, built=each.built and (not each.needs or each.needs in flags))
        for each in knobs
    )


def read(annotations: Mapping[str, str], on: On, knobs: Sequence[Knob] = KNOBS) -> Reading:
    """Our annotations of an object; those under other prefixes are nobody's business here."""
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    faults: list[Fault] = []
    for key, text in annotations.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        knob = next((each for each in knobs if each.name == name and each.on is on), None)
        if knob is None:
            faults.append(Fault(name, text, Reason.UNKNOWN, _unknown(name, on, knobs)))
            continue
        try:
            value = knob.kind.read(text)
        except ValueError as error:
            faults.append(Fault(name, text, Reason.BAD_VALUE, str(error)))
            continue
        if knob.built:
            values[knob.sets], texts[name] = value, text
        else:
            faults.append(_idle(knob, text))
    return Reading(values, texts, faults)


def unmet(policy: Policy, knobs: Sequence[Knob] = KNOBS) -> list[Fault]:
    """Knobs that are set and need a flag, for who was not given it."""
    said = settings(policy, [each for each in knobs if each.needs])
    return [_idle(each, text) for each in knobs if (text := said.get(each.name)) is not None]


def _idle(knob: Knob, text: str) -> Fault:
    right = "its part is not built in this version; it has no effect"
    if knob.needs:
        right = f"it has no effect without `weir serve {knob.needs}`"
    return Fault(knob.name, text, Reason.NOT_IN_EFFECT, right)


def _unknown(name: str, on: On, knobs: Sequence[Knob]) -> str:
    elsewhere = [each.on.value for each in knobs if each.name == name]
    if elsewhere:
        return f"unknown annotation here; it stands on the {elsewhere[0]}"
    names = [each.name for each in knobs if each.on is on]
    if close := difflib.get_close_matches(name, names, 1):
        return f"unknown annotation; is `{PREFIX}{close[0]}` meant?"
    return f"unknown annotation; known are {', '.join(names)}"


@dataclass(slots=True)
class LastGood:
    """The texts that stood last, by object and knob; one owner, synchronous.

    They are an object's, not a name's: one that was deleted and made anew starts with nothing.
    """

    knobs: Sequence[Knob] = KNOBS
    _stood: dict[ObjectKey, tuple[str, Mapping[str, str]]] = field(default_factory=dict)

    def read(
        self, key: ObjectKey, uid: str, annotations: Mapping[str, str], on: On
    ) -> tuple[Mapping[str, Any], Sequence[Fault]]:
        """The object's values, for a bad one the last good one; what is gone is the default."""
        said = read(annotations, on, self.knobs)
        known, before = self._stood.get(key, ("", {}))
        if known != uid:
            before = {}
        bad = {fault.knob for fault in said.faults if fault.reason is Reason.BAD_VALUE}
        kept = {name: before[name] for name in bad if name in before}
        texts = {**said.texts, **kept}
        if texts:
            self._stood[key] = uid, texts
        else:
            self._stood.pop(key, None)
        standing = read({PREFIX + name: text for name, text in kept.items()}, on, self.knobs)
        return {**said.values, **standing.values}, said.faults

    def keep(self, objects: Collection[ObjectKey]) -> None:
        """Forget all but these objects."""
        for key in self._stood.keys() - set(objects):
            del self._stood[key]


def settings(policy: Policy, knobs: Sequence[Knob] = KNOBS) -> dict[str, str | None]:
    """A pool's knobs with the values that are in effect, as an operator would write them."""
    said = {}
    for each in knobs:
        if each.on is On.POOL and hasattr(policy, each.sets):  # the engine is an endpoint's
            value = getattr(policy, each.sets)
            said[each.name] = None if value is None else each.kind.write(value)
    return said


def rows(knobs: Sequence[Knob] = KNOBS) -> list[dict[str, Any]]:
    """The table, for programs."""
    return [
        {
            "annotation": PREFIX + each.name,
            "on": each.on.value,
            "values": each.kind.values,
            "default": each.default or None,
            "meaning": each.said,
            "in_effect": each.built,
            "needs": each.needs or None,
        }
        for each in knobs
    ]


def tables(knobs: Sequence[Knob] = KNOBS) -> str:
    """The table in Markdown, one for each kind of object."""
    parts = []
    for on in On:
        lines = [f"On the {on.value}:", "", "| annotation | values | default | |"]
        lines.append("|---|---|---|---|")
        for each in knobs:
            if each.on is on:
                default = f"`{each.default}`" if each.default else "none"
                name = f"`{PREFIX}{each.name}`"
                lines.append(f"| {name} | {each.kind.values} | {default} | {each.said} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


BEGIN, END = "<!-- made by `weir annotations --markdown` -->\n", "<!-- end -->"


def document(page: str, knobs: Sequence[Knob] = KNOBS) -> str:
    """The page with the tables as they are now between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(knobs)}\n{END}{after}"
