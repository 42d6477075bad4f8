"""`weir status` and `weir diff`: what the control plane knows, for people and for scripts."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weir.fetch import fetch

ADDRESS = click.option(
    "--status",
    "address",
    default="127.0.0.1:18001",
    show_default=True,
    envvar="WEIR_STATUS",
    help="Where `weir serve` has its /status.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
STYLES = {"SYNCED": "green", "STALE": "yellow", "NACKED": "red"}


@click.command("status")
@ADDRESS
@JSON
def status(address: str, *, as_json: bool) -> None:
    """Pools, endpoints, and every proxy and picker: SYNCED, STALE or NACKED, by type.

    Status 0 if all is well, 1 if a client refuses something, a policy or weights are in quarantine,
    a manifest or an object is wrong or the source is out of date, 2 if the control plane does not
    answer.
    """
    view = _fetch(address)
    if as_json:
        click.echo(json.dumps(view, indent=2))
    else:
        console = Console()
        for table in (_source(view["source"]), _pools(view), _clients(view)):
            console.print(table)
        if view.get("wiring"):
            console.print(_wiring(view["wiring"]))
        for each in view["source"]["not_in_effect"]:
            console.print(f"not in effect: {escape(each)}")
        for line in _troubles(view):
            console.print(f"[red]{escape(line)}[/red]")
    if _troubles(view):
        sys.exit(1)


@click.command("diff")
@click.argument("node")
@ADDRESS
@JSON
def diff(node: str, address: str, *, as_json: bool) -> None:
    """What a client has against what it should have, resource by resource.

    NODE is its node id, as `weir status` shows it. Status 0 if it has everything, 1 if not, 2 if
    there is no such client.
    """
    clients = [each for each in _fetch(address)["clients"] if each["node"] == node]
    if not clients:
        click.echo(f"Error: no client '{node}'; `weir status` lists those there are", err=True)
        sys.exit(2)
    rows = [row for client in clients for row in differences(client)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo(f"{node} has everything that it should have")
    else:
        table = Table(title=node, title_justify="left")
        for name in ("type", "resource", "has", "should have", "why"):
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(
                row["type"],
                row["name"],
                row["has"] or "-",
                row["should_have"] or "-",
                row["why"],
            )
        Console().print(table)
    if rows:
        sys.exit(1)


def differences(client: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Resources of which a client has another version than it should, and why."""
    rows = []
    for kind, each in client["types"].items():
        has, wanted, refuses = each["has"], each["should_have"], each["refuses"]
        reason = client["refusals"].get(kind, {}).get("reason", "")
        for name in sorted(has.keys() | wanted.keys()):
            if has.get(name) == wanted.get(name):
                continue
            if name in refuses:
                why = f"refused {refuses[name] or 'the removal'}: {reason or 'by its like'}"
            elif name not in wanted:
                why = "to be removed"
            else:
                why = "no answer yet" if name in has else "not sent, or no answer yet"
            rows.append(
                {
                    "type": kind,
                    "name": name,
                    "has": has.get(name),
                    "should_have": wanted.get(name),
                    "why": why,
                }
            )
    return rows


def _fetch(address: str) -> Any:
    return fetch(address, "status", what="control plane", option="--status")


def _pools(view: Mapping[str, Any]) -> Table:
    table = Table(title="Pools", title_justify="left")
    for name in ("pool", "policy", "endpoint", "weight", "priority", "queue", "KV", "load is"):
        table.add_column(name)
    for name, pool in view["pools"].items():
        for number, each in enumerate(pool["endpoints"] or [{}]):
            table.add_row(
                name if not number else "",
                _policy(pool) if not number else "",
                each.get("endpoint", "no endpoints"),
                _or_dash(each.get("weight")),
                _or_dash(each.get("priority")),
                _or_dash(each.get("waiting")),
                _or_dash(each.get("kv_cache_usage"), "{:.0%}".format),
                _or_dash(each.get("age_seconds"), "{:.1f} s old".format),
            )
    return table


def _policy(pool: Mapping[str, Any]) -> str:
    mode = pool.get("mode", "active")
    return str(pool["policy"]) if mode == "active" else f"{pool['policy']}, {mode}"


