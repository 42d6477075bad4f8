"""`weir doctor` on a running Envoy: it says well when all is well, and finds what was broken."""

import asyncio
import json

from weir.bench import manifests
from weir.bench.picker import servers, session
from weir.processes import weir
from weir.stack import stack


async def doctor(parts, *options):
    command = weir(
        "doctor",
        "bench/pool",
        *("--status", f"127.0.0.1:{parts.status_port}"),
        *("--envoy", f"127.0.0.1:{parts.envoy_admin}"),
        "--json",
        *options,
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return process.returncode, {row["check"]: row for row in json.loads(out)}


async def test_it_proves_that_picks_are_honoured_and_finds_a_dead_picker(tmp_path):
    async with session() as client, servers(tmp_path, count=3) as endpoints:
        manifests.write(tmp_path / "config", endpoints)
        async with stack(tmp_path, client) as parts:
            status, rows = await doctor(parts, "--probe", parts.url())
            assert (status, {row["verdict"] for row in rows.values()}) == (0, {"ok"})
            assert "20 of 20" in rows["honoured"]["seen"]
            status, rows = await doctor(parts, "--watch", "0.1")
            assert (status, rows["honoured"]["verdict"]) == (3, "unknown")
            await parts.children["picker"].kill()
            status, rows = await doctor(parts, "--probe", parts.url())
            assert (status, rows["picker"]["verdict"]) == (1, "wrong")
            assert "20 went on unanswered" in rows["picker"]["seen"]
