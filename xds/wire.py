"""Pools and loads as `weir.v1` messages, and back.

What crosses from the control plane to its pickers is a view, not a copy: a picker learns of an
endpoint what picking needs (`Member`) and nothing of Kubernetes. Endpoints that are not ready do
not cross. Instants do not cross either, as the two ends have clocks of their own: a load says how
old it was when it was written, and is given an instant again in the reader's clock. The time on
the wire is not in that age, so a load looks that much younger than it is.

A pool's loads are told again whenever one of them is new, twenty times a second where there are
many. So a load is written once (`write_load`) and stands in every PoolLoad from then on, as bytes
with a gap for its age.

`None` means *not known* on both sides: numbers that may be missing have presence in the message,
except where 0 cannot be a value (`max_adapters`, `block_size`, `blocks`). The prefix counters of
a `Load` feed the weigher and stay behind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from xds.pool import (
    Affinity,
    EndpointId,
    Load,
    Mode,
    Objective,
    Observation,
    Pool,
    PoolName,
    Reachability,
    Share,
)
from xds.proto.weir.v1 import pool_pb2

UINT32_MAX = 2**32 - 1
DOUBLE = Struct("<d")  # as protobuf writes one

MessageT = TypeVar("MessageT", pool_pb2.Pool, pool_pb2.PoolLoad)


class MalformedResource(ValueError):
    """The bytes are not the resource that their type says: refuse them and keep the last good."""


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint as a picker sees it; `priority` as in the assignment, 0 serves first."""

    endpoint: EndpointId
    pod: str = ""
    draining: bool = False
    priority: int = 0
    speed: float = 1.0  # relative capacity
    captured: bool = False  # by ztunnel: reached through HBONE


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as a picker sees it."""

    name: PoolName
    members: tuple[Member, ...] = ()
    objectives: tuple[Objective, ...] = ()
    prefix_affinity: bool = True
    adapter_affinity: bool = True
    observing: bool = False  # decide nothing
    session_header: str = ""  # proxies keep those that have it together themselves


def view(pool: Pool, shares: Mapping[EndpointId, Share]) -> PoolView:
    """What a picker is told of a pool; an endpoint without a share serves at priority 0."""
    policy = pool.policy
    return PoolView(
        name=pool.name,
        members=tuple(
            Member(
                endpoint=endpoint.id,
                pod=endpoint.pod,
                draining=endpoint.draining,
                priority=shares[endpoint.id].priority if endpoint.id in shares else 0,
                speed=endpoint.speed,
                captured=endpoint.mesh.captured,
            )
            for endpoint in pool.endpoints
            if endpoint.ready
        ),
        objectives=pool.objectives,
        prefix_affinity=policy.affinity is not Affinity.ADAPTER,
        observing=policy.mode is Mode.OBSERVE,
        session_header=policy.session_header if policy.affinity is Affinity.SESSION else "",
    )


def encode_pool(pool: Pool, shares: Mapping[EndpointId, Share]) -> bytes:
    """The `weir.v1.Pool` of a pool."""
    return encode_view(view(pool, shares))


def encode_view(pool: PoolView) -> bytes:
    """Equal views give equal bytes."""
    return pool_pb2.Pool(
        name=pool.name,
        members=[
            pool_pb2.Member(
                endpoint=member.endpoint,
                pod=member.pod,
                draining=member.draining,
                priority=member.priority,
                speed=member.speed,
                captured=member.captured,
            )
            for member in pool.members
        ],
        policy=pool_pb2.Policy(
            prefix_affinity=pool.prefix_affinity,
            adapter_affinity=pool.adapter_affinity,
            observing=pool.observing,
            session_header=pool.session_header,
        ),
        objectives=[
            pool_pb2.Objective(name=objective.name, priority=objective.priority)
            for objective in pool.objectives
        ],
    ).SerializeToString(deterministic=True)


def decode_pool(body: bytes) -> PoolView:
    """Raises `MalformedResource`. A policy that is not stated is the default one."""
    message = _parse(pool_pb2.Pool, body)
    if any(not member.endpoint for member in message.members):
        raise MalformedResource(f"weir.v1.Pool '{message.name}' has a member without `endpoint`")
    stated = message.HasField("policy")
    return PoolView(
        name=message.name,
        members=tuple(
            Member(
                endpoint=member.endpoint,
                pod=member.pod,
                draining=member.draining,
                priority=member.priority,
                speed=member.speed if member.speed > 0 else 1.0,
                captured=member.captured,
            )
            for member in message.members
        ),
        objectives=tuple(
            Objective(name=objective.name, priority=objective.priority)
            for objective in message.objectives
        ),
        prefix_affinity=message.policy.prefix_affinity if stated else True,
        adapter_affinity=message.policy.adapter_affinity if stated else True,
        observing=message.policy.observing,
        session_header=message.policy.session_header,
    )


class WrittenLoad(NamedTuple):
    """An endpoint's part of its pool's PoolLoad."""

    frame: bytes
    at: float | None = None  # of the load; None where none is known
    gap: int = 0  # where in the frame the load's age goes


def encode_loads(
    name: PoolName, observations: Mapping[EndpointId, Observation], now: float
) -> bytes:
    """The `weir.v1.PoolLoad` of a pool; `now` is in the clock of the loads' `at`."""
    written = (write_load(endpoint, seen) for endpoint, seen in sorted(observations.items()))
    return join_loads(name, written, now)


