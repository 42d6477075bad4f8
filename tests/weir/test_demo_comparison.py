import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.demo.comparison import Bar, Interval, Verdict, percentile, ratio


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles_agree_with_the_standard_library(values):
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    assert percentile(values, 90) == pytest.approx(deciles[8])
    assert percentile(values, 50) == pytest.approx(statistics.median(values))


def test_the_interval_holds_a_true_ratio_and_narrows_with_more_requests():
    def interval(count):
        rng = random.Random(7)
        slow = [rng.expovariate(1) + 1 for _ in range(count)]
        fast = [rng.expovariate(1) / 2 + 0.5 for _ in range(count)]
        return ratio(fast, slow, q=90, rng=rng)

    few, many = interval(200), interval(3000)
    assert few.low < 0.5 < few.high
    assert many.low < 0.5 < many.high
    assert many.high - many.low < few.high - few.low


def test_a_bar_fails_only_when_the_whole_interval_lies_beyond_it():
    bar = Bar("half", "pick", "round-robin", at_most=0.5)
    assert Verdict(bar, Interval(0.4, 0.3, 0.6)).met
    noisy = Verdict(bar, Interval(0.55, 0.45, 0.7))
    assert not noisy.met
    assert not noisy.failed
    assert Verdict(bar, Interval(0.7, 0.6, 0.8)).failed
    low = Bar("within 15 %", "weights", "round-robin", at_most=1.15, at_least=1 / 1.15)
    assert Verdict(low, Interval(0.5, 0.4, 0.6)).failed
