"""Every failure in every shape, under load: no request fails. The table is `integration.drills`.

The same drills write docs/istio-matrix.md (`make istio-matrix`).
"""

import pytest
import pytest_asyncio

from integration.drills import BATCH, CASES, FETCH_SECONDS, WEIGHTS, drill, site
from integration.mesh import SHAPES, follows

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SHAPES)
async def here(request, tmp_path_factory):
    async with site(tmp_path_factory.mktemp(request.param), request.param) as made:
        yield made


@pytest.mark.parametrize("case", CASES)
async def test_no_request_fails(here, case):
    counts = await drill(here, CASES[case])
    assert counts.failures == {}
    assert counts.sent > BATCH
    match case:
        case "weights":
            weights = dict(zip(here.mesh.pods, WEIGHTS, strict=True))
            assert follows(counts.facts["served"], weights), counts.facts
        case "captured":
            assert counts.facts["dual"] == 20
            assert counts.facts["endpoint"] < 20, "ignored; some get there by chance"
        case "picker-killed":
            assert counts.passed >= BATCH
        case "picker-paused":
            assert counts.late >= BATCH
            assert counts.facts["answered while silent"] == BATCH
        case "all-killed":
            assert counts.passed >= BATCH
        case "proxy-starts-alone":
            assert counts.facts["copies used"] == 1
            late = counts.facts["ready seconds"] - here.start_seconds
            assert late <= FETCH_SECONDS + 2.0
        case "cluster-changes":
            assert counts.facts["copies used"] == 1
    if case.startswith("weir-"):
        # Picks go on; on a busy machine some are not in time.
        assert counts.answered >= counts.sent / 2
