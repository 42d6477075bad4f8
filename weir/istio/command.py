"""`weir istio`: wire pools into proxies that istiod configures."""

import click

from weir.istio.manifests import manifests
from weir.istio.precheck import precheck
from weir.istio.uninstall import uninstall


@click.group("istio")
def istio() -> None:
    """Beside istiod: manifests for gateways and waypoints, and how to take them away."""


istio.add_command(manifests)
istio.add_command(precheck)
istio.add_command(uninstall)
