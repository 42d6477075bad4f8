"""Objects of many kinds and namespaces → pools, namespace by namespace.

A pool selects within its namespace, hence a change concerns the pools of one namespace only; those
of the others stay the values that they were. Namespaces without a pool cost nothing. What becomes
of objects that are wrong is `registry.Standing`'s business, of which each namespace has its own.

A pool is known once the Pods of its namespace are: before that it would have no endpoints, which is
something else than not to know them. `Assembly.build` is told which namespaces are known.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from xds.manifests import InferencePool, Manifest, Pod
from xds.pool import Pool, PoolName
from xds.problems import Problem
from xds.registry import Standing
from xds.tuning import KNOBS, Knob, LastGood


@dataclass(slots=True)
class _Namespace:
    standing: Standing
    pools: Mapping[PoolName, Pool] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class Assembly:
    """The pools of all namespaces, as of the last `build`."""

    def __init__(self, istio_domain: str = "", knobs: Sequence[Knob] = KNOBS) -> None:
        self._domain = istio_domain
        self._knobs = knobs
        self._namespaces: dict[str, _Namespace] = {}

    @property
    def pools(self) -> Mapping[PoolName, Pool]:
        return {
            name: pool
            for _, each in sorted(self._namespaces.items())
            for name, pool in each.pools.items()
        }

    @property
    def problems(self) -> list[Problem]:
        return [each for _, it in sorted(self._namespaces.items()) for each in it.problems]

    def build(
        self,
        sources: Iterable[Iterable[Manifest]],
        namespaces: Iterable[str] | None = None,
        known: Callable[[str], bool] = lambda _: True,
        nodes: Mapping[str, Manifest] = MappingProxyType({}),
        everywhere: Sequence[Manifest] = (),
    ) -> None:
        """Make the pools of these namespaces anew, or of all; `nodes` by their name.

        `everywhere` are objects of one namespace that matter to the pools of all.
        Of two objects of one kind and name, the one in the earlier source counts.
        """
        wanted = None if namespaces is None else set(namespaces)
        found: defaultdict[str, list[Manifest]] = defaultdict(list)
        for source in sources:
            for manifest in source:
                namespace = manifest.object.metadata.namespace
                if wanted is None or namespace in wanted:
                    found[namespace].append(manifest)
        for name in self._namespaces.keys() | found.keys() if wanted is None else wanted:
            has_pools = any(isinstance(each.object, InferencePool) for each in found[name])
            if has_pools and known(name):
                others = [each for each in everywhere if each.object.metadata.namespace != name]
                self._build(name, [*found[name], *_nodes_of(found[name], nodes), *others])
            else:
                self._namespaces.pop(name, None)

    def _build(self, name: str, manifests: Iterable[Manifest]) -> None:
        namespace = self._namespaces.get(name)
        if namespace is None:
            namespace = self._namespaces[name] = _Namespace(
                Standing(self._domain, LastGood(self._knobs))
            )
        namespace.pools, namespace.problems = namespace.standing.pools(manifests)


def _nodes_of(found: Iterable[Manifest], nodes: Mapping[str, Manifest]) -> list[Manifest]:
    """Those that the Pods of a namespace are on."""
    pods = (each.object for each in found if isinstance(each.object, Pod))
    names = {pod.spec.node_name for pod in pods}
    return [nodes[name] for name in sorted(names) if name in nodes]
