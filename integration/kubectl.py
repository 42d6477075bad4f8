"""What kubectl does for an operator, and what a kubelet or a controller writes into status."""

import asyncio
from typing import Any

import aiohttp

from integration.apiserver import ControlPlane

Document = dict[str, Any]
APPLY = "?fieldManager=operator&force=true&fieldValidation=Strict"
DRY = "&dryRun=All"


class RefusedError(AssertionError):
    """The API server does not take it; the message is its own."""


AWAY = (aiohttp.ClientError, RefusedError)  # what to expect of an API server that comes and goes


class Kubectl:
    """By documents, as `kubectl apply --server-side` and `kubectl delete` have them."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}  # plural, has a namespace

    async def apply(self, *documents: Document) -> None:
        """In their order, a `status` with them. Raises `RefusedError`."""
        for each in documents:
            path = await self.path(each)
            said = {key: value for key, value in each.items() if key != "status"}
            await self._do("PATCH", f"{path}{APPLY}", said, "apply-patch+yaml")
            if status := each.get("status"):
                await self._do("PATCH", f"{path}/status", {"status": status}, "merge-patch+json")

    async def try_out(self, document: Document) -> None:
        """As `kubectl apply --dry-run=server`: its validation, and nothing is kept."""
        path = f"{await self.path(document)}{APPLY}{DRY}"
        await self._do("PATCH", path, document, "apply-patch+yaml")

    async def delete(self, *documents: Document) -> None:
        """At once, without grace; what is not there is no matter."""
        for each in documents:
            path = await self.path(each)
            status, answer = await self._plane.call("DELETE", path, {"gracePeriodSeconds": 0})
            if status not in (200, 404):
                raise RefusedError(f"{path}: {answer}")

    async def annotate(self, document: Document, **annotations: str | None) -> None:
        """None takes one away. Names are said with _ for -, and are of weir.dev."""
        said = {f"weir.dev/{key.replace('_', '-')}": each for key, each in annotations.items()}
        body = {"metadata": {"annotations": said}}
        await self._do("PATCH", await self.path(document), body, "merge-patch+json")

    async def get(self, document: Document) -> Document:
        return await self._do("GET", await self.path(document))

    async def list(self, api: str, kind: str, namespace: str = "") -> list[Document]:
        """All of a kind, in all namespaces unless told."""
        path = await self._collection(api, kind, namespace)
        return (await self._do("GET", path))["items"]

    async def path(self, document: Document) -> str:
        meta = document["metadata"]
        where = document["apiVersion"], document["kind"], meta.get("namespace", "")
        return f"{await self._collection(*where)}/{meta['name']}"

    async def _collection(self, api: str, kind: str, namespace: str) -> str:
        root = f"/apis/{api}" if "/" in api else f"/api/{api}"
        async with asyncio.timeout(20):
            while (api, kind) not in self._kinds:  # of a CRD that is new it takes a moment
                await self._discover(api, root)
        plural, spaced = self._kinds[api, kind]
        return (
            f"{root}/namespaces/{namespace}/{plural}"
            if spaced and namespace
            else f"{root}/{plural}"
        )

    async def _discover(self, api: str, root: str) -> None:
        status, answer = await self._plane.call("GET", root)
        for each in answer["resources"] if status == 200 else ():
            if "/" not in each["name"]:
                self._kinds[api, each["kind"]] = each["name"], each["namespaced"]
        await asyncio.sleep(0.05)

    async def _do(
        self, method: str, path: str, body: object = None, kind: str = "json"
    ) -> Document:
        status, answer = await self._plane.call(method, path, body, kind)
        if status not in (200, 201):
            raise RefusedError(f"{method} {path}: {status}: {answer}")
        return answer
