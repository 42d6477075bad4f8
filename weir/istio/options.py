"""Options that the commands share, and how what they say becomes values."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from weir.istio import source
from weir.options import DIRECTORY, FILE, Decorator, with_options
from xds import registry
from xds.istio.shapes.inventory import Inventory, inventory, parse_version
from xds.istio.shapes.wiring import Host, Istio, ShapeError, Version
from xds.manifests import ManifestError
from xds.pool import Policy, PoolName
from xds.problems import Reason
from xds.sources.connection import Cluster

XDS_ADDRESS = "weir-xds.weir.svc.cluster.local:15010"

_SOURCE = (
    click.option(
        "--config",
        type=DIRECTORY,
        help="Directory of exported YAML: InferencePools, Services, Gateways, HTTPRoutes, "
        "DestinationRules, EnvoyFilters, Namespaces, istiod's Deployment.",
    ),
    click.option("--kubernetes", is_flag=True, help="Look at the cluster itself; read only."),
    click.option("--kubeconfig", type=FILE, help="The kubeconfig, with --kubernetes."),
    click.option("--context", help="A context in the kubeconfig, with --kubernetes."),
)


def source_options(*, required: bool) -> Decorator:
    """Where to look, as the command's `place`; None where that is allowed and nothing was said."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_place(**options: Any) -> Any:
            config, live = options.pop("config"), options.pop("kubernetes")
            kubeconfig, context = options.pop("kubeconfig"), options.pop("context")
            if (kubeconfig or context) and not live:
                raise click.UsageError("--kubeconfig and --context go with --kubernetes")
            if (config is not None and live) or (required and config is None and not live):
                raise click.UsageError("say where to look: --config DIRECTORY, or --kubernetes")
            cluster = Cluster(kubeconfig, context) if live else None
            place = source.Place(config, cluster) if config or live else None
            return command(place=place, **options)

        return with_options(with_place, _SOURCE)

    return decorate


ISTIO_VERSION: Decorator = click.option(
    "--istio-version", help="Such as 1.32; else that of istiod's Deployment."
)
XDS: Decorator = click.option(
    "--xds-address",
    default=XDS_ADDRESS,
    show_default=True,
    help="Weir's xDS Service, as proxies see it.",
)
JSON: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def told() -> Iterator[None]:
    """What a user can mend is one line on stderr, and status 1."""
    try:
        yield
    except (ShapeError, ManifestError, ConnectionError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def read(place: source.Place) -> tuple[Inventory, dict[PoolName, Policy]]:
    """What the operator has, and what each pool's annotations ask for.

    In files a bad annotation is an error; in a cluster, where Weir passes over it, a note.
    """
    manifests = source.manifests(place)
    if place.directory is not None:
        pools = registry.pools(manifests)
    else:
        pools, problems = registry.Standing().pools(manifests)
        for problem in problems:
            if problem.reason is not Reason.NO_PODS:  # Pods are not looked at
                click.echo(f"note: {problem.where}: {problem.message}", err=True)
    return inventory(manifests), {name: pool.policy for name, pool in pools.items()}


def version(said: str | None, found: Inventory) -> Version:
    """The Istio version, as said or as the configuration shows it. Raises `ShapeError`."""
    if said is not None:
        parsed = parse_version(said)
        if parsed is None:
            raise ShapeError(f"--istio-version: 1.32 or 1.32.1, not {said!r}")
        return parsed
    known = found.versions()
    if len(set(known.values())) > 1:
        each = ", ".join(f"{name} is {number}" for name, number in known.items())
        raise ShapeError(f"several istiods ({each}); say which with --istio-version")
    if not known:
        raise ShapeError(
            "the Istio version is not known: no istiod Deployment was found; say --istio-version"
        )
    return next(iter(known.values()))


def host(option: str, address: str) -> Host:
    """A Service's port from "service.namespace.svc.domain:port". Raises `ShapeError`."""
    name, _, port = address.rpartition(":")
    service, _, rest = name.partition(".")
    namespace, _, domain = rest.partition(".svc.")
    if not (service and namespace and domain and port.isdigit() and "." not in namespace):
        raise ShapeError(f"{option}: SERVICE.NAMESPACE.svc.DOMAIN:PORT, not {address!r}")
    return Host(namespace, service, int(port), domain)


def istio(version: Version, xds: Host) -> Istio:
    return Istio(version, xds.domain)
