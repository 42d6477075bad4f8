"""Who is on the other end: server certificates, client certificates, bearer tokens.

    plaintext          nobody is anybody; only where it is asked for by name
    mutual TLS         the SPIFFE id in the client's certificate, spiffe://<domain>/ns/<ns>/sa/<account>
    TLS and tokens     "authorization: Bearer …", given to a `Verifier`

Certificates are files, looked at for every handshake: a renewed one is served from the next
connection on, and streams that are open stay open. A renewal that cannot be read or does not fit
its key keeps the last good pair.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import structlog
import yaml

from xds.access import Grant, GrantsError, Identity, parse_grants

SPIFFE = re.compile(r"spiffe://[^/]+/ns/([^/]+)/sa/([^/]+)")
BEARER = "bearer "

log = structlog.get_logger()


class Unauthenticated(Exception):
    """No credentials, or none that are worth anything; the message is for the client."""


class SecurityError(ValueError):
    """The server's own credentials are wrong; the message names the file."""


class Verifier(Protocol):
    """Turns a bearer token into an identity. Raises `Unauthenticated`."""

    async def __call__(self, token: str) -> Identity: ...


class StaticTokens:
    """Tokens from a YAML file of `token: namespace/serviceAccount`; for tests and small places."""

    def __init__(self, path: Path) -> None:
        """Raises `SecurityError`."""
        try:
            document = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SecurityError(f"{path}: {error}") from error
        if not isinstance(document, dict) or not document:
            raise SecurityError(f"{path}: a mapping of token to namespace/serviceAccount")
        self._identities = {}
        for number, (token, value) in enumerate(document.items()):
            namespace, _, account = str(value).partition("/")
            if not isinstance(token, str) or not namespace or not account:
                # The token itself stays out of messages and logs.
                raise SecurityError(f"{path}: entry {number}: namespace/serviceAccount expected")
            self._identities[token] = Identity(namespace, account, "token")

    async def __call__(self, token: str) -> Identity:
        identity = self._identities.get(token)
        if identity is None:
            raise Unauthenticated("the token is not known")
        return identity


def read_grants(path: Path) -> tuple[Grant, ...]:
    """The grants file. Raises `SecurityError`."""
    try:
        return parse_grants(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, GrantsError) as error:
        raise SecurityError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Security:
    """How the port is secured. Without a certificate it is plaintext."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None  # requires client certificates that chain to it
    verifier: Verifier | None = None  # requires tokens, where there is no `client_ca`

    def check(self) -> None:
        """Raises `SecurityError` where the parts do not make a whole."""
        if self.certificate is None:
            if self.key or self.client_ca or self.verifier:
                raise SecurityError("a certificate and its key are missing (--tls-cert, --tls-key)")
            return
        if self.key is None:
            raise SecurityError("the certificate's key is missing (--tls-key)")
        if self.client_ca is None and self.verifier is None:
            raise SecurityError(
                "TLS alone lets everybody in: say who may come (--client-ca or --tokens)"
            )

    @property
    def plaintext(self) -> bool:
        return self.certificate is None

    def credentials(self) -> grpc.ServerCredentials:
        """TLS credentials that follow their files. Raises `SecurityError`."""
        self.check()
        files = _Files(self)
        return grpc.dynamic_ssl_server_credentials(
            files.first,
            files.renewed,  # type: ignore[arg-type]  # None: as before; the stubs forget it
            require_client_authentication=self.client_ca is not None,
        )

    async def identify(self, context: Any) -> Identity | None:
        """Who the stream belongs to; None on a plaintext port. Raises `Unauthenticated`."""
        if self.plaintext:
            return None
        if self.client_ca is not None:
            return spiffe_identity(context.auth_context())
        if self.verifier is None:
            raise Unauthenticated("nobody is let in")
        return await self.verifier(bearer_token(context.invocation_metadata() or ()))


def spiffe_identity(auth: Mapping[str, Any]) -> Identity:
    """From gRPC's auth context of a connection with a client certificate."""
    for raw in auth.get("peer_spiffe_id", ()):
        uri = raw.decode() if isinstance(raw, bytes) else raw
        if match := SPIFFE.fullmatch(uri):
            return Identity(match[1], match[2], "certificate")
    raise Unauthenticated("the certificate has no spiffe://<domain>/ns/<ns>/sa/<account>")


def bearer_token(metadata: Any) -> str:
    for key, value in metadata:
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if key == "authorization" and text[: len(BEARER)].lower() == BEARER:
            return str(text[len(BEARER) :])
    raise Unauthenticated("no 'authorization: Bearer' in the metadata")


class _Files:
    """Certificate files as gRPC's certificate configuration; called from gRPC's threads."""

    def __init__(self, security: Security) -> None:
        chosen = (security.certificate, security.key, security.client_ca)
        self._paths = [path for path in chosen if path is not None]
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
