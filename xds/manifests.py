"""Kubernetes manifests as typed objects: InferencePool, InferenceObjective, Pod, Service, and more.

The inference kinds are read strictly, an unknown field is an error, because a misspelt field in
them is a pool that silently does something else. Of Pods, Services and EndpointSlices, which have
hundreds of fields, only those below are looked at. Kinds that mean nothing to us are passed over.

An API server has compared an object with its schema before we see it. An unknown field there is one
that is newer than we are: `convert` passes over it and says so, since an upgrade of the CRDs must
not take pools away.

Schemas: inference.networking.k8s.io/v1 InferencePool, inference.networking.x-k8s.io/v1alpha2
InferencePool, InferenceObjective, InferenceModelRewrite and InferenceModel of
gateway-api-inference-extension (v1alpha2 of the pool until v1.4, of InferenceModel until v0.5);
llm-d.ai/v1alpha2 InferenceObjective and InferenceModelRewrite, where these two went with v1.6;
core/v1 Pod and Service; discovery.k8s.io/v1 EndpointSlice; security.istio.io/v1 PeerAuthentication.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import yaml
from msgspec import Struct, field

POOL_GROUP = "inference.networking.k8s.io"
ALPHA_GROUP = "inference.networking.x-k8s.io"
LLMD_GROUP = "llm-d.ai"
ALPHA_POOL_FIELDS = ("selector", "targetPortNumber", "extensionRef")
UNKNOWN_FIELDS = 20  # that are passed over in one object


class ManifestError(ValueError):
    """A manifest is wrong; the message names the file, the object, the field, and the way out."""


class Owner(Struct, frozen=True):
    kind: str
    name: str


class Metadata(Struct, frozen=True):
    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: Any = field(default=None, name="deletionTimestamp")
    owners: list[Owner] = field(default_factory=list, name="ownerReferences")


class Selector(Struct, frozen=True, forbid_unknown_fields=True):
    match_labels: dict[str, str] = field(name="matchLabels")


class Port(Struct, frozen=True, forbid_unknown_fields=True):
    number: int


class PickerRef(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    group: str = ""
    kind: str = "Service"
    port: Port | None = None
    failure_mode: str = field(default="FailClose", name="failureMode")


class PoolSpec(Struct, frozen=True, forbid_unknown_fields=True):
    selector: Selector
    target_ports: list[Port] = field(name="targetPorts")
    endpoint_picker_ref: PickerRef | None = field(default=None, name="endpointPickerRef")
    app_protocol: str = field(default="http", name="appProtocol")


class InferencePool(Struct, frozen=True, forbid_unknown_fields=True):
    metadata: Metadata
    spec: PoolSpec
    api_version: str = field(default="", name="apiVersion")
    kind: str = "InferencePool"
    status: Any = None


class PoolRef(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    group: str = POOL_GROUP
    kind: str = "InferencePool"


class ObjectiveSpec(Struct, frozen=True, forbid_unknown_fields=True):
    pool_ref: PoolRef = field(name="poolRef")
    priority: int = 0


class InferenceObjective(Struct, frozen=True, forbid_unknown_fields=True):
    metadata: Metadata
    spec: ObjectiveSpec
    api_version: str = field(default="", name="apiVersion")
    kind: str = "InferenceObjective"
    status: Any = None


class TargetModel(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    weight: int | None = None


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True):
    model_name: str = field(name="modelName")
    pool_ref: PoolRef = field(name="poolRef")
    criticality: str | None = None
    target_models: list[TargetModel] = field(default_factory=list, name="targetModels")


class InferenceModel(Struct, frozen=True, forbid_unknown_fields=True):
    metadata: Metadata
    spec: ModelSpec
    api_version: str = field(default="", name="apiVersion")
    kind: str = "InferenceModel"
    status: Any = None


class ModelMatch(Struct, frozen=True, forbid_unknown_fields=True):
    value: str
    type: str = "Exact"


class RewriteMatch(Struct, frozen=True, forbid_unknown_fields=True):
    model: ModelMatch | None = None


class RewriteTarget(Struct, frozen=True, forbid_unknown_fields=True):
    model_rewrite: str = field(name="modelRewrite")
    weight: int | None = None


class RewriteRule(Struct, frozen=True, forbid_unknown_fields=True):
    matches: list[RewriteMatch] = []
    targets: list[RewriteTarget] = []


class RewriteSpec(Struct, frozen=True, forbid_unknown_fields=True):
    pool_ref: PoolRef = field(name="poolRef")
    rules: list[RewriteRule] = []


class InferenceModelRewrite(Struct, frozen=True, forbid_unknown_fields=True):
    metadata: Metadata
    spec: RewriteSpec
    api_version: str = field(default="", name="apiVersion")
    kind: str = "InferenceModelRewrite"
    status: Any = None


class Condition(Struct, frozen=True):
    type: str
    status: str


class PodStatus(Struct, frozen=True):
    pod_ip: str = field(default="", name="podIP")
    phase: str = ""
    conditions: list[Condition] = []


class PodSpec(Struct, frozen=True):
    node_name: str = field(default="", name="nodeName")


class Pod(Struct, frozen=True):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
    kind: str = "Pod"


class Node(Struct, frozen=True):
    metadata: Metadata
    kind: str = "Node"


class ServicePort(Struct, frozen=True):
    port: int
    target_port: int | str | None = field(default=None, name="targetPort")
    name: str = ""
    app_protocol: str = field(default="", name="appProtocol")


class ServiceSpec(Struct, frozen=True):
    selector: dict[str, str] | None = None
    ports: list[ServicePort] = []


class Service(Struct, frozen=True):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()
    kind: str = "Service"


class WorkloadSelector(Struct, frozen=True):
    match_labels: dict[str, str] = field(default_factory=dict, name="matchLabels")


class MutualTls(Struct, frozen=True):
    mode: str = "UNSET"


class PeerAuthenticationSpec(Struct, frozen=True):
    selector: WorkloadSelector | None = None
    mtls: MutualTls | None = None
    # YAML has numbers for keys, JSON has text.
    port_level_mtls: dict[int | str, MutualTls] = field(default_factory=dict, name="portLevelMtls")


class DatedMetadata(Metadata, frozen=True):
    created: Any = field(default=None, name="creationTimestamp")


class PeerAuthentication(Struct, frozen=True):
    metadata: DatedMetadata
    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()
    kind: str = "PeerAuthentication"


Kinds: TypeAlias = Mapping[tuple[str, str], type[Any]]  # by group and kind


class SliceConditions(Struct, frozen=True):
    ready: bool | None = None  # None: unknown, to be taken as true
    serving: bool | None = None
    terminating: bool | None = None


class SliceTarget(Struct, frozen=True):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class SliceEndpoint(Struct, frozen=True):
    addresses: list[str]
    conditions: SliceConditions = SliceConditions()
    target: SliceTarget | None = field(default=None, name="targetRef")
    node: str = field(default="", name="nodeName")
    zone: str = ""


class SlicePort(Struct, frozen=True):
    port: int | None = None
    name: str = ""


class EndpointSlice(Struct, frozen=True):
    metadata: Metadata
    address_type: str = field(default="IPv4", name="addressType")
    endpoints: list[SliceEndpoint] = []
    ports: list[SlicePort] = []
    kind: str = "EndpointSlice"


Kind: TypeAlias = (
    InferencePool
    | InferenceObjective
    | InferenceModel
    | InferenceModelRewrite
    | Pod
    | Node
    | Service
    | PeerAuthentication
    | EndpointSlice
)
KINDS: dict[tuple[str, str], type[Kind]] = {
    (POOL_GROUP, "InferencePool"): InferencePool,
    (ALPHA_GROUP, "InferenceObjective"): InferenceObjective,
    (LLMD_GROUP, "InferenceObjective"): InferenceObjective,
    (ALPHA_GROUP, "InferenceModel"): InferenceModel,
    (ALPHA_GROUP, "InferenceModelRewrite"): InferenceModelRewrite,
    (LLMD_GROUP, "InferenceModelRewrite"): InferenceModelRewrite,
    ("", "Pod"): Pod,
    ("", "Node"): Node,
    ("", "Service"): Service,
    ("security.istio.io", "PeerAuthentication"): PeerAuthentication,
    ("discovery.k8s.io", "EndpointSlice"): EndpointSlice,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object, and where it stands: "pool.yaml: InferencePool demo/llama"."""

    source: str
    object: Kind
    passed_over: tuple[str, ...] = ()  # fields of it that are newer than we are

    @property
    def key(self) -> tuple[str, str, str]:
        """Kind, namespace, name."""
        meta = self.object.metadata
        return type(self.object).__name__, meta.namespace, meta.name

    @property
    def where(self) -> str:
        kind, namespace, name = self.key
        return f"{self.source}: {kind} {namespace}/{name}"


