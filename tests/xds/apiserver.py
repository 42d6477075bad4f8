"""The small API server, for those who write: objects are created, merged, applied on the server's
side, replaced, deleted, with versions as conditions.

As the real one does with custom resources, lists are taken as a whole, what a manager no longer
applies goes, and what nothing is changed by makes no new version.
"""

import json

from aiohttp import web

from weir.bench import apiserver
from weir.bench.apiserver import failed, place_of


class _Refusal(Exception):
    """A status, and why."""


class Store(apiserver.Store):
    """Objects that know who applied what of them."""

    def __init__(self):
        super().__init__()
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

    def delete(self, collection, name, namespace="default"):
        self._applied = {
            k: each for k, each in self._applied.items() if k[0][1:] != (namespace, name)
        }
        super().delete(collection, name, namespace)


class ApiServer(apiserver.ApiServer):
    """An API server that takes writes."""

    def __init__(self, collections, page=2):
        super().__init__(collections, page)
        self.store = Store()
        self.writes = []  # method and path
        self.refuse = lambda method, path: None  # a status instead of a write

    def _route(self, router):
        super()._route(router)
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            router.add_route(method, "/{path:.*}", self._write)

    async def _write(self, request):
        method, path = request.method, request.path
        self.writes.append((method, path))
        refusal = self.refuse(method, path)
        if refusal is not None:
            return failed(refusal, "no: somebody said so")
        try:
            status, answer = self._change(method, path, await request.json(), request)
            return web.json_response(answer, status=status)
        except _Refusal as error:
            return failed(*error.args)

    def _change(self, method, path, body, request):
        collection, namespace, name = place_of(path)
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
