"""`weir inference-sim`: model servers for a demo, a load test, or a laptop."""

import asyncio
import gc
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import click

from weir.inference_sim.config import ServerConfig
from weir.inference_sim.engine import EngineConfig
from weir.inference_sim.server import serve
from weir.inference_sim.timing import Timing

ENGINE_OPTIONS = (
    "blocks",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_loras",
    "lora_load_seconds",
)


class Address(click.ParamType[tuple[str, int]]):
    """ADDRESS:PORT; an IPv6 address stands in brackets."""

    name = "address:port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not ADDRESS:PORT, such as 127.0.0.1:8000", param, ctx)
        return host.strip("[]"), int(port)


@click.command("inference-sim")
@click.option(
    "--listen",
    "addresses",
    type=Address(),
    multiple=True,
    default=("127.0.0.1:8000",),
    show_default=True,
    help="Where a server listens; once a server. Port 0 takes a free one.",
)
@click.option("--model", default="sim", show_default=True, help="The base model's name.")
@click.option("--adapter", "adapters", multiple=True, help="A LoRA adapter's name; repeatable.")
@click.option(
    "--max-loras",
    type=click.IntRange(min=0),
    help="Adapters loaded at once.  [default: 4 with --adapter, else 0: adapters are off]",
)
@click.option(
    "--lora-load-seconds",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="How long loading one holds up the engine.",
)
@click.option(
    "--speed",
    "speeds",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=(1.0,),
    show_default=True,
    help="Divides every step's time; one for all servers, or one for each.",
)
@click.option(
    "--blocks",
    type=click.IntRange(min=2),
    default=EngineConfig().blocks,
    show_default=True,
    help="Blocks of KV cache.",
)
@click.option(
    "--block-size", type=click.IntRange(min=1), default=16, show_default=True, help="In tokens."
)
@click.option(
    "--max-num-seqs",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Requests in a batch.",
)
@click.option(
    "--max-num-batched-tokens",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Tokens computed in a step.",
)
@click.option(
    "--max-model-len",
    type=click.IntRange(min=2),
    help="Tokens of prompt and answer.  [default: 32768, or what the cache holds]",
)
@click.option(
    "--max-num-queued-reqs",
    type=click.IntRange(min=0),
    help="Answer 503 above this many waiting requests.  [default: never]",
)
@click.option(
    "--stream-interval",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tokens a streamed event, after the first.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Answers follow from it, the model and the prompt.",
)
@click.option(
    "--created",
    type=int,
    help="Unix time that every answer carries, so that its bytes can be foretold.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="After SIGTERM, how long requests may still take.",
)
def inference_sim(
    addresses: tuple[tuple[str, int], ...],
    speeds: tuple[float, ...],
    drain_seconds: float,
    **options: Any,
) -> None:
    """Simulate vLLM model servers: same HTTP, same metric names, no GPU.

    Each --listen is one server with an engine of its own: continuous batching, chunked prefill,
    a paged KV cache that reuses prefixes, LoRA slots. Time passes as on an H100 with an 8B model
    (an estimate; --speed scales it). Four bytes of prompt count as a token, max_tokens is the
    answer's length, and an answer is words that mean nothing but are always the same.

    \b
    Two servers, the second at half the speed:
      weir inference-sim --listen 127.0.1.1:8000 --listen 127.0.1.2:8000 --speed 1 --speed 0.5
    Adapters, two of which fit at a time:
      weir inference-sim --adapter billing --adapter legal --adapter search --max-loras 2
    Ask one, and see what it counts:
      curl 127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\
           -d '{"prompt": "Once upon a time", "max_tokens": 8}'
      curl 127.0.0.1:8000/metrics

    For each server, a line "listening on http://ADDRESS:PORT" says that it is ready.
    """
    if len(speeds) not in (1, len(addresses)):
        raise click.UsageError(
            f"{len(speeds)} --speed for {len(addresses)} --listen: give one, or one for each"
        )
    try:
        config = _config(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    each = speeds * len(addresses) if len(speeds) == 1 else speeds
    configs = [
        replace(config, engine=replace(config.engine, timing=Timing(speed=speed))) for speed in each
    ]
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(addresses, configs, drain_seconds))
        except OSError as error:
            raise click.ClickException(f"{error.strerror}; is the address free?") from error


def _config(options: dict[str, Any]) -> ServerConfig:
    """From the options whose names are those of the fields."""
    if options["max_loras"] is None:
        options["max_loras"] = 4 if options["adapters"] else 0
    engine = EngineConfig(**{name: options.pop(name) for name in ENGINE_OPTIONS})
    if options["max_model_len"] is None:
        options["max_model_len"] = min(32_768, engine.capacity_tokens)
    return ServerConfig(engine=engine, **options)


async def _serve(
    addresses: tuple[tuple[str, int], ...], configs: list[ServerConfig], drain_seconds: float
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve(addresses, configs, drain_seconds=drain_seconds) as servers:
        gc.freeze()  # what lives until the end need not be walked at each collection
        for server in servers:
            click.echo(f"listening on {server.url}")
        await stop.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed: a quarter less CPU for each streamed event."""
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - an extra

        return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
    return asyncio.new_event_loop
