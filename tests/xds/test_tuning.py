import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.notation import whole
from xds.pool import Affinity, Body, Endpoint, Mode, Policy, Tier
from xds.problems import Reason
from xds.tuning import (
    KNOBS,
    MANAGE,
    PREFIX,
    Fault,
    Knob,
    LastGood,
    On,
    document,
    read,
    rows,
    settings,
    unmet,
    with_flags,
)

PAGE = Path(__file__).parents[2] / "docs" / "annotations.md"
POOL, POD = On.POOL, On.POD
KEY = ("InferencePool", "ns", "p")
TARGETS = {POOL: Policy(), POD: Endpoint("a:1", "ns/a", "a", 1)}
BY_NAME = {(each.on, each.name): each for each in KNOBS}
FUTURE = Knob("warmth", POOL, "warmth", whole(1, 9, "a warmth"), "1", "Not yet.", built=False)


def said(on=POOL, **annotations):
    texts = {f"{PREFIX}{name.replace('_', '-')}": text for name, text in annotations.items()}
    return read({"other.io/policy": "x", **texts}, on)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: f"{knob.on.value} {knob.name}")
def test_each_row_sets_a_field_whose_default_it_states(knob):
    if knob.name == "engine":  # the Pods' labels come first
        return
    default = getattr(TARGETS[knob.on], knob.sets)
    assert knob.default == ("" if default is None else knob.kind.write(default))
    if knob.default:
        assert knob.kind.read(knob.default) == default


def test_each_field_of_a_policy_has_one_row_and_names_are_told_apart():
    assert sorted(k.sets for k in KNOBS if k.on is POOL and k.name != "engine") == sorted(
        each.name for each in fields(Policy)
    )
    assert len(BY_NAME) == len(KNOBS)


@pytest.mark.parametrize(
    ("annotations", "values"),
    [
        ({"policy": "least-request"}, {"tier": Tier.LEAST_REQUEST}),
        ({"mode": "freeze"}, {"mode": Mode.FREEZE}),
        ({"queue_threshold": "8"}, {"queue_threshold": 8}),
        ({"kv_threshold": ".85"}, {"kv_threshold": 0.85}),
        ({"smoothing": "1"}, {"smoothing": 1.0}),
        ({"weight_min": "0.5", "weight_max": "2"}, {"weight_min": 0.5, "weight_max": 2.0}),
        ({"affinity": "session"}, {"affinity": Affinity.SESSION}),
        ({"session_header": "X-User"}, {"session_header": "x-user"}),
        ({"hash_balance_factor": "1.5"}, {"hash_balance_factor": 150}),
        ({"scrape_interval": "1s"}, {"scrape_interval_seconds": 1.0}),
        ({"engine": "sglang"}, {"engine": "sglang"}),
        ({"body": "buffered"}, {"body": Body.BUFFERED}),
    ],
)
def test_a_pools_annotations_are_read_into_fields(annotations, values):
    assert said(**annotations).values == values
    assert not said(**annotations).faults


def test_a_pods_annotations_are_read_into_fields():
    reading = said(POD, capacity="2.5", priority="2", drain="true")
    assert reading.values == {"speed": 2.5, "priority": 2, "draining": True}


