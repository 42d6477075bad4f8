"""The slots that hold LoRA adapters on the accelerator.

`max_loras` adapters at most are loaded. An adapter in use by a running sequence stays; one that is
loaded but idle is replaced, least recently used first. What is loaded but idle shows in no metric
of vLLM's, which is why a picker does well to remember what it sent.
"""

from collections import OrderedDict


class AdapterSlots:
    """Which adapters are loaded, and by how many running sequences each is used."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._users: OrderedDict[str, int] = OrderedDict()  # least recently used first

    @property
    def loaded(self) -> tuple[str, ...]:
        """Least recently used first."""
        return tuple(self._users)

    def admits(self, adapter: str) -> bool:
        """Whether the adapter is loaded, or a slot can be had for it."""
        return (
            adapter in self._users
            or len(self._users) < self._slots
            or any(not users for users in self._users.values())
        )

    def acquire(self, adapter: str) -> bool:
        """Use an adapter that is admitted; true when it had to be loaded for that."""
        loading = adapter not in self._users
        if loading and len(self._users) >= self._slots:
            idle = next((name for name, users in self._users.items() if not users), None)
            if idle is None:
                raise ValueError(f"no slot for adapter {adapter!r}: all {self._slots} are in use")
            del self._users[idle]
        self._users[adapter] = self._users.get(adapter, 0) + 1
        self._users.move_to_end(adapter)
        return loading

    def release(self, adapter: str) -> None:
        """A sequence that used it no longer runs; the adapter stays loaded."""
        self._users[adapter] -= 1
