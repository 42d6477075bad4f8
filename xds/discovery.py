"""Discovery requests and responses as values, and the bytes they travel as.

A response is never built as a message: its few own fields are serialised, and the frames that its
resources carry (`xds.snapshot`) follow. Fields of a protobuf message may come in any order and
repeated ones add up, so head and frames, one after the other, are the message.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from xds.proto.envoy.service.discovery.v3 import discovery_pb2
from xds.snapshot import Resource, ResourceName, Version

Nonce: TypeAlias = str  # "" is none
NO_VERSIONS: Mapping[ResourceName, Version] = MappingProxyType({})


class Outcome(Enum):
    """What a request came to."""

    ASKED = "asked"  # names, or nothing new
    ACKED = "acked"
    REFUSED = "refused"  # a NACK
    STALE = "stale"  # an answer to a response that is not the last


class SotwRequest(NamedTuple):
    """A DiscoveryRequest; `error` is the message of its error_detail, None for an ACK."""

    names: Collection[ResourceName] = ()
    version: Version = ""
    nonce: Nonce = ""
    error: str | None = None

    @property
    def asked(self) -> Collection[ResourceName]:
        return self.names


class DeltaRequest(NamedTuple):
    """A DeltaDiscoveryRequest; `error` is the message of its error_detail, None for an ACK."""

    subscribe: Collection[ResourceName] = ()
    unsubscribe: Collection[ResourceName] = ()
    initial_versions: Mapping[ResourceName, Version] = NO_VERSIONS
    nonce: Nonce = ""
    error: str | None = None

    @property
    def asked(self) -> Collection[ResourceName]:
        return self.subscribe


@dataclass(frozen=True, slots=True)
class Response:
    """What to send, perhaps on many streams; the state-of-the-world form has no `removed`."""

    type_url: str
    version: Version  # of the type, as this client sees it
    nonce: Nonce
    resources: tuple[Resource, ...] = ()
    removed: tuple[ResourceName, ...] = ()
    _delta: list[bytes] = field(default_factory=list, compare=False, repr=False)  # once made

    def sotw_bytes(self) -> bytes:
        """A serialised DiscoveryResponse."""
        head = discovery_pb2.DiscoveryResponse(
            version_info=self.version, type_url=self.type_url, nonce=self.nonce
        )
        frames = [resource.sotw_frame for resource in self.resources]
        return b"".join((head.SerializeToString(), *frames))

    def delta_bytes(self) -> bytes:
        """A serialised DeltaDiscoveryResponse."""
        if not self._delta:
            head = _delta_head(self.type_url, self.version) + _field(5, self.nonce)
            frames = [resource.delta_frame for resource in self.resources]
            if self.removed:
                frames.append(_removals(self.removed))
            self._delta.append(b"".join((head, *frames)))
        return self._delta[0]


@lru_cache(maxsize=1024)
def plain_acks(type_url: str, nonce: Nonce) -> tuple[bytes, bytes]:
    """The DeltaDiscoveryRequests that accept a response and say nothing else.

    That is what nearly every request is: to know it by its bytes spares reading it. A client may
    write the same in other bytes, which are then read. A client of a type's own service may leave
    the type out.
    """
    untyped = _field(6, nonce)
    return _field(2, type_url) + untyped, untyped


def sotw_request(message: discovery_pb2.DiscoveryRequest) -> SotwRequest:
    return SotwRequest(
        names=tuple(message.resource_names),
        version=message.version_info,
        nonce=message.response_nonce,
        error=_reason(message),
    )


def delta_request(message: discovery_pb2.DeltaDiscoveryRequest) -> DeltaRequest:
    return DeltaRequest(
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial_versions=dict(message.initial_resource_versions) or NO_VERSIONS,
        nonce=message.response_nonce,
        error=_reason(message),
    )


@lru_cache(maxsize=256)
def _delta_head(type_url: str, version: Version) -> bytes:
    """What the responses of one type and version have in common: all but nonce and resources."""
    return discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version, type_url=type_url
    ).SerializeToString()


def _removals(names: tuple[ResourceName, ...]) -> bytes:
    return discovery_pb2.DeltaDiscoveryResponse(removed_resources=names).SerializeToString()


@lru_cache(maxsize=1024)
def _field(number: int, text: str) -> bytes:
    """A string field, as protobuf writes it: tag, length, bytes. Under 128 bytes."""
    raw = text.encode()
    if len(raw) > 127:
        raise ValueError(f"too long for a one-byte length: {text!r}")
    return bytes((number << 3 | 2, len(raw))) + raw


def _reason(
    message: discovery_pb2.DiscoveryRequest | discovery_pb2.DeltaDiscoveryRequest,
) -> str | None:
    if not message.HasField("error_detail"):
        return None
    return message.error_detail.message or "no reason given"
