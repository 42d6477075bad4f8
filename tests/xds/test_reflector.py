"""Transcripts of one kind's list and watch: what the API server says, and what is done next."""

import json
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.sources.answers import Failure, Malformed
from xds.sources.reflector import (
    ABSENT_SECONDS,
    FORBIDDEN_SECONDS,
    HEALTHY_SECONDS,
    LONGEST_RETRY_AFTER,
    LONGEST_SECONDS,
    PAGE,
    REFUSED_WATCHES,
    WATCH_SECONDS,
    List,
    Reflector,
    State,
    Wait,
    Watch,
)

LIST = List("", PAGE)
AWAY = Failure(0, "connection refused")
GONE = Failure(410, "too old resource version: 5 (9)")


def parse(item):
    spec = msgspec.json.decode(item).get("spec")
    if spec == "bad":
        raise Malformed("spec: bad")
    return spec


def thing(name, spec="x", version="", namespace="ns"):
    metadata = {"name": name, "namespace": namespace, "resourceVersion": version}
    return {"metadata": metadata, "spec": spec}


class Api:
    """The far end of a transcript: says things to a reflector, and asks what it does then."""

    def __init__(self):
        self.reflector = Reflector(parse)
        self.now = 100.0
        self.rng = random.Random(7)

    def then(self):
        return self.reflector.next(self.rng)

    def page(self, *items, version="5", more=""):
        body = {"metadata": {"resourceVersion": version, "continue": more}, "items": items}
        return self.reflector.page(json.dumps(body).encode(), self.now)

    def event(self, kind, item):
        return self.line(json.dumps({"type": kind, "object": item}).encode())

    def line(self, line):
        return self.reflector.line(line, self.now)

    def error(self, code, **details):
        status = {"kind": "Status", "code": code, "message": "no", "details": details}
        return self.event("ERROR", status)

    def fail(self, why):
        return self.reflector.fail(why, self.now)

    def watching(self, *items, version="5"):
        """Up to a watch that was accepted."""
        self.page(*items, version=version)
        assert isinstance(self.then(), Watch)
        self.reflector.opened(self.now)
        return self

    def names(self):
        return {name: each for (_, name), each in sorted(self.reflector.objects.items())}


@pytest.fixture
def api():
    return Api()


def test_it_lists_then_watches_from_the_lists_version(api):
    assert api.then() == LIST
    assert api.page(thing("a"), thing("b")) == {("ns", "a"), ("ns", "b")}
    watch = api.then()
    assert watch.version == "5"
    assert WATCH_SECONDS[0] <= watch.timeout_seconds <= WATCH_SECONDS[1]
    assert api.names() == {"a": "x", "b": "x"}


def test_nothing_changes_until_the_last_page_has_come(api):
    api.watching(thing("old"))
    api.error(410)
    assert api.then() == LIST
    assert api.page(thing("a"), version="9", more="token") == frozenset()
    assert api.names() == {"old": "x"}
    assert api.then() == List("token", PAGE)
    changed = api.page(thing("b"), version="9")
    assert changed == {("ns", "a"), ("ns", "b"), ("ns", "old")}
    assert api.names() == {"a": "x", "b": "x"}


def test_a_list_that_says_what_is_known_changes_nothing(api):
    api.page(thing("a"))
    assert api.page(thing("a", version="8"), version="8") == frozenset()


def test_an_empty_list_may_be_null(api):
    assert api.reflector.page(b'{"metadata":{"resourceVersion":"3"},"items":null}', 0) == set()
    assert api.then().version == "3"


def test_events_apply_in_order_and_move_the_version(api):
    api.watching(thing("a"))
    assert api.event("ADDED", thing("b", "1", "6")) == {("ns", "b")}
    assert api.event("MODIFIED", thing("b", "2", "7")) == {("ns", "b")}
    assert api.event("DELETED", thing("a", version="8")) == {("ns", "a")}
    assert api.names() == {"b": "2"}
    assert api.event("MODIFIED", thing("b", "2", "9")) == set(), "nothing that we look at"
    api.now += HEALTHY_SECONDS
    api.reflector.ended(api.now)
    assert api.then().version == "9"


def test_a_bookmark_moves_the_version_and_nothing_else(api):
    api.watching(thing("a"))
    bookmark = {"kind": "Pod", "metadata": {"resourceVersion": "77", "creationTimestamp": None}}
    assert api.event("BOOKMARK", bookmark) == set()
    api.fail(AWAY)
    assert isinstance(api.then(), Wait)
    assert api.then().version == "77"
    assert api.names() == {"a": "x"}


@pytest.mark.parametrize("how", ["status", "event"])
def test_a_version_that_is_too_old_is_a_reason_to_list_anew_at_once(api, how):
    api.watching(thing("a"))
    if how == "status":
        api.fail(GONE)
    else:
        api.error(410)
    assert api.then() == LIST
    assert api.names() == {"a": "x"}, "what was known stands meanwhile"


