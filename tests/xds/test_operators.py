import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.manifests.checks import invalid
from xds import operators
from xds.istio.controller import Report
from xds.manifests import read
from xds.operators import CONTROLLER, REPEAT_SECONDS, Service, Subject, Told
from xds.problems import Problem, Reason

NOW = 1_800_000_000.0
WEIR = Service("weir-system", "weir-xds")
OURS = {"group": "", "kind": "Service", "name": "weir-xds", "namespace": "weir-system"}
GOOD = operators.conditions([])
GATEWAY = {
    "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"},
    "conditions": [{"type": "Accepted", "status": "True", "observedGeneration": 3}],
}
DEFAULT = {"parentRef": {"kind": "Status", "name": "default"}}


def problem(knob="mode", value="stop", reason=Reason.BAD_VALUE, **changes):
    said = {"kind": "InferencePool", "namespace": "ns", "name": "llama", "right": "one of active"}
    return Problem(**said | {"reason": reason, "knob": knob, "value": value} | changes)


def test_an_event_is_one_that_an_api_server_takes_and_a_person_understands():
    pool = problem(uid="u-1", api_version="inference.networking.k8s.io/v1")
    made = operators.event(pool, NOW)
    assert made["metadata"]["namespace"] == made["involvedObject"]["namespace"] == "ns"
    assert made["involvedObject"] == {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "namespace": "ns",
        "name": "llama",
        "uid": "u-1",
        "fieldPath": "metadata.annotations[weir.dev/mode]",
    }
    assert (made["type"], made["reason"], made["count"]) == ("Warning", "BadValue", 1)
    assert made["firstTimestamp"] == made["lastTimestamp"] == "2027-01-15T08:00:00Z"
    assert invalid(made) == []
    assert made["message"].startswith("weir.dev/mode: one of active, not 'stop'; the last good")


