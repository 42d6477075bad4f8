"""Who may ask the picker: everybody on a plaintext port, or the identities that were named.

A mesh certificate is proof of a service account; what asks is a gateway's or a waypoint's. An
answer tells little, but every question is taken for a request and booked.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog

from xds.tls import SecurityError, Unauthenticated, server_credentials, spiffe_identity

Context: TypeAlias = grpc.aio.ServicerContext[Any, bytes]
Process: TypeAlias = Callable[[object, Context], Awaitable[bytes]]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Callers:
    """How the port is secured. Without a certificate it is plaintext."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None  # callers show a SPIFFE certificate that chains to it
    allowed: tuple[str, ...] = ()  # patterns of "<namespace>/<service account>"

    def credentials(self) -> grpc.ServerCredentials | None:
        """None for plaintext. Raises `SecurityError`."""
        if self.certificate is None:
            if self.key or self.client_ca or self.allowed:
                raise SecurityError("a certificate and its key are missing (--tls-cert, --tls-key)")
            return None
        if self.key is None:
            raise SecurityError("the certificate's key is missing (--tls-key)")
        if bool(self.client_ca) != bool(self.allowed):
            raise SecurityError("--client-ca proves who asks, --allow says who may: give both")
        return server_credentials(self.certificate, self.key, self.client_ca)

    def guard(self, process: Process) -> Process:
        """`process` for those who may ask; the others get no stream, which a proxy passes over."""
        if self.client_ca is None:
            return process

        async def guarded(request: object, context: Context) -> bytes:
            try:
                identity = str(spiffe_identity(context.auth_context()))
            except Unauthenticated as error:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            if not any(fnmatchcase(identity, pattern) for pattern in self.allowed):
                log.warning("turned away", peer=context.peer(), identity=identity)
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{identity} may not ask")
            return await process(request, context)

        return guarded


ANYBODY = Callers()