def test_versions_that_are_always_too_old_are_not_asked_for_without_pause(api):
    api.watching()
    delays = []
    for _ in range(12):
        api.error(410)
        action = api.then()
        if isinstance(action, Wait):
            delays.append(action.seconds)
            action = api.then()
        assert action == LIST
        api.watching()
    assert len(delays) == 11
    assert delays[-1] > 10 * delays[0]


def test_after_a_watch_that_worked_a_version_too_old_is_an_accident_again(api):
    api.watching()
    for _ in range(3):
        api.error(410)
        assert api.then() == LIST
        api.watching()
        api.event("ADDED", thing("a"))


def test_a_continuation_that_expired_starts_over_without_pages(api):
    api.page(thing("a"), more="token")
    api.fail(Failure(410, "The provided continue parameter is too old"))
    assert api.then() == List("", 0)
    api.page(thing("b"))
    assert api.names() == {"b": "x"}
    assert isinstance(api.then(), Watch)


@pytest.mark.parametrize("status", [0, 401, 429, 500, 503, 504])
def test_a_watch_that_fails_is_resumed_from_where_it_was(api, status):
    api.watching(thing("a"))
    api.event("ADDED", thing("b", version="6"))
    api.fail(Failure(status, "no"))
    assert isinstance(api.then(), Wait)
    assert api.then().version == "6"
    assert api.names() == {"a": "x", "b": "x"}


def test_an_api_server_that_is_away_for_hours_is_asked_again_and_nothing_is_forgotten(api):
    api.watching(thing("a"))
    waits = []
    for _ in range(500):
        api.fail(AWAY)
        waits.append(api.then().seconds)
        assert api.then().version == "5"
        api.now += waits[-1]
    assert api.now > 100 + 3600
    assert max(waits) <= 1.5 * LONGEST_SECONDS
    assert len(set(waits[-20:])) == 20, "jitter"
    assert api.reflector.state is State.RETRYING
    assert api.names() == {"a": "x"}
    assert api.reflector.contact == 100.0
    api.reflector.opened(api.now)
    api.event("MODIFIED", thing("a", "y"))
    api.fail(AWAY)
    assert api.then().seconds < 1.0, "a watch that works resets the delay"


def test_an_api_server_that_answers_our_version_with_errors_only_is_asked_for_a_list(api):
    api.watching()
    actions = []
    for _ in range(REFUSED_WATCHES):
        api.fail(Failure(504, "Too large resource version"))
        api.then()
        actions.append(api.then())
    assert [type(each) for each in actions] == [Watch] * (REFUSED_WATCHES - 1) + [List]


def test_a_request_that_makes_no_sense_to_the_server_is_not_made_again(api):
    api.watching()
    api.fail(Failure(400, "invalid resourceVersion"))
    api.then()
    assert api.then() == LIST


def test_a_list_that_meets_too_many_requests_waits_as_long_as_it_is_told(api):
    api.fail(Failure(429, "slow down", retry_after=20.0))
    assert 20.0 <= api.then().seconds <= 21.0
    assert api.then() == LIST
    api.fail(Failure(429, "slow down", retry_after=1e9))
    assert api.then().seconds <= LONGEST_RETRY_AFTER + LONGEST_SECONDS


def test_an_error_event_about_too_many_requests_resumes_the_watch_later(api):
    api.watching()
    api.error(429, retryAfterSeconds=9)
    assert api.then().seconds >= 9.0
    assert isinstance(api.then(), Watch)


def test_an_error_event_of_any_other_kind_lists_anew(api):
    api.watching()
    api.error(500)
    assert api.then() == LIST
    api.reflector.ended(api.now)
    assert api.then() == LIST, "the end of that watch says nothing more"


def test_a_watch_that_ends_at_once_is_not_asked_for_without_pause(api):
    api.watching()
    delays = []
    for _ in range(8):
        api.reflector.ended(api.now)
        delays.append(api.then().seconds)
        assert isinstance(api.then(), Watch)
        api.reflector.opened(api.now)
    assert delays[-1] > 8 * delays[0]
    api.now += HEALTHY_SECONDS
    api.reflector.ended(api.now)
    assert isinstance(api.then(), Watch)


def test_a_list_that_fails_half_way_starts_over(api):
    api.page(thing("a"), more="token")
    api.fail(Failure(500, "etcd"))
    api.then()
    assert api.then() == LIST
    api.page(thing("b"))
    assert api.names() == {"b": "x"}


def test_a_missing_permission_is_asked_for_now_and_then_and_objects_stay(api):
    api.watching(thing("a"))
    api.fail(Failure(403, "pods is forbidden"))
    assert api.reflector.state is State.FORBIDDEN
    assert api.then().seconds >= 0.5 * FORBIDDEN_SECONDS
    assert api.then() == LIST
    assert api.names() == {"a": "x"}


