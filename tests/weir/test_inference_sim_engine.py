from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.inference_sim import tokens
from weir.inference_sim.engine import Engine, EngineConfig, RequestRefused
from weir.inference_sim.sequence import Request
from weir.inference_sim.timing import Timing


def small(**changes):
    return EngineConfig(
        **{
            "blocks": 41,
            "block_size": 4,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 16,
            **changes,
        }
    )


def hashes(group, length, size=4):
    return tuple(hash((group, index)) for index in range(length // size))


def drive(engine, steps=10_000):
    """Run until idle: (finished in order, instants of the ends of steps)."""
    now, finished, ends = 0.0, [], []
    for _ in range(steps):
        step = engine.schedule(now)
        if step is None:
            return finished, ends
        now += step.seconds
        ends.append(now)
        finished += [each for each in engine.complete(now) if each.done]
    raise AssertionError("the engine does not come to rest")


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        ((0, 0, 0, 0), 0.0075),
        ((1000, 0, 0, 0), 0.0355),
        ((0, 10, 0, 0), 0.0079),
        ((0, 0, 100_000, 0), 0.0118),
        ((0, 0, 0, 1e7), 0.0159),
        ((1000, 10, 100_000, 1e7), 0.0486),
    ],
)
def test_a_step_takes_what_its_parts_take(work, seconds):
    assert Timing().step_seconds(*work) == pytest.approx(seconds)
    assert Timing(speed=0.25).step_seconds(*work) == pytest.approx(4 * seconds)


def test_a_request_takes_a_step_for_its_prompt_and_one_for_each_further_token():
    engine = Engine(EngineConfig())
    sequence = engine.submit(Request("r", 1000, 3), now=0.0)
    _, ends = drive(engine)
    first = 0.0075 + 28e-6 * 1000 + 0.84e-9 * 1000 * 500
    second = 0.0075 + 40e-6 + 4.3e-8 * 1001
    third = 0.0075 + 40e-6 + 4.3e-8 * 1002
    assert ends == pytest.approx([first, first + second, first + second + third])
    assert sequence.first_token_at == ends[0]
    assert sequence.last_token_at == ends[2]
    assert sequence.finished


def test_a_long_prompt_is_computed_in_chunks_that_share_steps_with_decodes():
    engine = Engine(EngineConfig(max_num_batched_tokens=256))
    engine.submit(Request("decoding", 10, 50), now=0.0)
    engine.complete(engine.schedule(0.0).seconds)
    engine.submit(Request("long", 600, 1), now=0.0)
    shapes = []
    for _ in range(3):
        step = engine.schedule(0.0)
        shapes.append((step.decode_seqs, step.prefill_tokens))
        engine.complete(0.0)
    assert shapes == [(1, 255), (1, 255), (1, 90)]


def test_what_is_submitted_during_a_step_waits_for_the_next():
    engine = Engine(small())
    engine.submit(Request("a", 4, 1), now=0.0)
    engine.schedule(0.0)
    engine.submit(Request("b", 4, 1), now=0.0)
    assert (engine.running, engine.waiting) == (1, 1)
    assert [each.request.id for each in engine.complete(1.0)] == ["a"]
    with pytest.raises(RuntimeError, match="no step is under way"):
        engine.complete(1.0)


def test_a_batch_never_holds_more_sequences_than_it_may():
    engine = Engine(small(max_num_seqs=3))
    for number in range(9):
        engine.submit(Request(str(number), 2, 4), now=0.0)
    engine.schedule(0.0)
    assert (engine.running, engine.waiting) == (3, 6)


requests = st.lists(
    st.tuples(
        st.integers(0, 3),  # group: requests of one share their prefix
        st.integers(1, 60),
        st.integers(1, 30),
        st.sampled_from([None, "a", "b", "c"]),
        st.integers(0, 6),  # steps before it arrives
        st.booleans(),  # aborted later
    ),
    max_size=14,
)


