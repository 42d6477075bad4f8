"""A small API server that keeps its promises: revisions, pages, watches that resume, 410.

For what `kmock` cannot be asked: its lists have no real version and no pages, its watches begin
with everything and never end, and it cannot go away and come back. Objects live in a store of this
process; the server in front of it can be stopped and started on the same port, and the store moves
on meanwhile.

Written are single objects: created, merged, applied on the server's side, replaced, deleted, with
versions as conditions. As the real one does with custom resources, lists are taken as a whole, what
a manager no longer applies goes, and what nothing is changed by makes no new version.
"""

import asyncio
import contextlib
import itertools
import json

from aiohttp import web

from weir.ports import free


class _Refusal(Exception):
    """A status, and why."""


class Store:
    """Objects by collection, and a history of what happened to them."""

    def __init__(self):
        self.revision = 1
        self.objects = {}  # (collection, namespace, name) → object
        self.history = []  # (revision, type, collection, object)
        self.compacted = 0  # revisions up to this one are forgotten
        self.moved = asyncio.Event()
        self._applied = {}  # what a manager applied last, by object

    def apply(self, key, item, manager):
        """The object as it is now; what the manager applied before and does not now is gone."""
        there = _copy(self.objects.get(key, {}))
        _remove(there, self._applied.get((key, manager), {}), item)
        _merge(there, _copy(item))
        there["metadata"].setdefault("uid", f"uid-{self.revision}")
        self._applied[key, manager] = item
        if there != self.objects.get(key):
            self.put(key[0], there)
        return self.objects[key]

    def put(self, collection, item):
        meta = item["metadata"]
        key = (collection, meta.setdefault("namespace", "default"), meta["name"])
        self._happen("MODIFIED" if key in self.objects else "ADDED", collection, item)
        self.objects[key] = item

    def delete(self, collection, name, namespace="default"):
        item = self.objects.pop((collection, namespace, name))
        self._applied = {
            k: each for k, each in self._applied.items() if k[0][1:] != (namespace, name)
        }
        self._happen("DELETED", collection, item)

    def compact(self):
        """Forget how it came to this, as etcd does every five minutes."""
        self.compacted, self.history = self.revision, []

    def _happen(self, kind, collection, item):
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)
        self.history.append((self.revision, kind, collection, _copy(item)))
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
        self.writes = []  # method and path
        self.refuse = lambda method, path: None  # a status instead of a write
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
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            app.router.add_route(method, "/{path:.*}", self._write)
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
        collection, namespace, name = _parse(path)
        plural = collection.partition(".")[0]
        if collection in self.forbidden:
            return _status(403, f"{plural} is forbidden: User cannot list resource")
        if collection not in self.collections:
            return _status(404, "the server could not find the requested resource")
        if name:
            found = self.store.objects.get((collection, namespace, name))
            return web.json_response(found) if found else _status(404, "not found")
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

    async def _write(self, request):
        method, path = request.method, request.path
        self.writes.append((method, path))
        refusal = self.refuse(method, path)
        if refusal is not None:
            return _status(refusal, "no: somebody said so")
        try:
            status, answer = self._change(method, path, await request.json(), request)
            return web.json_response(answer, status=status)
        except _Refusal as error:
            return _status(*error.args)

    def _change(self, method, path, body, request):
        collection, namespace, name = _parse(path)
        if collection not in self.collections:
            raise _Refusal(404, "the server could not find the requested resource")
        key = collection, namespace, name or body["metadata"]["name"]
        there = self.store.objects.get(key)
        if method == "PATCH" and request.content_type == "application/apply-patch+yaml":
            assert request.query["force"] == "true"
            made = self.store.apply(key, body, request.query["fieldManager"])
            return (200 if there else 201), made
        if method == "POST":
            if there is not None:
                raise _Refusal(409, "already exists")
            self.store.put(collection, body)
            return 201, body
        if there is None:
            raise _Refusal(404, "not found")
        conditions = body.get("preconditions", body.get("metadata", {}))
        for part in ("uid", "resourceVersion"):
            if part in conditions and conditions[part] != there["metadata"].get(part):
                raise _Refusal(409, f"{part} is {there['metadata'].get(part)}")
        if method == "DELETE":
            self.store.delete(collection, name, namespace)
            return 200, {"kind": "Status", "code": 200}
        if method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            body = _merge(_copy(there), body)
        self.store.put(collection, body)
        return 200, body

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
    """Of an object or a collection: the collection, the namespace, the name."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        _, namespace, *rest = rest
    plural, name, *_ = [*rest, ""]
    return f"{plural}.{group}", namespace, name


def _copy(item):
    return json.loads(json.dumps(item))


def _merge(there, new):
    """Maps into maps; all else as a whole, and null takes away."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(there.get(key), dict):
            _merge(there[key], value)
        elif value is None:
            there.pop(key, None)
        else:
            there[key] = value
    return there


def _remove(there, before, now):
    for key, value in before.items():
        if key not in now:
            there.pop(key, None)
        elif isinstance(value, dict) and isinstance(now[key], dict):
            _remove(there.get(key, {}), value, now[key])


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
