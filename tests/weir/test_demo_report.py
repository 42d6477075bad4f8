import json
from dataclasses import replace

import pytest
from rich.console import Console

from weir.demo import report
from weir.demo.comparison import Bar, Interval, Verdict
from weir.demo.drill import Phase
from weir.demo.report import Outcome
from weir.demo.trial import Picks, Trial, read_picks
from xds.pool import Tier

TRIAL = Trial(
    "shared prefixes", 0.6, 82.0, Tier.PICK, (0.1, 0.2), (0.3, 0.4), (), 0.8, Picks(100, 100), None
)
PHASE = Phase("all well", 10, (), 0.1, 0.2)
BAR = Bar("picker ÷ round robin", "pick", "round-robin", at_most=0.5)
GOOD = Outcome(
    machine="a machine",
    capacity=137.0,
    trials=(TRIAL,),
    verdicts=(Verdict(BAR, Interval(0.4, 0.3, 0.6)),),
    phases=(PHASE,),
    idle_added_seconds=0.001,
    nacks=0,
)


def test_a_run_in_which_all_went_well_has_no_faults():
    assert GOOD.faults == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": (replace(TRIAL, failures=("HTTP 503",)),)}, "1 requests failed (shared"),
        (
            {"phases": (replace(PHASE, failures=("HTTP 503",)),)},
            "in the drill (all well): HTTP 503",
        ),
        ({"nacks": 1}, "1 configurations were refused"),
        ({"trials": (replace(TRIAL, picks=Picks(100, 98)),)}, "98 of 100 picks"),
        ({"trials": (replace(TRIAL, picks=Picks(0, 0)),)}, "0 of 0 picks"),
        ({"verdicts": (Verdict(BAR, Interval(0.7, 0.6, 0.8)),)}, "picker ÷ round robin: 0.70"),
    ],
)
def test_each_fault_is_named_and_ends_the_demo_with_a_status(changes, words):
    (fault,) = replace(GOOD, **changes).faults
    assert words in fault


def test_a_bar_within_the_interval_is_no_fault():
    within = Verdict(BAR, Interval(0.55, 0.45, 0.65))
    assert not within.met
    assert replace(GOOD, verdicts=(within,)).faults == []


def test_the_summary_says_when_the_machine_was_the_limit():
    def text(outcome):
        console = Console(width=160)
        with console.capture() as captured:
            console.print(report.summary(outcome))
        return captured.get()

    assert "the machine was never the limit" in text(GOOD)
    slow = replace(TRIAL, machine_limit="processors 97% busy")
    assert "the machine, not the servers, was the limit" in text(replace(GOOD, trials=(slow,)))


def test_all_figures_go_to_json():
    document = json.loads(json.dumps(report.as_json(GOOD)))
    assert document["trials"][0]["ttft_p90"] == pytest.approx(0.19)
    assert document["comparisons"][0]["met"] is True
    assert document["faults"] == []


def test_picks_are_read_from_the_access_log(tmp_path):
    log = tmp_path / "access.log"
    entries = [
        {"picked": "a:1", "served": "a:1"},
        {"picked": None, "served": "b:1"},
        {"picked": "a:1", "served": "b:1"},
        {"picked": "a:1,b:1", "served": "b:1"},
    ]
    first = json.dumps(entries[0]) + "\n"
    log.write_text(first + "".join(json.dumps(each) + "\n" for each in entries[1:]))
    assert read_picks(log, 0) == Picks(3, 2)
    assert read_picks(log, len(first)) == Picks(2, 1)


def test_unknown_is_shown_as_unknown():
    endpoint = {
        "endpoint": "a:1",
        "weight": 100,
        "waiting": None,
        "running": 0,
        "kv_cache_usage": None,
        "prefix_hit_rate": None,
        "adapters": [],
    }
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report.endpoints({"pools": {"p": {"endpoints": [endpoint]}}}, "title"))
    row = next(line for line in captured.get().splitlines() if "a:1" in line)
    assert row.count("?") == 3
    assert " 0 " in row
