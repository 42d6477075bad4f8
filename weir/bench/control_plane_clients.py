"""The clients of `weir bench control-plane`: proxies that follow a cluster each, and one picker.

    python -m weir.bench.control_plane_clients PORT CLUSTER...

A proxy has a connection of its own and one delta EDS stream, as a waypoint has. The picker takes
pools and loads of all. Runs until stdin is closed, and answers every line on it with what came:

    {"assignments": responses, "loads": resources, "pools": known to the picker}
"""

import asyncio
import json
import sys
from collections import Counter

import grpc.aio

from weir.bench.xds_clients import OPTIONS, follow
from weir.running import configure_logging, run_loop
from xds import client
from xds.client import Feed, Link
from xds.snapshot import TypeUrl


async def main(port: int, clusters: list[str]) -> None:
    target, came = f"127.0.0.1:{port}", Counter[str]()
    loads = Feed(TypeUrl.POOL_LOAD, lambda *_: came.update(["loads"]), lambda _: None)
    pools = Feed(TypeUrl.POOL, lambda *_: None, lambda _: None)
    channels = [grpc.aio.insecure_channel(target, options=OPTIONS) for _ in clusters]
    tasks = [
        asyncio.create_task(follow(channel, cluster, lambda: came.update(["assignments"])))
        for channel, cluster in zip(channels, clusters, strict=True)
    ]
    tasks.append(asyncio.create_task(client.follow(target, "picker", [pools, loads], Link())))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while await commands.readline():
        print(json.dumps({**came, "pools": len(pools.versions)}), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    configure_logging(as_json=False)
    run_loop(main(int(sys.argv[1]), sys.argv[2:]))
