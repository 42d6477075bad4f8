"""HBONE, so that Pods that ztunnel captured can be scraped where plaintext is refused.

    scrape ─► HTTP/1.1 ─► tunnel ┐
    scrape ─► HTTP/1.1 ─► tunnel ┴► HTTP/2 ─► mutual TLS ─► <pod ip>:15008 ─► <pod ip>:<port>
              one a port                one a Pod               its ztunnel

`Hbone.connect` is what `create_connection` is to a socket. The ports of a Pod share one connection.
It is dialled when the first tunnel is asked for; `hbone_connection.py` says when it ends. Where it
fails, the next dial waits a second or more, and who asks meanwhile hears of the last: an expired
certificate must not cost a handshake for every scrape of every Pod.

What a failure says of the model server:

    nobody at 15008       nothing. ztunnel is away, or the Pod is not captured any more, and the
                          server may be well. A Pod that is gone leaves with the list of endpoints
    TLS                   nothing: we have the wrong certificate, or the far end has
    CONNECT: 503          nobody listens. ztunnel went to the port itself, from beside the server
    CONNECT: 401, 403     nothing: an AuthorizationPolicy keeps us out
    CONNECT: other, none  nothing
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from xds.hbone_connection import CONNECT_SECONDS, Connection
from xds.hbone_tls import Contexts, MeshCredentials
from xds.hbone_transport import Tls
from xds.http1 import Interrupted, NoPage
from xds.pool import Endpoint
from xds.tls import SecurityError

PAUSE_SECONDS = 4.0  # at most, between dials that fail: a handshake costs as much as a page

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(slots=True)
class _Pod:
    dialling: asyncio.Lock = field(default_factory=asyncio.Lock)
    connection: Connection | None = None
    pause: float = 0.0  # after the dial that failed last
    not_before: float = 0.0  # the next dial
    problem: str = ""


class Hbone:
    """The connections to captured Pods. Whoever made it closes it."""

    def __init__(self, credentials: MeshCredentials) -> None:
        self._credentials = credentials
        self._contexts = Contexts(credentials)
        self._pods: dict[tuple[str, str], _Pod] = {}
        self._sweep_at = 16

    async def connect(self, factory: Callable[[], P], endpoint: Endpoint) -> P:
        """A protocol that `factory` made, on a tunnel to `endpoint`. Raises `NoPage`."""
        kept, connection = await self._connection(endpoint)
        try:
            return await connection.open(factory, endpoint.id)
        except Interrupted:
            if not kept:
                raise
        _, connection = await self._connection(endpoint)
        return await connection.open(factory, endpoint.id)

    def close(self) -> None:
        for pod in list(self._pods.values()):
            if pod.connection is not None:
                pod.connection.leave("closed")

    async def _connection(self, endpoint: Endpoint) -> tuple[bool, Connection]:
        """The connection to its Pod, and whether it was there before."""
        key = (endpoint.address, endpoint.pod.partition("/")[0])
        pod = self._pods.get(key)
        if pod is None:
            self._sweep()
            pod = self._pods[key] = _Pod()
        async with pod.dialling:
            if pod.connection is not None and not pod.connection.over:
                return True, pod.connection
            clock = asyncio.get_running_loop().time
            if clock() < pod.not_before:
                raise NoPage(pod.problem)
            try:
                pod.connection = await self._dial(*key)
            except NoPage as error:
                pod.problem = str(error)
                pod.pause = min(2 * pod.pause or 1.0, PAUSE_SECONDS)
                pod.not_before = clock() + pod.pause
                raise
            pod.pause = 0.0
            return False, pod.connection

    def _sweep(self) -> None:
        """Forget Pods that nobody asks for any more, before there are twice as many."""
        if len(self._pods) < self._sweep_at:
            return
        long_ago = asyncio.get_running_loop().time() - 10 * PAUSE_SECONDS
        for key, pod in list(self._pods.items()):
            over = pod.connection is None or pod.connection.over
            if over and not pod.dialling.locked() and pod.not_before < long_ago:
                del self._pods[key]
        self._sweep_at = 2 * len(self._pods) + 16

    async def _dial(self, address: str, namespace: str) -> Connection:
        port = self._credentials.port
        where = f"{address}:{port}"
        connection = Connection(where, self._credentials, namespace)
        try:
            context = await self._contexts.newest()
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: Tls(context, connection), address, port
                )
                await connection.ready
        except SecurityError as error:
            raise NoPage(f"the mesh certificate: {error}") from error
        except TimeoutError:
            raise NoPage(f"no HTTP/2 with {where} after {CONNECT_SECONDS:.0f} s") from None
        except ConnectionRefusedError:
            raise NoPage(
                f"nobody listens on {where}: is ztunnel running on the node, and is the Pod still "
                "captured?"
            ) from None
        except OSError as error:
            raise NoPage(f"no connection to {where}: {error}") from error
        finally:
            if not connection.usable:
                connection.leave("never was usable")
        return connection
