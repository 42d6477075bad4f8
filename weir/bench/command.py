"""`weir bench`: what Weir costs, measured on this machine beside what it is compared with."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from weir.bench import control_plane as control_planes
from weir.bench import filter as digest_filter
from weir.bench import freshness
from weir.bench import picker as pickers
from weir.bench import xds as pushes
from weir.demo import machine

JSON = click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here."
)


@click.group()
def bench() -> None:
    """Measure what Weir costs. Process CPU from the kernel; status 1 where a bar is missed."""


@bench.command()
@JSON
def picker(json_path: Path | None) -> None:
    """CPU a request of the picker, through Envoy, in every mode.

    Streamed responses are compared byte for byte with what the servers sent. Beside our picker
    runs a bare ext_proc server that does nothing: the least that one in Python can cost.
    """
    rows = _measured(pickers.measure)
    table = Table(title="CPU, ms a request", title_justify="left")
    for name in ("mode", "traffic"):
        table.add_column(name)
    for name in ("picker", "bare", "Envoy", "bar", "requests", "bytes differ", "failed", ""):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.mode,
            row.scenario,
            f"{row.picker_ms:.2f}",
            "-" if row.bare_ms is None else f"{row.bare_ms:.2f}",
            f"{row.envoy_ms:.2f}",
            "-" if row.bar_ms is None else f"{row.bar_ms:.1f}",
            str(row.tally.right + row.tally.wrong + row.tally.failed),
            str(row.tally.wrong),
            str(row.tally.failed),
            "met" if row.met else "missed",
        )
    figures = [{**asdict(row), "met": row.met} for row in rows]
    _finish(table, figures, json_path, all_met=all(row.met for row in rows))


@bench.command("filter")
@JSON
def filter_(json_path: Path | None) -> None:
    """What the digest filter adds to Envoy's CPU a request: median of five paired runs."""
    costs = _measured(digest_filter.measure)
    table = Table(title="Envoy's CPU, ms a request", title_justify="left")
    for name in ("prompt", "without", "with the filter", "added", "bar", "bad answers", ""):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(
            f"{cost.prompt} characters",
            " ".join(f"{before:.2f}" for before, _ in cost.pairs),
            " ".join(f"{after:.2f}" for _, after in cost.pairs),
            f"{cost.added:.0%}",
            f"{cost.bar:.0%}",
            str(cost.bad),
            "met" if cost.met else "missed",
        )
    figures = [{**asdict(cost), "added": cost.added, "met": cost.met} for cost in costs]
    _finish(table, figures, json_path, all_met=all(cost.met for cost in costs))


@bench.command()
@JSON
def xds(json_path: Path | None) -> None:
    """CPU, memory and time to the last ACK of a push to 2,000 delta EDS streams.

    20 pools of 100 endpoints; one weight changes in one pool, or in each. Beside our server runs a
    bare grpc.aio server that pushes the same bytes and knows no protocol, in turn with it.
    """
    rows = _measured(pushes.measure)
    seconds = sorted(_measured(freshness.measure))
    build = pushes.build_ms()
    table = Table(title="A push, beside a bare server (ours / bare)", title_justify="left")
    for name in ("streams a connection", "changed pools", "streams", "CPU µs a stream", "ratio"):
        table.add_column(name, justify="right")
    for name in ("ACK p50 ms", "p99", "last, median", "ratio", "KiB a stream", ""):
        table.add_column(name, justify="right")
    for row in rows:
        ours, bare = row.ours, row.bare
        table.add_row(
            str(row.together),
            row.change,
            str(row.streams),
            f"{ours.cpu:.0f} / {bare.cpu:.0f}",
            f"{row.cpu_ratio:.2f}",
            f"{ours.percentile_ms(50):.0f} / {bare.percentile_ms(50):.0f}",
            f"{ours.percentile_ms(99):.0f} / {bare.percentile_ms(99):.0f}",
            f"{ours.last_ms:.0f} / {bare.last_ms:.0f}",
            f"{row.ack_ratio:.2f}",
            f"{ours.rss_kib:.0f} / {bare.rss_kib:.0f}",
            "met" if row.met else "missed",
        )
    for name, (cpu, last, memory) in pushes.PEERS.items():
        table.add_row(
            "1",
            "all",
            "2000",
            f"{cpu}",
            "",
            "",
            "",
            f"{last}",
            "",
            f"{memory}",
            f"{name}, elsewhere",
        )
    figures: dict[str, Any] = {
        "rows": [
            {
                **asdict(row),
                "cpu_ratio": row.cpu_ratio,
                "ack_ratio": row.ack_ratio,
                "extra_kib": row.extra_kib,
                "met": row.met,
            }
            for row in rows
        ],
        "assignment_of_5000_ms": build,
        "page_to_weight_seconds": seconds,
    }
    notes = (
        f"bars: CPU ratio {pushes.CPU_BAR}, last ACK {pushes.ACK_BAR}",
        f"memory: {pushes.MEMORY_BAR_KIB:.0f} KiB a stream above the bare server's",
        f"serialisations of a version: {max(row.ours.framings for row in rows)}",
        "from a changed metrics page to a changed weight in Envoy, seconds: "
        + " ".join(f"{each:.2f}" for each in seconds),
        f"an assignment of 5,000 endpoints: {build:.1f} ms (bar {pushes.BUILD_BAR_MS:.0f})",
    )
    _finish(table, figures, json_path, notes, all_met=pushes.all_met(rows, build))


