"""The two servers of `weir bench xds`: ours, and a bare one that pushes the same bytes.

    python -m weir.bench.xds_server ours|bare POOLS ENDPOINTS

Prints its port, then obeys lines on stdin, each answered with one line of JSON:

    expect N        wait for N streams that are served      {"rss": bytes}
    push one|all    change one weight in one or all pools   {"acks": [seconds], "cpu": seconds,
                    and wait for every ACK                   "bytes": …, "framings": …}
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from weir.running import run_loop
from xds.assignment import cluster_load_assignment
from xds.latest import Latest
from xds.pool import Endpoint, Share
from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.server import options, serving
from xds.snapshot import Resource, Snapshot, TypeUrl
from xds.streams import Limits, XdsServer

METHOD = "DeltaEndpoints"
SERVICE = "envoy.service.endpoint.v3.EndpointDiscoveryService"


class Pools:
    """`count` pools of `size` endpoints whose weights can be changed."""

    def __init__(self, count: int, size: int) -> None:
        self.version = 0
        self._endpoints = {
            f"bench/pool-{pool}": [
                Endpoint(f"10.{pool}.0.{n}:8000", f"bench/{n}", f"10.{pool}.0.{n}", 8000)
                for n in range(1, size + 1)
            ]
            for pool in range(count)
        }
        self.bodies = {name: self._body(name) for name in self._endpoints}

    def change(self, which: str) -> list[str]:
        """One weight in the first pool, or in each; returns the names."""
        self.version += 1
        names = list(self._endpoints)[: 1 if which == "one" else None]
        self.bodies = self.bodies | {name: self._body(name) for name in names}
        return names

    def _body(self, name: str) -> bytes:
        endpoints = self._endpoints[name]
        shares = {each.id: Share(100) for each in endpoints}
        shares[endpoints[0].id] = Share(100 + self.version)
        return cluster_load_assignment(name, endpoints, shares)


class Acks:
    """Collects the time from a push to each ACK."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.expected = 0
        self.all = asyncio.Event()

    def expect(self, count: int) -> None:
        self.seconds, self.expected = [], count
        self.all.clear()

    def observe(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self.expected:
            self.all.set()


class Ours:
    """The control plane's server, as it is."""

    def __init__(self, server: XdsServer, snapshots: Latest[Snapshot]) -> None:
        self.acks = Acks()
        self._server, self._snapshots = server, snapshots
        # The server books the time from publishing to each ACK anyway; here it is kept exactly.
        server.traffic.of(TypeUrl.ENDPOINT).convergence = self.acks  # type: ignore[assignment]

    def streams(self) -> int:
        snapshot = self._snapshots.value
        return sum(
            bool(session.subscriptions) and session.synced(snapshot)
            for session in self._server.clients
        )

    def concerned(self, names: list[str]) -> int:
        return sum(len(self._server.roster.wanting(TypeUrl.ENDPOINT, name)) for name in names)

    def push(self, _: list[str], pools: Pools) -> None:
        self._snapshots.publish(world(pools, self._snapshots.value))

    def framings(self, names: list[str]) -> int:
        """How often any resource of the last push was serialised."""
        resources = self._snapshots.value.types[TypeUrl.ENDPOINT].by_name
        return max(resources[name].framings for name in names)


class Bare:
    """No protocol: whoever reads gets the newest bytes, and whatever comes back is an ACK."""

    def __init__(self, pools: Pools) -> None:
        self.acks = Acks()
        self._woken: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._payloads = {name: self._payload(name, body) for name, body in pools.bodies.items()}
        self._at = 0.0
        self._served = 0

    def streams(self) -> int:
        return self._served

    def concerned(self, names: list[str]) -> int:
        return sum(len(self._woken[name]) for name in names)

    def push(self, names: list[str], pools: Pools) -> None:
        self._at = asyncio.get_running_loop().time()
        for name in names:
            self._payloads[name] = self._payload(name, pools.bodies[name])
        for name in names:
            for event in self._woken[name]:
                event.set()

    def framings(self, _: list[str]) -> int:
        return 1

    async def stream(self, _: object, context: Any) -> None:
        first = discovery_pb2.DeltaDiscoveryRequest.FromString(await context.read())
        (name,) = first.resource_names_subscribe
        event = asyncio.Event()
        self._woken[name].append(event)
        await context.write(self._payloads[name])
        discovery_pb2.DeltaDiscoveryRequest.FromString(await context.read())
        self._served += 1
        loop = asyncio.get_running_loop()
        while True:
            await event.wait()
            event.clear()
            await context.write(self._payloads[name])
            raw = await context.read()
            if raw is grpc.aio.EOF:
                return
            discovery_pb2.DeltaDiscoveryRequest.FromString(raw)
            self.acks.observe(loop.time() - self._at)

    def _payload(self, name: str, body: bytes) -> bytes:
        head = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info="0" * 16, type_url=TypeUrl.ENDPOINT, nonce="1"
        )
        frame = Resource(TypeUrl.ENDPOINT, name, body).delta_frame
        return head.SerializeToString() + frame


def world(pools: Pools, previous: Snapshot | None = None) -> Snapshot:
    owners = {name: name for name in pools.bodies}
    return Snapshot.of({TypeUrl.ENDPOINT: pools.bodies}, previous, owners)


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096


async def obey(server: "Ours | Bare", pools: Pools) -> None:
    loop = asyncio.get_running_loop()
    commands: asyncio.StreamReader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := (await commands.readline()).decode().split():
        if line[0] == "expect":
            while server.streams() < int(line[1]):  # noqa: ASYNC110 - as a person would look
                await asyncio.sleep(0.2)
            print(json.dumps({"rss": resident()}), flush=True)
            continue
        await asyncio.sleep(0.1)
        before, names = time.process_time(), pools.change(line[1])
        server.acks.expect(server.concerned(names))
        server.push(names, pools)
        await server.acks.all.wait()
        cpu = time.process_time() - before
        answer = {
            "acks": server.acks.seconds,
            "cpu": cpu,
            "bytes": sum(len(pools.bodies[name]) for name in names),
            "framings": server.framings(names),
        }
        print(json.dumps(answer), flush=True)


async def main(which: str, count: int, size: int) -> None:
    pools = Pools(count, size)
    if which == "ours":
        snapshots = Latest(world(pools))
        async with serving(snapshots, "127.0.0.1:0") as running:
            ours = Ours(running, snapshots)
            print(json.dumps({"port": running.port, "rss": resident()}), flush=True)
            await obey(ours, pools)
        return
    bare = Bare(pools)
    server = grpc.aio.server(options=options(Limits()))
    method: Any = grpc.stream_stream_rpc_method_handler(bare.stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port, "rss": resident()}), flush=True)
    await obey(bare, pools)
    await server.stop(0)


if __name__ == "__main__":
    run_loop(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
