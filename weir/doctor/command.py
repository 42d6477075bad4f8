"""`weir doctor POOL`: proves on a live system that picking happens."""

import asyncio
import json
import sys
import time
from collections import Counter

import aiohttp
import click
from rich.console import Console
from rich.table import Table

from weir.doctor import proxy
from weir.doctor.examination import examine
from weir.doctor.finding import Finding, Sight, Verdict
from weir.fetch import fetch

STYLES = {
    Verdict.OK: "green",
    Verdict.UNKNOWN: "yellow",
    Verdict.WARNING: "yellow",
    Verdict.WRONG: "red",
}
REPORTING_SECONDS = 2.5  # pickers report once a second
PROBE = {"model": "weir-doctor", "prompt": "ping", "max_tokens": 1}


@click.command("doctor")
@click.argument("pool", metavar="NAMESPACE/POOL")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    default=["127.0.0.1:18001"],
    show_default=True,
    help="Where `weir serve` has its /status; once for each replica.",
)
@click.option(
    "--envoy",
    default="127.0.0.1:15000",
    show_default=True,
    help="The proxy's admin interface: kubectl port-forward POD 15000.",
)
@click.option(
    "--watch", "seconds", default=10.0, show_default=True, help="Seconds to watch the traffic."
)
@click.option("--probe", metavar="URL", help="Send requests of our own there, instead of waiting.")
@click.option("--probes", default=20, show_default=True, help="How many.")
@click.option("--body", help="Their JSON body; a completion of one token by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(  # noqa: PLR0913 - its options
    *,
    pool: str,
    statuses: tuple[str, ...],
    envoy: str,
    seconds: float,
    probe: str | None,
    probes: int,
    body: str | None,
    as_json: bool,
) -> None:
    """Prove that a proxy uses Weir's endpoints and picks for a pool, or say what is wrong.

    Looks at the proxy's own configuration and counters and at the control plane, twice, with
    traffic in between: who was picked must have served.

    \b
      kubectl -n weir port-forward deploy/weir-xds 18001:15014 &
      kubectl -n team port-forward deploy/waypoint 15000 &
      weir doctor team/llama --probe http://llama.example/v1/completions
    \b
    Status 0 if all is well, 1 if something is wrong, 3 if something could not be told, 2 if a part
    does not answer.
    """
    before = _look(statuses, envoy)
    if probe:
        asyncio.run(_probe(probe, probes, body or json.dumps(PROBE)))
        time.sleep(REPORTING_SECONDS)
    else:
        time.sleep(seconds)
    findings = examine(pool, before, _look(statuses, envoy))
    if as_json:
        click.echo(json.dumps([_row(each) for each in findings], indent=2))
    else:
        _print(pool, before.proxy.node, findings)
    verdicts = {each.verdict for each in findings}
    if Verdict.WRONG in verdicts:
        sys.exit(1)
    if Verdict.UNKNOWN in verdicts:
        sys.exit(3)


def _look(statuses: tuple[str, ...], envoy: str) -> Sight:
    info, dump, clusters, stats = (
        fetch(envoy, path, what="Envoy admin interface", option="--envoy")
        for path in (
            "server_info",
            "config_dump?include_eds",
            "clusters?format=json",
            "stats?format=json",
        )
    )
    views = tuple(
        fetch(each, "status", what="control plane", option="--status") for each in statuses
    )
    return Sight(views, proxy.read(info, dump, clusters, stats))


async def _probe(url: str, count: int, body: str) -> None:
    """One after the other; whatever the status, the request was routed."""
    statuses: Counter[int] = Counter()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for _ in range(count):
            try:
                headers = {"content-type": "application/json"}
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                    statuses[response.status] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                click.echo(f"Error: no answer from {url}: {error}; see --probe", err=True)
                sys.exit(2)
    if odd := {status: n for status, n in statuses.items() if status >= 400}:
        said = ", ".join(f"{n} with {status}" for status, n in sorted(odd.items()))
        click.echo(f"of {count} probes were answered {said}", err=True)


def _row(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "seen": finding.seen,
        "do": finding.do,
    }


def _print(pool: str, node: str, findings: list[Finding]) -> None:
    table = Table(title=f"{pool} through {node}", title_justify="left")
    for name in ("check", "", "seen", "what to do"):
        table.add_column(name, overflow="fold")
    for each in findings:
        style = STYLES[each.verdict]
        table.add_row(each.check, f"[{style}]{each.verdict.value}[/{style}]", each.seen, each.do)
    Console().print(table)
