"""TLS of a server of ours: certificates that follow their files, and who a client's one names.

Certificates are files, looked at for every handshake: a renewed one is served from the next
connection on, and streams that are open stay open. A renewal that cannot be read or does not fit
its key keeps the last good pair.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import structlog

from xds.access import Identity

SPIFFE = re.compile(r"spiffe://[^/]+/ns/([^/]+)/sa/([^/]+)")

log = structlog.get_logger()


class Unauthenticated(Exception):
    """No credentials, or none that are worth anything; the message is for the client."""


class SecurityError(ValueError):
    """The server's own credentials are wrong; the message names the file."""


def server_credentials(
    certificate: Path, key: Path, client_ca: Path | None = None
) -> grpc.ServerCredentials:
    """With `client_ca`, clients must show a certificate of it. Raises `SecurityError`."""
    files = _Files(certificate, key, client_ca)
    return grpc.dynamic_ssl_server_credentials(
        files.first,
        files.renewed,  # type: ignore[arg-type]  # None: as before; the stubs forget it
        require_client_authentication=client_ca is not None,
    )


def spiffe_identity(auth: Mapping[str, Any]) -> Identity:
    """From gRPC's auth context of a connection with a client certificate."""
    for raw in auth.get("peer_spiffe_id", ()):
        uri = raw.decode() if isinstance(raw, bytes) else raw
        if match := SPIFFE.fullmatch(uri):
            return Identity(match[1], match[2], "certificate")
    raise Unauthenticated("the certificate has no spiffe://<domain>/ns/<ns>/sa/<account>")


class _Files:
    """Certificate files as gRPC's certificate configuration; called from gRPC's threads."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises `SecurityError`."""
        self._paths = [certificate, key, *([client_ca] if client_ca else [])]
        try:
            self._last = self._read()
        except OSError as error:
            raise SecurityError(f"{error.filename}: {error.strerror}") from error
        self.first = self._configuration(self._last)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration, or None to go on with the last."""
        try:
            contents = self._read()
        except OSError as error:
            log.warning("certificate not readable; the last one stands", problem=str(error))
            return None
        if contents == self._last:
            return None
        if missing := [path for path, text in zip(self._paths, contents, strict=True) if not text]:
            log.warning("certificate file is empty; the last one stands", file=str(missing[0]))
            return None
        self._last = contents
        log.info("certificate renewed", file=str(self._paths[0]))
        return self._configuration(contents)

    def _read(self) -> list[bytes]:
        return [path.read_bytes() for path in self._paths]

    def _configuration(self, contents: list[bytes]) -> grpc.ServerCertificateConfiguration:
        certificate, key, *roots = contents
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=roots[0] if roots else None
        )
