"""One shape in a mesh of its own, with all of Weir's programs, in a state that is known.

Filters are what `weir istio manifests` prints; `weir serve` and `weir picker` are processes; three
Pods have capacities 1, 3 and 6. A native site is what istiod alone makes of the operator's objects,
with the same picker.
"""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from integration.mesh import Mesh, mesh
from integration.mesh.istiod import SHAPES
from integration.wiring import Wiring, unwired
from weir.stack import wait_until

WEIGHTS = (1, 3, 6)
TIMES = 100  # what `weir serve` makes of a capacity
PATIENCE_SECONDS = 5.0  # of a client; a request without an answer by then has failed
FETCH_SECONDS = 2.0  # the shapes' initial_fetch_timeout
RATE = 100  # requests a second, all the while
BATCH = 100
STATS = ("streams_started", "stream_msgs_received", "failure_mode_allowed", "message_timeouts")


class State(Enum):
    BARE = "nothing of Weir's is installed"
    WELL = "all is there"
    PICKER_DEAD = "the picker is dead"
    PICKER_SILENT = "the picker says nothing"
    WEIR_DEAD = "the control plane is dead"
    WEIR_SILENT = "the control plane says nothing"
    ALL_DEAD = "both are dead"
    ON_COPY = "the proxy started without the control plane"
    CHANGED = "the pool's cluster changed without the control plane"


@dataclass(slots=True)
class Site:
    """One column: a mesh, and what state it is in; None where a drill broke off."""

    mesh: Mesh
    wiring: Wiring
    state: State | None
    start_seconds: float  # until the proxy was ready, with everything there
    weights: tuple[int, ...] = WEIGHTS
    patience_seconds: float = PATIENCE_SECONDS

    async def counts(self):
        """What ext_proc filters counted so far."""
        names = "|".join(STATS)
        found = Counter()
        for name, value in (await self.mesh.proxy.stats(rf"ext_proc\.({names})$")).items():
            found[name.rpartition(".")[2]] += value
        return found

    async def send(self, load, count=BATCH, *, at_once=8):
        await self.mesh.traffic.send(load, count, at_once=at_once, patience=self.patience_seconds)

    async def amid(self, load, act):
        """Do it while many requests are under way, and send on when it is done."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.send(load, at_once=20))
            await asyncio.sleep(0.05)
            await act
        await self.send(load)

    async def takes_over(self, weights=WEIGHTS):
        """The control plane has new weights, and the proxy takes them."""
        self.mesh.weir.set(self.mesh.named(*weights))
        self.weights = weights
        await self.mesh.has(*(TIMES * each for each in weights))

    async def another(self):
        """Other weights than the proxy has."""
        await self.takes_over(WEIGHTS[::-1] if self.weights == WEIGHTS else WEIGHTS)

    async def picked_again(self, load):
        """Send until the picker answers."""
        before = (await self.counts())["stream_msgs_received"]

        async def answered():
            await self.send(load, 1)
            return (await self.counts())["stream_msgs_received"] > before

        await wait_until(answered)

    async def has(self):
        await self.mesh.has(*(TIMES * each for each in self.weights))


@asynccontextmanager
async def site(directory, shape, *, native=False, patience_seconds=PATIENCE_SECONDS):
    """One column until the block ends; bare, or native."""
    shape = SHAPES[shape]
    async with mesh(
        directory,
        shape,
        [],
        start=shape.start if native else unwired(shape),
        weights=WEIGHTS,
        picker="real",
        program=True,
        proxy=False,
        drain_seconds=2,
    ) as made:
        seconds = await started(made)
        state = State.WELL if native else State.BARE
        yield Site(made, Wiring(made), state, seconds, patience_seconds=patience_seconds)


async def started(made):
    loop = asyncio.get_running_loop()
    began = loop.time()
    await made.proxy.start()
    seconds = loop.time() - began
    await made.settled()
    return seconds
