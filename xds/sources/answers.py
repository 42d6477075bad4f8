"""What an API server says, decoded no further than needed: pages of lists, events, failures.

An object stays JSON (`Raw`) until its kind's own decoder looks at it, which then makes nothing of
the fields that nobody reads: a Pod's specification and its managedFields never become objects.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw, Struct, field

Key: TypeAlias = tuple[str, str]  # namespace, name


class Malformed(ValueError):
    """Not what an API server says; the message says why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is none; status 0 where there was no answer."""

    status: int
    message: str
    retry_after: float | None = None


def is_away(status: int) -> bool:
    """Whether this is the server's trouble, or its trouble with us, and not the request's fault."""
    return status in (401, 408, 429) or status >= 500


class ListMetadata(Struct):
    version: str = field(default="", name="resourceVersion")
    continuation: str = field(default="", name="continue")


class Page(Struct):
    metadata: ListMetadata
    items: list[Raw] | None = None


class Event(Struct):
    type: str
    object: Raw


class Head(Struct):
    """An object's metadata, as far as list and watch care."""

    name: str = ""
    namespace: str = ""
    version: str = field(default="", name="resourceVersion")

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class _Headed(Struct):
    metadata: Head = field(default_factory=Head)


class _Status(Struct):
    code: int = 500
    message: str = ""
    reason: str = ""
    details: dict[str, Any] | None = None


_PAGE = msgspec.json.Decoder(Page)
_EVENT = msgspec.json.Decoder(Event)
_HEADED = msgspec.json.Decoder(_Headed)
_STATUS = msgspec.json.Decoder(_Status)


def page(body: bytes) -> Page:
    """Raises `Malformed`."""
    try:
        return _PAGE.decode(body)
    except msgspec.MsgspecError as error:
        raise Malformed(str(error)) from error


def event(line: bytes) -> Event:
    """Raises `Malformed`."""
    try:
        return _EVENT.decode(line)
    except msgspec.MsgspecError as error:
        raise Malformed(str(error)) from error


def head(item: Raw) -> Head:
    """Raises `Malformed`."""
    try:
        return _HEADED.decode(item).metadata
    except msgspec.MsgspecError as error:
        raise Malformed(str(error)) from error


def failure(status: int, body: bytes, retry_after: str = "") -> Failure:
    """From an HTTP answer, whose body may be a Status, and its Retry-After."""
    return _failure(status, _status(body), retry_after)


def error(item: Raw) -> Failure:
    """From an ERROR event."""
    said = _status(bytes(item))
    return _failure(said.code, said, "")


def _status(body: bytes) -> _Status:
    try:
        return _STATUS.decode(body)
    except msgspec.MsgspecError:
        return _Status(message=body[:200].decode(errors="replace"))


def _failure(status: int, said: _Status, retry_after: str) -> Failure:
    text = retry_after or str((said.details or {}).get("retryAfterSeconds") or "")
    wait = float(text) if text.isdecimal() else None
    return Failure(status, said.message or said.reason or f"status {status}", wait)
