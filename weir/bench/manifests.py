"""One pool over the benchmark's servers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write(
    config: Path,
    endpoints: Sequence[str],
    *,
    policy: str = "pick",
    annotations: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the manifests of pool bench/pool; `annotations` are of Pods, by their address."""
    config.mkdir(parents=True, exist_ok=True)
    port = int(endpoints[0].rpartition(":")[2]) if endpoints else 8000
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {
                "name": "pool",
                "namespace": "bench",
                "annotations": {"weir.dev/policy": policy},
            },
            "spec": {
                "selector": {"matchLabels": {"app": "bench"}},
                "targetPorts": [{"number": port}],
            },
        }
    ]
    for number, endpoint in enumerate(endpoints):
        address = endpoint.rpartition(":")[0]
        said = dict((annotations or {}).get(address, {}))
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"server-{number}",
                    "namespace": "bench",
                    "labels": {"app": "bench"},
                    "annotations": said,
                },
                "status": {"podIP": address},
            }
        )
    draft = config / "pool.new"
    draft.write_text(yaml.safe_dump_all(documents))
    draft.rename(config / "pool.yaml")
