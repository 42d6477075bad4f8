"""What a push costs the xDS server, beside a bare grpc.aio server that pushes the same bytes.

Both servers live through the whole run, each with clients of its own, and push in turn; CPU is
process time inside the server from before a change to its last ACK. The clients are Python too and
share the machine's cores, so times to the last ACK are theirs as much as the server's: what counts
is the ratio.
"""

import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weir.bench.helper import Helper, helping
from weir.bench.picker import python
from xds.assignment import cluster_load_assignment
from xds.pool import Endpoint, Share

STREAMS, POOLS, ENDPOINTS = 2_000, 20, 100
PUSHES = 15
CPU_BAR, ACK_BAR, MEMORY_BAR_KIB, BUILD_BAR_MS = 1.3, 1.5, 16.0, 15.0
# go-control-plane 2b88c16, delta EDS, 2,000 streams of one connection each, on a like machine.
PEERS = {"LinearCache": (111, 398, 48), "SnapshotCache": (230, 564, 50)}


@dataclass(slots=True)
class Side:
    """One server's figures: a list entry a push."""

    rss_kib: float = 0.0  # a stream
    cpu_us: list[float] = field(default_factory=list)  # a stream and push
    acks_ms: list[list[float]] = field(default_factory=list)
    framings: int = 0

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_us)

    @property
    def last_ms(self) -> float:
        return statistics.median(max(acks) for acks in self.acks_ms)

    def percentile_ms(self, percent: int) -> float:
        every = sorted(ack for acks in self.acks_ms for ack in acks)
        return every[min(len(every) - 1, len(every) * percent // 100)]


@dataclass(slots=True)
class Row:
    """One shape of clients, one kind of change."""

    together: int  # streams a connection
    change: str
    streams: int
    ours: Side = field(default_factory=Side)
    bare: Side = field(default_factory=Side)

    @property
    def cpu_ratio(self) -> float:
        pairs = zip(self.ours.cpu_us, self.bare.cpu_us, strict=True)
        return statistics.median(ours / bare for ours, bare in pairs)

    @property
    def ack_ratio(self) -> float:
        return self.ours.last_ms / self.bare.last_ms

    @property
    def extra_kib(self) -> float:
        return self.ours.rss_kib - self.bare.rss_kib

    @property
    def met(self) -> bool:
        return (
            self.cpu_ratio <= CPU_BAR
            and self.ack_ratio <= ACK_BAR
            and self.extra_kib <= MEMORY_BAR_KIB
            and self.ours.framings == 1
        )


async def measure(directory: Path, say: Callable[[str], None]) -> list[Row]:
    """Both shapes of clients, both kinds of change; about two minutes."""
    rows = []
    for together in (100, 1):
        say(f"{STREAMS} streams, {together} a connection: connecting")
        rows += await _measure(directory, together, say)
    return rows


async def _measure(directory: Path, together: int, say: Callable[[str], None]) -> list[Row]:
    rows = [Row(together, "all", STREAMS), Row(together, "one", STREAMS // POOLS)]
    async with AsyncExitStack() as parts:
        sides = []
        for name in ("ours", "bare"):
            served = _served(directory / f"{name}.log", name, together)
            server, before = await parts.enter_async_context(served)
            sides.append((server, name))
            grown = (await server.ask(f"expect {STREAMS}"))["rss"] - before
            for row in rows:
                getattr(row, name).rss_kib = grown / 1024 / STREAMS
        for row in rows:
            say(f"{together} streams a connection: {PUSHES} changes of {row.change}")
            for number in range(PUSHES + 1):
                for server, name in sides if number % 2 else sides[::-1]:
                    answer = await server.ask(f"push {row.change}")
                    if number:  # the first is to warm up
                        _book(getattr(row, name), answer, row.streams)
    return rows


def _book(side: Side, answer: dict[str, Any], streams: int) -> None:
    if len(answer["acks"]) != streams:
        raise RuntimeError(f"{len(answer['acks'])} ACKs of {streams} streams")
    side.cpu_us.append(answer["cpu"] / streams * 1e6)
    side.acks_ms.append([seconds * 1e3 for seconds in answer["acks"]])
    side.framings = max(side.framings, answer["framings"])


@asynccontextmanager
async def _served(log: Path, which: str, together: int) -> AsyncIterator[tuple[Helper, int]]:
    """A server whose clients are on their way, and how much memory it had without."""
    async with helping(python("weir.bench.xds_server", which, str(POOLS), str(ENDPOINTS)), log) as (
        server
    ):
        hello = await server.answer()
        numbers = map(str, (hello["port"], STREAMS, together, POOLS))
        async with helping(python("weir.bench.xds_clients", *numbers), log):
            yield server, hello["rss"]


def build_ms(endpoints: int = 5_000) -> float:
    """CPU to build and serialise an assignment; the best of seven."""
    members = [
        Endpoint(f"10.0.{n >> 8}.{n & 255}:80", f"bench/{n}", f"10.0.{n >> 8}.{n & 255}", 80)
        for n in range(endpoints)
    ]
    shares = {each.id: Share(100 + n % 50) for n, each in enumerate(members)}

    def once() -> float:
        before = time.process_time()
        cluster_load_assignment("bench/pool", members, shares)
        return (time.process_time() - before) * 1e3

    return min(once() for _ in range(7))


def all_met(rows: Sequence[Row], build: float) -> bool:
    return build <= BUILD_BAR_MS and all(row.met for row in rows)
