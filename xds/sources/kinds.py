"""The kinds that we ask an API server for: where each is found, and what becomes of its JSON.

Only what is used stays in memory. Of a Pod that is under a kilobyte, and Pods that have finished
are not asked for at all (a field selector does that; one that finishes then comes as deleted). Long
annotations, which other programs keep their state in, are cut. Gateways, HTTPRoutes and Istio's
kinds stay JSON, without managedFields.

A kind that moved is asked for where it was and where it is. InferencePools of both groups count,
and of two of one name the v1 does. InferenceObjectives and InferenceModelRewrites of the group that
they left count only as long as the new one is not installed, as for the reference picker.

Nodes say where a Pod is (region, zone), for a mesh. They belong to the cluster: who may look into
some namespaces only does not ask for them, and goes by what Pods say themselves.

EndpointSlices are not asked for unless somebody wants them. A pool selects Pods, not a Service, and
the conditions in a slice are computed from the same Pods: `serving` is their Ready condition,
`terminating` their deletionTimestamp (kubernetes/endpointslice, podToEndpoint). They would come one
controller later and say nothing new.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from xds import manifests
from xds.manifests import ALPHA_GROUP, LLMD_GROUP, POOL_GROUP, Manifest, ManifestError
from xds.sources import answers
from xds.sources.answers import Malformed

SOURCE = "kubernetes"
ANNOTATION_LENGTH = 1024
RUNNING = "status.phase!=Failed,status.phase!=Succeeded"

Document: TypeAlias = dict[str, Any]
Item: TypeAlias = Manifest | Document


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind at one place in the API."""

    group: str
    version: str
    plural: str
    name: str
    typed: type[manifests.Kind] | None = None  # None: it stays JSON
    convert: Callable[[Document], Document] | None = None
    fields: str = ""  # a field selector
    in_effect: bool = True  # does anything follow from such an object?
    of_cluster: bool = False  # it has no namespace

    @property
    def resource(self) -> str:
        """As kubectl calls it: "inferencepools.inference.networking.k8s.io", "pods"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "") -> str:
        """Of the collection; of all namespaces where none is given."""
        root = f"/apis/{self.group}" if self.group else "/api"
        inside = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}/{self.version}{inside}/{self.plural}"

    def permission(self, namespace: str = "") -> str:
        """What a Role or ClusterRole has to say for us to see it."""
        return self.grant("get, list and watch", namespace)

    def grant(self, verbs: str, namespace: str = "") -> str:
        """The same, for these verbs."""
        role = f"a Role in namespace '{namespace}'" if namespace else "a ClusterRole"
        return (
            f"{verbs} on '{self.plural}' of API group '{self.group}' in {role}, "
            "bound to our service account"
        )

    def parse(self, item: Raw) -> Item:
        """Raises `Malformed`."""
        try:
            if self.typed is None:
                return _without_managed_fields(msgspec.json.decode(item))
            if self.typed in LAX:
                return Manifest(SOURCE, _slim(msgspec.json.decode(item, type=self.typed)))
            document = msgspec.json.decode(item, type=dict[str, Any])
            if self.convert is not None:
                document = self.convert(document)
            return manifests.convert(document, self.typed, SOURCE)
        except ManifestError as error:
            raise Malformed(str(error)) from error
        except msgspec.MsgspecError as error:
            where = "/".join(answers.head(item).key)
            raise Malformed(f"{SOURCE}: {self.name} {where}: {error}") from error


LAX = (
    *(manifests.Pod, manifests.Node, manifests.Service, manifests.EndpointSlice),
    manifests.PeerAuthentication,
)


def _without_managed_fields(document: Any) -> Document:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict):
        raise Malformed("not an object with metadata")
    metadata.pop("managedFields", None)
    return dict(document)


def _slim(item: Any) -> Any:
    """Without what other programs keep in annotations."""
    metadata = item.metadata
    if all(len(value) <= ANNOTATION_LENGTH for value in metadata.annotations.values()):
        return item
    cut = {key: value[:ANNOTATION_LENGTH] for key, value in metadata.annotations.items()}
    return msgspec.structs.replace(
        item, metadata=msgspec.structs.replace(metadata, annotations=cut)
    )


POOL = Kind(POOL_GROUP, "v1", "inferencepools", "InferencePool", manifests.InferencePool)
ALPHA_POOL = Kind(
    ALPHA_GROUP,
    "v1alpha2",
    "inferencepools",
    "InferencePool",
    manifests.InferencePool,
    convert=manifests.upgrade,
)
POD = Kind("", "v1", "pods", "Pod", manifests.Pod, fields=RUNNING)
NODE = Kind("", "v1", "nodes", "Node", manifests.Node, of_cluster=True)
SERVICE = Kind("", "v1", "services", "Service", manifests.Service)
OBJECTIVE, ALPHA_OBJECTIVE = (
    Kind(
        group,
        "v1alpha2",
        "inferenceobjectives",
        "InferenceObjective",
        manifests.InferenceObjective,
    )
    for group in (LLMD_GROUP, ALPHA_GROUP)
)
REWRITE, ALPHA_REWRITE = (
    Kind(
        group,
        "v1alpha2",
        "inferencemodelrewrites",
        "InferenceModelRewrite",
        manifests.InferenceModelRewrite,
        in_effect=False,
    )
    for group in (LLMD_GROUP, ALPHA_GROUP)
)
MODEL = Kind(
    ALPHA_GROUP,
    "v1alpha2",
    "inferencemodels",
    "InferenceModel",
    manifests.InferenceModel,
    in_effect=False,
)
PEER_AUTHENTICATION = Kind(
    "security.istio.io",
    "v1",
    "peerauthentications",
    "PeerAuthentication",
    manifests.PeerAuthentication,
)
GATEWAY = Kind("gateway.networking.k8s.io", "v1", "gateways", "Gateway")
ROUTE = Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
ENVOY_FILTER = Kind("networking.istio.io", "v1alpha3", "envoyfilters", "EnvoyFilter")
DESTINATION_RULE = Kind("networking.istio.io", "v1", "destinationrules", "DestinationRule")
VIRTUAL_SERVICE = Kind("networking.istio.io", "v1", "virtualservices", "VirtualService")
GATEWAY_CLASS = Kind(
    "gateway.networking.k8s.io", "v1", "gatewayclasses", "GatewayClass", of_cluster=True
)
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", of_cluster=True)
ENDPOINT_SLICE = Kind(
    "discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", manifests.EndpointSlice
)

POOLS = (POOL, ALPHA_POOL)
ALWAYS = (
    *POOLS,
    POD,
    NODE,
    SERVICE,
    OBJECTIVE,
    ALPHA_OBJECTIVE,
    REWRITE,
    ALPHA_REWRITE,
    MODEL,
    GATEWAY,
    ROUTE,
)
# For who answers for istiod's clusters, beside those.
MESH = (PEER_AUTHENTICATION,)
MAKE_POOLS = (*POOLS, POD, SERVICE, OBJECTIVE, ALPHA_OBJECTIVE, PEER_AUTHENTICATION)
# For who wires pools into istiod's proxies, beside what pools are made of.
ISTIO = (ENVOY_FILTER, DESTINATION_RULE, VIRTUAL_SERVICE, GATEWAY_CLASS, NAMESPACE)
MOVED: Mapping[Kind, Kind] = {ALPHA_OBJECTIVE: OBJECTIVE, ALPHA_REWRITE: REWRITE}
