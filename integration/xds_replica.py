"""One replica of an xDS server, of one pool whose weights are read from a file again and again.

python -m integration.xds_replica PORT FILE
"""

import asyncio
import json
import sys
from pathlib import Path

from integration.proxy import latest, world
from weir.running import run_loop
from xds.server import serving


async def main(port, path):
    snapshots = latest(json.loads(path.read_text()))
    async with serving(snapshots, f"127.0.0.1:{port}"):
        print("serving", flush=True)
        while True:
            await asyncio.sleep(0.1)
            snapshots.publish(world(json.loads(path.read_text()), snapshots.value))


if __name__ == "__main__":
    run_loop(main(sys.argv[1], Path(sys.argv[2])))