@given(st.from_regex(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", fullmatch=True), st.text())
def test_an_events_name_is_a_dns_subdomain_and_the_same_everywhere(name, value):
    one, two = (problem(name=name, value=value) for _ in range(2))
    assert operators.event_name(one) == operators.event_name(two)
    assert len(operators.event_name(one)) <= 253
    label = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if ".." not in name and ".-" not in name and "-." not in name:
        assert re.fullmatch(rf"{label}(\.{label})*", operators.event_name(one))


@pytest.mark.parametrize(
    "other",
    [problem("drain"), problem(value="x"), problem(uid="2"), problem(reason=Reason.NOT_IN_EFFECT)],
)
def test_other_problems_have_other_names(other):
    assert operators.event_name(other) != operators.event_name(problem())


def test_a_pool_whose_envoyfilters_are_kept_has_a_condition_of_its_wiring():
    done = Report("ns/llama", "ns/gw", done=True, says="in place")
    late = Report("ns/llama", "ns/wp", done=False, says="step 1 of 2 waits: nobody")
    *_, good = operators.conditions([], [done])
    assert good == {
        "type": "weir.dev/Wired",
        "status": "True",
        "reason": "InPlace",
        "message": "Gateway ns/gw: in place",
    }
    *others, bad = operators.conditions([], [done, late])
    assert others == GOOD
    assert (bad["status"], bad["reason"]) == ("False", "NotWired")
    assert bad["message"] == "Gateway ns/wp: step 1 of 2 waits: nobody"


def test_a_condition_that_another_replica_writes_is_left_to_it():
    said = operators.conditions([], [Report("ns/llama", "ns/gw", done=True, says="in place")])
    first = operators.merge([], WEIR, said, generation=1, now=NOW)
    left = operators.merge(first, WEIR, GOOD, generation=1, now=NOW, leave=["weir.dev/Wired"])
    assert left == first
    gone = operators.merge(first, WEIR, GOOD, generation=1, now=NOW)
    assert [each["type"] for each in gone[0]["conditions"]] == [each["type"] for each in GOOD]


def test_a_message_that_is_too_long_is_cut_off():
    made = operators.event(problem(value="x" * 5000, right="y" * 5000), NOW)
    assert len(made["message"]) == 1024


def test_a_problem_is_told_once_an_hour_and_each_by_itself():
    told = Told()
    assert told.due([problem(), problem()], NOW) == [problem()]
    told.note(problem(), NOW)
    assert told.due([problem(), problem("policy")], NOW + 1) == [problem("policy")]
    assert told.due([], NOW + 60) == []
    assert told.due([problem()], NOW + REPEAT_SECONDS - 1) == [], "mended and broken again"
    assert told.due([problem()], NOW + REPEAT_SECONDS) == [problem()]


def test_an_event_that_is_there_is_counted_up_once_an_hour():
    there = operators.event(problem(), NOW) | {"metadata": {"resourceVersion": "7"}}
    assert operators.counted(there, NOW + REPEAT_SECONDS - 1) is None
    assert operators.counted(there, NOW + REPEAT_SECONDS) == {
        "metadata": {"resourceVersion": "7"},
        "count": 2,
        "lastTimestamp": operators.timestamp(NOW + REPEAT_SECONDS),
    }


@pytest.mark.parametrize("text", [None, "", "yesterday", "2027-13-45T00:00:00Z"])
def test_an_event_without_a_time_that_can_be_read_is_counted_up(text):
    there = {"metadata": {"resourceVersion": "7"}, "lastTimestamp": text}
    assert operators.counted(there, NOW)["count"] == 2


def test_times_are_read_as_they_are_written():
    assert operators.instant(operators.timestamp(NOW)) == NOW
    assert operators.instant("2027-01-15T09:00:00.25+01:00") == NOW + 0.25


def test_conditions_say_what_is_wrong_with_the_pool_and_nothing_of_other_doubts():
    assert [(each["type"], each["status"]) for each in GOOD] == [
        ("Accepted", "True"),
        ("weir.dev/AnnotationsInEffect", "True"),
    ]
    bad = [problem(), problem("colour", "red", Reason.UNKNOWN, right="unknown annotation")]
    _, tuned = operators.conditions([*bad, problem("", "", Reason.NO_PODS)])
    assert (tuned["status"], tuned["reason"]) == ("False", "SeveralProblems")
    assert "weir.dev/mode: one of active" in tuned["message"]
    assert tuned == operators.conditions([*reversed(bad)])[1], "in whatever order"
    accepted, tuned = operators.conditions([problem("", "", Reason.INVALID, right="no port")])
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    assert tuned["status"] == "True"


def merged(parents, said=GOOD, *, generation=4, now=NOW):
    return operators.merge(parents, WEIR, said, generation=generation, now=now)


def test_our_entry_comes_to_those_of_others_and_says_who_wrote_it():
    first, second, ours = merged([DEFAULT, GATEWAY])
    assert (first, second) == (DEFAULT, GATEWAY)
    assert (ours["parentRef"], ours["controllerName"]) == (OURS, CONTROLLER)
    assert {each["observedGeneration"] for each in ours["conditions"]} == {4}
    assert {each["lastTransitionTime"] for each in ours["conditions"]} == {operators.timestamp(NOW)}


def test_a_transition_is_a_change_of_status_and_the_generation_is_what_was_looked_at():
    before = merged([])
    same = merged(before, generation=5, now=NOW + 60)
    assert [each["lastTransitionTime"] for each in same[0]["conditions"]] == [
        operators.timestamp(NOW)
    ] * 2
    assert {each["observedGeneration"] for each in same[0]["conditions"]} == {5}
    worse = merged(same, operators.conditions([problem()]), generation=6, now=NOW + 120)
    assert [each["lastTransitionTime"] for each in worse[0]["conditions"]] == [
        operators.timestamp(NOW),
        operators.timestamp(NOW + 120),
    ]
    other = merged(worse, operators.conditions([problem("policy")]), generation=7, now=NOW + 180)
    assert other[0]["conditions"][1]["lastTransitionTime"] == operators.timestamp(NOW + 120)
    assert other[0]["conditions"][1]["message"] != worse[0]["conditions"][1]["message"]


def test_without_a_generation_none_is_claimed():
    (ours,) = merged([], generation=0)
    assert all("observedGeneration" not in each for each in ours["conditions"])


def test_an_entry_whose_controller_was_dropped_on_the_way_is_ours_and_not_doubled():
    (ours,) = merged([])
    nameless = {key: value for key, value in ours.items() if key != "controllerName"}
    assert merged([GATEWAY, nameless, DEFAULT], now=NOW + 60) == [GATEWAY, ours, DEFAULT]
    assert merged([ours, GATEWAY, nameless]) == [ours, GATEWAY]


def test_our_service_under_anothers_name_and_another_service_under_ours_are_not_ours():
    (ours,) = merged([])
    foreign = ours | {"controllerName": "example.com/other"}
    elsewhere = ours | {"parentRef": OURS | {"namespace": "weir-two"}}
    assert merged([foreign, elsewhere]) == [foreign, elsewhere, ours]


def test_a_list_that_others_have_filled_stays_as_it_is():
    full = [GATEWAY | {"number": number} for number in range(32)]
    assert merged(full) == full
    (ours,) = merged([])
    assert merged([*full[:31], ours], now=NOW + 9) == [*full[:31], ours]


def test_our_entry_goes_with_us_and_takes_nobody_along():
    assert merged(merged([DEFAULT, GATEWAY]), said=[]) == [DEFAULT, GATEWAY]


words = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
)
parents = st.lists(
    st.fixed_dictionaries(
        {"parentRef": st.fixed_dictionaries({"name": st.sampled_from(["weir-xds", "gw"])})},
        optional={
            "controllerName": st.sampled_from(["", "example.com/a", CONTROLLER]),
            "conditions": st.lists(
                st.dictionaries(st.sampled_from(["type", "status", "message"]), words), max_size=3
            ),
            "extra": values,
        },
    )
    | st.just({"parentRef": OURS, "controllerName": CONTROLLER, "conditions": None})
    | st.just({"parentRef": OURS}),
    max_size=6,
)


@given(parents, st.lists(st.sampled_from([problem(), problem("policy")]), max_size=2))
def test_whatever_others_wrote_comes_back_byte_for_byte_and_in_its_order(before, problems):
    said = operators.conditions(problems)
    spelled = json.dumps(before)
    after = merged(before, said)
    assert json.dumps(before) == spelled, "nothing was changed in place"

    def foreign(entries):
        return [json.dumps(each) for each in entries if each.get("parentRef") != OURS]

    assert foreign(after) == foreign(before)
    assert sum(each.get("parentRef") == OURS for each in after) == 1
    assert merged(after, said, now=NOW + 999) == after, "said once, it is said"


def test_only_pools_whose_status_can_say_who_wrote_it_are_subjects():
    pool = """
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama, namespace: prod}
spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: llama-0}
"""
    found = read(pool, "x")
    assert operators.subjects(found) == [Subject("prod", "llama")]
    assert operators.subjects(found[1:]) == []
