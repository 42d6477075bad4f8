from xds.access import Node
from xds.court import Court
from xds.discovery import DeltaRequest
from xds.roster import Roster
from xds.session import Session
from xds.snapshot import Snapshot, TypeUrl

ENDPOINT = TypeUrl.ENDPOINT.value


class Pool:
    """Clients of one assignment, all of which accepted version 1."""

    def __init__(self, builds, name="ns/p"):
        self.name, self.roster, self.court = name, Roster(), Court()
        self.sessions = []
        self.world = Snapshot.of({ENDPOINT: {name: b"1"}})
        self.first = self.world.get(ENDPOINT, name).version
        for build in builds:
            self.join(build)

    def join(self, build, name=None):
        session = Session("peer", Node(id=f"n{len(self.sessions)}", build=build))
        session.delta(ENDPOINT, DeltaRequest(subscribe=[name or self.name]))
        self.roster.add(session, lambda: None)
        self.roster.note(session, ENDPOINT)
        self.sessions.append(session)
        for response in session.responses(self.world):
            session.delta(ENDPOINT, DeltaRequest(nonce=response.nonce))
        return session

    def publish(self, text):
        self.world = Snapshot.of({ENDPOINT: {self.name: text}}, self.world)
        return self.world.get(ENDPOINT, self.name).version

    def answer(self, number, error="no"):
        session = self.sessions[number]
        (response,) = session.responses(self.world)
        session.delta(ENDPOINT, DeltaRequest(nonce=response.nonce, error=error))
        if error is None:
            return []
        subscription = session.subscriptions[ENDPOINT]
        return self.court.hear(self.roster, session, ENDPOINT, subscription.blamed, error)

    def offered(self, number):
        return bool(list(self.sessions[number].responses(self.world)))


def test_more_than_half_of_the_clients_is_a_verdict_and_half_is_none():
    pool = Pool(["", "", "", ""])
    bad = pool.publish(b"2")
    assert pool.answer(0) == []
    assert pool.answer(1) == []
    (verdict,) = pool.answer(2)
    assert (verdict.version, verdict.accepted) == (bad, pool.first)
    assert (verdict.refusing, verdict.clients, verdict.reason) == (3, 4, "no")
    assert pool.answer(3) == [], "one verdict a version"


def test_the_only_client_is_the_majority():
    pool = Pool(["envoy 1.40"])
    pool.publish(b"2")
    assert len(pool.answer(0)) == 1


def test_a_refusal_holds_back_others_of_the_same_build_until_the_next_version():
    pool = Pool(["envoy 1.40", "envoy 1.40", "envoy 1.39"])
    pool.publish(b"2")
    assert pool.answer(0) == [], "one of three is held back, so one of two refuses"
    assert not pool.offered(1)
    assert pool.offered(2)
    pool.publish(b"3")
    assert pool.offered(1)


def test_a_client_that_was_asked_already_and_one_that_has_nothing_are_not_held_back():
    pool = Pool(["envoy 1.40", "envoy 1.40"])
    pool.publish(b"2")
    (asked,) = pool.sessions[1].responses(pool.world)
    pool.answer(0)
    pool.sessions[1].delta(ENDPOINT, DeltaRequest(nonce=asked.nonce))
    assert (
        pool.sessions[1].subscriptions[ENDPOINT].held["ns/p"]
        == pool.world.get(ENDPOINT, "ns/p").version
    )
    newcomer = pool.join("envoy 1.40")
    assert newcomer.subscriptions[ENDPOINT].held, "it has nothing else, so it is asked"


def test_old_refusals_do_not_count_against_a_new_version():
    pool = Pool(["", "", ""])
    pool.publish(b"2")
    pool.answer(0)
    pool.publish(b"3")
    assert pool.answer(1) == []
    assert len(pool.answer(2)) == 1


def test_who_is_gone_has_no_voice():
    pool = Pool(["", "", ""])
    pool.publish(b"2")
    pool.answer(0)
    pool.roster.remove(pool.sessions[0])
    pool.court.forget(pool.sessions[0])
    assert pool.answer(1) == [], "one of two"
    assert len(pool.answer(2)) == 1


def test_a_tenants_refusal_weighs_on_its_own_pool_only():
    pool = Pool(["", "", ""])
    stranger = pool.join("", name="other/p")
    pool.publish(b"2")
    bad = {"other/p": "v"}
    (verdict,) = pool.court.hear(pool.roster, stranger, ENDPOINT, bad, "no")
    assert verdict.name == "other/p"
    assert all(pool.offered(number) for number in range(3))
