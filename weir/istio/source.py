"""Where the operator's objects come from: a directory of exported YAML, or the cluster itself."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xds.istio.objects import KINDS
from xds.manifests import Manifest, ManifestError, convert, read
from xds.sources import kinds
from xds.sources.connection import Cluster, Connection, Unreachable, connected
from xds.sources.kinds import Kind

SUFFIXES = (".yaml", ".yml", ".json")
PAGE = 500
LIVE = (
    *kinds.POOLS,
    kinds.SERVICE,
    kinds.GATEWAY,
    kinds.ROUTE,
    *kinds.ISTIO,
    Kind("apps", "v1", "deployments", "Deployment"),
)
ISTIOD = {"labelSelector": "app=istiod"}  # of all Deployments, the only ones that are looked at


@dataclass(frozen=True, slots=True)
class Place:
    """One of the two."""

    directory: Path | None = None
    cluster: Cluster | None = None


def manifests(place: Place) -> list[Manifest]:
    """Every object that says how a pool is wired. Raises `ManifestError`, `ConnectionError`."""
    if place.directory is not None:
        return list(_from_files(place.directory))
    return asyncio.run(_from_cluster(place.cluster or Cluster()))


def _from_files(config: Path) -> Iterator[Manifest]:
    files = [file for file in sorted(config.rglob("*")) if file.suffix in SUFFIXES]
    if not files:
        raise ManifestError(f"{config}: no file of Kubernetes objects ({', '.join(SUFFIXES)})")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{file.name}: cannot be read: {error}") from error
        yield from read(text, str(file.relative_to(config)), KINDS)


async def _from_cluster(cluster: Cluster) -> list[Manifest]:
    found: dict[tuple[str, str, str], Manifest] = {}
    try:
        async with connected(cluster) as connection:
            for kind in LIVE:
                wanted = kind.typed or KINDS[kind.group, kind.name]
                for document in await _listed(connection, kind):
                    newest = document if kind.convert is None else kind.convert(document)
                    manifest = convert(newest, wanted, kinds.SOURCE)
                    found.setdefault(manifest.key, manifest)  # of two InferencePools the v1 counts
    except Unreachable as error:
        raise ConnectionError(f"the API server does not answer: {error}") from error
    return list(found.values())


async def _listed(connection: Connection, kind: Kind) -> list[dict[str, Any]]:
    """All objects of a kind; none where the kind is not installed."""
    documents: list[dict[str, Any]] = []
    query = {"limit": str(PAGE)} | (ISTIOD if kind.name == "Deployment" else {})
    while True:
        async with connection.request("GET", kind.path(), query) as answer:
            if answer.status == 404:
                return []
            if answer.status != 200:
                failure = await answer.failure()
                needed = f"; list on '{kind.plural}' of API group '{kind.group}' is needed"
                way_out = needed if answer.status in (401, 403) else ""
                raise ConnectionError(
                    f"{kind.resource} cannot be listed: {failure.message}{way_out}"
                )
            page = json.loads(await answer.body())
        documents += page.get("items") or []
        if not (token := page.get("metadata", {}).get("continue")):
            return documents
        query["continue"] = token