class Checked:
    """An engine driven with its limits checked at every step."""

    def __init__(self, config):
        self.engine, self.now, self.gained = Engine(config), 0.0, Counter()

    def step(self):
        engine = self.engine
        planned = engine.schedule(self.now)
        if planned is None:
            return False
        assert 0 < planned.prefill_tokens + planned.decode_seqs <= 16
        assert engine.running <= 8
        held = {block for sequence in engine._running for block in sequence.blocks}
        assert len(held) == engine.blocks.usable - engine.blocks.free
        users = {each.request.adapter for each in engine._running} - {None}
        assert users <= set(engine.adapters.loaded)
        assert len(engine.adapters.loaded) <= 2
        self.now += planned.seconds
        self.gained.update(each.request.id for each in engine.complete(self.now))
        return True

    def finish(self):
        while self.step():
            assert self.now < 10_000
        assert self.engine.blocks.free == self.engine.blocks.usable
        assert (self.engine.running, self.engine.waiting, self.engine.deferred) == (0, 0, 0)
        assert self.engine.answering == {}


@settings(deadline=None)
@given(requests=requests, blocks=st.integers(24, 60))
def test_every_request_gets_exactly_its_tokens_and_every_block_comes_back(requests, blocks):
    checked = Checked(small(blocks=blocks, max_loras=2, lora_load_seconds=1.0))
    sequences, doomed = [], []
    for number, (group, prompt, output, adapter, steps, aborted) in enumerate(requests):
        for _ in range(steps):
            checked.step()
        chain = hashes((group, adapter), prompt + output)
        request = Request(str(number), prompt, output, chain, adapter)
        sequences.append(checked.engine.submit(request, checked.now))
        if aborted:
            doomed.append(request.id)
            checked.engine.abort(doomed[len(doomed) // 2])
    for request_id in doomed:
        checked.engine.abort(request_id)
    checked.finish()
    for sequence in sequences:
        request = sequence.request
        assert sequence.done
        assert sequence.generated == checked.gained[request.id]
        assert sequence.cached_tokens < request.prompt_tokens
        if request.id not in doomed:
            assert sequence.generated == request.output_tokens
            assert sequence.tokens == request.prompt_tokens + request.output_tokens


texts = st.lists(
    st.tuples(st.text("ab", min_size=1, max_size=40), st.integers(1, 6)), min_size=1, max_size=12
)


@settings(deadline=None)
@given(texts=texts)
def test_prefix_hits_are_what_comparing_bytes_would_find(texts):
    engine = Engine(small(blocks=2000, block_size=2))
    width, seen, hits = 2 * tokens.TOKEN_BYTES, [], 0
    for number, (prompt, output) in enumerate(texts):
        raw = prompt.encode()
        whole = raw + tokens.answer(raw, "m", 0, output).encode()
        request = Request(str(number), tokens.count(raw), output, tokens.chain(whole, 2))
        sequence = engine.submit(request, now=0.0)
        drive(engine)
        limit = (request.prompt_tokens - 1) // 2
        expected = 0
        for other, computed in seen:
            agreeing = 0
            while (
                agreeing < min(limit, computed)
                and raw[: (agreeing + 1) * width] == other[: (agreeing + 1) * width]
                and len(raw) >= (agreeing + 1) * width
            ):
                agreeing += 1
            expected = max(expected, agreeing)
        assert sequence.cached_tokens == 2 * expected
        hits += sequence.cached_tokens
        # The last token of an answer is never fed back, so it is in no block.
        seen.append((whole, min((sequence.tokens - 1) // 2, len(whole) // width)))
    assert engine.prefix_hits == hits
    assert engine.prefix_queries == sum(tokens.count(prompt.encode()) for prompt, _ in texts)


def test_the_next_turn_of_a_conversation_finds_the_answer_in_the_cache():
    engine = Engine(small(blocks=500, max_num_batched_tokens=64))
    engine.submit(Request("one", 40, 41, hashes("talk", 81)), now=0.0)
    drive(engine)
    second = engine.submit(Request("two", 100, 1, hashes("talk", 101)), now=0.0)
    drive(engine)
    assert second.cached_tokens == 80


def test_a_prefix_is_found_while_the_request_that_computes_it_still_runs():
    engine = Engine(small(blocks=500, max_num_batched_tokens=64))
    engine.submit(Request("one", 40, 30, hashes("x", 40)), now=0.0)
    second = engine.submit(Request("two", 40, 1, hashes("x", 40)), now=0.0)
    step = engine.schedule(0.0)
    assert second.cached_tokens == 36, "never the last token"
    assert step.prefill_tokens == 40 + 4


def test_a_prefix_that_was_not_used_for_longest_is_evicted_first():
    engine = Engine(small(blocks=31, max_num_batched_tokens=64))
    for name in ("old", "newer"):
        engine.submit(Request(name, 40, 1, hashes(name, 40)), now=0.0)
        drive(engine)
    engine.submit(Request("old again", 40, 1, hashes("old", 40)), now=0.0)
    engine.submit(Request("other", 76, 1, hashes("other", 76)), now=0.0)
    drive(engine)
    old = engine.submit(Request("old once more", 40, 1, hashes("old", 40)), now=0.0)
    newer = engine.submit(Request("newer again", 40, 1, hashes("newer", 40)), now=0.0)
    drive(engine)
    assert newer.cached_tokens < old.cached_tokens == 36


def test_when_blocks_run_out_the_newest_is_preempted_and_recomputed():
    engine = Engine(small(blocks=21, max_num_batched_tokens=64))
    old = engine.submit(Request("old", 36, 24), now=0.0)
    new = engine.submit(Request("new", 36, 24), now=0.0)
    finished, _ = drive(engine)
    assert [each.request.id for each in finished] == ["old", "new"]
    assert (old.preemptions, new.preemptions) == (0, 1)
    assert engine.preemptions == 1
    assert new.generated == 24
    assert engine.prefix_queries == 72, "a preempted sequence's lookup is not counted again"


def test_a_request_that_does_not_fit_holds_up_those_behind_it():
    engine = Engine(small(blocks=21, max_num_batched_tokens=64))
    engine.submit(Request("large", 60, 4), now=0.0)
    engine.complete(engine.schedule(0.0).seconds)
    engine.submit(Request("large too", 60, 4), now=0.0)
    engine.submit(Request("small", 4, 4), now=0.0)
    engine.schedule(0.0)
    assert (engine.running, engine.waiting) == (1, 2)


def test_loading_an_adapter_holds_up_the_step_and_is_done_once():
    engine = Engine(small(max_loras=1, lora_load_seconds=2.0))
    engine.submit(Request("first", 4, 1, adapter="a"), now=0.0)
    first = engine.schedule(0.0)
    engine.complete(first.seconds)
    engine.submit(Request("second", 4, 1, adapter="a"), now=0.0)
    second = engine.schedule(0.0)
    assert (first.load_seconds, second.load_seconds) == (2.0, 0.0)
    assert first.seconds == pytest.approx(second.seconds + 2.0)


def test_an_adapter_without_a_slot_is_passed_over_and_keeps_its_place():
    engine = Engine(small(max_loras=1))
    names = count()

    def submit(adapter, output):
        return engine.submit(Request(f"r{next(names)}", 4, output, adapter=adapter), now=0.0)

    submit("a", 3)
    passed, behind, base = submit("b", 1), submit("a", 1), submit(None, 1)
    engine.schedule(0.0)
    assert (engine.running, engine.waiting, engine.deferred) == (3, 1, 1)
    assert engine.answering == {}, "nobody has shown a token yet"
    engine.complete(0.0)
    assert engine.answering == {"a": 1}
    assert behind.done
    assert base.done
    finished, _ = drive(engine)
    assert finished[-1] is passed
    assert engine.deferred == 0
    assert engine.answering == {}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("r", 0, 1), "at least one token"),
        (Request("r", 1, 0), "at least one token"),
        (Request("r", 150, 11), "needs 161 tokens, the cache holds 160"),
        (Request("r", 1, 1, adapter="a"), "max_loras is 0"),
        (Request("there", 1, 1), "already being served"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused(request_, words):
    engine = Engine(small())
    engine.submit(Request("there", 1, 1), now=0.0)
    with pytest.raises(RequestRefused, match=words):
        engine.submit(request_, now=0.0)


def test_a_configuration_that_could_not_work_is_refused():
    with pytest.raises(ValueError, match="at least max_num_seqs"):
        EngineConfig(max_num_seqs=300, max_num_batched_tokens=299)
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        EngineConfig(block_size=0)
    with pytest.raises(ValueError, match="speed"):
        Timing(speed=0)


def test_aborting_gives_back_blocks_at_once_even_during_a_step():
    engine = Engine(small())
    engine.submit(Request("a", 10, 10), now=0.0)
    engine.submit(Request("waiting", 10, 10), now=0.0)
    engine.schedule(0.0)
    assert engine.abort("a")
    assert engine.abort("waiting")
    assert engine.blocks.usage == 0
    assert engine.complete(1.0) == []
    assert not engine.abort("a")
    assert engine.schedule(1.0) is None
