"""The ext_proc server: one gRPC stream a request, answered and closed in one batch.

`Process` is registered as stream-unary: earlier answers are written, the last is returned, and
grpc then sends it together with the close (`picker.exchange` says why that matters).

Whatever goes wrong with one request ends that stream with OK and no answer, which the proxy takes
as "carry on": affinity routes it. A picker's mistake must not become a user's error.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from random import Random
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from picker import reply
from picker.callers import ANYBODY, Callers, Context, Process
from picker.exchange import Exchange, Phase, ProtocolError
from picker.pools import Pools
from picker.profile import NoEndpoint, Pick
from picker.request import Request, from_body, from_headers
from xds.pool import EndpointId, PoolName

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
POOL, DIGESTS = "x-weir-pool", "x-weir-digests"
OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
DRAIN_SECONDS = 2.0

log = structlog.get_logger()


class Picker:
    """Answers streams from `pools`; `clock` is the pools' own."""

    def __init__(
        self, pools: Pools, clock: Callable[[], float], rng: Random, default_pool: str = ""
    ) -> None:
        self._pools = pools
        self._clock = clock
        self._rng = rng
        self._default_pool = default_pool
        self.counts: Counter[str] = Counter()  # outcome → streams, once for each pool asked for
        self.picks: Counter[tuple[PoolName, EndpointId]] = Counter()
        self.unserved: Counter[PoolName] = Counter()  # no endpoint would do

    async def process(self, _: object, context: Context) -> bytes:
        """One stream."""
        pool, digests = self._default_pool, False
        for key, value in context.invocation_metadata() or ():
            if key == POOL:
                pool = str(value)
            elif key == DIGESTS:
                digests = value == "v1"
        exchange = Exchange(digests)
        try:
            while exchange.phase is Phase.WAITING:
                raw = await context.read()
                if raw is grpc.aio.EOF:
                    self.counts["abandoned"] += 1
                    return b""
                now = exchange.receive(raw)
                if now is not None:
                    await context.write(now)
        except (ProtocolError, DecodeError) as error:
            self.counts["protocol error"] += 1
            log.warning("a proxy broke the protocol", peer=context.peer(), error=str(error))
            return reply.carry_on()
        *answers, last = self._decide(exchange, pool)
        for answer in answers:
            await context.write(answer)
        return last

    def _decide(self, exchange: Exchange, names: str) -> list[bytes]:
        """One endpoint of each pool, where a route splits between several: the proxy has chosen a
        cluster already, and takes the endpoint that is in it. A pool that has none is left out.
        """
        request = cache(partial(_request, exchange))  # read when a pool first asks, and once
        found = [self._pick(exchange, request, name) for name in names.split(",")]
        nobody = [pick for pick in found if isinstance(pick, NoEndpoint)]
        if len(nobody) == len(found):
            which = f"pools {names} have" if len(found) > 1 else f"pool {names} has"
            return [reply.unavailable(f"{which} no endpoint for this request")]
        picks = [pick for pick in found if pick is not None and not isinstance(pick, NoEndpoint)]
        return exchange.answers(",".join(pick.destination for pick in picks) or None)

    def _pick(
        self, exchange: Exchange, request: Callable[[], Request], name: PoolName
    ) -> Pick | NoEndpoint | None:
        """None: nothing is known against the pool's endpoints, the proxy may choose."""
        state = self._pools.get(name)
        if state is None:
            self.counts["unknown pool"] += 1
            return None
        if state.view.observing:
            self.counts["observing"] += 1
            return None
        if exchange.headers.get(state.view.session_header):
            # Every proxy's hash has the same place for a session, whichever picker is asked.
            self.counts["session"] += 1
            return None
        try:
            pick = state.pick(request(), self._clock(), self._rng, exchange.subset)
        except NoEndpoint as nobody:
            self.counts["no endpoint"] += 1
            self.unserved[name] += 1
            return nobody
        except Exception:
            self.counts["failed"] += 1
            log.exception("a pick failed; the request goes on without one", pool=name)
            return None
        self.counts["picked"] += 1
        self.picks[name, pick.endpoint] += 1
        return pick


def _request(exchange: Exchange) -> Request:
    if exchange.body is None:
        return from_headers(exchange.headers, trusted=exchange.digests)
    return from_body(exchange.headers, exchange.body)


@asynccontextmanager
async def serving(process: Process, address: str, callers: Callers = ANYBODY) -> AsyncIterator[int]:
    """Serve `process` on "host:port" until the block ends; yields the port.

    Raises `OSError` where the address cannot be bound, `SecurityError` for wrong certificates.
    """
    server = grpc.aio.server(options=OPTIONS)
    method: Any = grpc.stream_unary_rpc_method_handler(callers.guard(process))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),)
    )
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        credentials = callers.credentials()
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    await server.start()
    for service in ("", SERVICE, "liveness", "readiness"):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        await checks.enter_graceful_shutdown()
        await server.stop(DRAIN_SECONDS)
