"""`weir istio manifests`: what wires a pool into the proxies that requests to it go through."""

import json
from importlib.metadata import version as version_of
from typing import Any

import click

from weir.istio import options
from weir.istio.source import Place
from xds.istio.shapes.build import build
from xds.istio.shapes.choice import wirings
from xds.istio.shapes.manifest import to_yaml
from xds.istio.shapes.question import Question
from xds.istio.shapes.wiring import Plan, Shape, ShapeError


@click.command("manifests")
@click.argument("pool")
@options.source_options(required=True)
@options.ISTIO_VERSION
@click.option(
    "--shape",
    type=click.Choice([shape.value for shape in Shape]),
    help="This shape, whatever fits what you have.",
)
@click.option("--step", type=click.IntRange(1, 2), help="Only this step's objects.")
@options.XDS
@click.option("--picker", help="Weir's picker, HOST:PORT; else each pool's endpointPickerRef.")
@options.JSON
def manifests(  # noqa: PLR0913 - its options
    *,
    pool: str,
    place: Place,
    istio_version: str | None,
    shape: str | None,
    step: int | None,
    xds_address: str,
    picker: str | None,
    as_json: bool,
) -> None:
    """Print what wires POOL (NAMESPACE/NAME) into its gateways and waypoints, as YAML.

    Looks at what you have and chooses the shape that fits; notes go to stderr. Nothing is applied.
    Apply step 1, wait until the proxies have acknowledged (`weir status`), then step 2.

    \b
      weir istio manifests ns/llm-pool --kubernetes > weir.yaml
    \b
    Without a way to the cluster, from what it has:
      kubectl get inferencepool,service,gateway,httproute,destinationrule,envoyfilter \\
        -A -o yaml > have/objects.yaml
      weir istio manifests ns/llm-pool --config have --istio-version 1.32 > weir.yaml
    """
    with options.told():
        found, policies = options.read(place)
        xds = options.host("--xds-address", xds_address)
        istio = options.istio(options.version(istio_version, found), xds)
        question = Question(
            pool=found.pool(pool),
            inventory=found,
            policies=policies,
            istio=istio,
            xds=xds,
            picker=options.host("--picker", picker) if picker else None,
            shape=Shape(shape) if shape else None,
        )
        plans = [build(wiring) for wiring in wirings(question)]
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            click.echo(f"note: {note}", err=True)
        click.echo(_as_json(plans, step) if as_json else _as_yaml(plans, step), nl=False)


def _as_yaml(plans: list[Plan], step: int | None) -> str:
    texts = []
    for plan in plans:
        steps = [each for each in plan.steps if step in (None, each.number)]
        if steps:
            texts.append(to_yaml(plan, version_of("weir"), steps))
    if not texts:
        raise ShapeError(f"--step {step}: nothing to apply; the notes say what is yours to do")
    return "---\n".join(texts)


def _as_json(plans: list[Plan], step: int | None) -> str:
    said: list[dict[str, Any]] = [
        {
            "pool": plan.wiring.member.pool,
            "shape": plan.wiring.shape.value,
            "gateway": str(plan.wiring.proxy),
            "istio": str(plan.wiring.istio.version),
            "twin": plan.twin,
            "steps": [
                {
                    "number": each.number,
                    "title": each.title,
                    "then": each.then,
                    "objects": list(each.objects),
                }
                for each in plan.steps
                if step in (None, each.number)
            ],
            "notes": list(plan.notes),
        }
        for plan in plans
    ]
    return json.dumps(said, indent=2) + "\n"
