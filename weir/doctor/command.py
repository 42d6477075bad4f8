"""`weir doctor POOL`: proves on a live system that picking happens."""

import asyncio
import json
import sys
import time
from collections import Counter
from random import Random

import aiohttp
import click
from rich.console import Console
from rich.table import Table

from weir.doctor import proxy
from weir.doctor.examination import examine
from weir.doctor.finding import Finding, Json, Sight, Verdict
from weir.fetch import NoAnswerError, ask, fetch

STYLES = {
    Verdict.OK: "green",
    Verdict.UNKNOWN: "yellow",
    Verdict.WARNING: "yellow",
    Verdict.WRONG: "red",
}
REPORTING_SECONDS = 2.5  # pickers report once a second
ROUNDS = 7  # of probes
# Long enough for a picker that knows prefixes to see that two begin alike.
PROBE = {"model": "weir-doctor", "prompt": "ping " * 400, "max_tokens": 1}


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
@click.option("--probes", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option(
    "--body",
    help="Their JSON body; a completion of one token by default. Prompts are numbered, by rounds.",
)
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

    Looks at the proxy's own configuration and counters and at the control plane, several times,
    with traffic in between: who was picked must have served.

    \b
      kubectl -n weir port-forward deploy/weir-xds 18001:15014 &
      kubectl -n team port-forward deploy/waypoint 15000 &
      weir doctor team/llama --probe http://llama.example/v1/completions
    \b
    Status 0 if all is well, 1 if something is wrong, 3 if something could not be told, 2 if the
    proxy, or the --probe, does not answer.
    """
    sights = [_look(statuses, envoy)]
    if probe:
        probing = _Probing(probe, body or json.dumps(PROBE))
        left, count = probes, -(-probes // ROUNDS)
        while left:
            count = min(count, left)
            asyncio.run(probing.send(count))
            left -= count
            if not _heard(pool, statuses, sights[-1], count):
                count = left  # who reports nothing is not waited for again and again
            sights.append(_look(statuses, envoy))
        probing.tell()
    else:
        time.sleep(seconds)
        sights.append(_look(statuses, envoy))
    findings = examine(pool, sights, Random())
    if as_json:
        click.echo(json.dumps([_row(each) for each in findings], indent=2))
    else:
        _print(pool, sights[0].proxy.node, findings)
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
    views, silent = _views(statuses)
    return Sight(views, proxy.read(info, dump, clusters, stats), silent)


def _views(statuses: tuple[str, ...]) -> tuple[tuple[Json, ...], dict[str, str]]:
    """What replicas say, and why others say nothing."""
    views, silent = [], {}
    for each in statuses:
        try:
            views.append(ask(each, "status"))
        except NoAnswerError as error:
            silent[each] = str(error)
    return tuple(views), silent


def _heard(pool: str, statuses: tuple[str, ...], before: Sight, count: int) -> bool:
    """Wait until pickers have reported so many picks more, or would have."""
    wanted = sum(before.picks(pool).values()) + count
    deadline = time.monotonic() + REPORTING_SECONDS
    while time.monotonic() < deadline:
        views, _ = _views(statuses)
        if not views:
            return False
        if sum(Sight(views, before.proxy).picks(pool).values()) >= wanted:
            return True
        time.sleep(0.2)
    return False


class _Probing:
    """Requests one after the other, in rounds; whatever the status, each was routed.

    The prompts of a round are alike, and those of two rounds begin otherwise. A picker that knows
    prefixes keeps a round in one place: dice and turns do not, and affinity hardly in all of the
    same places.
    """

    def __init__(self, url: str, body: str) -> None:
        self._url = url
        self._body = body
        self._statuses: Counter[int] = Counter()
        self._rounds = 0

    async def send(self, count: int) -> None:
        """A round."""
        self._rounds += 1
        body = _numbered(self._body, self._rounds)
        timeout = aiohttp.ClientTimeout(total=60)
        headers = {"content-type": "application/json"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            for _ in range(count):
                try:
                    async with session.post(self._url, data=body) as response:
                        await response.read()
                        self._statuses[response.status] += 1
                except (aiohttp.ClientError, TimeoutError) as error:
                    said = f"no answer from {self._url}: {error}; see --probe"
                    click.echo(f"Error: {said}", err=True)
                    sys.exit(2)

    def tell(self) -> None:
        """Of answers that were errors, on stderr."""
        if odd := {status: n for status, n in self._statuses.items() if status >= 400}:
            said = ", ".join(f"{n} with {status}" for status, n in sorted(odd.items()))
            click.echo(f"of {self._statuses.total()} probes were answered {said}", err=True)


def _numbered(body: str, number: int) -> str:
    """The same with a number before its prompt, or its first message; as it is if it has none."""
    try:
        said = json.loads(body)
    except ValueError:
        return body
    if not isinstance(said, dict):
        return body
    messages = said.get("messages")
    if isinstance(said.get("prompt"), str):
        said["prompt"] = f"{number} {said['prompt']}"
    elif isinstance(messages, list) and messages and isinstance(messages[0], dict):
        first = messages[0]
        if isinstance(first.get("content"), str):
            first["content"] = f"{number} {first['content']}"
    return json.dumps(said)


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