@pytest.mark.parametrize(
    ("on", "name", "text", "right"),
    [
        (POOL, "policy", "fastest", "one of pick, affinity, weights, round-robin, least-request"),
        (POOL, "mode", "Active", "one of active, observe, freeze, uniform"),
        (POOL, "queue-threshold", "0", "a number of requests from 1 to 1000000"),
        (POOL, "queue-threshold", "2.5", "a number of requests from 1 to 1000000"),
        (POOL, "queue-threshold", "-1", "a number of requests from 1 to 1000000"),
        (POOL, "queue-threshold", "", "a number of requests from 1 to 1000000"),
        (POOL, "kv-threshold", "90%", "a share of the KV memory from 0.01 to 1"),
        (POOL, "kv-threshold", "90", "a share of the KV memory from 0.01 to 1"),
        (POOL, "kv-threshold", "nan", "a share of the KV memory from 0.01 to 1"),
        (POOL, "smoothing", "0", "a part from 0.01 to 1"),
        (POOL, "smoothing", "1e-1", "a part from 0.01 to 1"),
        (POOL, "weight-min", "2", "a factor from 0.01 to 1"),
        (POOL, "weight-max", "0.5", "a factor from 1 to 100"),
        (POOL, "weight-max", "inf", "a factor from 1 to 100"),
        (POOL, "affinity", "sticky", "one of prefix, adapter, session"),
        (POOL, "session-header", "x session", "a request header's name, of at most 64"),
        (POOL, "session-header", ":path", "a request header's name, of at most 64"),
        (POOL, "session-header", "x-weir-affinity", "not x-weir-"),
        (POOL, "session-header", "x\r\ny", "a request header's name, of at most 64"),
        (POOL, "hash-balance-factor", "125", "a factor from 1 to 10"),
        (POOL, "scrape-interval", "1", "seconds or milliseconds such as 0.2s or 200ms"),
        (POOL, "scrape-interval", "5ms", "from 50ms to 60s"),
        (POOL, "scrape-interval", "2m", "seconds or milliseconds such as 0.2s or 200ms"),
        (POOL, "engine", "tgi", "one of vllm"),
        (POOL, "body", "full", "one of digests, buffered"),
        (POOL, "shape", "waypoint", "one of auto, gateway, gateway-own-cluster, waypoint-inf"),
        (POD, "capacity", "fast", "a relative capacity from 0.01 to 100"),
        (POD, "capacity", "1_000", "a relative capacity from 0.01 to 100"),
        (POD, "priority", "3", "a priority from 0 to 2"),
        (POD, "drain", "yes", "one of true, false"),
    ],
)
def test_a_bad_value_is_told_what_would_be_right_and_its_neighbour_is_read(on, name, text, right):
    good = Knob("good", on, "good", whole(1, 9, "a number"), "1", "")
    reading = read({PREFIX + name: text, PREFIX + "good": "7"}, on, (*KNOBS, good))
    (fault,) = reading.faults
    assert (fault.knob, fault.value, fault.reason) == (name, text, Reason.BAD_VALUE)
    assert right in fault.right
    assert reading.values == {"good": 7}


def test_every_row_is_among_the_bad_values_above():
    (mark,) = test_a_bad_value_is_told_what_would_be_right_and_its_neighbour_is_read.pytestmark
    assert {(on, name) for on, name, *_ in mark.args[1]} == set(BY_NAME)


@pytest.mark.parametrize(
    ("on", "name", "right"),
    [
        (POOL, "polcy", "is `weir.dev/policy` meant?"),
        (POOL, "weights-max", "is `weir.dev/weight-max` meant?"),
        (POOL, "zzz", "known are policy, mode, "),
        (POOL, "capacity", "it stands on the Pod"),
        (POD, "mode", "it stands on the InferencePool"),
        (POD, "priorty", "is `weir.dev/priority` meant?"),
    ],
)
def test_an_unknown_name_is_told_what_may_be_meant(on, name, right):
    (fault,) = read({PREFIX + name: "1"}, on).faults
    assert fault.reason is Reason.UNKNOWN
    assert right in fault.right


def test_a_knob_that_needs_a_flag_has_no_effect_without_it_and_names_it():
    said = {f"{PREFIX}shape": "auto", f"{PREFIX}mode": "freeze"}
    assert read(said, POOL, with_flags([MANAGE])).values == {"shape": "auto", "mode": Mode.FREEZE}
    reading = read(said, POOL, with_flags([]))
    assert reading.values == {"mode": Mode.FREEZE}
    (fault,) = reading.faults
    assert (fault.knob, fault.reason) == ("shape", Reason.NOT_IN_EFFECT)
    assert MANAGE in fault.right
    assert unmet(Policy(shape="auto")) == [fault]
    assert unmet(Policy()) == []


