"""Weir in the mesh: the control plane as a process, and pickers."""

import asyncio
import json
import sys
from collections import Counter
from contextlib import AsyncExitStack
from random import Random
from typing import NamedTuple

import yaml

from picker.server import Picker, serving
from weir.processes import start, weir
from xds.wire import PoolView


class ControlPlane:
    """EDS at the address where istiod's clusters have Weir: killed, paused and started at will.

    It is a replica whose weights a test says (`integration.mesh.replica`). With `program` it is
    `weir serve` itself, which makes its own of the Pods' capacities and priorities.
    """

    def __init__(self, places, directory, objects, *, program=False):
        self.child = None
        self._address = places.xds
        self._status = f"{places.weir}:15011"
        self._directory = directory / "weir"
        self._directory.mkdir()
        self._manifests = self._directory / "kubernetes.yaml"
        self._weights = directory / "weights.json"
        self._logs = directory
        self._objects = objects
        self._program = program
        self._write(self._manifests, yaml.safe_dump_all(objects))
        self._starts = 0

    def set(self, weights):
        """From {"ip:port": weight}, or {"ip:port": (weight, priority)}."""
        pairs = {
            name: each if isinstance(each, tuple) else (each, 0) for name, each in weights.items()
        }
        self._write(self._weights, json.dumps(pairs))
        if not self._program:
            return
        for pod in self._objects:
            endpoint = f"{pod.get('status', {}).get('podIP')}:8000"
            if pod["kind"] == "Pod" and endpoint in pairs:
                annotations = pod["metadata"].setdefault("annotations", {})
                capacity, priority = map(str, pairs[endpoint])
                annotations |= {"weir.dev/capacity": capacity, "weir.dev/priority": priority}
        self._write(self._manifests, yaml.safe_dump_all(self._objects))

    async def start(self):
        self._starts += 1
        if self._program:
            command = weir(
                "serve",
                *("--config", str(self._directory), "--plaintext"),
                *("--listen", self._address, "--status", self._status),
                *("--istio-domain", "cluster.local"),
            )
        else:
            command = [
                *(sys.executable, "-m", "integration.mesh.replica"),
                *(self._address, str(self._manifests), str(self._weights)),
            ]
        log = self._logs / f"weir-{self._starts}.log"  # of each start its own: it is waited for
        self.child = await start("weir", command, log)
        await self.child.until_logged("serving")

    async def kill(self):
        await self.child.kill()

    async def stop(self):
        if self.child is not None:
            await self.child.kill()

    def pause(self):
        self.child.pause()

    def resume(self):
        self.child.resume()

    @staticmethod
    def _write(path, text):
        fresh = path.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.replace(path)


class SteeredPicker:
    """Our ext_proc server with a profile that picks what it is told.

    `target` is what it answers, None leaves the request to the policy below; `hanging` it says
    nothing. `asked` counts by the pool that the proxy named.
    """

    def __init__(self, places):
        self.target = None
        self.hanging = False
        self.asked = Counter()
        self._address = places.picker
        self.picker = Picker(self, lambda: 0.0, Random(1))
        self._running = None

    async def start(self):
        stack = AsyncExitStack()
        await stack.enter_async_context(serving(self._process, self._address))
        self._running = stack

    async def stop(self):
        if self._running is not None:
            await self._running.aclose()
            self._running = None

    async def _process(self, request, context):
        if self.hanging:
            await asyncio.Event().wait()
        return await self.picker.process(request, context)

    def get(self, pool):
        """What the server wants of its pools: the state of one, which picks."""
        self.asked[pool] += 1
        return None if self.target is None else _Steered(self.target)


class _Steered(NamedTuple):
    destination: str
    view: PoolView = PoolView("")

    @property
    def endpoint(self):
        return self.destination

    def pick(self, request, now, rng, subset):
        return self


class RealPicker:
    """`weir picker`, fed by the control plane of the mesh.

    It takes what does not name its pool to be about the mesh's one, as gateways of Istio's own are.
    """

    def __init__(self, places, directory):
        self.child = None
        self._command = weir(
            "picker",
            *("--xds", places.xds, "--listen", places.picker),
            *("--pool", "ns/llm-pool"),
        )
        self._logs = directory
        self._starts = 0

    async def start(self):
        self._starts += 1
        log = self._logs / f"picker-{self._starts}.log"
        self.child = await start("weir picker", self._command, log)
        await self.child.until_logged("picking")

    async def stop(self):
        if self.child is not None:
            await self.child.kill()

    async def kill(self):
        await self.child.kill()

    def pause(self):
        self.child.pause()

    def resume(self):
        self.child.resume()
