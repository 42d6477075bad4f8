"""EnvoyFilters, applied as istiod applies them: the operations that we use, and its silences.

istiod refuses little and says nothing where a patch finds nothing. Here every patch that changed
nothing is told of (`Silence`), since a shape that silently does not apply is what we look for, and
what we do not know (a field of a match, an operation, a type) is an error. `test_istiods_rules.py`
holds it to a real istiod.

    CLUSTER        ADD, MERGE, MERGE_AND_REPLACE_LIST, REMOVE
    HTTP_FILTER    INSERT_FIRST, INSERT_BEFORE, MERGE
    HTTP_ROUTE     MERGE, MERGE_AND_REPLACE_LIST

Sources are files of istio/istio (1.32-dev) in pilot/pkg:

    which filters, in which order    model/push_context.go, model/policyattachment.go
    clusters                         networking/core/cluster.go, envoyfilter/cluster_patch.go
    filters                          envoyfilter/listener_patch.go, http_filter_patch.go
    routes                           envoyfilter/rc_patch.go, core/listener_waypoint.go

What istiod does differently from what one expects:

- A waypoint takes no `workloadSelector`: its EnvoyFilters name it in `targetRefs`.
- `context: WAYPOINT` never matches. On a waypoint listeners and routes are SIDECAR_INBOUND,
  outbound clusters SIDECAR_OUTBOUND; ADD of a cluster needs SIDECAR_INBOUND, ANY does not do.
- On a waypoint only outbound clusters are merged or removed: inbound-vip, main_internal and the
  like never, on a gateway all but connect_originate.
- Routes of a waypoint's Service are patched only while the Service has no HTTPRoute.
- All clusters are merged before any is added: what a filter adds, no filter merges.
- A second cluster of one name is dropped.
- INSERTs of HTTP filters go before MERGEs, whatever their order.

Not covered: MERGE of a cluster's `transport_socket`, which istiod does in a way of its own.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.route.v3 import Route
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter

from integration.merging import merge
from integration.messages import TYPE, UnknownTypeError, canonical, message_class, snake

MERGES = ("MERGE", "MERGE_AND_REPLACE_LIST")
INSERTS = ("INSERT_FIRST", "INSERT_BEFORE")
APPLIES_TO = {
    "CLUSTER": (Cluster, ("ADD", "REMOVE", *MERGES)),
    "HTTP_FILTER": (HttpFilter, (*INSERTS, "MERGE")),
    "HTTP_ROUTE": (Route, MERGES),
}
CONTEXTS = ("ANY", "GATEWAY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "WAYPOINT")
MATCHES = {
    "CLUSTER": {"cluster": {"name": str}},
    "HTTP_FILTER": {
        "listener": {
            "name": str,
            "filter_chain": {"name": str, "filter": {"name": str, "sub_filter": {"name": str}}},
        }
    },
    "HTTP_ROUTE": {
        "route_configuration": {"name": str, "vhost": {"name": str, "route": {"name": str}}}
    },
}
MANAGER = "envoy.filters.network.http_connection_manager"
REFERENCED = "envoyfilter.istio.io/referenced-services"
NOTHING = "nothing matched"


class EnvoyFilterError(ValueError):
    """istiod would refuse it, or we do not know how it would take it."""


class Kind(Enum):
    GATEWAY = "gateway"
    WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True)
class Proxy:
    """Whom istiod configures: a proxy of the Gateway `gateway`."""

    kind: Kind
    gateway: str
    namespace: str = "ns"
    labels: dict[str, str] = field(default_factory=dict)
    gateway_class: str = "istio-waypoint"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a proxy gets, as JSON with the protocol's field names."""

    clusters: list[dict[str, Any]]
    listeners: list[dict[str, Any]]
    routes: list[dict[str, Any]] = field(default_factory=list)


class Silence(NamedTuple):
    """A patch that changed nothing: of which EnvoyFilter, its index there, and why."""

    filter: str
    patch: int
    why: str


@dataclass(slots=True, eq=False)
class _Patch:
    filter: str
    index: int
    applies_to: str
    operation: str
    context: str
    match: dict[str, Any]
    value: dict[str, Any]
    applied: bool = False
    why: str = NOTHING

    def found(self, context, *path, name):
        """Does the patch match in this context, and what it says at `path` of its match?"""
        if self.context not in ("ANY", context):
            return False
        wanted = self.match
        for each in path:
            wanted = wanted.get(each, {})
        return wanted.get("name", name) == name


