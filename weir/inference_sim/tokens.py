"""Text as tokens, without a tokenizer: four bytes make a token.

Prompt and answer are one run of UTF-8 bytes. Its full blocks have chained hashes, so that two texts
share blocks exactly as far as their bytes agree, and a conversation that quotes an answer finds the
answer's blocks too. The root of the chain is the adapter's name: adapters share nothing.

An answer is words of four bytes that follow from the seed, the model and the prompt, and from
nothing else: whoever knows these knows the bytes. A longer answer begins with the shorter one.
"""

from hashlib import shake_256

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = 4

_WORDS = tuple(
    f" {first}{middle}{last}"
    for first in "bdfgklmnprstvwxz"
    for middle in "aeio"
    for last in "nrst"
)  # 256 of them: one for each value of a byte


def count(text: bytes) -> int:
    """Tokens in a text; the last may be short."""
    return -(-len(text) // TOKEN_BYTES)


def chain(text: bytes, block_size: int, adapter: str | None = None) -> tuple[int, ...]:
    """The hashes of the full blocks of a text, each over all that comes before it, 64 bits."""
    width = block_size * TOKEN_BYTES
    value = xxh3_64_intdigest((adapter or "").encode())
    hashes: list[int] = []
    for start in range(0, len(text) - width + 1, width):
        value = xxh3_64_intdigest(value.to_bytes(8, "big") + text[start : start + width])
        hashes.append(value)
    return tuple(hashes)


def answer(prompt: bytes, model: str, seed: int, tokens: int) -> str:
    """The answer to a prompt: `TOKEN_BYTES` characters a token, nothing to escape in JSON."""
    source = shake_256(b"%d\0%s\0%s" % (seed, model.encode(), prompt))
    return "".join([_WORDS[byte] for byte in source.digest(tokens)])
