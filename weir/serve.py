"""`weir serve`: the control plane as a program."""

import asyncio
from pathlib import Path

import click

from weir.running import run_until_told
from xds.app import ServeOptions, serve
from xds.standalone import BODY_MODES, Filters, Standalone


@click.command("serve")
@click.option(
    "--config",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Directory of Kubernetes manifests: InferencePools, Pods, InferenceObjectives.",
)
@click.option("--listen", default="127.0.0.1:18000", show_default=True, help="xDS (gRPC).")
@click.option(
    "--status", default="127.0.0.1:18001", show_default=True, help="/status, /metrics, /healthz."
)
@click.option(
    "--proxy-listen",
    default="127.0.0.1:8080",
    show_default=True,
    help="Where Envoy is told to listen.",
)
@click.option(
    "--picker", default="127.0.0.1:9002", show_default=True, help="Where Envoy finds the picker."
)
@click.option("--with-picker", is_flag=True, help="Run the picker too, in this process.")
@click.option("--access-log", help="Where Envoy is told to write a JSON line a request.")
@click.option(
    "--body-mode",
    type=click.Choice(list(BODY_MODES)),
    default="digests",
    show_default=True,
    help="How Envoy asks the picker; the others send it the prompt.",
)
@click.option(
    "--filters",
    type=click.Choice([each.value for each in Filters]),
    default="both",
    show_default=True,
    help="Which of our filters Envoy runs; for benchmarks.",
)
@click.option("--json-logs", is_flag=True, help="Log JSON lines.")
def command(  # noqa: PLR0913 - its options
    *,
    config: Path,
    listen: str,
    status: str,
    proxy_listen: str,
    picker: str,
    access_log: str | None,
    body_mode: str,
    filters: str,
    with_picker: bool,
    json_logs: bool,
) -> None:
    """Serve Envoys and pickers over xDS: pools, weights, loads.

    Watches the manifests in --config and scrapes the model servers that they select. A mistake in
    them stops the start and names the file and the field; later mistakes are logged, and what was
    good stands.

    \b
    An Envoy needs to know nothing but where this is:
      weir envoy-bootstrap --xds 127.0.0.1:18000 > envoy.yaml
      envoy -c envoy.yaml
    """
    options = ServeOptions(
        config,
        listen,
        status,
        Standalone(
            listen=proxy_listen,
            picker=picker,
            access_log=access_log,
            body_mode=body_mode,
            filters=Filters(filters),
        ),
    )

    async def main(stopping: asyncio.Event) -> None:
        if not with_picker:
            await serve(options, stopping)
            return
        from picker.app import PickerOptions, run  # noqa: PLC0415 - only where it is asked for

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(options, stopping))
            tasks.create_task(run(PickerOptions(xds=listen, listen=picker), stopping))

    run_until_told(main, json_logs=json_logs)
