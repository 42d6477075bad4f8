"""Who is on the other end: server certificates, client certificates, bearer tokens.

    plaintext          nobody is anybody; only where it is asked for by name
    mutual TLS         the SPIFFE id in the client's certificate, spiffe://<domain>/ns/<ns>/sa/<account>
    TLS and tokens     "authorization: Bearer …", given to a `Verifier`

Certificates are read anew for every connection (`xds.tls`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import yaml

from xds.access import Grant, GrantsError, Identity, parse_grants
from xds.tls import SecurityError, Unauthenticated, server_credentials, spiffe_identity

BEARER = "bearer "


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
        if self.certificate is None or self.key is None:
            raise SecurityError("plaintext has no credentials")
        return server_credentials(self.certificate, self.key, self.client_ca)

    async def identify(self, context: Any) -> Identity | None:
        """Who the stream belongs to; None on a plaintext port. Raises `Unauthenticated`."""
        if self.plaintext:
            return None
        if self.client_ca is not None:
            return spiffe_identity(context.auth_context())
        if self.verifier is None:
            raise Unauthenticated("nobody is let in")
        return await self.verifier(bearer_token(context.invocation_metadata() or ()))


def bearer_token(metadata: Any) -> str:
    for key, value in metadata:
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if key == "authorization" and text[: len(BEARER)].lower() == BEARER:
            return str(text[len(BEARER) :])
    raise Unauthenticated("no 'authorization: Bearer' in the metadata")
