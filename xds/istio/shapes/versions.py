"""What each Istio version allows: tier by shape by version, and how we know.

    run    istiod's own generators of that version, a real Envoy, and Weir's parts
    read   in Istio's and Envoy's sources and release notes

Only 1.32 was run. Weights need an endpoint source of ours, which every shape has; affinity needs a
hash key inside the policy, which Envoy has since 1.35 (Istio 1.27); a pick needs override_host,
there since 1.27 too, and from 1.30 on it also says where the request was served.
"""

from dataclasses import dataclass
from enum import Enum

from xds.istio.shapes.wiring import OLDEST, PATCHING_LISTS, SERVED_KEY, Shape, Version
from xds.pool import Tier

VERSIONS = tuple(Version(1, minor) for minor in range(27, 33))
RUN = Version(1, 32)
TIERS = (Tier.PICK, Tier.AFFINITY, Tier.WEIGHTS)
NEEDS_INFERENCE = frozenset(
    {Shape.GATEWAY, Shape.GATEWAY_OWN_CLUSTER, Shape.WAYPOINT_INFERENCEPOOL}
)


class Verdict(Enum):
    YES = "yes"
    PARTLY = "partly"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Cell:
    verdict: Verdict
    evidence: str  # "run" or "read"
    why: str = ""


def cell(shape: Shape, tier: Tier, version: Version) -> Cell:
    evidence = "run" if version == RUN else "read"
    if reason := refusal(shape, version):
        return Cell(Verdict.NO, "read", reason)
    if tier is Tier.PICK and version < SERVED_KEY:
        why = "picks are honoured, but the picker is not told where a request was served"
        return Cell(Verdict.PARTLY, evidence, why)
    if version > RUN:
        return Cell(Verdict.PARTLY, evidence, "newer than what was looked at; nothing known")
    return Cell(Verdict.YES, evidence)


def refusal(shape: Shape, version: Version) -> str:
    """Why this version cannot have this shape; nothing if it can."""
    if version < VERSIONS[0]:
        return f"Istio before {VERSIONS[0]} has no hash key in the policy and no override_host"
    if shape is Shape.GATEWAY and version < PATCHING_LISTS:
        return "MERGE_AND_REPLACE_LIST came with Istio 1.32; use gateway-own-cluster"
    if shape in NEEDS_INFERENCE and version < OLDEST:
        return "Istio 1.27 knows InferencePool v1alpha2 alone, and Weir v1"
    return ""
