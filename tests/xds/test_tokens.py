"""Tokens that the API server is asked about: what it is asked, how often, and when it is away."""

import asyncio
import base64
import json
from collections import Counter

import pytest

from weir.bench.apiserver import ApiServer, kubeconfig
from xds.access import Identity
from xds.sources import tokens
from xds.sources.connection import Cluster, Connection
from xds.sources.tokens import (
    AT_ONCE,
    AWAY_SECONDS,
    BAD_SECONDS,
    GOOD_SECONDS,
    REMEMBERED,
    REST_SECONDS,
    WAITING,
    TokenReviews,
)
from xds.tls import Unauthenticated

START = 1_800_000_000.0
GATEWAY = Identity("edge", "gateway", "token")


def jwt(name="gateway", expires=START + 3000, audience="istio-ca"):
    """A token as the API server would make it; nobody here looks at the signature."""
    claims = {"sub": f"system:serviceaccount:edge:{name}", "exp": expires, "aud": [audience]}
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"header.{part}.signature"


class Reviewer:
    """What an API server does with a TokenReview, for the tokens that `jwt` makes."""

    def __init__(self):
        self.now = START
        self.asked = Counter()
        self.at_once = self.most_at_once = 0
        self.gate = None  # where set, answers wait for it

    async def __call__(self, spec):
        self.asked[spec["token"]] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.gate is not None:
            await self.gate.wait()
        self.at_once -= 1
        return self.verdict(spec)

    def verdict(self, spec):
        parts = spec["token"].split(".")
        if len(parts) != 3 or parts[2] != "signature":
            return {"authenticated": False, "error": "invalid bearer token"}
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
        if claims["exp"] <= self.now:
            return {"authenticated": False, "error": "token has expired"}
        audiences = sorted(set(claims["aud"]) & set(spec["audiences"]))
        if not audiences:
            return {"authenticated": False, "error": "token audiences do not match"}
        user = {"username": claims["sub"], "groups": ["system:serviceaccounts"]}
        return {"authenticated": True, "user": user, "audiences": audiences}


class World:
    def __init__(self, api, reviewer, reviews):
        self.api, self.reviewer, self.reviews = api, reviewer, reviews

    def pass_time(self, seconds):
        self.reviewer.now += seconds


@pytest.fixture
async def world(tmp_path):
    api, reviewer = ApiServer([]), Reviewer()
    api.reviews = reviewer
    await api.start()
    connection = Connection(Cluster(kubeconfig(tmp_path / "kubeconfig", api.url)))
    await connection.open()
    yield World(api, reviewer, TokenReviews(connection, ["istio-ca"], lambda: reviewer.now))
    await connection.close()
    await api.stop()


async def refused(reviews, token):
    with pytest.raises(Unauthenticated) as refusal:
        await reviews(token)
    return str(refusal.value)


async def test_a_token_is_its_service_accounts(world):
    assert await world.reviews(jwt()) == GATEWAY
    ((_, spec),) = world.api.requests
    assert spec == {"token": jwt(), "audiences": ["istio-ca"]}


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (jwt(expires=START - 1), "expired"),
        (jwt().replace("signature", "forged"), "invalid bearer token"),
        (jwt(audience="somebody-else"), "audiences"),
        ("nonsense", "invalid bearer token"),
        ("x" * (tokens.TOKEN_BYTES + 1), "too long"),
    ],
)
async def test_a_token_that_is_worth_nothing_is_refused_with_the_reason(world, token, reason):
    assert reason in await refused(world.reviews, token)


async def test_an_api_server_that_knows_nothing_of_audiences_vouches_for_nobody(world):
    world.reviewer.verdict = lambda _: {
        "authenticated": True,
        "user": {"username": "system:serviceaccount:edge:gateway"},
    }
    assert "not for istio-ca" in await refused(world.reviews, jwt())


async def test_a_person_is_no_service_account(world):
    world.reviewer.verdict = lambda spec: {
        "authenticated": True,
        "user": {"username": "alice"},
        "audiences": spec["audiences"],
    }
    assert "not a service account" in await refused(world.reviews, jwt())


async def test_a_good_token_is_asked_again_after_a_while_and_a_bad_one_sooner(world):
    bad = jwt().replace("signature", "forged")
    for _ in range(3):
        await world.reviews(jwt())
        await refused(world.reviews, bad)
    assert world.reviewer.asked == {jwt(): 1, bad: 1}
    world.pass_time(BAD_SECONDS)
    await world.reviews(jwt())
    await refused(world.reviews, bad)
    assert world.reviewer.asked == {jwt(): 1, bad: 2}
    world.pass_time(GOOD_SECONDS - BAD_SECONDS)
    await world.reviews(jwt())
    assert world.reviewer.asked[jwt()] == 2


