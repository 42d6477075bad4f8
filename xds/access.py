"""Who may see which pools: from an authenticated identity and its node, never from what is asked.

A client that proved who it is sees the pools of its own namespace, and those that a grant adds:

    - namespace: edge                # of the identity; glob patterns, "*" where left out
      serviceAccount: gateway
      proxyType: router              # of the node: router, waypoint, sidecar, picker
      labels: {team: search}         # of the node: all of them
      pools: [search/*, chat/llama]

A node is what a proxy says of itself. It can only narrow: one that claims another namespace than
its identity's is refused, and a ztunnel, which balances no pool, sees nothing. On a plaintext port
nobody proves anything and everybody sees everything; that port has to be asked for by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from xds.pool import PoolName

PROXY_TYPES = ("router", "waypoint", "sidecar", "ztunnel")


@dataclass(frozen=True, slots=True)
class Identity:
    """A Kubernetes service account that a certificate or a token proved; `how` is for people."""

    namespace: str
    account: str
    how: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.account}"


@dataclass(frozen=True, slots=True)
class Node:
    """What a client says of itself. Istio's ids are "type~ip~pod.namespace~domain"."""

    id: str = ""
    kind: str = ""
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    build: str = ""  # what it runs: two clients of one build judge alike
    tunnels: bool = True  # does it open HBONE tunnels, where a Pod takes them?

    @staticmethod
    def of(message: Any) -> "Node":
        """From an envoy.config.core.v3.Node."""
        parts = message.id.split("~")
        istio = len(parts) == 4 and parts[0] in PROXY_TYPES
        fields = message.metadata.fields
        namespace = _text(fields, "NAMESPACE")
        if istio and not namespace:
            namespace = parts[2].rpartition(".")[2]
        labels = fields["LABELS"].struct_value.fields if "LABELS" in fields else {}
        return Node(
            id=message.id,
            kind=parts[0] if istio else ("picker" if "picker" in message.user_agent_name else ""),
            namespace=namespace,
            labels={key: labels[key].string_value for key in labels},
            build=_build(message, fields),
            tunnels=not (
                _is_true(fields, "DISABLE_HBONE_SEND") or _text(fields, "GENERATOR") == "grpc"
            ),
        )


def _build(message: Any, fields: Any) -> str:
    number = message.user_agent_build_version.version
    version = message.user_agent_version or (
        f"{number.major_number}.{number.minor_number}.{number.patch}"
        if message.HasField("user_agent_build_version")
        else ""
    )
    istio = _text(fields, "ISTIO_VERSION")
    return " ".join(part for part in (message.user_agent_name, version, istio) if part)


def _text(fields: Any, name: str) -> str:
    return str(fields[name].string_value) if name in fields else ""


def _is_true(fields: Any, name: str) -> bool:
    """Istio's StringBool: a bool, or a string that Go's ParseBool takes."""
    said = _text(fields, name)
    return said in ("1", "t", "T", "true", "TRUE", "True") or (
        name in fields and fields[name].bool_value
    )


@dataclass(frozen=True, slots=True)
class Scope:
    """The pools that a client may see, as patterns of "<namespace>/<pool>", and in which form."""

    patterns: frozenset[str]
    tunnels: bool = True

    def admits(self, pool: PoolName) -> bool:
        return any(fnmatchcase(pool, pattern) for pattern in self.patterns)

    @property
    def everything(self) -> bool:
        return "*" in self.patterns

    @property
    def namespace(self) -> str | None:
        """The one namespace that is seen whole, if that is all there is to see."""
        if len(self.patterns) != 1:
            return None
        namespace, _, rest = next(iter(self.patterns)).partition("/")
        return namespace if rest == "*" and not set(namespace) & set("*?[") else None


EVERYTHING = Scope(frozenset({"*"}))
NOTHING = Scope(frozenset())


@dataclass(frozen=True, slots=True)
class Grant:
    """One row of the grants file."""

    pools: tuple[str, ...]
    namespace: str = "*"
    account: str = "*"
    kind: str = "*"
    labels: Mapping[str, str] = field(default_factory=dict)

    def covers(self, identity: Identity, node: Node) -> bool:
        return (
            fnmatchcase(identity.namespace, self.namespace)
            and fnmatchcase(identity.account, self.account)
            and fnmatchcase(node.kind, self.kind)
            and all(node.labels.get(key) == value for key, value in self.labels.items())
        )


class Denied(Exception):
    """The client is not who it says, or says nothing; it gets no stream."""


def scope_of(identity: Identity | None, node: Node, grants: Sequence[Grant] = ()) -> Scope:
    """What this client may see; an identity of None is one on the plaintext port.

    Raises `Denied` where node and identity contradict each other.
    """
    seen = _seen(identity, node, grants)
    return seen if node.tunnels else replace(seen, tunnels=False)


def _seen(identity: Identity | None, node: Node, grants: Sequence[Grant]) -> Scope:
    if identity is None:
        return EVERYTHING
    if node.namespace and node.namespace != identity.namespace:
        raise Denied(f"node '{node.id}' claims namespace '{node.namespace}', but is {identity}")
    if node.kind == "ztunnel":
        return NOTHING
    granted = {pool for grant in grants if grant.covers(identity, node) for pool in grant.pools}
    return EVERYTHING if "*" in granted else Scope(frozenset({f"{identity.namespace}/*", *granted}))


class GrantsError(ValueError):
    """The grants file is wrong; the message names the row and the field."""


_FIELDS = {
    "namespace": "namespace",
    "serviceAccount": "account",
    "proxyType": "kind",
    "labels": "labels",
    "pools": "pools",
}


def parse_grants(document: Any) -> tuple[Grant, ...]:
    """A YAML or JSON document as grants. Raises `GrantsError`."""
    if document is None:
        return ()
    if not isinstance(document, list):
        raise GrantsError("a list of grants is expected")
    return tuple(_grant(row, f"[{number}]") for number, row in enumerate(document))


def _grant(row: Any, where: str) -> Grant:
    if not isinstance(row, dict):
        raise GrantsError(f"{where}: a mapping is expected")
    if unknown := row.keys() - _FIELDS.keys():
        raise GrantsError(f"{where}.{min(map(str, unknown))}: no such field")
    pools = row.get("pools")
    if not _strings(pools) or not pools:
        raise GrantsError(f"{where}.pools: a list of patterns such as 'team/*' is expected")
    for name in ("namespace", "serviceAccount", "proxyType"):
        if not isinstance(row.get(name, ""), str):
            raise GrantsError(f"{where}.{name}: a string is expected")
    labels = row.get("labels", {})
    if not isinstance(labels, dict) or not _strings([*labels, *labels.values()]):
        raise GrantsError(f"{where}.labels: a mapping of strings is expected")
    return Grant(**{_FIELDS[key]: value for key, value in (row | {"pools": tuple(pools)}).items()})


def _strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
