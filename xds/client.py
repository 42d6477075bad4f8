"""A delta ADS client: everything there is of some types, for as long as it takes.

`Feed` is the protocol, pure: what has been accepted with which version, what to ask for first, what
to answer. `follow` is the edge: it keeps a stream open, and after a lost one asks again with the
versions that it has, so that a restarted control plane sends only what differs. Losing the stream
loses nothing else: the last accepted resources stand.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
import structlog

from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.wire import MalformedResource

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
OPTIONS = [
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
]
RETRY_SECONDS = 0.2
CONNECT_SECONDS = 10.0
INVALID_ARGUMENT = 3

Apply: TypeAlias = Callable[[str, bytes], None]  # name, body; raises MalformedResource
Remove: TypeAlias = Callable[[str], None]
log = structlog.get_logger()


@dataclass(slots=True)
class Feed:
    """One type's state on the client's side.

    `apply` takes a resource or refuses it; a response of which any resource is refused is answered
    with a NACK that names the first, and the others of it are taken nevertheless: what is fine does
    not wait for what is not.
    """

    type_url: str
    apply: Apply
    remove: Remove
    versions: dict[str, str] = field(default_factory=dict)

    def first(self) -> discovery_pb2.DeltaDiscoveryRequest:
        """The first request of a stream: everything, and what is here already."""
        return discovery_pb2.DeltaDiscoveryRequest(
            type_url=self.type_url,
            resource_names_subscribe=["*"],
            initial_resource_versions=self.versions,
        )

    def receive(
        self, response: discovery_pb2.DeltaDiscoveryResponse
    ) -> discovery_pb2.DeltaDiscoveryRequest:
        """Apply a response; returns the ACK or NACK."""
        answer = discovery_pb2.DeltaDiscoveryRequest(
            type_url=self.type_url, response_nonce=response.nonce
        )
        for resource in response.resources:
            try:
                self.apply(resource.name, resource.resource.value)
            except MalformedResource as error:
                if not answer.error_detail.message:
                    answer.error_detail.code = INVALID_ARGUMENT
                    answer.error_detail.message = f"{resource.name}: {error}"
            else:
                self.versions[resource.name] = resource.version
        for name in response.removed_resources:
            if self.versions.pop(name, None) is not None:
                self.remove(name)
        return answer


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to show the control plane who we are; files are read anew for every connection.

    Without a CA the connection is plaintext, and no token is sent.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None

    def channel(self, address: str) -> grpc.aio.Channel:
        """Raises `OSError` where a file cannot be read."""
        if self.ca is None:
            return grpc.aio.insecure_channel(address, options=OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            self.ca.read_bytes(),
            self.key.read_bytes() if self.key else None,
            self.certificate.read_bytes() if self.certificate else None,
        )
        return grpc.aio.secure_channel(address, credentials, options=OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        if self.ca is None or self.token is None:
            return ()
        return (("authorization", f"Bearer {self.token.read_text('ascii').strip()}"),)


PLAINTEXT = Credentials()


@dataclass(slots=True)
class Link:
    """The state of the connection, for people and for health checks."""

    connected: bool = False
    lost_at: float | None = None  # loop time
    problem: str = ""  # why the last stream ended
    nacks: int = 0


async def follow(
    address: str,
    node: str,
    feeds: Sequence[Feed],
    link: Link,
    credentials: Credentials = PLAINTEXT,
) -> None:
    """Keep `feeds` up to date from the control plane at "host:port" until cancelled.

    Credentials that cannot be read, or are not let in, are logged and tried again.
    """
    by_type = {feed.type_url: feed for feed in feeds}
    while True:
        try:
            # A channel a stream: a renewed certificate is used from the next one on.
            async with credentials.channel(address) as channel:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await channel.channel_ready()
                await _stream(channel, node, by_type, link, credentials.metadata())
            reason = "the control plane closed the stream"
        except TimeoutError:
            reason = f"no connection to {address} within {CONNECT_SECONDS:.0f} s"
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
        if link.connected or reason != link.problem:
            log.warning("control plane away; carrying on with what is known", reason=reason)
        if link.connected:
            link.connected, link.lost_at = False, asyncio.get_running_loop().time()
        link.problem = reason
        await asyncio.sleep(RETRY_SECONDS)


async def _stream(
    channel: grpc.aio.Channel,
    node: str,
    feeds: Mapping[str, Feed],
    link: Link,
    metadata: Sequence[tuple[str, str]],
) -> None:
    outgoing: asyncio.Queue[discovery_pb2.DeltaDiscoveryRequest] = asyncio.Queue()
    for number, feed in enumerate(feeds.values()):
        first = feed.first()
        if not number:
            first.node.id, first.node.user_agent_name = node, "weir-picker"
        outgoing.put_nowait(first)

    async def requests() -> AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]:
        while True:
            yield await outgoing.get()

    call = channel.stream_stream(
        METHOD,
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )(requests(), metadata=metadata)
    async for response in call:
        if not link.connected:
            link.connected = True
            log.info("connected to the control plane")
        if (known := feeds.get(response.type_url)) is not None:
            answer = known.receive(response)
            if answer.HasField("error_detail"):
                link.nacks += 1
                log.warning("refused a resource", reason=answer.error_detail.message)
            outgoing.put_nowait(answer)
