"""What the other replicas of this Weir saw: asked one and all, and not waited for.

A peer is HOST:PORT of a status port; a host that has several addresses, as a headless Service has,
stands for all of them. Our own answer is among theirs and left out, by its name. Who does not
answer in time has said nothing.
"""

import asyncio
import socket
from collections.abc import Sequence

import aiohttp
import structlog

from xds.istio.replicas import Replica

PATH = "/acknowledged"
RESOLVE_SECONDS = ANSWER_SECONDS = 2.0
MOST_ADDRESSES = 64

log = structlog.get_logger()


class Peers:
    """`silent` has the addresses that did not answer last, and why; for one asker at a time."""

    def __init__(self, name: str, addresses: Sequence[str]) -> None:
        self._name = name
        self._addresses = [each.rpartition(":")[::2] for each in addresses]
        self._client: aiohttp.ClientSession | None = None
        self.silent: dict[str, str] = {}

    async def ask(self) -> list[Replica]:
        """Those that answered."""
        if not self._addresses:
            return []
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            self._client = aiohttp.ClientSession(timeout=timeout, raise_for_status=True)
        silent: dict[str, str] = {}
        places = await self._places(silent)
        asking = (_ask(self._client, f"{host}:{port}", silent) for host, port in places)
        answers = await asyncio.gather(*asking)
        self._tell(silent)
        # Two of one name are one that is reached in two ways.
        found = {each.name: each for each in answers if each is not None}
        return [each for name, each in sorted(found.items()) if name != self._name]

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _places(self, silent: dict[str, str]) -> list[tuple[str, str]]:
        loop = asyncio.get_running_loop()
        found: dict[tuple[str, str], None] = {}
        for host, port in self._addresses:
            try:
                async with asyncio.timeout(RESOLVE_SECONDS):
                    infos = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except (OSError, TimeoutError) as error:
                silent[f"{host}:{port}"] = str(error) or "no address in time"
                continue
            for family, _, _, _, address in infos:
                where = f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
                found[where, port] = None
        return list(found)[:MOST_ADDRESSES]

    def _tell(self, silent: dict[str, str]) -> None:
        for place in silent.keys() - self.silent.keys():
            log.warning("a replica says nothing", peer=place, reason=silent[place])
        self.silent = silent


async def _ask(client: aiohttp.ClientSession, place: str, silent: dict[str, str]) -> Replica | None:
    try:
        async with client.get(f"http://{place}{PATH}") as response:
            return Replica.decode(await response.json())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        silent[place] = " ".join(str(error).split()) or "no answer in time"
        return None
