"""Objects of an API server that stay JSON, read as what they are when wiring asks for them. Pure.

What did not change is not read again. Of an object whose newest version cannot be read the last one
that could stands, if it was of the same object; else it is missing, and its namespace is told of.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import msgspec

from xds.istio.objects import KINDS
from xds.istio.shapes.inventory import Inventory, inventory
from xds.manifests import Manifest

SOURCE = "kubernetes"
Document: TypeAlias = Mapping[str, Any]
Name: TypeAlias = tuple[str, str, str]  # kind, namespace, name


class Reading:
    """One owner, synchronous."""

    def __init__(self) -> None:
        self._known: dict[Name, tuple[Document, Any]] = {}

    def inventory(
        self, objects: Iterable[Manifest], documents: Mapping[tuple[str, str], Iterable[Document]]
    ) -> tuple[Inventory, dict[str, str]]:
        """Of objects that were read already, and of documents by group and kind.

        Also, by namespace, which object there cannot be read.
        """
        before, self._known = self._known, {}
        unread: dict[str, str] = {}
        manifests = list(objects)
        for (group, kind), found in documents.items():
            for document in found:
                meta = document["metadata"]
                name = kind, str(meta.get("namespace", "")), str(meta.get("name", ""))
                try:
                    item = _read(document, KINDS[group, kind], before.get(name))
                except msgspec.ValidationError as error:
                    unread.setdefault(name[1], f"{kind} {name[1]}/{name[2]}: {error}")
                    continue
                self._known[name] = document, item
                manifests.append(Manifest(SOURCE, item))
        return inventory(manifests), unread


def _read(document: Document, wanted: type[Any], before: tuple[Document, Any] | None) -> Any:
    """Raises `msgspec.ValidationError`."""
    if before is not None and _version(before[0]) == _version(document):
        return before[1]
    try:
        return msgspec.convert(document, wanted)
    except msgspec.ValidationError:
        if before is not None and _uid(before[0]) == _uid(document):
            return before[1]
        raise


def _version(document: Document) -> Any:
    return _uid(document), document["metadata"].get("resourceVersion", id(document))


def _uid(document: Document) -> Any:
    return document["metadata"].get("uid", "")