def test_a_kind_that_is_not_installed_is_looked_for_now_and_then(api):
    api.fail(Failure(404, "not found"))
    assert api.reflector.state is State.ABSENT
    assert api.then().seconds >= 0.5 * ABSENT_SECONDS
    assert api.then() == LIST
    api.watching(thing("a"))
    assert api.reflector.state is State.WATCHING
    assert api.names() == {"a": "x"}


def test_a_kind_that_was_there_is_gone_only_when_it_has_been_for_a_while(api):
    api.watching(thing("a"))
    began = api.now
    while not (gone := api.fail(Failure(404, "not found"))):
        assert api.names() == {"a": "x"}
        api.now += api.then().seconds
        assert api.then() == LIST
    assert gone == {("ns", "a")}
    assert api.now - began >= ABSENT_SECONDS
    assert api.names() == {}


def test_a_kind_that_comes_back_in_time_was_never_gone(api):
    api.watching(thing("a"))
    api.fail(Failure(404, "not found"))
    api.now += ABSENT_SECONDS - 1
    api.fail(Failure(503, "starting"))
    api.now += ABSENT_SECONDS - 1
    assert api.fail(Failure(404, "not found")) == set()
    assert api.names() == {"a": "x"}


def test_an_object_that_cannot_be_read_leaves_its_last_good_version_standing(api):
    api.watching(thing("a", "1"), thing("b", "bad"))
    assert api.reflector.refused == {("ns", "b"): "spec: bad"}
    assert api.event("MODIFIED", thing("a", "bad")) == set()
    assert api.names() == {"a": "1"}
    api.page(thing("a", "bad"), thing("b", "2"))
    assert api.names() == {"a": "1", "b": "2"}, "a list is no reason to forget it"
    assert api.reflector.refused == {("ns", "a"): "spec: bad"}
    api.event("MODIFIED", thing("a", "3"))
    assert api.names()["a"] == "3"
    assert api.reflector.refused == {}


def test_an_object_that_cannot_be_read_is_gone_when_it_is_deleted(api):
    api.watching(thing("a", "1"))
    api.event("MODIFIED", thing("a", "bad"))
    assert api.event("DELETED", thing("a", "bad")) == {("ns", "a")}
    assert (api.names(), api.reflector.refused) == ({}, {})


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"\xff\xfe", b'{"type":"ADDED"}', b'{"type":"WHAT","object":{}}', b"null"]
)
def test_garbage_on_a_watch_is_passed_over_and_followed_by_a_list(api, line):
    api.watching(thing("a"))
    assert api.line(line) == set()
    assert api.reflector.garbage == 1
    assert api.event("ADDED", thing("b")) == {("ns", "b")}, "the rest goes on"
    api.now += HEALTHY_SECONDS
    api.reflector.ended(api.now)
    assert api.then() == LIST, "it may have been anything"


def test_an_object_without_a_name_is_garbage_and_the_others_are_not(api):
    api.page({"spec": "x"}, thing("a"), 7)
    assert api.names() == {"a": "x"}
    assert api.reflector.garbage == 2


def test_a_list_that_cannot_be_read_is_a_failure(api):
    api.watching(thing("a"))
    api.error(410)
    api.then()
    assert api.reflector.page(b"<html>", api.now) == set()
    assert api.names() == {"a": "x"}
    assert isinstance(api.then(), Wait)
    assert api.then() == LIST


def test_blank_lines_say_nothing(api):
    api.watching()
    assert api.line(b"\r") == set()
    assert api.reflector.garbage == 0


names = st.sampled_from("abcd")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), names, st.sampled_from(["1", "2", "3"])),
        st.tuples(st.just("delete"), names, st.just("")),
        st.tuples(st.sampled_from(["break", "expire", "relist", "bookmark"]), names, st.just("")),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_in_between_it_ends_with_what_the_server_has(steps):
    api, truth, version = Api(), {}, 5
    api.watching()
    for what, name, spec in steps:
        version += 1
        if what == "set":
            kind = "MODIFIED" if name in truth else "ADDED"
            truth[name] = spec
            api.event(kind, thing(name, spec, str(version)))
        elif what == "delete" and truth.pop(name, None) is not None:
            api.event("DELETED", thing(name, version=str(version)))
        elif what == "bookmark":
            api.event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
        elif what in ("expire", "relist"):
            # Things happen while nobody looks.
            truth[name] = "unseen"
            api.error(410) if what == "expire" else api.fail(Failure(400, "no"))
            relist(api, truth, version)
        elif what == "break":
            api.fail(AWAY)
            api.then()
            assert isinstance(api.then(), Watch)
            api.reflector.opened(api.now)
        assert api.names() == dict(sorted(truth.items()))


def relist(api, truth, version):
    action = api.then()
    if isinstance(action, Wait):
        action = api.then()
    assert action == LIST
    *first, last = [thing(name, spec) for name, spec in truth.items()]
    api.page(*first, version=str(version), more="more")
    api.page(last, version=str(version))
    api.then()
    api.reflector.opened(api.now)