def read(text: str, source: str, kinds: Kinds = KINDS) -> list[Manifest]:
    """The objects of one YAML or JSON file; `source` is what errors call it.

    With `kinds` of one's own also of these; who asks for them knows what to do with them.
    """
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise ManifestError(f"{source}: not YAML: {_one_line(error)}") from error
    return [
        manifest
        for number, document in enumerate(documents, 1)
        for item in _items(document, f"{source}: document {number}")
        for manifest in _object(item, source, number, kinds)
    ]


def convert(document: dict[str, Any], wanted: type[Kind], source: str) -> Manifest:
    """An object from an API server. Raises `ManifestError`."""
    passed_over: list[str] = []
    while True:
        try:
            return Manifest(source, msgspec.convert(document, wanted), tuple(passed_over))
        except msgspec.ValidationError as error:
            path = _remove_unknown(document, str(error))
            if path is None or len(passed_over) >= UNKNOWN_FIELDS:
                where = f"{source}: {wanted.__name__} {_name_of(document)}"
                raise ManifestError(f"{where}: {_explain(str(error), wanted)}") from error
            passed_over.append(path)


def _name_of(document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return "without metadata"
    return f"{metadata.get('namespace') or 'default'}/{metadata.get('name')}"


def _remove_unknown(document: dict[str, Any], error: str) -> str | None:
    """Take out the unknown field that msgspec complains of; its path, or None if that is not it."""
    unknown = re.search(r"unknown field `(.*?)`(?: - at `\$(.*)`)?$", error)
    if unknown is None:
        return None
    name, path = unknown[1], unknown[2] or ""
    holder: Any = document
    try:
        for step in re.findall(r"[^.\[\]]+", path):
            holder = holder[int(step) if isinstance(holder, list) else step]
        del holder[name]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return f"{path.lstrip('.')}.{name}".lstrip(".")


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """A v1alpha2 InferencePool as the v1 that it would be; what has no place there stays."""
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return document
    new = {key: value for key, value in spec.items() if key not in ALPHA_POOL_FIELDS}
    if "selector" in spec:
        new["selector"] = {"matchLabels": spec["selector"]}
    if "targetPortNumber" in spec:
        new["targetPorts"] = [{"number": spec["targetPortNumber"]}]
    extension = spec.get("extensionRef")
    if isinstance(extension, dict):
        picker = {key: value for key, value in extension.items() if key != "portNumber"}
        if "portNumber" in extension:
            picker["port"] = {"number": extension["portNumber"]}
        new["endpointPickerRef"] = picker
    return {**document, "spec": new}


class _Loader(yaml.CSafeLoader):
    """Timestamps stay text; nothing here needs dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _items(document: Any, where: str) -> Iterator[dict[str, Any]]:
    if document is None:
        return
    if not isinstance(document, dict):
        raise ManifestError(f"{where}: an object was expected, not {_kind_of(document)}")
    kind = document.get("kind")
    if not isinstance(kind, str) or not isinstance(document.get("apiVersion"), str):
        raise ManifestError(f"{where}: `apiVersion` and `kind` say what an object is; add them")
    if kind.endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            yield from _items(item, where)
    else:
        yield document


def _object(document: dict[str, Any], source: str, number: int, kinds: Kinds) -> Iterator[Manifest]:
    group, slash, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    wanted = kinds.get((group, kind))
    if wanted is None:
        close = [key for key in KINDS if key[1] == kind and key[0]]
        if close and slash:
            raise ManifestError(
                f"{source}: document {number}: {kind} of `{group}/{version}` is not supported; "
                f"write it as `{close[0][0]}`"
            )
        return
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    where = f"{source}: document {number} ({kind} {name or 'without a name'})"
    try:
        yield Manifest(source, msgspec.convert(document, wanted))
    except msgspec.ValidationError as error:
        raise ManifestError(f"{where}: {_explain(str(error), wanted)}") from error


def _explain(error: str, kind: type[Any]) -> str:
    """msgspec's message with the path first and, for a misspelt field, what may be meant."""
    message, _, path = error.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", message):
        name = unknown.group(1)
        known = difflib.get_close_matches(name, _names(kind), 1)
        hint = f"; is `{known[0]}` meant?" if known else ""
        return f"{path + '.' if path else ''}{name}: unknown field{hint}"
    if missing := re.search(r"missing required field `(.*)`", message):
        return f"{path + '.' if path else ''}{missing.group(1)}: required, and missing"
    return f"{path}: {message}" if path else message


def _names(kind: type[Any]) -> set[str]:
    names = set()
    for info in msgspec.structs.fields(kind):
        names.add(info.encode_name)
        for inner in (info.type, *getattr(info.type, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Struct):
                names |= _names(inner)
    return names


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _kind_of(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{type(value).__name__}"
