"""What the demo prints and writes: live endpoints, the table of trials, verdicts, the drill."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from weir.demo.comparison import Verdict
from weir.demo.drill import Phase
from weir.demo.trial import Picks, Trial
from xds.pool import Tier

PICKS_HONOURED_AT_LEAST = 0.99

LABELS = {
    Tier.ROUND_ROBIN: "round robin",
    Tier.LEAST_REQUEST: "least request",
    Tier.WEIGHTS: "weights only",
    Tier.AFFINITY: "affinity (no picker)",
    Tier.PICK: "picker",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a demo found out."""

    machine: str
    capacity: float  # requests a second, round robin without reuse
    trials: tuple[Trial, ...]
    verdicts: tuple[Verdict, ...]
    phases: tuple[Phase, ...]
    idle_added_seconds: float
    nacks: int

    @property
    def picks(self) -> Picks:
        return sum((trial.picks for trial in self.trials), Picks(0, 0))

    @property
    def faults(self) -> list[str]:
        """Why the demo ends with a status other than zero."""
        faults = [
            f"{len(trial.failures)} requests failed ({trial.workload}, {LABELS[trial.policy]}): "
            f"{trial.failures[0]}"
            for trial in self.trials
            if trial.failures
        ]
        faults += [
            f"{len(phase.failures)} requests failed in the drill ({phase.name}): "
            f"{phase.failures[0]}"
            for phase in self.phases
            if phase.failures
        ]
        if self.nacks:
            faults.append(f"{self.nacks} configurations were refused (NACK)")
        picks = self.picks
        if picks.honoured < PICKS_HONOURED_AT_LEAST * picks.answered or not picks.answered:
            faults.append(f"{picks.honoured} of {picks.answered} picks were served where picked")
        faults += [
            f"{verdict.bar.name}: {verdict.ratio.value:.2f} "
            f"({verdict.ratio.low:.2f} to {verdict.ratio.high:.2f})"
            for verdict in self.verdicts
            if verdict.failed
        ]
        return faults


def endpoints(status: dict[str, Any], title: str) -> RenderableType:
    """The live table, from the control plane's `/status`."""
    table = Table(title=title, title_justify="left", min_width=72)
    table.add_column("endpoint")
    for column in ("weight", "waiting", "running", "KV use", "prefix hits", "adapters"):
        table.add_column(column, justify="right")
    for pool in status["pools"].values():
        for endpoint in pool["endpoints"]:
            table.add_row(
                endpoint["endpoint"],
                _known(endpoint["weight"], "{:d}"),
                _known(endpoint["waiting"], "{:d}"),
                _known(endpoint["running"], "{:d}"),
                _known(endpoint["kv_cache_usage"], "{:.0%}"),
                _known(endpoint["prefix_hit_rate"], "{:.0%}"),
                ", ".join(endpoint["adapters"]) or "-",
            )
    return table


