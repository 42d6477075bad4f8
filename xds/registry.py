"""Objects of Kubernetes → pools: which Pods a pool selects, on which ports, under which policy.

There are two ways to take a fault. `pools` is for manifests from files: it raises on the first one,
and whoever has the file keeps what was good. `Standing` is for objects of an API server, which are
there whatever we think of them: a fault costs what it concerns and nothing else, and is told as a
`Problem`. Of a bad annotation the last good value stands, of a pool that cannot be one its last
good form, and of two objects that claim the same the first.

When one Pod changes, the pools of its namespace are made anew. What the others came to is taken
from the time before, as long as they are the same values; who is gone is forgotten.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol, TypeAlias

from xds.exposition import ENGINES
from xds.istio import assignment as istio
from xds.istio.peer_authentication import PeerAuthentications
from xds.manifests import (
    InferenceObjective,
    InferencePool,
    Manifest,
    ManifestError,
    Node,
    PeerAuthentication,
    Pod,
    Service,
)
from xds.pool import Endpoint, EndpointId, IstioCluster, Mesh, Objective, Policy, Pool, PoolName
from xds.problems import Problem, Reason
from xds.tuning import PREFIX, Fault, LastGood, ObjectKey, On, read

ENGINE_LABELS = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
PORTS = range(1, 65536)
GONE = frozenset({"Failed", "Succeeded"})

Values: TypeAlias = Mapping[str, Any]  # what annotations say, by field


class _Made(NamedTuple):
    """An endpoint, and what it was made of."""

    endpoint: Endpoint
    pod: Pod  # what its annotations come to goes with it
    node: Node | None
    plaintext: bool

    def of(self, pod: Pod, node: Node | None, *, plaintext: bool) -> bool:
        return self.pod is pod and self.node is node and self.plaintext is plaintext


# By namespace and name of a Pod, port, and the pool's engine.
_Members: TypeAlias = dict[tuple[str, str, int, str], _Made]


class _Judge(Protocol):
    """What becomes of faults."""

    def values(self, manifest: Manifest, on: On) -> Values:
        """What the annotations of an object come to."""

    def form(self, manifest: Manifest, pool: InferencePool, wrong: str) -> InferencePool | None:
        """The pool to go by; `wrong` says why this cannot be one, or nothing."""

    def twin(self, manifest: Manifest, first: Manifest) -> None:
        """An object that is there already; it is passed over."""

    def no_address(self, manifest: Manifest, right: str) -> None:
        """A Pod that cannot be reached; it is no member."""

    def doubt(self, manifest: Manifest, reason: Reason, right: str, value: str = "") -> None:
        """Something that is allowed, and may not be meant."""


def pools(manifests: Iterable[Manifest], istio_domain: str = "") -> dict[PoolName, Pool]:
    """Every InferencePool with its endpoints. Raises `ManifestError`.

    With the mesh's `istio_domain` ("cluster.local") also the clusters that istiod makes of a pool,
    and of the Services that select what the pool selects.
    """
    return _pools(manifests, istio_domain, _Strict(), {})[0]


class _Strict:
    def values(self, manifest: Manifest, on: On) -> Values:
        said = read(manifest.object.metadata.annotations, on)
        for fault in said.faults:
            where = f"{manifest.where}: metadata.annotations[{PREFIX}{fault.knob}]"
            but = f", not {fault.value!r}" if fault.reason is Reason.BAD_VALUE else ""
            raise ManifestError(f"{where}: {fault.right}{but}")
        return said.values

    def form(self, manifest: Manifest, pool: InferencePool, wrong: str) -> InferencePool | None:
        if wrong:
            raise ManifestError(f"{manifest.where}: {wrong}")
        return pool

    def twin(self, manifest: Manifest, first: Manifest) -> None:
        raise ManifestError(f"{manifest.where}: already in {first.source}; remove one")

    def no_address(self, manifest: Manifest, right: str) -> None:
        raise ManifestError(f"{manifest.where}: {right}")

    def doubt(self, manifest: Manifest, reason: Reason, right: str, value: str = "") -> None:
        """A file may say that, and nobody listens."""


@dataclass(slots=True)
class Standing:
    """What stands, of objects that are bad now; one owner, synchronous.

    What was good is an object's, not a name's: made anew under its name, it starts with nothing.
    """

    istio_domain: str = ""
    last_good: LastGood = field(default_factory=LastGood)
    _forms: dict[ObjectKey, tuple[str, InferencePool]] = field(default_factory=dict)
    _problems: list[Problem] = field(default_factory=list)
    _said: dict[ObjectKey, tuple[Manifest, Values, Sequence[Fault]]] = field(default_factory=dict)
    _members: _Members = field(default_factory=dict)

    def pools(self, manifests: Iterable[Manifest]) -> tuple[dict[PoolName, Pool], list[Problem]]:
        """Every pool that there is, and what is wrong with the objects now. Never raises."""
        manifests = list(manifests)
        keys = {manifest.key for manifest in manifests}
        self.last_good.keep(keys)
        self._forms = {key: form for key, form in self._forms.items() if key in keys}
        self._said = {key: said for key, said in self._said.items() if key in keys}
        self._problems = []
        found, self._members = _pools(manifests, self.istio_domain, self, self._members)
        return found, list(dict.fromkeys(self._problems))

    def values(self, manifest: Manifest, on: On) -> Values:
        key, annotations = manifest.key, manifest.object.metadata.annotations
        said = self._said.get(key)
        if said is None or said[0] is not manifest:
            read = self.last_good.read(key, _uid(manifest), annotations, on)
            said = self._said[key] = manifest, *read
        _, values, faults = said
        for each in faults:
            self._problems.append(
                _problem(manifest, each.reason, each.right, each.value, each.knob)
            )
        return values

    def form(self, manifest: Manifest, pool: InferencePool, wrong: str) -> InferencePool | None:
        if not wrong:
            self._forms[manifest.key] = _uid(manifest), pool
            return pool
        self.doubt(manifest, Reason.INVALID, wrong)
        uid, form = self._forms.get(manifest.key, ("", None))
        return form if uid == _uid(manifest) else None

    def twin(self, manifest: Manifest, first: Manifest) -> None:
        right = f"another {manifest.key[0]} of this name is from {first.source}; remove one"
        self.doubt(manifest, Reason.DUPLICATE, right)

    def no_address(self, manifest: Manifest, right: str) -> None:
        self.doubt(manifest, Reason.INVALID_ADDRESS, right)

    def doubt(self, manifest: Manifest, reason: Reason, right: str, value: str = "") -> None:
        self._problems.append(_problem(manifest, reason, right, value))


def _problem(
    manifest: Manifest, reason: Reason, right: str, value: str = "", knob: str = ""
) -> Problem:
    kind, namespace, name = manifest.key
    version = getattr(manifest.object, "api_version", "") or "v1"
    return Problem(kind, namespace, name, reason, right, knob, value, _uid(manifest), version)


def _uid(manifest: Manifest) -> str:
    return str(getattr(manifest.object.metadata, "uid", ""))  # files have none


class _Tuned(NamedTuple):
    """A pool as it stands, and what its annotations come to."""

    manifest: Manifest
    pool: InferencePool
    values: Values


_TunedPod: TypeAlias = tuple[Manifest, Pod, Values]


class _Pods:
    """Pods and what their annotations come to, by each of their labels; what others say of them."""

    def __init__(self, before: _Members) -> None:
        self.nodes: dict[str, Node] = {}
        self.policies: list[PeerAuthentication] = []
        self.members: _Members = {}
        self._authentications: dict[str, PeerAuthentications] = {}  # of a namespace
        self._before = before
        self._by_label: dict[tuple[str, tuple[str, str]], list[_TunedPod]] = defaultdict(list)

    def add(self, manifest: Manifest, pod: Pod, values: Values) -> None:
        each, namespace = (manifest, pod, values), pod.metadata.namespace
        for item in pod.metadata.labels.items():
            self._by_label[namespace, item].append(each)

    def selected(self, pool: InferencePool) -> list[_TunedPod]:
        namespace, wanted = pool.metadata.namespace, pool.spec.selector.match_labels.items()
        lists = [self._by_label.get((namespace, item), []) for item in wanted]
        fewest = min(lists, key=len)
        return [each for each in fewest if wanted <= each[1].metadata.labels.items()]

    def endpoint(self, pod: Pod, port: int, values: Values, engine: str) -> Endpoint:
        """The one of before, where all that it was made of is."""
        node = self.nodes.get(pod.spec.node_name)
        key = pod.metadata.namespace, pod.metadata.name, port, engine
        plaintext = bool(self.policies) and self._takes_plaintext(pod, port)
        made = self._before.get(key)
        if made is None or not made.of(pod, node, plaintext=plaintext):
            mesh = _mesh(pod, node, plaintext=plaintext)
            made = _Made(_endpoint(pod, port, values, engine, mesh), pod, node, plaintext)
        self.members[key] = made
        return made.endpoint

    def _takes_plaintext(self, pod: Pod, port: int) -> bool:
        namespace = pod.metadata.namespace
        if namespace not in self._authentications:
            found = PeerAuthentications.of(self.policies, namespace)
            self._authentications[namespace] = found
        return self._authentications[namespace].disable(pod.metadata.labels, port)


def _pools(
    manifests: Iterable[Manifest], domain: str, judge: _Judge, before: _Members
) -> tuple[dict[PoolName, Pool], _Members]:
    tuned: dict[PoolName, _Tuned] = {}
    pods = _Pods(before)
    objectives: dict[PoolName, list[Objective]] = {}
    services: list[Service] = []
    seen: dict[ObjectKey, Manifest] = {}
    for manifest in manifests:
        if (first := seen.setdefault(manifest.key, manifest)) is not manifest:
            judge.twin(manifest, first)
            continue
        item = manifest.object
        match item:
            case InferencePool():
                form = judge.form(manifest, item, _wrong(item))
                values = judge.values(manifest, On.POOL)
                if form is not None:
                    tuned[_pool_name(item)] = _Tuned(manifest, form, values)
            case Pod():
                pods.add(manifest, item, judge.values(manifest, On.POD))
            case Node():
                pods.nodes[item.metadata.name] = item
            case PeerAuthentication():
                pods.policies.append(item)
            case Service():
                services.append(item)
            case InferenceObjective():
                name = f"{item.metadata.namespace}/{item.spec.pool_ref.name}"
                objective = Objective(item.metadata.name, item.spec.priority)
                objectives.setdefault(name, []).append(objective)
            case _:
                pass  # of no consequence to pools
    found = {
        name: Pool(
            name=name,
            endpoints=_endpoints(each, pods, judge),
            policy=replace(Policy(), **{k: v for k, v in each.values.items() if k != "engine"}),
            objectives=tuple(sorted(objectives.get(name, []), key=lambda one: one.name)),
            istio_clusters=_istio_clusters(each.pool, services, domain),
        )
        for name, each in sorted(tuned.items())
    }
    _tell_of_shared(found, tuned, judge)
    return found, pods.members


def _tell_of_shared(
    found: Mapping[PoolName, Pool], tuned: Mapping[PoolName, _Tuned], judge: _Judge
) -> None:
    """Two pools may have one endpoint. Each serves it, and knows nothing of the other's requests
    but what the endpoint's load says of them.
    """
    owners: dict[EndpointId, PoolName] = {}
    for name, pool in found.items():
        firsts = {owners.setdefault(each.id, name) for each in pool.endpoints} - {name}
        for first in sorted(firsts):
            right = f"has endpoints of {first} too, and both serve them; give each its own Pods"
            judge.doubt(tuned[name].manifest, Reason.SHARED_ENDPOINTS, right, first)


def _pool_name(pool: InferencePool) -> PoolName:
    return f"{pool.metadata.namespace}/{pool.metadata.name}"


def _wrong(pool: InferencePool) -> str:
    """Why this cannot be a pool, or nothing."""
    spec = pool.spec
    if not spec.target_ports:
        return "spec.targetPorts: at least one port"
    for index, port in enumerate(spec.target_ports):
        if port.number not in PORTS:
            return f"spec.targetPorts[{index}].number: 1 to 65535, not {port.number}"
    if not spec.selector.match_labels:
        return "spec.selector.matchLabels: at least one label"
    return ""


def _istio_clusters(
    pool: InferencePool, services: Iterable[Service], domain: str
) -> tuple[IstioCluster, ...]:
    if not domain:
        return ()
    namespace, ports = pool.metadata.namespace, {port.number for port in pool.spec.target_ports}
    found = [istio.pool_cluster(namespace, pool.metadata.name, domain)]
    for service in services:
        alike = service.spec.selector == pool.spec.selector.match_labels
        own = service.metadata.name == istio.shadow_service(pool.metadata.name)
        if service.metadata.namespace == namespace and alike and not own:
            for port in service.spec.ports:
                target = port.port if port.target_port is None else port.target_port
                if isinstance(target, int) and target in ports:
                    name = service.metadata.name
                    found += istio.service_clusters(namespace, name, port.port, target, domain)
    return tuple(found)


def _workload(pod: Pod) -> str:
    """The name of what the Pod belongs to, a Deployment's without its ReplicaSet's hash."""
    if not pod.metadata.owners:
        return pod.metadata.name
    owner = pod.metadata.owners[0]
    return owner.name.removesuffix("-" + pod.metadata.labels.get("pod-template-hash", ""))


def _endpoints(tuned: _Tuned, pods: _Pods, judge: _Judge) -> tuple[Endpoint, ...]:
    """One endpoint a Pod and port. A Pod without an address is not there yet, and no fault."""
    selected = pods.selected(tuned.pool)
    if not selected:
        labels = ",".join(f"{k}={v}" for k, v in tuned.pool.spec.selector.match_labels.items())
        judge.doubt(tuned.manifest, Reason.NO_PODS, f"no Pod of its namespace has {labels}")
    chosen: dict[EndpointId, tuple[Endpoint, Manifest]] = {}
    for manifest, pod, values in selected:
        if not pod.status.pod_ip or pod.status.phase in GONE:
            continue
        if not _is_address(pod.status.pod_ip):
            judge.no_address(manifest, f"status.podIP: an IP address, not {pod.status.pod_ip!r}")
            continue
        for port in dict.fromkeys(each.number for each in tuned.pool.spec.target_ports):
            if not _is_active(port, pod):
                continue
            new = pods.endpoint(pod, port, values, tuned.values.get("engine", ""))
            if new.id not in chosen:
                chosen[new.id] = new, manifest
                continue
            winner, loser = sorted([chosen[new.id], (new, manifest)], key=_standing)
            chosen[new.id] = winner
            if not loser[0].draining:
                right = f"{new.id} is also {winner[0].pod}'s; only one of them can listen there"
                judge.doubt(loser[1], Reason.ADDRESS_CONFLICT, right, winner[0].pod)
    return tuple(chosen[name][0] for name in sorted(chosen))


@lru_cache(maxsize=65536)
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _standing(rival: tuple[Endpoint, Manifest]) -> tuple[bool, bool, str]:
    """Who of several has an address: those that are ready first."""
    endpoint, _ = rival
    return not endpoint.ready, endpoint.draining, endpoint.pod


def _is_active(port: int, pod: Pod) -> bool:
    """Whether a Pod has somebody at this target port of its pool; without an annotation, it has.

    "8000, 8002" names ports; what is no number names none. As the reference picker reads it.
    """
    annotations = pod.metadata.annotations
    said = next((annotations[key] for key in ACTIVE_PORTS if key in annotations), None)
    return said is None or str(port) in {each.strip() for each in said.split(",")}


def _endpoint(pod: Pod, port: int, values: Values, engine: str, mesh: Mesh) -> Endpoint:
    address, labels = pod.status.pod_ip, pod.metadata.labels
    labelled = next((labels[key] for key in ENGINE_LABELS if labels.get(key) in ENGINES), "")
    return Endpoint(
        id=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        pod=f"{pod.metadata.namespace}/{pod.metadata.name}",
        address=address,
        port=port,
        ready=_is_ready(pod),
        draining=values.get("draining", False) or pod.metadata.deletion_timestamp is not None,
        speed=values.get("speed", 1.0),
        priority=values.get("priority", 0),
        engine=engine or labelled or "vllm",
        mesh=mesh,
    )


def _mesh(pod: Pod, node: Node | None, *, plaintext: bool) -> Mesh:
    meta = pod.metadata
    place = node.metadata.labels if node is not None else {}
    found = istio.mesh(_workload(pod), meta.namespace, meta.labels, meta.annotations, place)
    return replace(found, plaintext=True) if plaintext else found


def _is_ready(pod: Pod) -> bool:
    said = [each.status for each in pod.status.conditions if each.type == "Ready"]
    return said[-1] == "True" if said else True
