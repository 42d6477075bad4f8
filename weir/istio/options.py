"""Options that the commands share, and how what they say becomes values."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import click

from weir.istio import source
from xds import registry
from xds.istio.shapes.inventory import Inventory, inventory, parse_version
from xds.istio.shapes.wiring import Host, Istio, ShapeError, Version
from xds.manifests import ManifestError
from xds.pool import Policy, PoolName

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
XDS_ADDRESS = "weir-xds.weir.svc.cluster.local:15010"

CONFIG: Decorator = click.option(
    "--config",
    type=DIRECTORY,
    required=True,
    help="Directory of exported YAML: InferencePools, Services, Gateways, HTTPRoutes, "
    "DestinationRules, EnvoyFilters, Namespaces, istiod's Deployment.",
)
ISTIO_VERSION: Decorator = click.option(
    "--istio-version", help="Such as 1.32; else that of istiod's Deployment in --config."
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
    except (ShapeError, ManifestError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def read(config: Path) -> tuple[Inventory, dict[PoolName, Policy]]:
    """What the operator has, and what each pool's annotations ask for."""
    manifests = list(source.manifests(config))
    pools = registry.pools(manifests)
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
            "the Istio version is not known: no istiod Deployment in --config; say --istio-version"
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
