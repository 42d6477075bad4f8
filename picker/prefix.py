"""Which endpoint has how much of a prompt: chained digests at boundaries, and an index of them.

A prompt is known by digests of its first 1, 2, … 8 KiB, then of lengths that grow by half, to 60.75
KiB, and of its whole if that is shorter. Two prompts share a prefix as far as the longest boundary
at which their digests agree. The window and the boundaries come from a simulation study: they lose
next to nothing against every block.

Digests that Envoy's filter made and those that we make of a body are different functions, and live
in different halves of the key space; so do the digests of different models, because adapters do not
share caches. Keys are 64 bits.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from xxhash import xxh3_64, xxh3_64_intdigest

from xds.pool import EndpointId

BOUNDARIES = (*range(1024, 8193, 1024), 12288, 18432, 27648, 41472, 62208)
WINDOW = BOUNDARIES[-1]
MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys of a prompt's beginning, and the bytes that each stands for; both ascending."""

    keys: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


NO_PREFIX = Prefix()


def ends(length: int) -> tuple[int, ...]:
    """Where a prompt of `length` bytes has digests."""
    whole = tuple(boundary for boundary in BOUNDARIES if boundary <= length)
    if 0 < length < WINDOW and length not in whole:
        return (*whole, length)
    return whole


def of_digests(model: str, digests: Sequence[str], length: int) -> Prefix:
    """From the filter's digests, eight hexadecimal digits each; nothing if they are not that."""
    places = ends(length)
    root = xxh3_64_intdigest(b"filter\0" + model.encode())
    try:
        keys = tuple((root + (int(digest, 16) << 8) + n) & MASK for n, digest in enumerate(digests))
    except ValueError:
        return NO_PREFIX
    return Prefix(keys, places) if len(keys) == len(places) else NO_PREFIX


def of_text(model: str, prompt: bytes | memoryview) -> Prefix:
    """From the prompt's bytes, as they are spelled in the body."""
    places = ends(len(prompt))
    view = memoryview(prompt)
    digest = xxh3_64(b"body\0" + model.encode())
    keys, start = [], 0
    for end in places:
        digest.update(view[start:end])
        keys.append(digest.intdigest())
        start = end
    return Prefix(tuple(keys), places)


class PrefixIndex:
    """What each endpoint's cache holds, as far as our own picks tell: an LRU an endpoint.

    Approximate on purpose: what is evicted in an engine shows only as its capacity, and erring on
    the large side costs least.
    """

    def __init__(self) -> None:
        self._holders: dict[int, set[EndpointId]] = {}
        self._held: dict[EndpointId, OrderedDict[int, int]] = {}  # key → bytes since the key before
        self._bytes: dict[EndpointId, int] = {}

    def match(self, prefix: Prefix) -> dict[EndpointId, int]:
        """Bytes of the prompt that each endpoint has; endpoints that have none are missing."""
        found: dict[EndpointId, int] = {}
        for key, end in zip(reversed(prefix.keys), reversed(prefix.ends), strict=True):
            for endpoint in self._holders.get(key, ()):
                found.setdefault(endpoint, end)
        return found

    def learn(self, endpoint: EndpointId, prefix: Prefix, capacity: float) -> None:
        """The endpoint is about to hold this prefix, in a cache of `capacity` bytes."""
        held = self._held.setdefault(endpoint, OrderedDict())
        size = self._bytes.get(endpoint, 0)
        parts = [end - start for start, end in pairwise((0, *prefix.ends))]
        # The longest first, so that it is the first to go: a prefix outlives what follows it.
        for key, part in zip(reversed(prefix.keys), reversed(parts), strict=True):
            if key not in held:
                size += part
                held[key] = part
                self._holders.setdefault(key, set()).add(endpoint)
            held.move_to_end(key)
        while size > capacity and len(held) > len(prefix.keys):
            key, part = held.popitem(last=False)
            size -= part
            self._drop(key, endpoint)
        self._bytes[endpoint] = size

    def keep(self, endpoints: Iterable[EndpointId]) -> None:
        """Forget every other endpoint."""
        for gone in self._held.keys() - set(endpoints):
            for key in self._held.pop(gone):
                self._drop(key, gone)
            self._bytes.pop(gone, None)

    def sizes(self) -> Mapping[EndpointId, int]:
        """Bytes believed to be held."""
        return self._bytes

    def _drop(self, key: int, endpoint: EndpointId) -> None:
        holders = self._holders[key]
        holders.discard(endpoint)
        if not holders:
            del self._holders[key]