def test_a_knob_whose_part_is_not_built_has_no_effect_and_says_so():
    reading = read({f"{PREFIX}warmth": "3"}, POOL, (*KNOBS, FUTURE))
    assert reading.values == {}
    assert [fault.reason for fault in reading.faults] == [Reason.NOT_IN_EFFECT]
    (bad,) = read({f"{PREFIX}warmth": "hot"}, POOL, (*KNOBS, FUTURE)).faults
    assert bad == Fault("warmth", "hot", Reason.BAD_VALUE, "a warmth from 1 to 9")


@given(st.sampled_from(KNOBS), st.text(max_size=20) | st.floats().map(str) | st.integers().map(str))
def test_any_text_is_read_or_refused_and_what_is_read_is_written_as_itself(knob, text):
    try:
        value = knob.kind.read(text)
    except ValueError:
        return
    again = knob.kind.read(knob.kind.write(value))
    assert again == (pytest.approx(value) if isinstance(value, float) else value)


texts = st.sampled_from(["2", "3", "bad", None])
said_texts = st.fixed_dictionaries({"queue-threshold": texts, "weight-max": texts})


@given(st.lists(st.tuples(said_texts, st.sampled_from(["u1", "u2"])), max_size=12))
def test_last_good_values_are_those_of_a_twin_that_remembers_everything(history):
    """The twin: for each knob, go back to the last text that was good, unless it went, or another
    object came, in between.
    """
    last_good = LastGood()
    for number, (now, uid) in enumerate(history):
        found, faults = last_good.read(
            KEY, uid, {PREFIX + name: text for name, text in now.items() if text}, POOL
        )
        for name, field in (("queue-threshold", "queue_threshold"), ("weight-max", "weight_max")):
            expected = None
            for before, its in reversed(history[: number + 1]):
                if before[name] is None or its != uid:
                    break
                if before[name] != "bad":
                    expected = float(before[name])
                    break
            assert found.get(field) == expected
        assert {fault.knob for fault in faults} == {n for n, text in now.items() if text == "bad"}


def test_what_is_forgotten_does_not_stand():
    last_good = LastGood()
    good, bad = {f"{PREFIX}mode": "freeze"}, {f"{PREFIX}mode": "frozen"}
    last_good.read(KEY, "u", good, POOL)
    assert last_good.read(KEY, "u", bad, POOL)[0] == {"mode": Mode.FREEZE}
    last_good.keep([("Pod", "ns", "p")])
    assert last_good.read(KEY, "u", bad, POOL)[0] == {}


def test_settings_are_what_an_operator_would_write():
    policy = replace(Policy(), mode=Mode.FREEZE, hash_balance_factor=150, queue_threshold=8)
    found = settings(policy)
    assert found["mode"] == "freeze"
    assert found["hash-balance-factor"] == "1.5"
    assert found["scrape-interval"] == "200ms"
    assert (found["queue-threshold"], found["kv-threshold"]) == ("8", None)
    again = read({PREFIX + name: text for name, text in found.items() if text}, POOL)
    assert replace(Policy(), **again.values) == policy


def test_the_page_has_the_tables_as_they_are():
    text = PAGE.read_text("utf-8")
    assert document(text) == text, "weir annotations --markdown prints what belongs there"
    assert document(text, (*KNOBS, FUTURE)) != text
    assert "Not in effect yet" in document(text, (*KNOBS, FUTURE))


def weir(*arguments):
    command = [sys.executable, "-m", "weir", "annotations", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True, env={"COLUMNS": "160"}
    ).stdout


def test_the_command_prints_the_table_for_people_for_programs_and_for_the_page():
    shown = weir()
    assert all(PREFIX + knob.name in shown for knob in KNOBS)
    assert json.loads(weir("--json")) == rows()
    assert weir("--markdown") in PAGE.read_text("utf-8")
