"""`weir istio precheck`: what this Istio will and will not allow, before anything is installed."""

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from weir.istio import options
from weir.istio.source import Place
from xds.istio.shapes.inventory import Inventory
from xds.istio.shapes.precheck import Finding, findings, matrix
from xds.istio.shapes.versions import TIERS, Cell, Verdict
from xds.istio.shapes.wiring import Shape, ShapeError, Version
from xds.pool import Tier

STYLES = {Verdict.YES: "green", Verdict.PARTLY: "yellow", Verdict.NO: "red"}


@click.command("precheck")
@options.source_options(required=False)
@options.ISTIO_VERSION
@options.XDS
@options.JSON
def precheck(
    *, place: Place | None, istio_version: str | None, xds_address: str, as_json: bool
) -> None:
    """Say what this Istio version and its flags allow, and what to do about the rest.

    Each cell says how it is known: `run` through istiod's own generators and a real Envoy, or
    `read` in sources and release notes.

    Status 0 if nothing stands in the way, 1 if something does, 2 if the command is wrong.
    """
    with options.told():
        found = options.read(place)[0] if place else Inventory()
        if place is None and istio_version is None:
            raise ShapeError(
                "say --istio-version, or where istiod's Deployment is: --config or --kubernetes"
            )
        version = options.version(istio_version, found)
        cells = matrix(version)
        xds = options.host("--xds-address", xds_address)
        what = findings(version, found, xds) if place else findings(version, found, xds)[:1]
    if as_json:
        click.echo(json.dumps(_said(version, cells, what), indent=2))
    else:
        _print(version, cells, what)
    if any(each.stops for each in what):
        sys.exit(1)


def _said(
    version: Version, cells: dict[Shape, dict[Tier, Cell]], what: list[Finding]
) -> dict[str, object]:
    return {
        "istio": str(version),
        "shapes": {
            shape.value: {
                tier.value: {
                    "verdict": cell.verdict.value,
                    "evidence": cell.evidence,
                    "why": cell.why,
                }
                for tier, cell in row.items()
            }
            for shape, row in cells.items()
        },
        "findings": [
            {"where": each.where, "what": each.what, "do": each.do, "stops": each.stops}
            for each in what
        ],
    }


def _print(version: Version, cells: dict[Shape, dict[Tier, Cell]], what: list[Finding]) -> None:
    console = Console()
    table = Table(title=f"Istio {version}", title_justify="left")
    for name in ("shape", *(tier.value for tier in TIERS)):
        table.add_column(name)
    whys = {}
    for shape, row in cells.items():
        texts = []
        for tier in TIERS:
            cell = row[tier]
            style = STYLES[cell.verdict]
            texts.append(f"[{style}]{cell.verdict.value}[/{style}] ({cell.evidence})")
            if cell.why:
                whys[shape, cell.why] = f"{shape.value}, {tier.value}: {cell.why}"
        table.add_row(shape.value, *texts)
    console.print(table)
    for why in whys.values():
        console.print(why, highlight=False, soft_wrap=True)
    for each in what:
        mark = "[red]stops[/red]" if each.stops else "[yellow]note[/yellow]"
        console.print(f"{mark}: {each.where}: {each.what}; {each.do}", soft_wrap=True)
