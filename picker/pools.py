"""The pools that the control plane tells us of, fed by xDS."""

from collections.abc import Callable

from picker.profile import PoolState
from xds.client import Feed
from xds.pool import EndpointId, Observation, PoolName
from xds.snapshot import TypeUrl
from xds.wire import decode_loads, decode_pool


class Pools:
    """Every pool by name. `clock` is the one that picks are made in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[PoolName, PoolState] = {}
        self._loads: dict[PoolName, dict[EndpointId, Observation]] = {}

    def get(self, name: PoolName) -> PoolState | None:
        return self._states.get(name)

    def names(self) -> list[PoolName]:
        return sorted(self._states)

    def feeds(self) -> list[Feed]:
        """What to follow."""
        return [
            Feed(TypeUrl.POOL, self._apply_pool, self._remove_pool),
            Feed(TypeUrl.POOL_LOAD, self._apply_loads, self._remove_loads),
        ]

    def _apply_pool(self, name: str, body: bytes) -> None:
        view = decode_pool(body)
        if (state := self._states.get(name)) is not None:
            state.update(view)
        else:
            self._states[name] = PoolState(view)
            self._states[name].observe(self._loads.get(name, {}))

    def _remove_pool(self, name: str) -> None:
        self._states.pop(name, None)

    def _apply_loads(self, name: str, body: bytes) -> None:
        # Loads of a pool that has not come yet are kept: the two types travel apart.
        loads = self._loads[name] = decode_loads(body, self._clock())
        if (state := self._states.get(name)) is not None:
            state.observe(loads)

    def _remove_loads(self, name: str) -> None:
        self._loads.pop(name, None)
