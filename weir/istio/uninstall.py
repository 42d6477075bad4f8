"""`weir istio uninstall --dry-run`: the order of removal that loses no request."""

import json

import click

from weir.istio import options
from weir.istio.source import Place
from xds.istio.shapes.removal import Removal, Unwiring, refuse_wrong_order, unwirings


@click.command("uninstall")
@click.argument("pool")
@click.option("--dry-run", is_flag=True, help="Say what to do; required, nothing else is done.")
@options.source_options(required=True)
@click.option("--step", type=click.IntRange(1, 3), help="Only this step, if its time has come.")
@options.JSON
def uninstall(*, pool: str, dry_run: bool, place: Place, step: int | None, as_json: bool) -> None:
    """Print how POOL (NAMESPACE/NAME) is taken out of its proxies, step by step.

    Goes by Weir's objects that it finds, and removes nothing itself. With --step N it prints that
    step alone, and refuses it, with status 1, while something of an earlier one is still there.

    \b
      weir istio uninstall --dry-run ns/llm-pool --kubernetes
    \b
      kubectl get inferencepool,envoyfilter,httproute,service -A -o yaml > have/objects.yaml
      weir istio uninstall --dry-run ns/llm-pool --config have
    """
    if not dry_run:
        raise click.UsageError("this command removes nothing; say --dry-run, and run what it says")
    with options.told():
        found, _ = options.read(place)
        if "/" not in pool:
            meta = found.pool(pool).metadata
            pool = f"{meta.namespace}/{meta.name}"
        ways = unwirings(found, pool)
        if step is not None:
            for way in ways:
                refuse_wrong_order(way, step)
    if as_json:
        click.echo(json.dumps([_said(way, step) for way in ways], indent=2))
    else:
        for way in ways:
            _print(way, step)


def _wanted(way: Unwiring, step: int | None) -> list[Removal]:
    return [each for each in way.steps if step in (None, each.number)]


def _said(way: Unwiring, step: int | None) -> dict[str, object]:
    return {
        "gateway": str(way.proxy),
        "shape": way.shape.value,
        "steps": [
            {
                "number": each.number,
                "title": each.title,
                "done": not each.objects,
                "commands": each.commands,
                "then": each.then,
            }
            for each in _wanted(way, step)
        ],
        "notes": list(way.notes),
    }


def _print(way: Unwiring, step: int | None) -> None:
    click.echo(f"# Gateway {way.proxy}, shape {way.shape.value}")
    for each in _wanted(way, step):
        click.echo(f"# Step {each.number} of {len(way.steps)}: {each.title}")
        for command in each.commands:
            click.echo(command)
        if not each.objects:
            click.echo("# done")
        elif each.then:
            click.echo(f"# Then: {each.then}.")
    for note in way.notes:
        click.echo(f"note: {note}", err=True)
