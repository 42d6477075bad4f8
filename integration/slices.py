"""EndpointSlices, as Kubernetes' controller of them makes them of Services and Pods.

There is no such controller beside a bare API server, and the API server refuses loopback addresses
in slices, where all our Pods are: so they are written where it keeps them.

A Service without a selector has the slices that somebody else writes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from integration.apiserver import ControlPlane
from integration.kubectl import AWAY, Kubectl

Document = dict[str, Any]
SERVICE_NAME = "kubernetes.io/service-name"
ROUND_SECONDS = 0.1
FINISHED = ("Succeeded", "Failed")


class Slices:
    """Follows what there is until cancelled."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane, self._kubectl = plane, Kubectl(plane)
        self._written: dict[str, Document] = {}  # by key

    async def run(self) -> None:
        while True:
            with suppress(*AWAY):
                services = await self._kubectl.list("v1", "Service")
                pods = await self._kubectl.list("v1", "Pod")
                await self._write(dict(_keyed(made) for made in slices(services, pods)))
            await asyncio.sleep(ROUND_SECONDS)

    async def write(self, item: Document) -> None:
        """One of somebody else's."""
        await self._plane.write(*_keyed(item))

    async def _write(self, wanted: dict[str, Document]) -> None:
        for key, item in wanted.items():
            if self._written.get(key) != item:
                await self._plane.write(key, item)
        for key in self._written.keys() - wanted.keys():
            await self._plane.erase(key)
        self._written = wanted


def slices(services: list[Document], pods: list[Document]) -> Iterator[Document]:
    """One for the Pods that have the same numbers for a Service's ports."""
    for service in services:
        if not (selector := service["spec"].get("selector")):
            continue
        places: dict[tuple[str, tuple[int, ...]], list[Document]] = {}
        for pod in pods:
            labels = pod["metadata"].get("labels", {})
            if _namespace(pod) != _namespace(service) or not selector.items() <= labels.items():
                continue
            for address in _addresses(pod, service):
                family = "IPv6" if ":" in address else "IPv4"
                endpoint = _endpoint(pod, address)
                places.setdefault((family, _numbers(service, pod)), []).append(endpoint)
        for count, ((family, numbers), endpoints) in enumerate(sorted(places.items())):
            yield _slice(service, count, family, numbers, endpoints)


def _slice(service, count, family, numbers, endpoints) -> Document:
    meta = service["metadata"]
    ports = [
        {"name": port.get("name", ""), "protocol": port.get("protocol", "TCP"), "port": number}
        | {key: port[key] for key in ("appProtocol",) if key in port}
        for port, number in zip(service["spec"]["ports"], numbers, strict=True)
        if number
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{meta['name']}-{count}",
            "namespace": meta["namespace"],
            "labels": {SERVICE_NAME: meta["name"]},
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    }


def _keyed(item: Document) -> tuple[str, Document]:
    """Where etcd has it, and how: with what the API server would have added."""
    meta = item["metadata"]
    name = f"{meta['namespace']}/{meta['name']}"
    added = {"uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
    return f"/registry/endpointslices/{name}", {**item, "metadata": {**meta, **added}}


def _addresses(pod: Document, service: Document) -> list[str]:
    if pod.get("status", {}).get("phase") in FINISHED:
        return []
    families = service["spec"].get("ipFamilies", ["IPv4"])
    found = [each["ip"] for each in pod.get("status", {}).get("podIPs", ())]
    return [each for each in found if ("IPv6" if ":" in each else "IPv4") in families]


def _numbers(service: Document, pod: Document) -> tuple[int, ...]:
    """Of the Service's ports, in their order; 0 for a name that the Pod does not know."""
    named = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
        if "name" in port
    }
    targets = [port.get("targetPort", port["port"]) for port in service["spec"]["ports"]]
    return tuple(each if isinstance(each, int) else named.get(each, 0) for each in targets)


def _endpoint(pod: Document, address: str) -> Document:
    meta = pod["metadata"]
    conditions = pod["status"].get("conditions", ())
    serving = any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)
    leaving = "deletionTimestamp" in meta
    target = {key: meta[key] for key in ("name", "namespace", "uid")}
    return {
        "addresses": [address],
        "conditions": {
            "ready": serving and not leaving,
            "serving": serving,
            "terminating": leaving,
        },
        "targetRef": {"kind": "Pod", **target},
        "nodeName": pod["spec"].get("nodeName"),
    }


def _namespace(item: Document) -> str:
    return item["metadata"]["namespace"]