def apply(filters, proxy, configuration, *, root_namespace="istio-system"):
    """The configuration as `filters` (documents) leave it, and a `Silence` for each idle patch.

    Raises `EnvoyFilterError`.
    """
    patches, silences = [], []
    for each in in_order(filters, root_namespace):
        name = _name(each)
        found = [_patch(name, *item) for item in enumerate(_spec(each).get("config_patches", []))]
        if why := _other(each, proxy, root_namespace):
            silences += [Silence(name, patch.index, why) for patch in found]
        else:
            patches += found
    result = deepcopy(configuration)
    clusters = _clusters([p for p in patches if p.applies_to == "CLUSTER"], proxy, result.clusters)
    _filters([p for p in patches if p.applies_to == "HTTP_FILTER"], proxy, result.listeners)
    _routes([p for p in patches if p.applies_to == "HTTP_ROUTE"], proxy, result)
    silences += [Silence(p.filter, p.index, p.why) for p in patches if not p.applied]
    return Configuration(clusters, result.listeners, result.routes), silences


def in_order(filters, root_namespace="istio-system"):
    """By priority, the root namespace first, by creation and name."""

    def place(each):
        metadata = each["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        created = str(metadata.get("creationTimestamp", ""))
        priority = _spec(each).get("priority", 0)
        return priority, namespace != root_namespace, created, f"{name}.{namespace}"

    return sorted(filters, key=place)


def selected(filters, proxy, *, root_namespace="istio-system"):
    """Those of the filters that are for this proxy."""
    return [each for each in filters if not _other(each, proxy, root_namespace)]


def referenced_services(filters):
    """Hosts whose outbound clusters a waypoint gets because a filter's annotation asks for them."""
    texts = (each["metadata"].get("annotations", {}).get(REFERENCED, "") for each in filters)
    return {host.strip().rpartition("/")[2] for text in texts for host in text.split(",") if host}


def _name(document):
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"


def _spec(document):
    return {snake(key): value for key, value in document["spec"].items()}


def _other(document, proxy, root_namespace):
    """Why the filter is not for this proxy; "" where it is."""
    namespace, spec = document["metadata"]["namespace"], _spec(document)
    if namespace not in (proxy.namespace, root_namespace):
        return f"it is in another namespace than the proxy, {proxy.namespace}"
    if references := spec.get("target_refs"):
        if any(_is_target(each, namespace, proxy, root_namespace) for each in references):
            return ""
        return f"no targetRef names Gateway {proxy.gateway}"
    if proxy.kind is Kind.WAYPOINT:
        return "a waypoint takes only EnvoyFilters with targetRefs"
    wanted = spec.get("workload_selector", {}).get("labels", {})
    return "" if wanted.items() <= proxy.labels.items() else "its workloadSelector is another's"


def _is_target(reference, namespace, proxy, root_namespace):
    if reference.get("group") != "gateway.networking.k8s.io":
        return False
    if reference["kind"] == "GatewayClass":
        return namespace == root_namespace and reference["name"] == proxy.gateway_class
    own = namespace == proxy.namespace
    return own and (reference["kind"], reference["name"]) == ("Gateway", proxy.gateway)


def _patch(name, index, raw):
    where = f"EnvoyFilter {name}, spec.configPatches[{index}]"
    raw = {snake(key): value for key, value in raw.items()}
    applies_to, patch = raw.get("apply_to"), raw.get("patch", {})
    if applies_to not in APPLIES_TO:
        raise EnvoyFilterError(f"{where}.applyTo: one of {', '.join(APPLIES_TO)}, not {applies_to}")
    cls, operations = APPLIES_TO[applies_to]
    operation = patch.get("operation")
    if operation not in operations:
        known = ", ".join(operations)
        raise EnvoyFilterError(f"{where}.patch.operation: one of {known}, not {operation}")
    match = raw.get("match", {})
    context = match.get("context", "ANY")
    if context not in CONTEXTS:
        raise EnvoyFilterError(f"{where}.match.context: one of {CONTEXTS}, not {context}")
    try:
        value = canonical(cls, patch.get("value", {}))
    except (KeyError, ValueError, TypeError, UnknownTypeError) as error:
        raise EnvoyFilterError(f"{where}.patch.value: {error}") from error
    if applies_to == "CLUSTER" and operation in MERGES and "transport_socket" in value:
        raise EnvoyFilterError(f"{where}.patch.value.transport_socket: its merge is not covered")
    known = {"context": str, **MATCHES[applies_to]}
    if context == "WAYPOINT":
        known["waypoint"] = object
    match = _known_match(match, known, f"{where}.match")
    return _Patch(name, index, applies_to, operation, context, match, value)


def _known_match(match, known, where):
    found = {}
    for key, value in match.items():
        if (kind := known.get(snake(key))) is None:
            raise EnvoyFilterError(f"{where}.{key}: not known here; known are {', '.join(known)}")
        inner = isinstance(kind, dict)
        found[snake(key)] = _known_match(value, kind, f"{where}.{key}") if inner else value
    return found


def _context(proxy, *, outbound=False):
    if proxy.kind is Kind.GATEWAY:
        return "GATEWAY"
    return "SIDECAR_OUTBOUND" if outbound else "SIDECAR_INBOUND"


def _clusters(patches, proxy, clusters):
    kept = []
    for cluster in clusters:
        if not _is_patched(cluster["name"], proxy):
            _explain(patches, cluster["name"])
            kept.append(cluster)
        elif _merge_cluster(patches, _context(proxy, outbound=True), cluster):
            kept.append(cluster)
    context = _context(proxy)
    for patch in patches:
        if patch.operation != "ADD":
            continue
        # Without a context a cluster is added for gateways and for what sidecars call, only.
        if patch.context != context and (patch.context != "ANY" or proxy.kind is Kind.WAYPOINT):
            patch.why = f"ADD wants context {context} here, not {patch.context}"
        elif patch.value.get("name") in {each["name"] for each in kept}:
            patch.why = f"there is a cluster {patch.value['name']} already"
        else:
            kept.append(deepcopy(patch.value))
            patch.applied = True
    return kept


def _is_patched(name, proxy):
    if proxy.kind is Kind.GATEWAY:
        return name != "connect_originate"
    return name.startswith("outbound|")


def _explain(patches, name):
    for patch in patches:
        if patch.operation != "ADD" and patch.match.get("cluster", {}).get("name") == name:
            patch.why = f"istiod patches no cluster {name}"


def _merge_cluster(patches, context, cluster):
    """Whether the cluster is to stay."""
    for patch in patches:
        if patch.operation == "ADD" or not patch.found(context, "cluster", name=cluster["name"]):
            continue
        patch.applied = True
        if patch.operation == "REMOVE":
            return False
        merge(Cluster, cluster, patch.value, replace_lists=patch.operation != "MERGE")
    return True


def _filters(patches, proxy, listeners):
    context = _context(proxy)
    for listener, chain, manager in _managers(listeners):
        here = [
            patch
            for patch in patches
            if patch.found(context, "listener", name=listener["name"])
            and patch.found(context, "listener", "filter_chain", name=chain.get("name", ""))
            and patch.found(context, "listener", "filter_chain", "filter", name=MANAGER)
        ]
        for patch in here:
            if patch.operation in INSERTS:
                _insert(patch, manager["http_filters"])
        for patch in here:
            if patch.operation == "MERGE":
                patch.why = f"no filter {_sub_filter(patch)} to merge into"
        for each in manager["http_filters"]:
            for patch in here:
                if patch.operation == "MERGE" and _sub_filter(patch) == each["name"]:
                    _merge_filter(patch, each)


def _managers(listeners):
    for listener in listeners:
        last = listener.get("default_filter_chain")
        for chain in [*listener.get("filter_chains", []), *([last] if last else [])]:
            for each in chain.get("filters", []):
                if each["name"] == MANAGER:
                    yield listener, chain, each["typed_config"]


def _sub_filter(patch):
    chain = patch.match.get("listener", {}).get("filter_chain", {})
    return chain.get("filter", {}).get("sub_filter", {}).get("name")


def _insert(patch, filters):
    place, name = 0, _sub_filter(patch)
    if patch.operation == "INSERT_BEFORE" and name is not None:
        names = [each["name"] for each in filters]
        if name not in names:
            patch.why = f"no filter {name} to insert before"
            return
        place = names.index(name)
    filters.insert(place, deepcopy(patch.value))
    patch.applied = True


def _merge_filter(patch, into):
    new = patch.value.get("typed_config")
    if new is not None:
        old = into.get("typed_config")
        if old is None or old[TYPE] != new[TYPE]:
            raise EnvoyFilterError(
                f"EnvoyFilter {patch.filter}, spec.configPatches[{patch.index}]: "
                f"{new[TYPE]} cannot be merged into {into['name']}"
            )
        fields = {name: value for name, value in new.items() if name != TYPE}
        merge(message_class(new[TYPE]), old, fields)
    into["name"] = patch.value.get("name", into["name"])
    patch.applied = True


def _routes(patches, proxy, configuration):
    context = _context(proxy)
    inline = [
        manager["route_config"]
        for listener, _, manager in _managers(configuration.listeners)
        if listener["name"] == "main_internal"
    ]
    for table in configuration.routes if proxy.kind is Kind.GATEWAY else inline:
        for patch in patches:
            if patch.found(context, "route_configuration", name=table["name"]):
                _merge_routes(patch, context, table, proxy)


def _merge_routes(patch, context, table, proxy):
    within = ("route_configuration", "vhost")
    for host in table["virtual_hosts"]:
        if not patch.found(context, *within, name=host["name"]):
            continue
        for route in host.get("routes", []):
            if not patch.found(context, *within, "route", name=route.get("name", "")):
                continue
            if proxy.kind is Kind.WAYPOINT and _has_http_route(route):
                patch.why = f"{table['name']} has an HTTPRoute: istiod patches no route of it"
                continue
            merge(Route, route, patch.value, replace_lists=patch.operation != "MERGE")
            patch.applied = True


def _has_http_route(route):
    """istiod writes the object that a route was made of into its metadata; its own have none."""
    return "config" in route.get("metadata", {}).get("filter_metadata", {}).get("istio", {})
