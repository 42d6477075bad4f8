"""The paged KV cache: blocks of a fixed size, shared by their content.

1. A block is *referenced* by the sequences that use it, or *free*. Every block is one or the other.
2. A full block has the hash of everything up to its end, so equal hashes mean equal prefixes.
3. A free block keeps its hash until it is reused: that is the prefix cache. Free blocks are reused
   least recently freed first; those without a hash, worth nothing, go before all others.
4. At most one block carries a hash. A second one with the same content stays anonymous.

Block 0 does not exist: vLLM reserves one of `num_gpu_blocks` as a null block, and computes usage
over the rest; so does this pool.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Every block of one engine, by number from 1."""

    def __init__(self, blocks: int) -> None:
        if blocks < 2:
            raise ValueError(f"at least 2 blocks (one is the null block), got {blocks}")
        self.usable = blocks - 1
        self._references = [0] * blocks
        self._hashes: list[int | None] = [None] * blocks
        self._by_hash: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks))

    @property
    def free(self) -> int:
        """Blocks nobody refers to, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Referenced blocks over usable ones; what is cached but free counts as free."""
        return 1.0 - len(self._free) / self.usable

    @property
    def cached(self) -> int:
        """Blocks that carry a hash, referenced or not."""
        return len(self._by_hash)

    def match(self, hashes: Sequence[int], limit: int) -> list[int]:
        """The blocks of the longest cached prefix, of at most `limit` blocks. Changes nothing."""
        by_hash = self._by_hash
        found: list[int] = []
        for value in hashes[:limit]:
            block = by_hash.get(value)
            if block is None:
                break
            found.append(block)
        return found

    def unreferenced(self, blocks: Sequence[int]) -> int:
        """How many of these are free now, so that `share` would use them up."""
        references = self._references
        return sum(1 for block in blocks if not references[block])

    def share(self, blocks: Sequence[int]) -> None:
        """Refer to blocks that `match` found."""
        references, free = self._references, self._free
        for block in blocks:
            if not references[block]:
                del free[block]
            references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Refer to `count` blocks whose content is forgotten. The caller has looked at `free`."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        references, hashes, free = self._references, self._hashes, self._free
        taken: list[int] = []
        for _ in range(count):
            block, _nothing = free.popitem(last=False)
            value = hashes[block]
            if value is not None:
                del self._by_hash[value]
                hashes[block] = None
            references[block] = 1
            taken.append(block)
        return taken

    def register(self, block: int, value: int) -> None:
        """Say what a full block holds, so that others find it."""
        if value not in self._by_hash and self._hashes[block] is None:
            self._by_hash[value] = block
            self._hashes[block] = value

    def release(self, blocks: Sequence[int]) -> None:
        """Stop referring to a sequence's blocks, given in their order.

        The last is freed first: a prefix is worth more than what follows it.
        """
        references, hashes, free = self._references, self._hashes, self._free
        for block in reversed(blocks):
            references[block] -= 1
            if not references[block]:
                free[block] = None
                if hashes[block] is None:
                    free.move_to_end(block, last=False)

    def reset(self) -> bool:
        """Forget every hash; refused, as by vLLM, while any block is referenced."""
        if len(self._free) != self.usable:
            return False
        self._by_hash.clear()
        self._hashes = [None] * len(self._hashes)
        return True
