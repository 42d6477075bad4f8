"""How a program of ours runs: logs to stderr, stops on SIGTERM, and says what is wrong."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import click
import structlog

from xds.manifests import ManifestError
from xds.tls import SecurityError


def configure_logging(*, as_json: bool) -> None:
    """Structured lines on stderr: JSON for machines, else for people."""
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def run_until_told(main: Callable[[asyncio.Event], Awaitable[None]], *, json_logs: bool) -> None:
    """Run `main` until SIGTERM or SIGINT sets its event.

    What a user can mend (a manifest, an address) ends the program with status 1 and one line.
    """
    configure_logging(as_json=json_logs)

    async def whole() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await main(stopping)

    try:
        run_loop(whole())
    except* (ManifestError, SecurityError, OSError) as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise click.ClickException(str(first)) from None


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, on uvloop where that is installed.

    Our servers hold thousands of small objects for hours: looking through all of them for cycles
    after every 700 new ones costs a push more than its bytes do.
    """
    gc.set_threshold(50_000, 20, 50)
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
