"""`weir demo`: the main job on one machine, with a real Envoy."""

import asyncio
import json
import tempfile
from pathlib import Path

import click
from rich.console import Console

from weir.demo import plan, report
from weir.demo.show import Show

WIDTH = 120


@click.command()
@click.option("--quick/--full", default=True, show_default=True, help="Two workloads, or all.")
@click.option("--requests", default=400, show_default=True, help="Measured requests a trial.")
@click.option("--seed", default=1, show_default=True, help="Seeds workloads and servers.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here."
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep logs and manifests here.")
def demo(quick: bool, requests: int, seed: int, json_path: Path | None, keep: Path | None) -> None:
    """Show Weir steering a real Envoy over simulated model servers.

    Starts twelve model servers (simulated: they speak vLLM's HTTP and take the time a GPU would),
    `weir serve`, `weir picker`, and an Envoy that is configured by nothing but xDS. Sends the same
    requests through round robin, least request, weights only, affinity and the picker; then kills,
    pauses and restarts Weir's parts under load and counts failed requests.

    Ends with status 0 if no request failed, no configuration was refused, picks were served where
    picked, and no comparison misses its bar by more than chance; 1 otherwise.
    """
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a log has room for whole lines
    with tempfile.TemporaryDirectory(prefix="weir-demo-") as scratch:
        show = Show(
            console,
            plan.QUICK if quick else plan.FULL,
            requests=requests,
            seed=seed,
            directory=keep or Path(scratch),
        )
        outcome = asyncio.run(show.run())
    console.print(report.summary(outcome))
    if json_path is not None:
        json_path.write_text(json.dumps(report.as_json(outcome), indent=2) + "\n")
        console.print(f"all figures: {json_path}")
    if outcome.faults:
        raise SystemExit(1)
