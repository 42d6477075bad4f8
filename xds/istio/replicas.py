"""Who of a Gateway's proxies acknowledged what, as all replicas of Weir know it together. Pure.

A proxy's stream is at one replica. So each tells the others what it saw, and a replica that says
nothing has seen nothing: not known is not acknowledged. Of those that can act only the one whose
Pod's name is the smallest does. Two that both think so, for a moment, do the same thing twice.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from xds.access import PROXY_TYPES
from xds.istio.controller import Proxies
from xds.manifests import Pod

GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
KINDS = frozenset(PROXY_TYPES) - {"ztunnel"}
# Resources by the proxy's Pod, in order; one as often as there are streams that have it.
Seen: TypeAlias = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Replica:
    """One of us, as it is now."""

    name: str
    able: bool = False  # may it apply and remove, and does it know enough to?
    seen: Seen = field(default_factory=dict)

    def encode(self) -> dict[str, Any]:
        """As JSON has it."""
        seen = {pod: list(names) for pod, names in sorted(self.seen.items())}
        return {"replica": self.name, "able": self.able, "acknowledged": seen}

    @staticmethod
    def decode(document: Any) -> "Replica":
        """Raises `ValueError` for what no replica says."""
        try:
            seen = {
                str(pod): tuple(sorted(map(str, names)))
                for pod, names in document["acknowledged"].items()
            }
            return Replica(str(document["replica"]), document["able"] is True, seen)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not what a replica says: {error!r}") from error


def pod_of(node: str) -> str:
    """The Pod of an Istio proxy's node id, "<namespace>/<name>"; nothing where it is none.

    Such ids are "<kind>~<ip>~<pod>.<namespace>~<domain>".
    """
    kind, *rest = node.split("~")
    if kind not in KINDS or len(rest) != 3:
        return ""
    name, _, namespace = rest[1].rpartition(".")
    return f"{namespace}/{name}" if name and namespace else ""


def seen(clients: Iterable[tuple[str, Iterable[str]]]) -> Seen:
    """From the node id of each stream, and the assignments that its client holds."""
    found: dict[str, list[str]] = {}
    for node, names in clients:
        if pod := pod_of(node):
            found.setdefault(pod, []).extend(names)
    return {pod: tuple(sorted(names)) for pod, names in found.items()}


def leads(me: Replica, others: Iterable[Replica]) -> bool:
    """Is it this one that acts?"""
    return me.able and all(me.name <= each.name for each in others if each.able)


def proxies(pods: Iterable[Pod], replicas: Iterable[Replica]) -> dict[str, Proxies]:
    """By Gateway, its Pods that are ready and what they acknowledged, at whichever replica.

    One that is about to go still has connections, and counts as long as it is ready.
    """
    gateways: dict[str, set[str]] = {}
    for pod in pods:
        meta = pod.metadata
        if (name := meta.labels.get(GATEWAY_NAME)) and _is_ready(pod):
            gateway = gateways.setdefault(f"{meta.namespace}/{name}", set())
            gateway.add(f"{meta.namespace}/{meta.name}")
    acknowledged: dict[str, Counter[str]] = {}
    for replica in replicas:
        for where, names in replica.seen.items():
            for name in names:
                acknowledged.setdefault(name, Counter())[where] += 1
    return {name: Proxies(frozenset(found), acknowledged) for name, found in gateways.items()}


def _is_ready(pod: Pod) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions)
