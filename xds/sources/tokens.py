"""Bearer tokens, checked by the API server (TokenReview).

Clients show the token of their service account, made for one of our audiences; the API server says
whether it is worth anything and whose it is. A token that is good for the API server itself alone
is refused, since we could use it there.

What was said is kept by a digest of the token, never by the token:

    good       for `GOOD_SECONDS`, at most until the token expires; then it is asked again
    bad        for `BAD_SECONDS`, apart from the good ones: forged tokens push no good one out

While the API server does not answer, a token that was good stays good for `AWAY_SECONDS` from when
that was said, at most until it expires. Any other is refused, with that reason; clients come back
by themselves. It is not asked again for `REST_SECONDS`: two thousand proxies that come back at once
must not wait for it one after the other. Streams that are open are not touched.

Askers with one token share one question. At most `AT_ONCE` are under way and `WAITING` wait; more
than that is somebody who tries tokens out, and is refused unasked.
"""

import asyncio
import base64
import binascii
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from xds.access import Identity
from xds.sources.connection import Connection, Unreachable
from xds.tls import Unauthenticated

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
GOOD_SECONDS, BAD_SECONDS, AWAY_SECONDS = 120.0, 10.0, 3600.0
REST_SECONDS = 5.0
REVIEW_SECONDS = 5.0
REMEMBERED = 4096  # of each, good and bad
AT_ONCE, WAITING = 8, 64
TOKEN_BYTES = 64 << 10
ACCOUNT = "system:serviceaccount:"


class _User(Struct):
    username: str = ""


class _ReviewStatus(Struct):
    authenticated: bool = False
    user: _User = field(default_factory=_User)
    audiences: list[str] = []
    error: str = ""


class _Review(Struct):
    status: _ReviewStatus


class _Claims(Struct):
    exp: float | None = None


class _Verdict(NamedTuple):
    at: float
    expires: float  # the token; infinite where it does not say
    identity: Identity | None
    reason: str = ""


class _Away(Exception):
    """The API server did not say whether the token is good."""


_REVIEW = msgspec.json.Decoder(_Review)
_CLAIMS = msgspec.json.Decoder(_Claims)


class TokenReviews:
    """A `Verifier` that asks the API server."""

    def __init__(
        self,
        connection: Connection,
        audiences: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._audiences = list(audiences)
        self._clock = clock
        self._good: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._bad: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[None]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._away = float("-inf"), ""  # until when it is not asked, and why

    async def __call__(self, token: str) -> Identity:
        if len(token) > TOKEN_BYTES:
            raise Unauthenticated("the token is too long")
        digest = hashlib.sha256(token.encode()).digest()
        while (asking := self._asking.get(digest)) is not None and not self._known(digest):
            await asyncio.wait([asking])
        verdict = self._known(digest) or await self._ask(token, digest)
        if verdict.identity is None:
            raise Unauthenticated(verdict.reason)
        return verdict.identity

    def _known(self, digest: bytes) -> _Verdict | None:
        """What was said of a token, if that is recent."""
        now = self._clock()
        for memory, seconds in ((self._good, GOOD_SECONDS), (self._bad, BAD_SECONDS)):
            verdict = memory.get(digest)
            if verdict is not None and now < min(verdict.at + seconds, verdict.expires):
                memory.move_to_end(digest)
                return verdict
        return None

    async def _ask(self, token: str, digest: bytes) -> _Verdict:
        until, why = self._away
        if self._clock() < until:
            return self._standing(digest, why)
        if self._waiting >= WAITING:
            return self._standing(digest, "too many tokens are being checked")
        asking = self._asking[digest] = asyncio.get_running_loop().create_future()
        self._waiting += 1
        try:
            async with self._turns:
                verdict = await self._review(token)
        except _Away as away:
            self._away = self._clock() + REST_SECONDS, str(away)
            return self._standing(digest, str(away))
        finally:
            self._waiting -= 1
            del self._asking[digest]
            asking.set_result(None)
        self._remember(digest, verdict)
        return verdict

    def _standing(self, digest: bytes, why: str) -> _Verdict:
        """What holds of a token that cannot be asked for now."""
        now, verdict = self._clock(), self._good.get(digest)
        if verdict is not None and now < min(verdict.at + AWAY_SECONDS, verdict.expires):
            return verdict
        return _Verdict(now, now, None, f"whose token this is cannot be said now: {why}")

    def _remember(self, digest: bytes, verdict: _Verdict) -> None:
        good, bad = self._good, self._bad
        kept, other = (good, bad) if verdict.identity is not None else (bad, good)
        other.pop(digest, None)
        kept[digest] = verdict
        kept.move_to_end(digest)
        _trim(kept)

    async def _review(self, token: str) -> _Verdict:
        """Raises `_Away`."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self._audiences},
        }
        try:
            request = self._connection.request("POST", PATH, body=body, seconds=REVIEW_SECONDS)
            async with request as answer:
                if answer.status not in (200, 201):
                    why = await answer.failure()
                    raise _Away(f"the API server answers {answer.status}: {why.message}")
                said = _REVIEW.decode(await answer.body()).status
        except Unreachable as error:
            raise _Away(f"the API server does not answer: {error}") from error
        except msgspec.MsgspecError as error:
            raise _Away(f"the API server's answer makes no sense: {error}") from error
        return self._verdict(said, token)

    def _verdict(self, said: _ReviewStatus, token: str) -> _Verdict:
        now = self._clock()
        if not said.authenticated:
            return _Verdict(now, float("inf"), None, said.error or "the token is not valid")
        if not set(said.audiences) & set(self._audiences):
            wanted = " or ".join(self._audiences)
            return _Verdict(now, float("inf"), None, f"the token is not for {wanted}")
        namespace, _, account = said.user.username.removeprefix(ACCOUNT).partition(":")
        if not said.user.username.startswith(ACCOUNT) or not namespace or not account:
            return _Verdict(now, float("inf"), None, "the token is not a service account's")
        return _Verdict(now, _expiry(token), Identity(namespace, account, "token"))


def _trim(memory: OrderedDict[bytes, _Verdict]) -> None:
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)


def _expiry(token: str) -> float:
    """When a JWT says that it expires; read only after the API server vouched for it."""
    parts = token.split(".")
    if len(parts) != 3:
        return float("inf")
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        expires = _CLAIMS.decode(payload).exp
    except (binascii.Error, msgspec.MsgspecError):
        return float("inf")
    return float("inf") if expires is None else expires
