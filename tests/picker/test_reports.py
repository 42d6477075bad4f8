import asyncio
from collections import Counter
from types import SimpleNamespace

from picker.reports import report
from tests.xds.talk import until
from weir.ports import free
from xds.latest import Latest
from xds.loads import LoadReports
from xds.server import serving
from xds.snapshot import Snapshot, TypeUrl

WORLD = Snapshot.of({TypeUrl.POOL: {"ns/a": b"1"}}, None, {"ns/a": "ns/a"})


async def test_picks_are_reported_and_a_control_plane_that_comes_and_goes_ends_nothing():
    picker = SimpleNamespace(picks=Counter(), unserved=Counter())
    port = free()
    task = asyncio.create_task(report(f"127.0.0.1:{port}", "picker", picker))
    try:
        for total in (3, 6):
            reports = LoadReports()
            async with serving(Latest(WORLD), f"127.0.0.1:{port}", reports=reports):
                picker.picks["ns/a", "10.0.0.1:80"] += 3
                await until(lambda found=reports: list(found) != [])
                (row,) = reports
                assert (row.pool, row.issued, row.node) == ("ns/a", 3, "picker"), total
            await asyncio.sleep(1.2)  # longer than the interval: it writes to a call that ended
            assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
