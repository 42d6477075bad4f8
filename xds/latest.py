"""A value that changes, and a way to wait until it has.

Readers see the newest value and skip the ones between: a slow stream costs itself freshness,
never memory. This is the only way state crosses from one task to another.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Hold one value; wake whoever waits when it is replaced."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        return self._value

    def publish(self, value: T) -> None:
        """Replace the value. Publishing an equal value wakes nobody."""
        if value == self._value:
            return
        self._value = value
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self) -> AsyncIterator[T]:
        """Yield the current value, then every later one this reader is in time for."""
        while True:
            changed, value = self._changed, self._value
            yield value
            await changed.wait()
