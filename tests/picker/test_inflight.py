import pytest
from hypothesis import given
from hypothesis import strategies as st

from picker.inflight import ARRIVAL_SECONDS, IDLE, NEVER, InFlight, Own

gaps = st.floats(0, 2)
picks = st.lists(st.tuples(gaps, st.floats(0, 5000), st.floats(0.01, 1), st.floats(0, 3)))


def naive(reserved, now, scraped_at):
    """The same questions, by looking at every reservation."""
    rows, free, last = [], NEVER, NEVER
    for at, uncached, prefill, decode in reserved:
        start = max(at, free)
        free = start + prefill
        last = max(last, free + decode)
        rows.append((at, uncached, start, free, last))
    before = [row for row in rows if row[0] < scraped_at - ARRIVAL_SECONDS]
    waiting = [row for row in rows if row[3] > now]
    pending = 0.0
    for _, uncached, start, first, _ in waiting:
        pending += uncached * (1 - max(0.0, now - start) / (first - start))
    return Own(
        sent=len(rows) - len(before),
        finished=sum(scraped_at < row[4] <= now for row in before),
        waiting_then=sum(row[2] > scraped_at for row in before),
        waiting=len(waiting),
        pending=pending,
    )


@given(picks, gaps, st.floats(0, 5))
def test_every_answer_is_what_counting_gives(sent, wait, age):
    own, reserved, now = InFlight(), [], 0.0
    for gap, uncached, prefill, decode in sent:
        now += gap
        own.reserve(now, uncached, prefill=prefill, decode=decode)
        reserved.append((now, uncached, prefill, decode))
    now += wait
    found, expected = own.own(now, now - age), naive(reserved, now, now - age)
    assert found[:4] == expected[:4]
    assert found.pending == pytest.approx(expected.pending, abs=1e-3)


@given(picks, st.floats(0, 5))
def test_settling_changes_no_answer_about_that_scrape(sent, age):
    own, now = InFlight(), 0.0
    for gap, uncached, prefill, decode in sent:
        now += gap
        own.reserve(now, uncached, prefill=prefill, decode=decode)
    before = own.own(now, now - age)
    own.settle(now - age)
    after = own.own(now, now - age)
    assert after[:4] == before[:4]
    assert after.pending == pytest.approx(before.pending, abs=1e-3)


def test_nothing_sent_is_nothing_owed():
    assert InFlight().own(5.0, 1.0) == IDLE


def test_a_reservation_without_any_scrape_ends_by_age():
    own = InFlight()
    own.reserve(0.0, 100, prefill=0.1, decode=0.1)
    own.reserve(100.0, 100, prefill=0.1, decode=0.1)
    assert own.own(100.0).sent == 1


def test_the_last_adapters_that_fit_are_remembered():
    own = InFlight()
    for adapter in ("a", "b", "a", "c"):
        own.remember(adapter, 2)
    assert list(own.adapters) == ["a", "c"]
