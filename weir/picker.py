"""`weir picker`: the endpoint picker as a program."""

import asyncio
import socket
from pathlib import Path

import click

from picker.app import PickerOptions, run
from picker.callers import Callers
from weir.options import FILE
from weir.running import run_until_told
from xds.client import Credentials


@click.command("picker")
@click.option("--xds", required=True, help="The control plane's HOST:PORT.")
@click.option("--listen", default="127.0.0.1:9002", show_default=True, help="ext_proc (gRPC).")
@click.option("--pool", default="", help="NAMESPACE/NAME, for gateways that do not name a pool.")
@click.option("--xds-ca", type=FILE, help="CA of the control plane; without, plaintext.")
@click.option("--xds-cert", type=FILE, help="Our certificate for it (mutual TLS).")
@click.option("--xds-key", type=FILE, help="The key of --xds-cert.")
@click.option("--xds-token", type=FILE, help="A file with our bearer token for it.")
@click.option("--tls-cert", type=FILE, help="Our certificate for those who ask.")
@click.option("--tls-key", type=FILE, help="The key of --tls-cert.")
@click.option("--client-ca", type=FILE, help="Who asks shows a SPIFFE certificate of this CA.")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAMESPACE/ACCOUNT",
    help="Who may ask, with --client-ca; a pattern, repeatable.",
)
@click.option("--metrics", default="", metavar="HOST:PORT", help="Serve /metrics there.")
@click.option("--json-logs", is_flag=True, help="Log JSON lines.")
def command(  # noqa: PLR0913 - its options
    *,
    xds: str,
    listen: str,
    pool: str,
    xds_ca: Path | None,
    xds_cert: Path | None,
    xds_key: Path | None,
    xds_token: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    allow: tuple[str, ...],
    metrics: str,
    json_logs: bool,
) -> None:
    """Answer Envoy's ext_proc calls with the endpoint that should get the request.

    Learns pools and loads from the control plane at --xds; holds no Kubernetes rights. Runs as
    many replicas as you like, each for any number of pools.
    """
    node = f"weir-picker~{socket.gethostname()}"
    if xds_ca is None and (xds_cert or xds_key or xds_token):
        raise click.UsageError("credentials are never sent in plaintext: --xds-ca is missing")
    credentials = Credentials(xds_ca, xds_cert, xds_key, xds_token)
    callers = Callers(tls_cert, tls_key, client_ca, allow)
    options = PickerOptions(xds, listen, node, pool, credentials, callers, metrics)

    async def main(stopping: asyncio.Event) -> None:
        await run(options, stopping)

    run_until_told(main, json_logs=json_logs)
