from random import Random

import pytest

from weir.inference_sim import virtual
from weir.inference_sim.engine import Engine, EngineConfig
from weir.inference_sim.sequence import Request
from weir.inference_sim.timing import Timing
from weir.inference_sim.virtual import Arrival


def pool(*speeds):
    return [Engine(EngineConfig(timing=Timing(speed=speed))) for speed in speeds]


def test_every_arrival_has_a_result_from_the_engine_it_was_routed_to():
    rng = Random(1)
    arrivals = [
        Arrival(rng.random() * 10, Request(str(number), rng.randint(1, 5000), rng.randint(1, 40)))
        for number in range(200)
    ]
    chosen = {}

    def route(request, engines, _now):
        chosen[request.id] = rng.randrange(len(engines))
        return chosen[request.id]

    results = virtual.run(pool(1, 1, 0.5), arrivals, route)
    assert {result.id: result.engine for result in results} == chosen
    asked = {arrival.request.id: arrival for arrival in arrivals}
    for result in results:
        assert result.arrived == asked[result.id].at
        assert result.output_tokens == asked[result.id].request.output_tokens
        assert 0 <= result.queued < result.ttft <= result.e2e


def test_a_request_alone_takes_as_long_as_its_steps():
    [result] = virtual.run(pool(2.0), [Arrival(5.0, Request("r", 1000, 11))], lambda *_: 0)
    assert result.queued == 0
    assert result.ttft == pytest.approx((0.0075 + 0.028 + 0.84e-9 * 5e5) / 2)
    assert result.tpot == pytest.approx((0.0075 + 40e-6 + 4.3e-8 * 1006) / 2, rel=1e-3)


def test_a_policy_may_look_at_the_engines_and_hears_of_every_token():
    arrivals = [Arrival(0.0, Request(str(number), 2000, 5)) for number in range(40)]
    tokens = 0

    def shortest(_request, engines, _now):
        return min(range(len(engines)), key=lambda i: engines[i].waiting + engines[i].running)

    def seen(_engine, advanced, _now):
        nonlocal tokens
        tokens += len(advanced)

    results = virtual.run(pool(1, 1, 1, 1), arrivals, shortest, seen=seen)
    assert tokens == 200
    assert sorted(result.engine for result in results) == sorted([0, 1, 2, 3] * 10)


def test_a_run_is_repeatable():
    def once():
        rng = Random(7)
        arrivals = [
            Arrival(rng.expovariate(20), Request(str(n), rng.randint(1, 3000), 20))
            for n in range(100)
        ]
        return virtual.run(pool(1, 1), arrivals, lambda *_: rng.randrange(2))

    assert once() == once()


def test_capacity_is_what_a_pool_completes_and_no_more():
    def sample(rng, number):
        return Request(str(number), rng.randint(800, 1200), 32)

    capacity = virtual.capacity(lambda: pool(1, 1), sample, Random(3))
    work = 28e-6 * 1000 + 0.84e-9 * 5e5 + 32 * (40e-6 + 4.3e-8 * 1016)
    assert capacity == pytest.approx(2 / (work + 0.0075 * 1000 / 2000), rel=0.15)

    def ttft(load):
        rng, at, arrivals = Random(4), 0.0, []
        for number in range(800):
            at += rng.expovariate(load * capacity)
            arrivals.append(Arrival(at, sample(rng, number)))
        results = virtual.run(pool(1, 1), arrivals, lambda request, *_: int(request.id) % 2)
        last = sorted(results, key=lambda result: result.arrived)[-100:]
        return sum(result.ttft for result in last) / len(last)

    assert ttft(0.7) < 0.5
    assert ttft(1.4) > 2


def test_capacity_follows_the_speed_of_the_servers():
    def sample(_rng, number):
        return Request(str(number), 1000, 16)

    whole = virtual.capacity(lambda: pool(1, 1), sample, Random(1))
    half = virtual.capacity(lambda: pool(0.5, 0.5), sample, Random(1))
    assert half == pytest.approx(whole / 2)
