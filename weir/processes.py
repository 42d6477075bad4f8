"""A child process that the demo, the benchmarks and the tests can start, watch, break and stop.

Each child writes to a log file of its own, is known by its PID, and never outlives the `async with`
that started it. A child that ends early is an error that quotes the end of its log.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 30.0


class ProcessEndedEarlyError(RuntimeError):
    """A child ended, or never became ready; the message quotes its log."""


class Child:
    """One running child process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def cpu_seconds(self) -> float:
        """User and system time so far (Linux: /proc/PID/stat, fields 14 and 15)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pause(self) -> None:
        """SIGSTOP: alive, connected, and silent."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.running:
            self._process.kill()
        await self._process.wait()

    async def stop(self, *, grace_seconds: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after the grace; the exit status."""
        if self.running:
            self.resume()
            self._process.terminate()
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()
        return await self._process.wait()

    def tail(self, lines: int = 12) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    async def until(self, ready: Callable[[], Awaitable[bool]], *, what: str) -> None:
        """Wait until `ready()`, polling; the child must stay alive meanwhile."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await ready():
                    if not self.running:
                        raise ProcessEndedEarlyError(
                            f"{self.name} ended with status {self._process.returncode} before "
                            f"{what}; the end of {self.log}:\n{self.tail()}"
                        )
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise ProcessEndedEarlyError(
                f"{self.name} took more than {READY_SECONDS:.0f} s until {what}; the end of "
                f"{self.log}:\n{self.tail()}"
            ) from None

    async def until_logged(self, text: str) -> None:
        """Wait until its log has `text`."""

        async def logged() -> bool:
            return self.log.exists() and text in self.log.read_text(errors="replace")

        await self.until(logged, what=f"it said {text!r}")


async def start(name: str, command: Sequence[str | os.PathLike[str]], log: Path) -> Child:
    """Start `command`; its output goes to the end of `log`."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    return Child(name, process, log)


@asynccontextmanager
async def running(
    name: str, command: Sequence[str | os.PathLike[str]], log: Path
) -> AsyncIterator[Child]:
    """`start`, and stop on the way out."""
    child = await start(name, command, log)
    try:
        yield child
    finally:
        await child.stop()


def weir(*arguments: str) -> list[str]:
    """The command line of this very Weir."""
    return [sys.executable, "-m", "weir", *arguments]
