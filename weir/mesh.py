"""The options of programs that have an identity in the mesh."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from weir.options import FILE, with_options
from xds.hbone_tls import MeshCredentials

OPTIONS = (
    click.option(
        "--mesh-cert",
        type=FILE,
        help="Our mesh certificate (SPIFFE): captured Pods are scraped through HBONE; read anew "
        "when it changes.",
    ),
    click.option("--mesh-key", type=FILE, help="The key of --mesh-cert."),
    click.option("--mesh-ca", type=FILE, help="The mesh's root."),
    click.option("--trust-domain", default="", help="Of the Pods; any of the root's without."),
)


def mesh_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with these options, which gets them as `mesh`; None without them."""

    @functools.wraps(command)
    def with_mesh(**options: Any) -> None:
        files = [options.pop(name) for name in ("mesh_cert", "mesh_key", "mesh_ca")]
        command(mesh=_credentials(files, options.pop("trust_domain")), **options)

    return with_options(with_mesh, OPTIONS)


def _credentials(files: list[Path | None], trust_domain: str) -> MeshCredentials | None:
    certificate, key, ca = files
    if certificate is None or key is None or ca is None:
        if any(files) or trust_domain:
            raise click.UsageError("--mesh-cert, --mesh-key and --mesh-ca go together")
        return None
    return MeshCredentials(certificate, key, ca, trust_domain)