def write_load(endpoint: EndpointId, seen: Observation) -> WrittenLoad:
    item = pool_pb2.EndpointLoad(
        endpoint=endpoint,
        refused=seen.reachability is Reachability.REFUSED,
        silent=seen.reachability is Reachability.SILENT,
    )
    if seen.load is not None:
        _write_load(item, seen.load)
    frame = pool_pb2.PoolLoad(loads=[item]).SerializeToString(deterministic=True)
    if seen.load is None:
        return WrittenLoad(frame)
    # Fields come in the order of their numbers: the endpoint, then the age with a tag of one byte.
    named = pool_pb2.EndpointLoad(endpoint=endpoint).ByteSize()
    return WrittenLoad(frame, seen.load.at, len(frame) - item.ByteSize() + named + 1)


def join_loads(name: PoolName, written: Iterable[WrittenLoad], now: float) -> bytes:
    """The `weir.v1.PoolLoad` of loads in the order of their endpoints."""
    body = bytearray(pool_pb2.PoolLoad(name=name).SerializeToString(deterministic=True))
    for frame, at, gap in written:
        begin = len(body)
        body += frame
        if at is not None:
            DOUBLE.pack_into(body, begin + gap, max(0.0, now - at))
    return bytes(body)


def decode_loads(body: bytes, received_at: float) -> dict[EndpointId, Observation]:
    """The loads with `at` in the reader's clock. Raises `MalformedResource`."""
    message = _parse(pool_pb2.PoolLoad, body)
    if any(not item.endpoint for item in message.loads):
        raise MalformedResource(f"weir.v1.PoolLoad '{message.name}' has a load without `endpoint`")
    return {
        item.endpoint: Observation(
            load=_read_load(item, received_at) if item.HasField("age_seconds") else None,
            reachability=_reachability(item),
        )
        for item in message.loads
    }


def _write_load(item: pool_pb2.EndpointLoad, load: Load) -> None:
    item.age_seconds = 0.0  # written when the pool's loads are
    if load.waiting is not None:
        item.waiting = _uint32(load.waiting)
    if load.running is not None:
        item.running = _uint32(load.running)
    if load.kv_cache_usage is not None:
        item.kv_cache_usage = load.kv_cache_usage
    if load.decode_step_seconds is not None:
        item.decode_step_seconds = load.decode_step_seconds
    if load.output_tokens is not None:
        item.output_tokens = load.output_tokens
    item.adapters.extend(sorted(load.adapters))
    item.max_adapters = _uint32(load.max_adapters or 0)
    item.block_size = _uint32(load.block_size or 0)
    item.blocks = _uint32(load.blocks or 0)


def _read_load(item: pool_pb2.EndpointLoad, received_at: float) -> Load:
    has = item.HasField
    return Load(
        at=received_at - item.age_seconds,
        waiting=item.waiting if has("waiting") else None,
        running=item.running if has("running") else None,
        kv_cache_usage=item.kv_cache_usage if has("kv_cache_usage") else None,
        adapters=frozenset(item.adapters),
        max_adapters=item.max_adapters or None,
        block_size=item.block_size or None,
        blocks=item.blocks or None,
        decode_step_seconds=item.decode_step_seconds if has("decode_step_seconds") else None,
        output_tokens=item.output_tokens if has("output_tokens") else None,
    )


def _reachability(item: pool_pb2.EndpointLoad) -> Reachability:
    if item.refused:
        return Reachability.REFUSED
    if item.silent:
        return Reachability.SILENT
    return Reachability.ANSWERING if item.HasField("age_seconds") else Reachability.UNKNOWN


def _uint32(number: int) -> int:
    # A server that answers nonsense must not keep its pool's other loads from being written.
    return min(max(number, 0), UINT32_MAX)


def _parse(kind: type[MessageT], body: bytes) -> MessageT:
    try:
        message = kind.FromString(body)
    except DecodeError as error:
        raise MalformedResource(f"not a weir.v1.{kind.__name__}: {error}") from error
    if not message.name:
        raise MalformedResource(f"a weir.v1.{kind.__name__} without `name`")
    return message
