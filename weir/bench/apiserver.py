"""A small API server that keeps its promises: revisions, pages, watches that resume, 410.

Objects live in a store of this process; the server in front of it can be stopped and started on the
same port, and the store moves on meanwhile. An object is written as JSON once, when it is put:
lists and watches are made of that text.
"""

import asyncio
import itertools
import json
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from aiohttp import web

from weir.ports import free

Document: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]  # collection, namespace, name
Review: TypeAlias = Document | int  # a TokenReview's status, or that of a failed answer


class Happening(NamedTuple):
    """What became of an object at a revision."""

    revision: int
    kind: str  # "ADDED", "MODIFIED", "DELETED"
    collection: str
    namespace: str
    text: bytes  # the object


class Store:
    """Objects by collection, and a history of what happened to them."""

    def __init__(self) -> None:
        self.revision = 1
        self.history: list[Happening] = []
        self.compacted = 0  # revisions up to this one are forgotten
        self.moved = asyncio.Event()
        self.objects: dict[Key, Document] = {}
        self._texts: dict[Key, bytes] = {}

    def put(self, collection: str, item: Document) -> None:
        meta = item["metadata"]
        key = (collection, meta.setdefault("namespace", "default"), meta["name"])
        known = key in self.objects
        self.objects[key] = item
        self._texts[key] = self._happen("MODIFIED" if known else "ADDED", key, item)

    def delete(self, collection: str, name: str, namespace: str = "default") -> None:
        key = (collection, namespace, name)
        del self._texts[key]
        self._happen("DELETED", key, self.objects.pop(key))

    def texts(self, collection: str, namespace: str) -> list[bytes]:
        """The objects of a collection, in one namespace or in all (""), by name."""
        return [
            text
            for (where, ns, _), text in sorted(self._texts.items())
            if where == collection and namespace in ("", ns)
        ]

    def since(self, revision: int) -> list[Happening]:
        """What happened after a revision."""
        return self.history[bisect_right(self.history, revision, key=lambda each: each.revision) :]

    def compact(self) -> None:
        """Forget how it came to this, as etcd does every five minutes."""
        self.compacted, self.history = self.revision, []

    def wake(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    def _happen(self, kind: str, key: Key, item: Document) -> bytes:
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)
        text = json.dumps(item, separators=(",", ":")).encode()
        self.history.append(Happening(self.revision, kind, key[0], key[1], text))
        self.wake()
        return text


class ApiServer:
    """Serves a store on a port of its own; collections are "pods.", "inferencepools.group"."""

    def __init__(self, collections: Iterable[str], page: int = 2) -> None:
        self.store = Store()
        self.collections = set(collections)
        self.forbidden: set[str] = set()
        self.page = page  # at most so many objects, whatever is asked for
        self.bookmark_seconds = 60.0  # without news, before a watch is told how far it is
        self.port = free()
        self.requests: list[tuple[str, Document]] = []
        # answers TokenReviews
        self.reviews: Callable[[Document], Review | Awaitable[Review]] | None = None
        self._snapshots: dict[str, tuple[list[bytes], int]] = {}
        self._tokens = itertools.count()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        self._route(app.router)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    def _route(self, router: web.UrlDispatcher) -> None:
        router.add_get("/{path:.*}", self._get)
        router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self._review)

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            self.store.wake()
            # An accepted connection is attached to its server a turn of the loop later, and lost,
            # open, if that was closed in between (python/cpython#109564): never after a timer.
            await asyncio.sleep(1e-6)
            await runner.cleanup()

    def watches(self) -> list[Document]:
        return [query for _, query in self.requests if "watch" in query]

    def lists(self, plural: str) -> list[Document]:
        return [q for path, q in self.requests if path.endswith(plural) and "watch" not in q]

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        self.requests.append((path, query))
        collection, namespace, name = place_of(path)
        if collection in self.forbidden:
            return failed(403, f"{collection} is forbidden: User cannot list resource")
        if collection not in self.collections:
            return failed(404, "the server could not find the requested resource")
        if name:
            found = self.store.objects.get((collection, namespace, name))
            return web.json_response(found) if found else failed(404, "not found")
        if "watch" in query:
            return await self._watch(request, collection, namespace)
        return self._list(collection, namespace, query)

    def _list(self, collection: str, namespace: str, query: Document) -> web.Response:
        token = query.get("continue")
        if token is None:
            found, revision = self.store.texts(collection, namespace), self.store.revision
        elif token in self._snapshots:
            found, revision = self._snapshots.pop(token)
        else:
            return failed(410, "The provided continue parameter is too old")
        limit = min(int(query["limit"]), self.page) if "limit" in query else len(found)
        metadata = {"resourceVersion": str(revision)}
        if found[limit:]:
            metadata["continue"] = f"token {next(self._tokens)}"
            self._snapshots[metadata["continue"]] = found[limit:], revision
        head = json.dumps({"kind": "List", "metadata": metadata}).encode().removesuffix(b"}")
        body = head + b', "items": [' + b",".join(found[:limit]) + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def _watch(
        self, request: web.Request, collection: str, namespace: str
    ) -> web.StreamResponse:
        seen = int(request.query["resourceVersion"])
        if seen < self.store.compacted:
            return failed(410, f"too old resource version: {seen} ({self.store.compacted})")
        response = web.StreamResponse()
        await response.prepare(request)
        clock = asyncio.get_running_loop().time
        ends = clock() + int(request.query["timeoutSeconds"])
        bookmarks = request.query.get("allowWatchBookmarks") == "true"
        runner = self._runner
        while (left := ends - clock()) > 0 and self._runner is runner:
            moved = self.store.moved
            for each in self.store.since(seen):
                seen = each.revision
                if each.collection == collection and namespace in ("", each.namespace):
                    await response.write(_line(each.kind, each.text))
            try:
                async with asyncio.timeout(min(left, self.bookmark_seconds)):
                    await moved.wait()
            except TimeoutError:
                if bookmarks:
                    await response.write(_bookmark(seen))
            if seen < self.store.compacted:
                status = {"kind": "Status", "code": 410, "message": "too old resource version"}
                await response.write(_line("ERROR", json.dumps(status).encode()))
                break
        return response

    async def _review(self, request: web.Request) -> web.Response:
        spec = (await request.json())["spec"]
        self.requests.append((request.path, spec))
        if self.reviews is None:
            return failed(404, "the server could not find the requested resource")
        answer = self.reviews(spec)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, int):
            return failed(answer, "no")
        return web.json_response({"kind": "TokenReview", "status": answer}, status=201)


def place_of(path: str) -> Key:
    """Of an object's or a collection's path: the collection, the namespace, the name."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        _, namespace, *rest = rest
    plural, name, *_ = [*rest, ""]
    return f"{plural}.{group}", namespace, name


def _line(kind: str, text: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), text)


def _bookmark(revision: int) -> bytes:
    item = {"metadata": {"resourceVersion": str(revision)}}
    return _line("BOOKMARK", json.dumps(item).encode())


def failed(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}
    return web.json_response(body, status=code)


def kubeconfig(path: Path, url: str, token: str = "a token") -> Path:  # noqa: S107 - none at all
    """A kubeconfig for a server without TLS; its path."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
                "clusters": [{"name": "it", "cluster": {"server": url.rstrip("/")}}],
                "users": [{"name": "me", "user": {"token": token}}],
            }
        )
    )
    return path
