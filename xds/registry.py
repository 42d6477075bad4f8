"""Objects of Kubernetes → pools: which Pods a pool selects, on which ports, under which policy.

Annotations under `weir.dev/` tune a pool or a Pod. One that we do not know, or whose value is
wrong, is refused with the object it stands on: never ignored, never guessed.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from xds.exposition import ENGINES
from xds.istio import assignment as istio
from xds.manifests import (
    InferenceObjective,
    InferencePool,
    Manifest,
    ManifestError,
    Pod,
    Service,
)
from xds.pool import Endpoint, IstioCluster, Objective, Policy, Pool, PoolName, Tier

PREFIX = "weir.dev/"
ENGINE_LABELS = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
PORTS = range(1, 65536)

Parse: TypeAlias = Callable[[str], Any]  # raises ValueError with what would have been right


class _Tuning(NamedTuple):
    pool: InferencePool
    policy: Policy
    engine: str


def pools(manifests: Iterable[Manifest], istio_domain: str = "") -> dict[PoolName, Pool]:
    """Every InferencePool with its endpoints. Raises `ManifestError`.

    With the mesh's `istio_domain` ("cluster.local") also the clusters that istiod makes of a pool,
    and of the Services that select what the pool selects.
    """
    found: dict[PoolName, _Tuning] = {}
    pods: list[tuple[Pod, Mapping[str, Any]]] = []
    objectives: dict[PoolName, list[Objective]] = {}
    services: list[Service] = []
    seen: dict[tuple[str, str, str], Manifest] = {}
    for manifest in manifests:
        if (twin := seen.setdefault(manifest.key, manifest)) is not manifest:
            raise ManifestError(f"{manifest.where}: already in {twin.source}; remove one")
        item = manifest.object
        match item:
            case InferencePool():
                found[_pool_name(item)] = _tuning(item, manifest.where)
            case Pod():
                pods.append((item, _annotations(manifest, POD_ANNOTATIONS)))
            case Service():
                services.append(item)
            case InferenceObjective():
                name = f"{item.metadata.namespace}/{item.spec.pool_ref.name}"
                objective = Objective(item.metadata.name, item.spec.priority)
                objectives.setdefault(name, []).append(objective)
    return {
        name: Pool(
            name=name,
            endpoints=_endpoints(tuning, pods),
            policy=tuning.policy,
            objectives=tuple(sorted(objectives.get(name, []), key=lambda each: each.name)),
            istio_clusters=_istio_clusters(tuning.pool, services, istio_domain),
        )
        for name, tuning in sorted(found.items())
    }


def _pool_name(pool: InferencePool) -> PoolName:
    return f"{pool.metadata.namespace}/{pool.metadata.name}"


def _tuning(pool: InferencePool, where: str) -> _Tuning:
    spec = pool.spec
    if not spec.target_ports:
        raise ManifestError(f"{where}: spec.targetPorts: at least one port")
    for index, port in enumerate(spec.target_ports):
        if port.number not in PORTS:
            raise ManifestError(
                f"{where}: spec.targetPorts[{index}].number: 1 to 65535, not {port.number}"
            )
    if not spec.selector.match_labels:
        raise ManifestError(f"{where}: spec.selector.matchLabels: at least one label")
    said = _annotations(Manifest(where.partition(":")[0], pool), POOL_ANNOTATIONS)
    engine = said.pop("engine", "")
    return _Tuning(pool, replace(Policy(), **said), engine)


def _istio_clusters(
    pool: InferencePool, services: Iterable[Service], domain: str
) -> tuple[IstioCluster, ...]:
    if not domain:
        return ()
    namespace, ports = pool.metadata.namespace, {port.number for port in pool.spec.target_ports}
    found = [istio.pool_cluster(namespace, pool.metadata.name, domain)]
    for service in services:
        alike = service.spec.selector == pool.spec.selector.match_labels
        if service.metadata.namespace == namespace and alike:
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


def _endpoints(
    tuning: _Tuning, pods: Iterable[tuple[Pod, Mapping[str, Any]]]
) -> tuple[Endpoint, ...]:
    pool = tuning.pool
    wanted = pool.spec.selector.match_labels.items()
    chosen = [
        _endpoint(pod, port.number, said, tuning.engine)
        for pod, said in pods
        if pod.metadata.namespace == pool.metadata.namespace
        and wanted <= pod.metadata.labels.items()
        and pod.status.pod_ip
        and pod.status.phase not in ("Failed", "Succeeded")
        for port in pool.spec.target_ports
    ]
    return tuple(sorted(chosen, key=lambda endpoint: endpoint.id))


def _endpoint(pod: Pod, port: int, said: Mapping[str, Any], engine: str) -> Endpoint:
    address, labels = pod.status.pod_ip, pod.metadata.labels
    labelled = next((labels[key] for key in ENGINE_LABELS if labels.get(key) in ENGINES), "")
    return Endpoint(
        id=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        pod=f"{pod.metadata.namespace}/{pod.metadata.name}",
        address=address,
        port=port,
        ready=_is_ready(pod),
        draining=said.get("draining", False) or pod.metadata.deletion_timestamp is not None,
        speed=said.get("speed", 1.0),
        engine=engine or labelled or "vllm",
        mesh=istio.mesh(_workload(pod), pod.metadata.namespace, labels, pod.metadata.annotations),
    )


def _is_ready(pod: Pod) -> bool:
    said = [each.status for each in pod.status.conditions if each.type == "Ready"]
    return said[-1] == "True" if said else True


def _annotations(manifest: Manifest, known: Mapping[str, tuple[str, Parse]]) -> dict[str, Any]:
    """Our annotations of an object, by the field that each of them sets."""
    said = {}
    for key, value in manifest.object.metadata.annotations.items():
        if not key.startswith(PREFIX):
            continue
        path = f"{manifest.where}: metadata.annotations[{key}]"
        name = key.removeprefix(PREFIX)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"is `{PREFIX}{close[0]}` meant?" if close else f"known are {', '.join(known)}"
            raise ManifestError(f"{path}: unknown annotation; {hint}")
        target, parse = known[name]
        try:
            said[target] = parse(value)
        except ValueError as error:
            raise ManifestError(f"{path}: {error}, not {value!r}") from None
    return said


def _one_of(values: Iterable[str]) -> Parse:
    values = list(values)

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError("one of " + ", ".join(values))
        return text

    return parse


def _number(low: float, high: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{what} from {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"{what} from {low:g} to {high:g}")
        return value

    return parse


def _tier(text: str) -> Tier:
    return Tier(_one_of(tier.value for tier in Tier)(text))


def _truth(text: str) -> bool:
    return bool(_one_of(["true", "false"])(text) == "true")


def _factor(text: str) -> int:
    return round(100 * _number(1.0, 10.0, "a factor")(text))


def _seconds(text: str) -> float:
    if not text.endswith("s"):
        raise ValueError("seconds or milliseconds such as 0.2s or 200ms")
    scale, digits = (1e-3, text[:-2]) if text.endswith("ms") else (1.0, text[:-1])
    try:
        value = float(digits) * scale
    except ValueError:
        raise ValueError("seconds or milliseconds such as 0.2s or 200ms") from None
    if not 0.05 <= value <= 60:
        raise ValueError("from 50ms to 60s")
    return value


# annotation → the field that it sets, and how it is read
POOL_ANNOTATIONS: dict[str, tuple[str, Parse]] = {
    "policy": ("tier", _tier),
    "hash-balance-factor": ("hash_balance_factor", _factor),
    "scrape-interval": ("scrape_interval_seconds", _seconds),
    "engine": ("engine", _one_of(ENGINES)),
}
POD_ANNOTATIONS: dict[str, tuple[str, Parse]] = {
    "capacity": ("speed", _number(0.01, 100, "a relative capacity")),
    "drain": ("draining", _truth),
}