async def test_a_token_is_not_good_for_longer_than_it_says(world):
    short = jwt(expires=START + 30)
    assert await world.reviews(short) == GATEWAY
    world.pass_time(31)
    assert "expired" in await refused(world.reviews, short)


async def test_a_token_that_was_revoked_is_refused_at_the_next_question(world):
    assert await world.reviews(jwt()) == GATEWAY
    world.reviewer.verdict = lambda _: {"authenticated": False, "error": "the Pod is gone"}
    assert await world.reviews(jwt()) == GATEWAY
    world.pass_time(GOOD_SECONDS)
    assert "the Pod is gone" in await refused(world.reviews, jwt())
    await world.api.stop()
    world.pass_time(BAD_SECONDS)
    assert "cannot be said" in await refused(world.reviews, jwt()), "it is not good again"


async def test_while_the_api_server_is_away_known_tokens_are_good_and_others_are_refused(world):
    assert await world.reviews(jwt()) == GATEWAY
    await world.api.stop()
    world.pass_time(GOOD_SECONDS + 1)
    assert await world.reviews(jwt()) == GATEWAY
    assert "does not answer" in await refused(world.reviews, jwt("other"))
    world.pass_time(AWAY_SECONDS)
    assert "cannot be said" in await refused(world.reviews, jwt())


async def test_no_token_is_good_beyond_its_expiry_even_while_the_api_server_is_away(world):
    short = jwt(expires=START + 200)
    assert await world.reviews(short) == GATEWAY
    await world.api.stop()
    world.pass_time(GOOD_SECONDS)
    assert await world.reviews(short) == GATEWAY
    world.pass_time(200 - GOOD_SECONDS)
    assert "cannot be said" in await refused(world.reviews, short)


async def test_an_api_server_that_comes_back_is_asked_after_a_rest(world):
    world.reviewer.verdict = lambda _: 500
    assert "answers 500" in await refused(world.reviews, jwt())
    del world.reviewer.verdict
    assert "answers 500" in await refused(world.reviews, jwt())
    world.pass_time(REST_SECONDS)
    assert await world.reviews(jwt()) == GATEWAY


async def test_askers_with_one_token_share_one_question(world):
    world.reviewer.gate = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(world.reviews(jwt())) for _ in range(20)]
        await settled(world, 1)
        asking[0].cancel()
        await asyncio.sleep(0.05)
        world.reviewer.gate.set()
    assert {await each for each in asking[1:]} == {GATEWAY}
    assert world.reviewer.asked[jwt()] <= 2, "one more for the one who asked and went"


async def settled(world, count):
    async with asyncio.timeout(10):
        while world.reviewer.at_once < count:
            await asyncio.sleep(0.01)


async def test_questions_are_few_at_once_and_the_line_is_short(world):
    world.reviewer.gate = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        asking = [
            tasks.create_task(outcome(world.reviews, jwt(f"account-{number}")))
            for number in range(WAITING + 30)
        ]
        await settled(world, AT_ONCE)
        world.reviewer.gate.set()
    outcomes = Counter([await each for each in asking])
    assert world.reviewer.most_at_once == AT_ONCE
    assert outcomes["good"] == WAITING
    assert sum(outcomes.values()) == WAITING + 30


async def outcome(reviews, token):
    try:
        await reviews(token)
    except Unauthenticated as error:
        return str(error)
    return "good"


async def test_forged_tokens_push_no_good_one_out_and_memory_is_bounded(world):
    assert await world.reviews(jwt()) == GATEWAY
    world.api.reviews = lambda _: {"authenticated": False}
    for number in range(REMEMBERED + 10):
        world.reviews._remember(
            str(number).encode(), tokens._Verdict(START, float("inf"), None, "no")
        )
    assert len(world.reviews._bad) == REMEMBERED
    assert await world.reviews(jwt()) == GATEWAY
    for number in range(REMEMBERED + 10):
        world.reviews._remember(str(number).encode(), tokens._Verdict(START, float("inf"), GATEWAY))
    assert len(world.reviews._good) == REMEMBERED


async def test_tokens_are_not_kept(world):
    await world.reviews(jwt())
    await refused(world.reviews, "a secret")
    kept = repr((world.reviews._good, world.reviews._bad))
    assert jwt() not in kept
    assert "a secret" not in kept
