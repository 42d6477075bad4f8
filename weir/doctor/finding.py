"""A check's outcome, and what checks look at. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from weir.doctor.proxy import Proxy
from xds.pool import EndpointId

Json = Mapping[str, Any]


class Verdict(Enum):
    """How a check came out."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was seen, and what to do, if anything."""

    check: str
    verdict: Verdict
    seen: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class Sight:
    """The control plane's `/status` (of one or several replicas) and one proxy, at one time.

    `silent` are replicas that did not answer, each with why.
    """

    views: tuple[Json, ...]
    proxy: Proxy
    silent: Mapping[str, str] = field(default_factory=dict)

    def resources(self, pool: str) -> list[str]:
        """The names of the pool's assignments; empty where they are not known.

        A replica says them. Where none answers they are those of the clusters about which the
        proxy's routes ask for the pool, and istiod's name of it.
        """
        for view in self.views:
            if pool in view["pools"]:
                return [pool, *view["pools"][pool].get("clusters", [])]
        return [] if self.views else self.proxy.resources(pool)

    def tier(self, pool: str) -> str:
        """The policy that is in effect, as the annotation spells it; the default if not known."""
        return next(
            (str(view["pools"][pool]["policy"]) for view in self.views if pool in view["pools"]),
            "pick",
        )

    def picks(self, pool: str) -> dict[EndpointId, int]:
        """What pickers sent where, as far as they reported."""
        found: dict[EndpointId, int] = {}
        for view in self.views:
            for row in view.get("reports", []):
                if row["pool"] == pool and row["node"].startswith("weir-picker"):
                    for endpoint, count in row["endpoints"].items():
                        found[endpoint] = found.get(endpoint, 0) + count
        return found
