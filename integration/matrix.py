"""docs/istio-matrix.md: every drill in every shape, and Istio alone beside them.

python -m integration.matrix > docs/istio-matrix.md
"""

import asyncio
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from integration.drills import CASES, drill
from integration.mesh import SHAPES
from integration.sites import PATIENCE_SECONDS, RATE, site
from weir.envoy import envoy_binary

PATH = Path(__file__).parents[1] / "docs" / "istio-matrix.md"
GATEWAY = ("well", "picker-killed", "captured", "picker-back", "picker-paused", "picker-goes-on")


class Column(NamedTuple):
    title: str
    shape: str
    cases: tuple[str, ...] = tuple(CASES)
    native: bool = False


COLUMNS = (
    *(Column(f"`{name}`", name) for name in SHAPES),
    Column("Istio's gateway alone", "gateway", GATEWAY, native=True),
    Column("Istio's waypoint alone", "waypoint-inferencepool", ("well",), native=True),
)

TEXT = """\
# What fails when a part fails

Each cell was run: how many of the requests failed that were sent while, in that column's
[shape](istio-manifests.md), what the row says happened. What operators are promised is 0 in every
shape; `integration/test_shape_failures.py` runs the same and accepts nothing else.

{table}

Made on {date} with Envoy {envoy}. `make istio-matrix` makes it again, in some minutes.

How it was run:

- Real are Envoy, with what istiod (1.32-dev) generated for the shape and what `weir istio
  manifests` prints for it; `weir serve`; `weir picker`; mutual TLS with SPIFFE identities, through
  a second Envoy that is ztunnel. istiod, Kubernetes and the model servers are stand-ins.
- Of a column everything is run in one mesh, from top to bottom.
- {rate} POST requests a second are sent all the while, and more at once where it breaks. Half of
  them go out on new connections, the others on kept ones. A request that has no answer within
  {patience:g} s has failed.

What rows mean:

- *weights*: 600 requests with a prompt of its own each, to three Pods of capacities 1, 3 and 6.
- *a captured Pod picked*: how many of 20 requests reached the Pod that was picked as `ip:port`, and
  how many in the form that Weir's picker answers with, `ip:port,envoy://connect_originate/ip:port`.
  Where the first is ignored, some get there by chance.
- *picker paused*: it is alive, connected and silent. Each request waits for `message_timeout`
  (0.25 s), and every one is answered while the picker is still silent.
- *proxy started*: it is ready within its fetch timeout (2 s) and 2 s more, and serves from its
  twin's copy of istiod's endpoints.
- *pool's cluster changed*: by a DestinationRule, which makes istiod send its cluster anew; the
  own-cluster shapes are printed anew for it.

## Istio alone

The two last columns are what istiod makes of the same InferencePool (`failureMode: FailOpen`) and
HTTPRoutes, with nothing of ours but the picker: on a gateway the body goes to it in full duplex,
and `message_timeout` is 1000 s. On a waypoint such a route has no endpoints at all.

Measured before, at length, with istiod 1.32-dev itself configuring Envoy 1.40:

| | Istio's gateway alone | the same with shape `gateway` |
|---|---|---|
| picker killed | 2,667 of 2,831 (500) | 0 of 1,886 |
| picker silent | every request hangs | 0 failed, 0.25 s more |
| a captured Pod picked, of 20 | 3 as `ip:port`, by chance | 20 in the dual form |
"""


async def measured(say):
    """The cells, by row and column."""
    cells = {}
    for column in COLUMNS:
        with tempfile.TemporaryDirectory() as directory:
            async with site(Path(directory), column.shape, native=column.native) as here:
                for name in column.cases:
                    counts = await drill(here, CASES[name])
                    cells[name, column] = cell(name, counts)
                    say(f"{column.title}: {CASES[name].title}: {cells[name, column]}")
    return cells


def cell(name, counts):
    """What the document says of one drill."""
    text = f"{counts.failed:,} of {counts.sent:,}"
    if counts.failures:
        statuses = ", ".join(str(each) for each in sorted(counts.failures, key=str))
        text += f" ({statuses})"
    if name == "captured":
        facts = counts.facts
        text += f"; reached {facts['endpoint']}, {facts['dual']}"
    if name == "weights":
        served = counts.facts["served"]
        text += f"; {' : '.join(str(served[pod]) for pod in sorted(served))}"
    return text


def table(cells):
    """Columns as they were run, and a row a case."""
    rows = [["", *(column.title for column in COLUMNS)], ["---"] * (1 + len(COLUMNS))]
    rows += [
        [case.title, *(cells.get((name, column), "-") for column in COLUMNS)]
        for name, case in CASES.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def version():
    process = await asyncio.create_subprocess_exec(
        str(envoy_binary()), "--version", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().split("/")[-4]


async def main():
    cells = await measured(lambda line: print(line, file=sys.stderr, flush=True))
    today = datetime.now(UTC).date()
    values = {"date": today, "envoy": await version(), "rate": RATE, "patience": PATIENCE_SECONDS}
    print(TEXT.format(table=table(cells), **values), end="")


if __name__ == "__main__":
    # Not on uvloop: it forks where asyncio does not, and under a busy gRPC a child may die of it.
    asyncio.run(main())
