"""From what the operator has to the wirings of a pool: one at each gateway and waypoint.

    an HTTPRoute to the pool from     a Gateway     gateway; before Istio 1.32 gateway-own-cluster
                                      a Service     waypoint-inferencepool
    a Service over the pool's Pods    with routes   waypoint-second-service
    that has a waypoint               without       waypoint-own-cluster

What is ambiguous or cannot work is refused, by object and field; what may surprise is noted.
"""

from collections.abc import Iterator
from dataclasses import replace

from xds.istio.shapes import gateway_choice, waypoint_choice
from xds.istio.shapes.inventory import INFERENCE
from xds.istio.shapes.question import Aside, Question
from xds.istio.shapes.versions import NEEDS_INFERENCE, refusal
from xds.istio.shapes.wiring import ShapeError, Wiring


def wirings(question: Question) -> list[Wiring]:
    """Every place where requests to this pool can be directed. Raises `ShapeError`."""
    aside = Aside()
    found: list[Wiring] = []
    if question.shape is None or question.shape.on_gateway:
        found += gateway_choice.wirings(question, aside)
    if question.shape is None or not question.shape.on_gateway:
        found += waypoint_choice.wirings(question, aside)
    if not found:
        raise ShapeError(_nothing(question, aside))
    return [_allowed(question, wiring, aside) for wiring in found]


def _nothing(question: Question, aside: Aside) -> str:
    what = question.shape.value if question.shape else "any shape"
    head = f"InferencePool {question.name}: nothing to wire by {what}"
    if reasons := [*aside.skipped, *aside.hints]:
        return "; ".join([head, *reasons])
    return (
        f"{head}: no HTTPRoute leads to it, and no Service with its selector has a waypoint; add "
        "an HTTPRoute with backendRefs to the pool, or label a Service istio.io/use-waypoint"
    )


def _allowed(question: Question, wiring: Wiring, aside: Aside) -> Wiring:
    """With what this version says against it; refused, unless it was asked for by name."""
    reason = refusal(wiring.shape, wiring.istio.version)
    where = f"Istio {wiring.istio.version}, {wiring.shape.value} at Gateway {wiring.proxy}"
    if reason and question.shape is None:
        raise ShapeError(f"{where}: {reason}")
    notes = [f"{where}: {reason}"] if reason else []
    notes += _flags(question, wiring)
    return replace(wiring, notes=(*notes, *aside.skipped, *wiring.notes))


def _flags(question: Question, wiring: Wiring) -> Iterator[str]:
    if wiring.shape in NEEDS_INFERENCE and question.inventory.istiods:
        said = question.inventory.flag(INFERENCE)
        if said is None or said.lower() != "true":
            yield f"istiod: {INFERENCE} is {said or 'not set'}, and must be true for this shape"
