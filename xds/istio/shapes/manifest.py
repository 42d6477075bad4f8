"""Kubernetes objects that carry the patches, and all of them as YAML for people and for GitOps."""

import re
from collections.abc import Iterable, Sequence

import yaml

from xds.istio.shapes.wiring import Host, Object, Plan, Proxy, Step, Wiring

API = "networking.istio.io/v1alpha3"
REFERENCED = "envoyfilter.istio.io/referenced-services"
MANAGED_BY = "app.kubernetes.io/managed-by"
# What PyYAML reads as text, and other parsers as a bool or a number.
AMBIGUOUS = re.compile(r"[yYnN]|[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|0[ox][\da-fA-F]+")
POOL, GATEWAY = "weir.dev/pool", "weir.dev/gateway"
SHAPE, STEP = "weir.dev/shape", "weir.dev/step"
POOLS = "weir.dev/pools"  # of what several share


def envoy_filter(
    proxy: Proxy,
    name: Sequence[str],
    patches: Sequence[Object],
    annotations: Object,
    referenced: Iterable[Host] = (),
) -> Object:
    """Patches of one proxy; `referenced` are Services whose clusters it must be given."""
    said = dict(annotations)
    if hosts := sorted({host.reference for host in referenced}):
        said[REFERENCED] = ",".join(hosts)
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": proxy.name}
    return {
        "apiVersion": API,
        "kind": "EnvoyFilter",
        "metadata": {
            "name": object_name(proxy, *name),
            "namespace": proxy.namespace,
            "labels": {MANAGED_BY: "weir"},
            "annotations": said,
        },
        "spec": {"targetRefs": [target], "configPatches": list(patches)},
    }


def object_name(proxy: Proxy, *parts: str) -> str:
    return ".".join(("weir", proxy.name, *parts))


def patch(apply_to: str, match: Object, operation: str, value: Object) -> Object:
    return {"applyTo": apply_to, "match": match, "patch": {"operation": operation, "value": value}}


def annotations(wiring: Wiring, step: int) -> Object:
    """Of what belongs to one pool; the order of removal goes by them."""
    return {POOL: wiring.member.pool, SHAPE: wiring.shape.value, **shared(wiring.proxy, step)}


def shared(proxy: Proxy, step: int) -> Object:
    """Of what several pools have in common."""
    return {GATEWAY: str(proxy), STEP: str(step)}


def to_yaml(plan: Plan, version: str, steps: Sequence[Step] | None = None) -> str:
    """The plan's objects, or those of some of its steps, with what made them and when to apply."""
    wiring, parts = plan.wiring, []
    for step in plan.steps if steps is None else steps:
        head = [
            f"# Made by `weir istio manifests` {version}.",
            f"# InferencePool {wiring.member.pool}, shape {wiring.shape.value}.",
            f"# Gateway {wiring.proxy}, Istio {wiring.istio.version}.",
            f"# Step {step.number} of {len(plan.steps)}: {step.title}.",
        ]
        if step.then:
            head.append(f"# Then: {step.then}.")
        first, *rest = [_dump(item) for item in step.objects]
        parts += ["\n".join([*head, first]), *rest]
    return "---\n".join(parts)


class _Dumper(yaml.SafeDumper):
    """Sources as they are, in block style; and every name quoted that a parser may not take for
    text. An object that stands twice is written twice.
    """

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    if AMBIGUOUS.fullmatch(text):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _dump(item: Object) -> str:
    return yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
