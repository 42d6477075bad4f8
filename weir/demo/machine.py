"""Was it the machine, and not the model servers, that set the pace?

Reads /proc/stat around a run. Simulated servers only wait, so a machine without idle time, or a
client that sends late, means that the figures measure this machine.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weir.demo.comparison import percentile

BUSY_LIMIT = 0.90
LATE_LIMIT_SECONDS = 0.025


@dataclass(frozen=True, slots=True)
class Usage:
    """Cumulative processor time of the whole machine, in clock ticks."""

    busy: int
    total: int

    def busy_share_since(self, before: "Usage") -> float:
        """0 to 1, over all cores."""
        return (self.busy - before.busy) / max(1, self.total - before.total)


def usage() -> Usage:
    """Read /proc/stat's first line: user nice system idle iowait irq softirq steal …"""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return Usage(sum(fields) - idle, sum(fields))


def describe() -> str:
    """The machine in a few words, for reports."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB"


def limit(busy_share: float, lateness: Sequence[float]) -> str | None:
    """Why the machine was the limit during a run, or None where it was not."""
    late = percentile(lateness, 90)
    if busy_share > BUSY_LIMIT:
        return f"processors {busy_share:.0%} busy"
    if late > LATE_LIMIT_SECONDS:
        return f"a tenth of the requests were sent {late * 1000:.0f} ms late or later"
    return None
