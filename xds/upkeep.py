"""What is written into a cluster that pools come from: what is wrong there, and pools' wiring.

    source.faults, keeper ─► writer ─► Events, conditions
    source, who acknowledged ─► keeper ─► EnvoyFilters

A directory of files has neither.
"""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from xds.istio.replicas import Replica, Seen, seen
from xds.keeper import Keeper, KeeperOptions
from xds.operators import Service
from xds.problems import Problem
from xds.snapshot import TypeUrl
from xds.sources.connection import Connection
from xds.sources.kubernetes import KubernetesSource
from xds.sources.writer import Writer, through
from xds.streams import XdsServer

TELL_SECONDS = 1.0


class Upkeep:
    """Without `service`, our own, no status is written; without `keeper` no EnvoyFilter is kept."""

    def __init__(
        self,
        connection: Connection | None = None,
        source: KubernetesSource | None = None,
        service: Service | None = None,
        keeper: KeeperOptions | None = None,
    ) -> None:
        self._connection, self._source = connection, source
        self._service, self._options = service, keeper
        self._keeper: Keeper | None = None

    def works(self, server: XdsServer) -> list[Any]:
        """Coroutines that run until they are cancelled."""
        connection, source, works = self._connection, self._source, list[Any]()
        if connection is None or source is None:
            return works
        if self._service is not None:
            clock = asyncio.get_running_loop().time
            writer = Writer(through(connection), self._service, Random(), clock=clock)
            works += [writer.run(), self._tell(writer, source)]
        if self._options is not None:
            self._keeper = Keeper(source, connection, self._options, lambda: _held(server))
            works.append(self._keeper.run())
        return works

    def wiring(self) -> dict[str, Any] | None:
        """For `/status`; None where nothing is kept."""
        return self._keeper.status() if self._keeper else None

    def problems(self) -> Sequence[Problem]:
        """Of the wiring."""
        return self._keeper.problems if self._keeper else ()

    def acknowledged(self) -> dict[str, Any]:
        """What other replicas are told."""
        return (self._keeper.me if self._keeper else Replica("")).encode()

    async def _tell(self, writer: Writer, source: KubernetesSource) -> None:
        before: Any = None
        while True:
            wiring = self._keeper.wiring if self._keeper else {}
            said = [*source.faults, *self.problems()], source.subjects(), wiring
            if said != before:
                writer.tell(*said)
            before = said
            await asyncio.sleep(TELL_SECONDS)


def _held(server: XdsServer) -> Seen:
    """Which assignments our clients have."""
    return seen(
        (session.node.id, session.subscriptions[TypeUrl.ENDPOINT].held)
        for session in server.clients
        if TypeUrl.ENDPOINT in session.subscriptions
    )
