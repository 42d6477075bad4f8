"""`weir picker`: the ext_proc server and its feed from the control plane, in one task group.

The picker begins to answer at once: until it knows a pool it lets requests pass, and Envoy's
affinity routes them. It never stops answering because the control plane is away.
"""

import asyncio
import gc
from dataclasses import dataclass
from random import Random

import structlog

from picker.callers import ANYBODY, Callers
from picker.metrics import PickerMetrics, expose
from picker.pools import Pools
from picker.reports import report
from picker.server import Picker, serving
from xds.client import PLAINTEXT, Credentials, Link, follow

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PickerOptions:
    """What `weir picker` was told; addresses are "host:port"."""

    xds: str
    listen: str
    node: str = "weir-picker"
    pool: str = ""  # for gateways that do not say which pool they ask about
    credentials: Credentials = PLAINTEXT  # for the control plane
    callers: Callers = ANYBODY
    metrics: str = ""  # where to serve /metrics; nowhere without


async def run(options: PickerOptions, stopping: asyncio.Event) -> None:
    """Run until `stopping` is set.

    Raises `OSError` where an address cannot be bound, `SecurityError` for wrong certificates.
    """
    clock = asyncio.get_running_loop().time
    pools, link = Pools(clock), Link()
    picker = Picker(pools, clock, Random(), options.pool)
    async with (
        serving(picker.process, options.listen, options.callers) as port,
        asyncio.TaskGroup() as tasks,
    ):
        if options.metrics:
            expose(options.metrics, PickerMetrics(picker, pools, link, clock))
        feed = tasks.create_task(
            follow(options.xds, options.node, pools.feeds(), link, options.credentials)
        )
        reports = tasks.create_task(report(options.xds, options.node, picker, options.credentials))
        gc.collect()
        gc.freeze()  # what is here now stays: no collection need look at it again
        log.info("picking", listen=port, xds=options.xds)
        await stopping.wait()
        log.info("draining", **{key.replace(" ", "_"): n for key, n in picker.counts.items()})
        feed.cancel()
        reports.cancel()