def _source(source: Mapping[str, Any]) -> Table:
    table = Table(title=f"Source: {source['name']}", title_justify="left")
    for name in ("kind", "namespace", "objects", "state", "last word", "lists", "failures", "why"):
        table.add_column(name, overflow="fold")
    for each in source["kinds"]:
        if each["state"] == "absent":
            continue  # not installed, and nobody's fault
        table.add_row(
            each["kind"],
            each["namespace"] or "-",
            str(each["objects"]) + ("" if each["in_effect"] else " (not in effect)"),
            f"[yellow]{each['state']}[/]" if each["stale"] else each["state"],
            _or_dash(each["age_seconds"], "{:.0f} s ago".format),
            str(each["lists"]),
            str(each["failures"]),
            escape(each["problem"][:200]),
        )
    return table


def _wiring(wiring: Mapping[str, Any]) -> Table:
    table = Table(title=_who_keeps(wiring), title_justify="left")
    for name in ("pool", "gateway", "shape", "says", "notes"):
        table.add_column(name, overflow="fold")
    for each in wiring["places"]:
        says = escape(each["says"])
        table.add_row(
            each["pool"],
            each["gateway"] or "-",
            each["shape"] or "-",
            f"[green]{says}[/]" if each["done"] else f"[yellow]{says}[/]",
            escape("; ".join(each["notes"])),
        )
    for each in wiring["leaving"]:
        says = f"step {each['step']} is taken away next" if each["step"] else "the probe goes"
        table.add_row(each["pool"] or "(shared)", each["gateway"], "-", says, "")
    return table


def _who_keeps(wiring: Mapping[str, Any]) -> str:
    if wiring["paused"]:
        return f"Wiring: left as it is: {escape(wiring['paused'])}"
    if wiring["away"]:
        return f"Wiring: nothing can be written: {escape(wiring['away'])}"
    who = "kept by this replica" if wiring["acting"] else "kept by another replica"
    silent = f"; silent: {', '.join(sorted(wiring['silent']))}" if wiring["silent"] else ""
    return f"Wiring: {who} ({wiring['replica']}{silent})"


def _clients(view: Mapping[str, Any]) -> Table:
    table = Table(title="Clients", title_justify="left")
    for name in ("node", "identity", "type", "state", "last ACK", "sent", "bytes", "why"):
        table.add_column(name, overflow="fold")
    for client in view["clients"]:
        for number, (kind, each) in enumerate(client["types"].items()):
            state = each["state"]
            table.add_row(
                client["node"] if not number else "",
                (client["identity"] or "-") if not number else "",
                kind,
                f"[{STYLES[state]}]{state}[/]",
                _or_dash(each["ack_age_seconds"], "{:.1f} s ago".format),
                str(each["sent"]),
                str(each["bytes"]),
                client["refusals"].get(kind, {}).get("reason", "")[:200],
            )
    return table


def _troubles(view: Mapping[str, Any]) -> list[str]:
    lines = [f"problem: {problem}" for problem in view["problems"]]
    lines += [
        f"{each['kind']} {each['namespace']}/{each['name']}: {each['message']}"
        for each in view.get("faults", [])
    ]
    source = view["source"]
    if not source["complete"]:
        lines.append("not serving yet: the source has not got all pools together")
    wiring = view.get("wiring")
    if wiring and (wiring["paused"] or wiring["away"]):
        lines.append(f"{_who_keeps(wiring)}")
    stale = [each["kind"] for each in source["kinds"] if each["stale"] and each["in_effect"]]
    if stale:
        lines.append(
            f"possibly out of date: {', '.join(dict.fromkeys(stale))}; what we have stands"
        )
    for name, pool in view["pools"].items():
        lines += [
            f"{name}: {each['what']} in quarantine until it changes: {each['reason'][:200]}"
            for each in pool["quarantined"]
        ]
    refusing = [client["node"] for client in view["clients"] if client["refusals"]]
    if refusing:
        lines.append(f"refusing something: {', '.join(refusing)}; see `weir diff NODE`")
    return lines


def _or_dash(value: Any, form: Callable[[Any], str] = str) -> str:
    return "-" if value is None else form(value)
