"""Where pools come from, as the rest of the control plane sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

from xds.latest import Latest
from xds.pool import Pool, PoolName
from xds.problems import Problem

Pools: TypeAlias = Mapping[PoolName, Pool]


class Source(Protocol):
    """Publishes pools. What is wrong is said, and leaves what was good."""

    @property
    def pools(self) -> Latest[Pools]:
        """The newest pools; worth something only once `complete` has returned."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the source, or keeps a part of it from being read."""

    @property
    def faults(self) -> Sequence[Problem]:
        """What is wrong with single objects that were read."""

    async def complete(self) -> None:
        """Return once the pools are all that there are: half of them would take the rest away."""

    async def run(self) -> None:
        """Follow what changes, until cancelled."""

    def status(self, now: float) -> dict[str, Any]:
        """How the source is doing, as `describe` writes it."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The objects of one kind, as `/status` shows them."""

    kind: str
    objects: int
    namespace: str = ""  # that it was asked for; "" is all
    in_effect: bool = True  # does anything follow from such objects?
    state: str = "watching"
    age_seconds: float | None = 0.0  # since the source last spoke of this kind; None: never did
    stale: bool = False
    lists: int = 1
    failures: int = 0
    refused: int = 0  # objects whose last good version stands, or that were left out
    problem: str = ""


def describe(
    name: str, holdings: list[Holding], *, complete: bool, not_in_effect: list[str]
) -> dict[str, Any]:
    """`not_in_effect` names objects that are there and that nothing follows from."""
    return {
        "name": name,
        "complete": complete,
        "kinds": [asdict(each) for each in holdings],
        "not_in_effect": not_in_effect,
    }
