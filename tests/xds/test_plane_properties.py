"""A plane against one that forgets what it made: the same snapshots, whatever happens."""

import dataclasses

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xds import wire
from xds.court import Verdict
from xds.plane import Plane
from xds.pool import (
    Affinity,
    Endpoint,
    IstioCluster,
    Load,
    Mode,
    Observation,
    Policy,
    Pool,
    Reachability,
    Tier,
)
from xds.snapshot import TypeUrl
from xds.standalone import Standalone

STANDALONE = Standalone(listen="127.0.0.1:8080", picker="127.0.0.1:9002", access_log=None)
ENDPOINTS = [Endpoint(f"10.0.0.{n}:80", f"d/{n}", f"10.0.0.{n}", 80) for n in range(1, 5)]
NAMES = ("d/a", "d/b", "e/c")
CLUSTERS = [IstioCluster("outbound|80||x"), IstioCluster("outbound|80||y")]  # some pools share them


class Forgetful(Plane):
    """Makes everything again for each snapshot."""

    def snapshot(self, now):
        for line in self._lines.values():
            line.bodies.clear()
        for endpoint, seen in self._observations.items():
            self._written[endpoint] = wire.write_load(endpoint, seen)
        self._rearranged = True
        return super().snapshot(now)


@st.composite
def pools(draw, name):
    members = draw(st.sets(st.sampled_from(range(len(ENDPOINTS))), max_size=3))
    policy = Policy(
        tier=draw(st.sampled_from([Tier.PICK, Tier.WEIGHTS])),
        mode=draw(st.sampled_from(list(Mode))),
        affinity=draw(st.sampled_from(list(Affinity))),
        queue_threshold=draw(st.sampled_from([None, 5])),
    )
    clusters = tuple(draw(st.lists(st.sampled_from(CLUSTERS), unique=True)))
    return Pool(name, tuple(ENDPOINTS[n] for n in sorted(members)), policy, (), clusters)


@st.composite
def worlds(draw):
    found = draw(st.lists(st.sampled_from(NAMES), unique=True))
    return {name: draw(pools(name)) for name in sorted(found)}


loads = st.builds(Load, at=st.just(0.0), waiting=st.integers(0, 50), running=st.integers(0, 9))
seen = st.builds(
    Observation, st.none() | loads, st.sampled_from([Reachability.ANSWERING, Reachability.REFUSED])
)
happenings = st.one_of(
    st.tuples(st.just("configure"), worlds()),
    st.tuples(st.just("observe"), st.dictionaries(st.sampled_from(ENDPOINTS), st.none() | seen)),
    st.tuples(st.just("weigh"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["accept", "refuse", "look"])),
    st.tuples(st.just("roll back"), st.sampled_from([TypeUrl.ENDPOINT, TypeUrl.CLUSTER])),
)


def happen(plane, what, now, versions):
    match what:
        case ("configure", world):
            plane.configure(world, now)
        case ("observe", observations):
            for endpoint, observation in observations.items():
                if observation is not None and observation.load is not None:
                    known = msgspec.structs.replace(observation.load, at=now)
                    observation = dataclasses.replace(observation, load=known)  # noqa: PLW2901
                plane.observe(endpoint.id, observation)
        case ("weigh", steps):
            for step in range(steps):
                plane.weigh(now + step)
        case ("accept",):
            plane.trials.accept()
        case ("refuse",):
            plane.trials.refuse("no")
        case ("roll back", type_url):
            for name, accepted in versions.items():
                plane.roll_back(Verdict(type_url, name, "", accepted, 3, 3, "no"))


@settings(max_examples=25)  # Envoys' whole configuration takes its time
@given(worlds(), st.lists(st.tuples(happenings, st.booleans()), max_size=15))
def test_what_was_kept_is_what_would_be_made_again(world, course):
    plane, twin = Plane(STANDALONE), Forgetful(STANDALONE)
    now, before, versions, made = 0.0, None, {}, {}
    whole = [(("configure", world), True), *course, (("look",), True)]
    for number, (what, looked_at) in enumerate(whole):
        now += 5.0
        for each in (plane, twin):
            happen(each, what, now, versions)
        if not looked_at:
            continue  # a snapshot may follow several of them
        now += 1.0 + number * 0.1234567  # no load is ever as old as another was
        snapshot, naive = plane.snapshot(now), twin.snapshot(now)
        agree(snapshot, naive, made, now)
        if before is not None:
            told(snapshot, before)
        versions = {  # the first that there was of each: what a client may go back to
            name: versions.get(name, each.version)
            for name, each in snapshot.types[TypeUrl.ENDPOINT].by_name.items()
        }
        before = snapshot


def agree(snapshot, naive, made, now):
    """The same resources; of loads the same, each with the age that it had when it was written."""
    assert snapshot.types.keys() == naive.types.keys()
    assert snapshot.owners == naive.owners
    assert snapshot.tenants == naive.tenants
    for type_url in snapshot.types:
        if type_url != TypeUrl.POOL_LOAD:
            assert snapshot.types[type_url] == naive.types[type_url], type_url
    ours, theirs = (each.types[TypeUrl.POOL_LOAD].by_name for each in (snapshot, naive))
    assert ours.keys() == theirs.keys()
    for name, resource in ours.items():
        at = made.setdefault((name, resource.version), now)
        known = wire.decode_loads(resource.body, at)
        right = wire.decode_loads(theirs[name].body, now)
        assert known.keys() == right.keys()
        for endpoint, observation in known.items():
            other = right[endpoint]
            assert observation.reachability is other.reachability
            assert (observation.load is None) == (other.load is None)
            if observation.load is not None:
                assert observation.load.waiting == other.load.waiting
                assert observation.load.at == pytest.approx(other.load.at)


def told(snapshot, before):
    """What changed is named, and nothing else; what did not is the very same."""
    news = snapshot.changed(before)
    for type_url, resources in snapshot.types.items():
        for name, resource in resources.by_name.items():
            known = before.get(type_url, name)
            changed = known is None or known.body != resource.body
            assert changed == (name in news.get(type_url, ()))
            assert changed or resource is known
