"""The Kubernetes manifests that the demo hands to `weir serve`: ordinary ones, as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from xds.pool import Tier

NAMESPACE, POOL = "demo", "llama"
POOL_NAME = f"{NAMESPACE}/{POOL}"


def pool(tier: Tier, port: int) -> dict[str, Any]:
    """The InferencePool; `tier` is the one thing that changes between the demo's runs."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {
            "name": POOL,
            "namespace": NAMESPACE,
            "annotations": {"weir.dev/policy": tier.value},
        },
        "spec": {
            "selector": {"matchLabels": {"app": POOL}},
            "targetPorts": [{"number": port}],
            "endpointPickerRef": {
                "name": "weir-picker",
                "port": {"number": 9002},
                "failureMode": "FailOpen",
            },
        },
    }


def pod(index: int, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{POOL}-{index}",
            "namespace": NAMESPACE,
            "labels": {"app": POOL},
        },
        "status": {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def write(directory: Path, tier: Tier, addresses: Sequence[str], port: int) -> None:
    """Replace the manifests, each file in one step, as an editor or a ConfigMap would."""
    _replace(directory / "pool.yaml", pool(tier, port))
    _replace(directory / "pods.yaml", *(pod(i, a) for i, a in enumerate(addresses)))


def _replace(path: Path, *documents: dict[str, Any]) -> None:
    text = yaml.safe_dump_all(documents, sort_keys=False)
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.rename(path)
