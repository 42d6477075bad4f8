"""Who stood still is out until he has caught up, however he finds out."""

from hypothesis import given
from hypothesis import strategies as st

from xds.pulse import BEAT_SECONDS, CATCH_UP_SECONDS, STILL_SECONDS, Pulse


def test_who_is_felt_all_the_while_is_well():
    pulse = Pulse(100.0)
    assert all(pulse.feel(100.0 + number * BEAT_SECONDS) for number in range(100))


def test_who_stood_still_is_out_from_the_moment_he_goes_on_until_he_has_caught_up():
    pulse = Pulse(0.0)
    for number in range(4):
        now = 60.0 + number * CATCH_UP_SECONDS / 4
        assert not pulse.feel(now)
    assert pulse.feel(60.0 + CATCH_UP_SECONDS)


def test_who_stands_still_again_while_he_catches_up_begins_anew():
    pulse = Pulse(0.0)
    assert not pulse.feel(60.0)
    assert not pulse.feel(60.0 + 2 * CATCH_UP_SECONDS)
    assert not pulse.feel(60.0 + 2 * CATCH_UP_SECONDS + STILL_SECONDS)


@given(st.lists(st.floats(0.0, 3 * STILL_SECONDS)))
def test_well_is_who_had_no_gap_for_as_long_as_catching_up_takes(gaps):
    pulse, now, stood_still_until = Pulse(0.0), 0.0, float("-inf")
    for gap in gaps:
        before, now = now, now + gap
        if now - before > STILL_SECONDS:
            stood_still_until = now
        assert pulse.feel(now) == (now >= stood_still_until + CATCH_UP_SECONDS)
