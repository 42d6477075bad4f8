"""Weir's control plane with weights that a test says: pools from manifests, weights from a file.

python -m integration.mesh.replica ADDRESS MANIFESTS WEIGHTS

WEIGHTS is JSON: endpoint → [weight, priority]. It is read again and again, as is MANIFESTS.
"""

import asyncio
import json
import sys
from pathlib import Path

from weir.running import run_loop
from xds import registry, wire
from xds.istio.assignment import assignment
from xds.latest import Latest
from xds.manifests import read
from xds.pool import Share
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl


def snapshot(manifests, weights, previous=None):
    """What proxies and pickers are told of each pool; an endpoint without a weight is left out."""
    text, shares = manifests.read_text(), {}
    for name, (weight, priority) in json.loads(weights.read_text()).items():
        shares[name] = Share(weight, priority)
    bodies = {TypeUrl.ENDPOINT: {}, TypeUrl.POOL: {}, TypeUrl.POOL_LOAD: {}}
    owners = {}
    for pool in registry.pools(read(text, str(manifests)), "cluster.local").values():
        for cluster in pool.istio_clusters:
            body = assignment(cluster, pool.endpoints, shares)
            bodies[TypeUrl.ENDPOINT][cluster.name] = body
            owners[cluster.name] = pool.name
        bodies[TypeUrl.POOL][pool.name] = wire.encode_pool(pool, shares)
        bodies[TypeUrl.POOL_LOAD][pool.name] = wire.encode_loads(pool.name, {}, 0.0)
        owners[pool.name] = pool.name
    return Snapshot.of(bodies, previous, owners)


async def main(address, manifests, weights):
    snapshots = Latest(snapshot(manifests, weights))
    async with serving(snapshots, address):
        print("serving", flush=True)
        seen = None
        while True:
            written = [path.stat().st_mtime_ns for path in (manifests, weights)]
            if written != seen:
                seen = written
                snapshots.publish(snapshot(manifests, weights, snapshots.value))
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    run_loop(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
