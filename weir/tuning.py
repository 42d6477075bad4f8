"""`weir annotations`: what an operator can say of a pool or a Pod."""

import json

import click
from rich.console import Console
from rich.table import Table

from xds.tuning import On, rows, tables


@click.command("annotations")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the tables of docs/annotations.md.")
def command(*, as_json: bool, markdown: bool) -> None:
    """The annotations `weir.dev/...`: their values, defaults and meaning."""
    if as_json:
        click.echo(json.dumps(rows(), indent=2))
    elif markdown:
        click.echo(tables(), nl=False)
    else:
        for on in On:
            Console().print(_table(on))


def _table(on: On) -> Table:
    table = Table(title=f"On the {on.value}", title_justify="left")
    table.add_column("annotation", no_wrap=True)
    for name in ("values", "default", "meaning"):
        table.add_column(name, overflow="fold")
    for row in rows():
        if row["on"] == on.value:
            table.add_row(row["annotation"], row["values"], row["default"] or "-", row["meaning"])
    return table
