"""The benchmark of the control plane, small: that it runs, and that its figures are of a run."""

import json
import subprocess
import sys

import pytest

from weir.bench.sampling import PARTS


def test_the_control_planes_benchmark_tells_of_every_part(tmp_path):
    figures = tmp_path / "figures.json"
    size = ["--pods", "20", "--pools", "4", "--seconds", "1"]
    command = [sys.executable, "-m", "weir", "bench", "control-plane", *size, "--json", figures]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    # What a scrape costs is not what it costs among a thousand: its bar may be missed.
    assert ended.returncode in (0, 1), ended.stderr
    assert "machine: " in ended.stdout, ended.stderr
    found = json.loads(figures.read_text())["rows"]
    assert len(found["starts"]) == len(found["steady"]) == len(found["replacing"]) == 3
    assert all(window["scrapes"] == pytest.approx(20, rel=0.3) for window in found["steady"])
    assert sum(window["replaced"] for window in found["replacing"]) > 0
    assert all(window["loads"] > 0 for window in found["steady"])
    assert {part["name"] for part in found["parts"]} == set(PARTS)
    assert sum(part["cores"] for part in found["parts"]) > 0, (
        "in a second of so little, of whom ever"
    )
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert len(found["bars"]) == 4
