import random

import pytest

from weir.demo.workload import BURSTS, NO_REUSE, SHAPES, SHARED_PREFIXES, arrivals, generate


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_seed_gives_the_same_requests_and_another_seed_others(name):
    shape = SHAPES[name]
    first = generate(shape, rate=50, count=40, seed=1)
    assert first == generate(shape, rate=50, count=40, seed=1)
    assert first != generate(shape, rate=50, count=40, seed=2)


def test_without_reuse_no_two_prompts_share_a_block():
    heads = [r.prompt[:64] for r in generate(NO_REUSE, rate=50, count=200, seed=3)]
    assert len(set(heads)) == len(heads)


def test_shared_prefixes_are_shared_and_the_questions_are_not():
    requests = generate(SHARED_PREFIXES, rate=50, count=300, seed=3)
    prefix_bytes = 4 * SHARED_PREFIXES.prefix_words
    counts = {}
    for request in requests:
        head = request.prompt[:prefix_bytes]
        counts[head] = counts.get(head, 0) + 1
    assert len(counts) == SHARED_PREFIXES.prefixes
    assert max(counts.values()) > 3 * min(counts.values())
    assert len({r.prompt for r in requests}) == len(requests)


@pytest.mark.parametrize("burst", [1.0, 2.5])
def test_the_mean_rate_holds_with_and_without_bursts(burst):
    times = arrivals(100, 20_000, burst, random.Random(5))
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(100, rel=0.1)


def test_bursts_are_burstier_than_poisson():
    def spread(burst):
        times = arrivals(100, 20_000, burst, random.Random(5))
        counts = [0] * (int(times[-1]) + 1)
        for at in times:
            counts[int(at)] += 1
        mean = sum(counts) / len(counts)
        return sum((c - mean) ** 2 for c in counts) / len(counts) / mean

    assert spread(BURSTS.burst) > 3 * spread(1.0)
