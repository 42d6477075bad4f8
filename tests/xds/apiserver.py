"""A small API server that keeps its promises: revisions, pages, watches that resume, 410.

For what `kmock` cannot be asked: its lists have no real version and no pages, its watches begin
with everything and never end, and it cannot go away and come back. Objects live in a store of this
process; the server in front of it can be stopped and started on the same port, and the store moves
on meanwhile.
"""

import asyncio
import contextlib
import itertools
import json

from aiohttp import web

from weir.ports import free


class Store:
    """Objects by collection, and a history of what happened to them."""

    def __init__(self):
        self.revision = 1
        self.objects = {}  # (collection, namespace, name) → object
        self.history = []  # (revision, type, collection, object)
        self.compacted = 0  # revisions up to this one are forgotten
        self.moved = asyncio.Event()

    def put(self, collection, item):
        meta = item["metadata"]
        key = (collection, meta.setdefault("namespace", "default"), meta["name"])
        self._happen("MODIFIED" if key in self.objects else "ADDED", collection, item)
        self.objects[key] = item

    def delete(self, collection, name, namespace="default"):
        item = self.objects.pop((collection, namespace, name))
        self._happen("DELETED", collection, item)

    def compact(self):
        """Forget how it came to this, as etcd does every five minutes."""
        self.compacted, self.history = self.revision, []

    def _happen(self, kind, collection, item):
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)
        self.history.append((self.revision, kind, collection, json.loads(json.dumps(item))))
        self.wake()

    def wake(self):
        self.moved.set()
        self.moved = asyncio.Event()


class ApiServer:
    """Serves a store on a port of its own; collections are "pods.", "inferencepools.group"."""

    def __init__(self, collections, page=2):
        self.store = Store()
        self.collections = set(collections)
        self.forbidden = set()
        self.page = page  # at most so many objects, whatever is asked for
        self.port = free()
        self.requests = []
        self.reviews = None  # answers TokenReviews
        self._snapshots = {}
        self._tokens = itertools.count()
        self._runner = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self._review)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self):
        runner, self._runner = self._runner, None
        if runner is not None:
            self.store.wake()
            await runner.cleanup()

    def watches(self):
        return [query for path, query in self.requests if "watch" in query]

    def lists(self, plural):
        return [q for path, q in self.requests if path.endswith(plural) and "watch" not in q]

    async def _get(self, request):
        path, query = request.path, dict(request.query)
        self.requests.append((path, query))
        group, namespace, plural = _parse(path)
        collection = f"{plural}.{group}"
        if collection in self.forbidden:
            return _status(403, f"{plural} is forbidden: User cannot list resource")
        if collection not in self.collections:
            return _status(404, "the server could not find the requested resource")
        if "watch" in query:
            return await self._watch(request, collection, namespace)
        return self._list(collection, namespace, query)

    def _list(self, collection, namespace, query):
        token = query.get("continue")
        if token is None:
            found = [
                item
                for (where, ns, _), item in sorted(self.store.objects.items())
                if where == collection and namespace in ("", ns)
            ]
            revision = self.store.revision
        elif token in self._snapshots:
            found, revision = self._snapshots.pop(token)
        else:
            return _status(410, "The provided continue parameter is too old")
        limit = min(int(query["limit"]), self.page) if "limit" in query else len(found)
        metadata = {"resourceVersion": str(revision)}
        if found[limit:]:
            metadata["continue"] = f"token {next(self._tokens)}"
            self._snapshots[metadata["continue"]] = found[limit:], revision
        return web.json_response({"kind": "List", "metadata": metadata, "items": found[:limit]})

    async def _watch(self, request, collection, namespace):
        seen = int(request.query["resourceVersion"])
        if seen < self.store.compacted:
            return _status(410, f"too old resource version: {seen} ({self.store.compacted})")
        response = web.StreamResponse()
        await response.prepare(request)
        ends = asyncio.get_running_loop().time() + int(request.query["timeoutSeconds"])
        runner = self._runner
        while (left := ends - asyncio.get_running_loop().time()) > 0 and self._runner is runner:
            moved = self.store.moved
            for revision, kind, where, item in list(self.store.history):
                if revision > seen:
                    seen = revision
                    if where == collection and namespace in ("", item["metadata"]["namespace"]):
                        await response.write(_line(kind, item))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await moved.wait()
            if seen < self.store.compacted:
                status = {"kind": "Status", "code": 410, "message": "too old resource version"}
                await response.write(_line("ERROR", status))
                break
        return response

    async def _review(self, request):
        spec = (await request.json())["spec"]
        self.requests.append((request.path, spec))
        answer = self.reviews(spec)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, int):
            return _status(answer, "no")
        return web.json_response({"kind": "TokenReview", "status": answer}, status=201)


def _parse(path):
    """Group, namespace and plural of a collection's path."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    return (group, rest[1], rest[2]) if len(rest) > 2 else (group, "", rest[0])


def _line(kind, item):
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _status(code, message):
    body = {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}
    return web.json_response(body, status=code)


def kubeconfig(path, url, token="a token"):
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