def trials(rows: Sequence[Trial]) -> Table:
    """One line a trial; a workload at a load is a section."""
    table = Table(title="Time to first token, ms", title_justify="left")
    for column in ("workload", "load", "policy"):
        table.add_column(column, no_wrap=True)
    for column in ("p50", "p90", "p99", "whole p50", "prefix hits", "requests", "failed"):
        table.add_column(column, justify="right")
    section: tuple[str, float] | None = None
    for trial in rows:
        here = (trial.workload, trial.load)
        if section not in (None, here):
            table.add_section()
        first, section = section != here, here
        table.add_row(
            trial.workload if first else "",
            f"{trial.load:.0%}, {trial.rate:.0f}/s" if first else "",
            LABELS[trial.policy],
            *(_milliseconds(value) for value in (trial.p50, trial.p90, trial.p99)),
            _milliseconds(sorted(trial.seconds)[len(trial.seconds) // 2]),
            f"{trial.hit_rate:.0%}",
            str(len(trial.ttft)),
            str(len(trial.failures)),
        )
    return table


def line(trial: Trial) -> str:
    """One trial in a line, where there is no terminal to draw on."""
    return (
        f"{trial.workload} at {trial.load:.0%}, {LABELS[trial.policy]}: TTFT p50 "
        f"{_milliseconds(trial.p50)} p90 {_milliseconds(trial.p90)} ms, "
        f"{len(trial.failures)} of {len(trial.ttft)} failed"
    )


def verdicts(rows: Sequence[Verdict]) -> Table:
    """The comparisons with their intervals."""
    table = Table(title="TTFT p90, one policy over another (95 % interval)", title_justify="left")
    table.add_column("comparison", no_wrap=True)
    for column in ("ratio", "interval", "bar", "verdict"):
        table.add_column(column, justify="right")
    for verdict in rows:
        bar = verdict.bar
        table.add_row(
            bar.name,
            f"{verdict.ratio.value:.2f}",
            f"{verdict.ratio.low:.2f} to {verdict.ratio.high:.2f}",
            "-" if math.isinf(bar.at_most) else f"≤ {bar.at_most:.2f}",
            _verdict(verdict),
        )
    return table


def drill(phases: Sequence[Phase]) -> Table:
    """The failure drill, phase by phase."""
    table = Table(title="Failure drill, under load", title_justify="left")
    table.add_column("phase")
    for column in ("requests", "failed", "TTFT p50", "TTFT p99"):
        table.add_column(column, justify="right")
    for phase in phases:
        table.add_row(
            phase.name,
            str(phase.requests),
            str(len(phase.failures)),
            _milliseconds(phase.ttft_p50),
            _milliseconds(phase.ttft_p99),
        )
    return table


def summary(outcome: Outcome) -> RenderableType:
    """Everything, for the end."""
    picks = outcome.picks
    share = picks.honoured / picks.answered if picks.answered else float("nan")
    limited = [trial for trial in outcome.trials if trial.machine_limit]
    lines = [
        f"picks served where picked: {picks.honoured} of {picks.answered} ({share:.2%})",
        f"configurations refused (NACK): {outcome.nacks}",
        f"added when idle, filter and picker: {outcome.idle_added_seconds * 1000:.1f} ms (median)",
        *(
            f"the machine, not the servers, was the limit: {t.workload} at {t.load:.0%}, "
            f"{LABELS[t.policy]}: {t.machine_limit}"
            for t in limited
        ),
        *([] if limited else ["the machine was never the limit: the servers set the pace"]),
    ]
    faults = outcome.faults
    ending = (
        Text("\n".join(["FAILED", *faults]), style="bold red")
        if faults
        else Text("every bar was met or within its interval", style="bold green")
    )
    return Group(
        trials(outcome.trials),
        verdicts(outcome.verdicts),
        drill(outcome.phases),
        *(Text(line) for line in lines),
        ending,
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The whole outcome as plain values; times in seconds."""
    return {
        "machine": outcome.machine,
        "capacity_requests_per_second": outcome.capacity,
        "trials": [
            {
                **asdict(trial),
                "policy": trial.policy.value,
                "ttft_p50": trial.p50,
                "ttft_p90": trial.p90,
                "ttft_p99": trial.p99,
            }
            for trial in outcome.trials
        ],
        "comparisons": [
            {**asdict(v.bar), **asdict(v.ratio), "met": v.met, "failed": v.failed}
            for v in outcome.verdicts
        ],
        "drill": [asdict(phase) for phase in outcome.phases],
        "idle_added_seconds": outcome.idle_added_seconds,
        "nacks": outcome.nacks,
        "picks": asdict(outcome.picks),
        "faults": outcome.faults,
    }


def _verdict(verdict: Verdict) -> Text:
    if math.isinf(verdict.bar.at_most):
        return Text("shown", style="dim")
    if verdict.met:
        return Text("met", style="green")
    return Text("missed", style="red") if verdict.failed else Text("within noise", style="yellow")


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:.0f}"


def _known(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)
