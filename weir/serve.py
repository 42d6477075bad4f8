"""`weir serve`: the control plane as a program."""

import asyncio
from pathlib import Path

import click

from weir.keeping import keeping_options
from weir.mesh import mesh_options
from weir.options import DIRECTORY, FILE
from weir.running import run_until_told
from xds.app import ServeOptions, serve
from xds.hbone_tls import MeshCredentials
from xds.keeper import KeeperOptions
from xds.operators import Service
from xds.security import Security, StaticTokens, read_grants
from xds.sources.connection import Cluster
from xds.sources.kubernetes import Watching
from xds.standalone import BODY_MODES, Filters, Standalone


@click.command("serve")
@click.option(
    "--config",
    type=DIRECTORY,
    help="Directory of Kubernetes manifests: InferencePools, Pods, InferenceObjectives.",
)
@click.option("--kubernetes", is_flag=True, help="Watch a cluster instead of a directory.")
@click.option(
    "--namespace", "namespaces", multiple=True, help="Watch this one only; may be repeated."
)
@click.option(
    "--kubeconfig", type=FILE, help="Of the cluster; in a Pod its service account is used."
)
@click.option("--context", help="In the kubeconfig.")
@click.option("--listen", default="127.0.0.1:18000", show_default=True, help="xDS (gRPC).")
@click.option(
    "--status", default="127.0.0.1:18001", show_default=True, help="/status, /metrics, /healthz."
)
@click.option("--plaintext", is_flag=True, help="xDS without TLS: whoever connects sees all.")
@click.option("--tls-cert", type=FILE, help="Our certificate; read anew when it changes.")
@click.option("--tls-key", type=FILE, help="The key of --tls-cert.")
@click.option("--client-ca", type=FILE, help="Clients show a SPIFFE certificate of this CA.")
@click.option("--tokens", type=FILE, help="Clients show a token: YAML of TOKEN: NAMESPACE/ACCOUNT.")
@click.option(
    "--token-review",
    is_flag=True,
    help="Clients show a token that the cluster's API server checks.",
)
@click.option(
    "--audience",
    "audiences",
    multiple=True,
    help="Whom such tokens must be made for (istio-ca); may be repeated.",
)
@click.option("--grants", type=FILE, help="YAML: who sees pools beyond its own namespace.")
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
@click.option(
    "--istio-domain",
    default="",
    help="Answer for istiod's clusters of each pool too, in this mesh domain (cluster.local).",
)
@mesh_options
@keeping_options
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
    config: Path | None,
    kubernetes: bool,
    namespaces: tuple[str, ...],
    kubeconfig: Path | None,
    context: str | None,
    listen: str,
    status: str,
    plaintext: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    tokens: Path | None,
    token_review: bool,
    audiences: tuple[str, ...],
    grants: Path | None,
    proxy_listen: str,
    picker: str,
    istio_domain: str,
    mesh: MeshCredentials | None,
    service: Service | None,
    keeper: KeeperOptions | None,
    access_log: str | None,
    body_mode: str,
    filters: str,
    with_picker: bool,
    json_logs: bool,
) -> None:
    """Serve Envoys and pickers over xDS: pools, weights, loads.

    Watches the manifests in --config, or a cluster with --kubernetes, and scrapes the model servers
    that they select. A mistake in a directory stops the start and names the file and the field;
    later mistakes, and all in a cluster, are logged, and what was good stands.

    A client sees the pools of its own namespace, which its certificate or token proves, and those
    that --grants adds.

    \b
      weir serve --config manifests/ --plaintext --with-picker
      weir serve --kubernetes --tls-cert tls.crt --tls-key tls.key --client-ca ca.crt
    \b
    An Envoy needs to know nothing but where this is:
      weir envoy-bootstrap --xds 127.0.0.1:18000 > envoy.yaml
      envoy -c envoy.yaml
    """
    if plaintext == (tls_cert is not None):
        raise click.UsageError(
            "say how clients connect: --tls-cert with --tls-key and --client-ca, --tokens or "
            "--token-review, or --plaintext, where whoever connects sees all"
        )
    if token_review != bool(audiences):
        raise click.UsageError("--token-review and --audience go together: whom tokens are for")
    if token_review and (client_ca or tokens):
        raise click.UsageError("either --token-review or --client-ca or --tokens")
    options = ServeOptions(
        _source(config, namespaces, kubernetes=kubernetes),
        listen,
        status,
        Standalone(
            listen=proxy_listen,
            picker=picker,
            access_log=access_log,
            body_mode=body_mode,
            filters=Filters(filters),
        ),
        Security(tls_cert, tls_key, client_ca, StaticTokens(tokens) if tokens else None),
        grants=read_grants(grants) if grants else (),
        istio_domain=istio_domain,
        cluster=Cluster(kubeconfig, context),
        audiences=audiences,
        mesh=mesh,
        service=service,
        keeper=keeper,
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


def _source(
    config: Path | None, namespaces: tuple[str, ...], *, kubernetes: bool
) -> Path | Watching:
    if kubernetes == (config is not None):
        raise click.UsageError("say where pools come from: --config DIRECTORY or --kubernetes")
    if config is None:
        return Watching(namespaces)
    if namespaces:
        raise click.UsageError("--namespace goes with --kubernetes")
    return config