@bench.command("control-plane")
@click.option("--pods", default=1_000, show_default=True)
@click.option("--pools", default=50, show_default=True)
@click.option("--interval", default="1s", show_default=True, help="Of scrapes.")
@click.option("--seconds", default=20.0, show_default=True, help="Of each of three windows.")
@JSON
def control_plane(
    pods: int, pools: int, interval: str, seconds: float, json_path: Path | None
) -> None:
    """CPU, memory and start of `weir serve` in a cluster of 1,000 Pods that it asks once a second.

    The API server, the model servers, 50 proxies and a picker are played by two other processes.
    Bars stand for the usual size.
    """
    size = control_planes.Size(
        pods, pools, interval, settle_seconds=seconds * 1.5, window_seconds=seconds
    )
    figures = _measured(control_planes.measure(size))
    bars = Table(
        title=f"weir serve, {pods} Pods in {pools} pools, each asked every {interval}",
        title_justify="left",
    )
    for name in ("", "value", "bar", ""):
        bars.add_column(name, justify="right" if name else "left")
    for bar in figures.bars:
        bars.add_row(bar.name, f"{bar.value:.2f}", f"{bar.limit:g}", "met" if bar.met else "missed")
    parts = Table(title="Whose CPU it is, of a sampled run", title_justify="left")
    for name in ("part", "core", "share", "ms a scrape", "core while Pods are replaced"):
        parts.add_column(name, justify="left" if name == "part" else "right")
    for row in figures.parts:
        parts.add_row(
            row.name,
            f"{row.cores:.3f}",
            f"{row.share:.0%}",
            f"{row.ms_a_scrape:.3f}",
            f"{row.replacing:.3f}",
        )
    document = asdict(figures) | {
        "cores": figures.cores,
        "bars": [{**asdict(bar), "met": bar.met} for bar in figures.bars],
        "parts": [asdict(row) for row in figures.parts],
    }
    all_met = all(bar.met for bar in figures.bars)
    shown = Group(bars, parts)
    _finish(shown, document, json_path, control_planes.notes(figures), all_met=all_met)


def _measured(measure: Callable[[Path, Callable[[str], None]], Any]) -> Any:
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="weir-bench-") as scratch,
        console.status("starting") as status,
    ):

        def say(text: str) -> None:
            if console.is_terminal:
                status.update(text)
            else:
                console.print(text)

        return asyncio.run(measure(Path(scratch), say))


def _finish(
    table: RenderableType,
    figures: Any,
    json_path: Path | None,
    notes: Sequence[str] = (),
    *,
    all_met: bool,
) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    console.print(f"machine: {machine.describe()}")
    console.print(table)
    for note in notes:
        console.print(note)
    if json_path is not None:
        document = {"machine": machine.describe(), "rows": figures}
        json_path.write_text(json.dumps(document, indent=2) + "\n")
        console.print(f"all figures: {json_path}")
    if not all_met:
        raise SystemExit(1)
