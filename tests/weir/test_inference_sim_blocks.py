import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference_sim.adapters import AdapterSlots
from weir.inference_sim.blocks import BlockPool


class NaivePool:
    """Free blocks as a list of what they hold, the next to be reused first."""

    def __init__(self, usable):
        self.free = [None] * usable
        self.held = []  # one list of [content, references] a block in use

    def find(self, content):
        return next((block for block in self.held if block[0] == content), None)

    def match(self, contents):
        found = 0
        for content in contents:
            if content not in self.free and self.find(content) is None:
                break
            found += 1
        return found

    def take(self, contents):
        """Blocks for these contents: shared where cached, else the least recently freed."""
        found = self.match(contents)
        fresh = len(contents) - found
        shared_free = sum(1 for content in contents[:found] if content in self.free)
        if fresh > len(self.free) - shared_free:
            return None
        taken = []
        for content in contents[:found]:
            block = self.find(content)
            if block is None:
                self.free.remove(content)
                block = [content, 0]
                self.held.append(block)
            block[1] += 1
            taken.append(block)
        for _ in range(fresh):
            self.free.pop(0)
            block = [None, 1]
            self.held.append(block)
            taken.append(block)
        for content, block in zip(contents[found:], taken[found:], strict=True):
            if content not in self.free and self.find(content) is None:
                block[0] = content
        return taken

    def release(self, taken):
        for block in reversed(taken):
            block[1] -= 1
            if not block[1]:
                self.held = [other for other in self.held if other is not block]
                self.free.insert(len(self.free) if block[0] is not None else 0, block[0])


def take(pool, contents):
    found = pool.match(contents, len(contents))
    fresh = len(contents) - len(found)
    if fresh > pool.free - pool.unreferenced(found):
        return None
    pool.share(found)
    blocks = [*found, *pool.allocate(fresh)]
    for content, block in zip(contents[len(found) :], blocks[len(found) :], strict=True):
        pool.register(block, content)
    return blocks


contents = st.tuples(st.integers(1, 4), st.integers(1, 6)).map(
    lambda drawn: [drawn[0] * 100 + depth for depth in range(drawn[1])]
)
operations = st.lists(st.one_of(contents, st.integers(0, 5)), max_size=60)


@given(usable=st.integers(1, 12), operations=operations)
def test_a_pool_shares_caches_and_evicts_like_its_naive_twin(usable, operations):
    pool, twin, held = BlockPool(usable + 1), NaivePool(usable), []
    for operation in operations:
        if isinstance(operation, int):
            if operation < len(held):
                ours, theirs = held.pop(operation)
                pool.release(ours)
                twin.release(theirs)
        else:
            assert len(pool.match(operation, 99)) == twin.match(operation)
            ours, theirs = take(pool, operation), twin.take(operation)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert len(set(ours)) == len(ours)
                held.append((ours, theirs))
        assert pool.free == len(twin.free)
        assert pool.cached == len(
            {hash_ for hash_ in twin.free if hash_ is not None}
            | {block[0] for block in twin.held if block[0] is not None}
        )
    for ours, _ in held:
        pool.release(ours)
    assert pool.free == usable
    assert pool.usage == 0


def test_the_least_recently_freed_prefix_goes_first_and_its_tail_before_its_head():
    pool = BlockPool(5)
    old, new = take(pool, [1, 2]), take(pool, [11, 12])
    pool.release(old)
    pool.release(new)
    pool.allocate(1)
    assert len(pool.match([1, 2], 9)) == 1
    pool.allocate(2)
    assert len(pool.match([1, 2], 9)) == 0
    assert len(pool.match([11, 12], 9)) == 1


def test_a_pool_never_hands_out_more_than_it_has():
    pool = BlockPool(3)
    pool.allocate(2)
    assert pool.usage == 1
    with pytest.raises(ValueError, match="1 blocks asked for, 0 free"):
        pool.allocate(1)


def test_a_reset_forgets_what_is_cached_but_is_refused_while_blocks_are_in_use():
    pool = BlockPool(4)
    held = take(pool, [1, 2])
    assert not pool.reset()
    assert len(pool.match([1, 2], 9)) == 2
    pool.release(held)
    assert pool.reset()
    assert pool.match([1, 2], 9) == []


def test_an_idle_adapter_stays_loaded_until_its_slot_is_needed():
    slots = AdapterSlots(2)
    assert slots.acquire("a")
    assert slots.acquire("b")
    assert not slots.acquire("a")
    assert not slots.admits("c")
    slots.release("b")
    assert slots.loaded == ("b", "a")
    assert slots.admits("c")
    assert slots.acquire("c")
    assert set(slots.loaded) == {"a", "c"}
    assert not slots.admits("b")
    with pytest.raises(ValueError, match="no slot for adapter 'b'"):
        slots.acquire("b")
