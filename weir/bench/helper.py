"""A helper of a benchmark: a process that answers a line on its stdin with a line of JSON."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 120.0
LINE_BYTES = 1 << 20  # 2,000 times to an ACK are longer than asyncio's reader takes by default


class Helper:
    """Ends where its stdin is closed, or with the block that started it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, line: str) -> Any:
        if self._process.stdin is None:
            raise RuntimeError("started without pipes")
        self._process.stdin.write(f"{line}\n".encode())
        return await self.answer()

    async def answer(self) -> Any:
        """What it says next, asked or not."""
        if self._process.stdout is None:
            raise RuntimeError("started without pipes")
        async with asyncio.timeout(ANSWER_SECONDS):
            return json.loads(await self._process.stdout.readline())


@asynccontextmanager
async def helping(command: Sequence[str], log: Path) -> AsyncIterator[Helper]:
    """Start a helper, and end it on the way out; what it logs goes to the end of `log`."""
    pipe = asyncio.subprocess.PIPE
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=errors, limit=LINE_BYTES
        )
    try:
        yield Helper(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
