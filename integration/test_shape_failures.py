"""Every failure in every shape, under load: no request fails. The table is `integration.drills`.

The same drills write docs/istio-matrix.md (`make istio-matrix`).
"""

import pytest
import pytest_asyncio

from integration.drills import CASES, drill
from integration.matrix import COLUMNS, PATH
from integration.mesh import SHAPES, follows
from integration.sites import BATCH, FETCH_SECONDS, WEIGHTS, site

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SHAPES)
async def here(request, tmp_path_factory):
    async with site(tmp_path_factory.mktemp(request.param), request.param) as made:
        yield made


@pytest.mark.parametrize("case", CASES)
async def test_no_request_fails(here, case):
    counts = await drill(here, CASES[case])
    assert counts.failures == {}
    assert counts.sent >= 40
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


@pytest.mark.asyncio(loop_scope="function")
async def test_the_documented_matrix_has_a_row_a_case_and_a_column_a_shape():
    """Numbers are not compared: they are another run's."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PATH.read_text().splitlines()
        if line.startswith("|")
    ][: len(CASES) + 2]
    assert rows[0] == ["", *(column.title for column in COLUMNS)]
    assert [row[0] for row in rows[2:]] == [case.title for case in CASES.values()]
    for number, column in enumerate(COLUMNS, 1):
        cells = dict(zip(CASES, (row[number] for row in rows[2:]), strict=True))
        assert {name for name, cell in cells.items() if cell != "-"} == set(column.cases)
        if not column.native:
            assert all(cell.startswith("0 of ") for cell in cells.values())
