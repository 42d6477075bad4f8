"""Who we are in the mesh, and whom we believe: the TLS side of HBONE.

The certificate is the mesh's and lives hours. Its files are read for every new connection; open
connections stay. What cannot be read, or does not fit together, leaves the last good ones in use.

Whoever answers must show a certificate that the mesh's root vouches for, with one SPIFFE id: that
of a workload in the Pod's namespace. ztunnel shows the Pod's own. SPIFFE knows no host names, so
none is checked.
"""

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from xds.tls import SecurityError

SPIFFE = re.compile(r"spiffe://([^/]+)/ns/([^/]+)/sa/[^/]+")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MeshCredentials:
    """Files, which are read anew, and what else is known of the mesh."""

    certificate: Path
    key: Path
    ca: Path
    trust_domain: str = ""  # of the Pods; empty for any that the root vouches for
    port: int = 15008  # of HBONE, on every Pod

    def check(self) -> None:
        """Raises `SecurityError` where no connection could be made with them."""
        Contexts(self).current()


class Contexts:
    """The TLS context that follows from the files as they are now."""

    def __init__(self, credentials: MeshCredentials) -> None:
        self._credentials = credentials
        self._reading = asyncio.Lock()
        self._read: tuple[bytes, ...] = ()
        self._context: ssl.SSLContext | None = None
        self._problem = ""

    async def newest(self) -> ssl.SSLContext:
        """`current`, without holding up the loop."""
        async with self._reading:
            return await asyncio.to_thread(self.current)

    def current(self) -> ssl.SSLContext:
        """The newest context that can be made. Raises `SecurityError` where none ever could."""
        files = self._credentials
        try:
            read = tuple(each.read_bytes() for each in (files.certificate, files.key, files.ca))
            if self._context is None or read != self._read:
                renewed, self._context = self._context is not None, self._made()
                self._read, self._problem = read, ""
                if renewed:
                    log.info("mesh certificate renewed", file=str(files.certificate))
        except (OSError, SecurityError) as error:
            problem = str(error)
            if self._context is None:
                raise SecurityError(problem) from error
            if problem != self._problem:
                log.warning("mesh certificate not usable; the last one stands", problem=problem)
            self._problem = problem
        return self._context

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate may be the root
        context.set_alpn_protocols(["h2"])
        files = self._credentials
        try:
            context.load_cert_chain(files.certificate, files.key)
        except ssl.SSLError as error:
            raise SecurityError(
                f"{files.certificate} and {files.key} are no certificate and its key: {error}"
            ) from error
        try:
            context.load_verify_locations(files.ca)
        except ssl.SSLError as error:
            raise SecurityError(f"{files.ca} holds no certificate: {error}") from error
        return context


def doubts(certificate: Mapping[str, Any], namespace: str, trust_domain: str) -> str:
    """Why the far end is not a workload of `namespace`; empty where it is."""
    names = certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    match = SPIFFE.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        return f"has no SPIFFE id of a workload, but {', '.join(uris) or 'none'}"
    if match[2] != namespace:
        return f"is {uris[0]}, and not of namespace {namespace!r}: is the address another Pod's?"
    if trust_domain and match[1] != trust_domain:
        return f"is {uris[0]}, and not of trust domain {trust_domain!r} (--trust-domain)"
    return ""


def tls_problem(error: Exception | None, credentials: MeshCredentials) -> str:
    """What went wrong between two that would not have each other, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"shows a certificate that {credentials.ca} does not vouch for: {error.verify_message}"
        )
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            return f"refuses our certificate {credentials.certificate}: {reason}"
        return f"fails at TLS: {reason}"
    return (
        f"hangs up ({error or 'without a word'}) before HTTP/2: ztunnel does so where it does not "
        f"know the Pod, or refuses our certificate {credentials.certificate}"
    )
