"""The options of `weir serve` for what it writes into a cluster."""

import functools
import socket
from collections.abc import Callable
from typing import Any

import click

from weir.istio.options import XDS_ADDRESS, host
from weir.options import with_options
from xds.istio.controller import SETTLE_SECONDS
from xds.istio.shapes.inventory import parse_version
from xds.istio.shapes.wiring import Host, ShapeError, Version
from xds.keeper import KeeperOptions
from xds.operators import Service
from xds.tuning import MANAGE

OPTIONS = (
    click.option(
        "--xds-address",
        default=XDS_ADDRESS,
        show_default=True,
        help="Our own xDS Service, as proxies call it.",
    ),
    click.option(
        "--write-status/--no-write-status",
        default=True,
        show_default=True,
        help="Write Events, and conditions of InferencePools, of what is wrong.",
    ),
    click.option(
        MANAGE,
        "manage",
        is_flag=True,
        help="Keep the EnvoyFilters of pools with the annotation weir.dev/shape.",
    ),
    click.option(
        "--picker-address",
        help="Our picker's Service, as proxies call it; else each pool's endpointPickerRef.",
    ),
    click.option("--istio-version", help="Such as 1.32; else as istiod's Pods say."),
    click.option(
        "--peer",
        "peers",
        multiple=True,
        help="HOST:PORT of the --status of our other replicas, as of a headless Service; may be "
        "repeated.",
    ),
    click.option(
        "--replica",
        envvar="POD_NAME",
        default=socket.gethostname,
        help="What this replica is called; its host's name without.",
    ),
    click.option("--settle-seconds", type=float, default=SETTLE_SECONDS, hidden=True),
)


def keeping_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with these options, which gets them as `service` and `keeper`.

    `service` is None where no status is to be written. It goes with `--kubernetes` and
    `--istio-domain`.
    """

    @functools.wraps(command)
    def with_keeper(**options: Any) -> None:
        manage, version = options.pop("manage"), options.pop("istio_version")
        peers, replica = options.pop("peers"), options.pop("replica")
        settle = options.pop("settle_seconds")
        xds = _host("--xds-address", options.pop("xds_address"))
        picker, write_status = options.pop("picker_address"), options.pop("write_status")
        keeper = None
        if manage:
            if not options["kubernetes"] or options["istio_domain"] != xds.domain:
                raise click.UsageError(
                    f"{MANAGE} goes with --kubernetes, and with an --istio-domain that is that of "
                    f"--xds-address ({xds.domain})"
                )
            keeper = KeeperOptions(
                xds,
                replica,
                tuple(map(_peer, peers)),
                _version(version),
                _host("--picker-address", picker) if picker else None,
                settle,
            )
        elif version or peers or picker:
            raise click.UsageError(f"--istio-version, --picker-address and --peer go with {MANAGE}")
        if not write_status and not options["kubernetes"]:
            raise click.UsageError("--no-write-status goes with --kubernetes")
        service = Service(xds.namespace, xds.service) if write_status else None
        command(service=service, keeper=keeper, **options)

    return with_options(with_keeper, OPTIONS)


def _host(option: str, address: str) -> Host:
    try:
        return host(option, address)
    except ShapeError as error:
        raise click.UsageError(str(error)) from error


def _version(said: str | None) -> Version | None:
    if said is None:
        return None
    version = parse_version(said)
    if version is None:
        raise click.UsageError(f"--istio-version: 1.32 or 1.32.1, not {said!r}")
    return version


def _peer(address: str) -> str:
    name, _, port = address.rpartition(":")
    if not name or not port.isdigit():
        raise click.UsageError(f"--peer: HOST:PORT, not {address!r}")
    return address
