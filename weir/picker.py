"""`weir picker`: the endpoint picker as a program."""

import asyncio
import socket

import click

from picker.app import PickerOptions, run
from weir.running import run_until_told


@click.command("picker")
@click.option("--xds", required=True, help="The control plane's HOST:PORT.")
@click.option("--listen", default="127.0.0.1:9002", show_default=True, help="ext_proc (gRPC).")
@click.option("--pool", default="", help="NAMESPACE/NAME, for gateways that do not name a pool.")
@click.option("--json-logs", is_flag=True, help="Log JSON lines.")
def command(xds: str, listen: str, pool: str, *, json_logs: bool) -> None:
    """Answer Envoy's ext_proc calls with the endpoint that should get the request.

    Learns pools and loads from the control plane at --xds; holds no Kubernetes rights. Runs as
    many replicas as you like, each for any number of pools.
    """
    node = f"weir-picker~{socket.gethostname()}"
    options = PickerOptions(xds=xds, listen=listen, node=node, pool=pool)

    async def main(stopping: asyncio.Event) -> None:
        await run(options, stopping)

    run_until_told(main, json_logs=json_logs)
