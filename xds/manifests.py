"""Kubernetes manifests as typed objects: InferencePool, InferenceObjective, Pod, Service.

InferencePool and InferenceObjective are read strictly, an unknown field is an error, because a
misspelt field in them is a pool that silently does something else. Of Pods and Services, which have
hundreds of fields, only those below are looked at. Kinds that mean nothing to us are passed over.

Schemas: inference.networking.k8s.io/v1 InferencePool and inference.networking.x-k8s.io/v1alpha2
InferenceObjective of gateway-api-inference-extension v1; core/v1 Pod.
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
OBJECTIVE_GROUP = "inference.networking.x-k8s.io"


class ManifestError(ValueError):
    """A manifest is wrong; the message names the file, the object, the field, and the way out."""


class Owner(Struct, frozen=True):
    kind: str
    name: str


class Metadata(Struct, frozen=True):
    name: str
    namespace: str = "default"
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


class Condition(Struct, frozen=True):
    type: str
    status: str


class PodStatus(Struct, frozen=True):
    pod_ip: str = field(default="", name="podIP")
    phase: str = ""
    conditions: list[Condition] = []


class Pod(Struct, frozen=True):
    metadata: Metadata
    status: PodStatus = PodStatus()
    kind: str = "Pod"


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


Kinds: TypeAlias = Mapping[tuple[str, str], type[Any]]  # by group and kind
Kind: TypeAlias = InferencePool | InferenceObjective | Pod | Service
KINDS: dict[tuple[str, str], type[Kind]] = {
    (POOL_GROUP, "InferencePool"): InferencePool,
    (OBJECTIVE_GROUP, "InferenceObjective"): InferenceObjective,
    ("", "Pod"): Pod,
    ("", "Service"): Service,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object, and where it stands: "pool.yaml: InferencePool demo/llama"."""

    source: str
    object: Kind

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
