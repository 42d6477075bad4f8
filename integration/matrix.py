"""docs/istio-matrix.md: every drill in every shape, and Istio alone beside them.

python -m integration.matrix [FILE]
"""

import asyncio
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from integration.drills import CASES, PATIENCE_SECONDS, RATE, WEIGHTS, drill, site
from integration.mesh import SHAPES
from weir.envoy import envoy_binary
from weir.running import run_loop

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

Every cell is a run: failed of sent requests in one of the five [shapes](istio-manifests.md), while
what the row says happens to it. 0 failed is what an operator is promised; the tests
(`integration/test_shape_failures.py`) hold every cell of the shapes to it.

{table}

Made on {date} with Envoy {envoy}; `make istio-matrix` makes it again.

- Rows are in the order in which they were run, each column in one mesh.
- What is real: Envoy, with what istiod (1.32-dev) generated for the shape and what `weir istio
  manifests` prints; `weir serve`; `weir picker`; mutual TLS through a second Envoy that stands for
  ztunnel. istiod itself, Kubernetes and the model servers are stand-ins.
- {rate} POST requests a second all the while and bursts of 20 at once around what happens, half of
  them on new connections. A request that has no answer within {patience:g} s has failed.
- *started while the control plane is away*: the proxy is ready within its fetch timeout (2 s) plus
  2 s, and serves from the twin's copy of istiod's endpoints.
- *cluster changed*: a DestinationRule's `connectTimeout` makes istiod send the pool's cluster anew,
  and the own-cluster shapes are printed anew.
- *picker paused*: each request waits for `message_timeout` (0.25 s), and all are answered before the
  picker goes on.
- *weights*: 600 requests, each with a prompt of its own, by three Pods of capacities 1, 3 and 6.
- *a captured Pod picked*: how many of 20 picks were honoured, as `ip:port` and as
  `ip:port,envoy://connect_originate/ip:port`, which Weir's picker answers. Where the first is
  ignored some requests get to the Pod by chance.

## Istio alone

The last two columns are what istiod makes of the same InferencePool and HTTPRoute, unpatched:
`failureMode: FailOpen`, the body to the picker in full duplex. The picker is Weir's, told its pool.
An HTTPRoute from a waypoint's Service to an InferencePool has no endpoints there at all.

Measured before, at length, with istiod 1.32-dev's own push code feeding the same Envoy 1.40:

| Istio's gateway alone | |
|---|---|
| picker killed | 2,667 of 2,831 requests answered 500 |
| picker silent | every request hangs (Istio's `message_timeout` is 1000 s, and not enforced in full duplex) |
| a captured Pod picked as `ip:port` | 3 of 20 reached it, by chance |

The same with the shape `gateway`: killed 0 of 1,886; silent 0 failed, with 0.25 s added; in the dual
form 20 of 20.
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
        text += f"; honoured {facts['endpoint']}, {facts['dual']} of 20"
    if name == "weights":
        served = counts.facts["served"]
        text += f"; {' : '.join(str(served[pod]) for pod in sorted(served))}"
    return text


def table(cells):
    rows = [["", *(column.title for column in COLUMNS)], ["---"] * (len(COLUMNS) + 1)]
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


async def main(path):
    assert WEIGHTS == (1, 3, 6)
    cells = await measured(lambda line: print(line, file=sys.stderr, flush=True))
    text = TEXT.format(
        table=table(cells),
        date=datetime.now(UTC).date(),
        envoy=await version(),
        rate=RATE,
        patience=PATIENCE_SECONDS,
    )
    path.write_text(text)


if __name__ == "__main__":
    run_loop(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH))
