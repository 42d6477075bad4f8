"""Which Pods take no mutual TLS although they have a sidecar: what PeerAuthentications come to.

istiod leaves `tlsMode: istio` out for a Pod and port whose mode is DISABLE, and so must we: a
sidecar there takes plaintext alone. From the widest to the narrowest, each but UNSET over the one
before: the mesh's (in the root namespace, without a selector), the namespace's, the workload's, and
its `portLevelMtls`. Of several of one width the oldest counts.

Source: istio/istio 1.32-dev, pilot/pkg/security/authn/policy_applier.go, ComposePeerAuthentication;
pilot/pkg/xds/endpoints/mtls_checker.go. A DestinationRule that says how to speak TLS is no matter
here: istiod then makes a cluster that does not look at `tlsMode`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xds.manifests import MutualTls, PeerAuthentication

ROOT_NAMESPACE = "istio-system"
UNSET, DISABLE = ("", "UNSET"), "DISABLE"


@dataclass(frozen=True, slots=True)
class PeerAuthentications:
    """Those that matter to the Pods of one namespace, the oldest first."""

    wide: str = ""  # the mode of the namespace, or of the mesh
    workloads: tuple[PeerAuthentication, ...] = ()

    @staticmethod
    def of(
        found: Iterable[PeerAuthentication], namespace: str, root: str = ROOT_NAMESPACE
    ) -> "PeerAuthentications":
        oldest = sorted(found, key=_age)
        wide = ""
        for place in (root, namespace):
            unselective = [
                each for each in oldest if each.metadata.namespace == place and not _labels(each)
            ]
            if unselective:
                wide = _over(wide, unselective[0].spec.mtls)
        workloads = tuple(
            each
            for each in oldest
            if each.metadata.namespace == namespace != root and _labels(each)
        )
        return PeerAuthentications(wide, workloads)

    def disable(self, labels: Mapping[str, str], port: int) -> bool:
        """Does a Pod with these labels take plaintext alone at this port?"""
        mode = self.wide
        for each in self.workloads:
            if _labels(each).items() <= labels.items():
                mode = _over(mode, each.spec.mtls)
                ports = each.spec.port_level_mtls
                mode = _over(mode, ports.get(port) or ports.get(str(port)))
                break
        return mode == DISABLE


def _age(policy: PeerAuthentication) -> tuple[str, str]:
    return str(policy.metadata.created or ""), policy.metadata.name


def _labels(policy: PeerAuthentication) -> Mapping[str, str]:
    return policy.spec.selector.match_labels if policy.spec.selector else {}


def _over(mode: str, said: MutualTls | None) -> str:
    return mode if said is None or said.mode in UNSET else said.mode
