import pytest

from xds.discovery import DeltaRequest, Outcome, SotwRequest
from xds.session import Session
from xds.snapshot import Snapshot, TypeUrl

CLUSTER, ENDPOINT, LISTENER, ROUTE, LOADS = (
    TypeUrl.CLUSTER,
    TypeUrl.ENDPOINT,
    TypeUrl.LISTENER,
    TypeUrl.ROUTE,
    TypeUrl.POOL_LOAD,
)
ONE = Snapshot.of(
    {
        CLUSTER: {"c": b"c1"},
        ENDPOINT: {"c": b"e1"},
        LISTENER: {"l": b"l1"},
        ROUTE: {"r": b"r1"},
        LOADS: {"p": b"1"},
    }
)


def changed(snapshot, type_url, **bodies):
    before = {
        kind: {n: r.body for n, r in rs.by_name.items()} for kind, rs in snapshot.types.items()
    }
    return Snapshot.of({**before, type_url: {n: b.encode() for n, b in bodies.items()}}, snapshot)


@pytest.fixture(params=["sotw", "delta"])
def client(request):
    return Client(request.param)


class Client:
    """Asks, answers and remembers what was sent, in either form of the protocol."""

    def __init__(self, form):
        self.form = form
        self.session = Session("peer")
        self.last = {}

    def ask(self, type_url, *names):
        if self.form == "sotw":
            return self.session.sotw(type_url, SotwRequest(names=names))
        return self.session.delta(type_url, DeltaRequest(subscribe=names))

    def acknowledge(self, type_url, *names, error=None):
        response = self.last[type_url]
        if self.form == "sotw":
            request = SotwRequest(names, response.version, response.nonce, error)
            return self.session.sotw(type_url, request)
        return self.session.delta(type_url, DeltaRequest(nonce=response.nonce, error=error))

    def take(self, snapshot):
        responses = list(self.session.responses(snapshot))
        self.last |= {response.type_url: response for response in responses}
        return [response.type_url for response in responses]


def test_types_go_out_in_the_order_in_which_a_proxy_can_use_them(client):
    client.ask(ROUTE, "r")
    client.ask(LISTENER)
    client.ask(ENDPOINT, "c")
    client.ask(CLUSTER)
    assert client.take(ONE) == [CLUSTER, ENDPOINT]
    client.acknowledge(CLUSTER)
    assert client.take(ONE) == [], "listeners wait for the endpoints"
    client.acknowledge(ENDPOINT, "c")
    assert client.take(ONE) == [LISTENER]
    client.acknowledge(LISTENER)
    assert client.take(ONE) == [ROUTE]


def test_a_proxy_that_refuses_its_clusters_is_not_left_without_the_rest(client):
    client.ask(CLUSTER)
    client.ask(LISTENER)
    client.take(ONE)
    assert client.acknowledge(CLUSTER, error="bad") is Outcome.REFUSED
    assert LISTENER in client.take(ONE)
    assert client.session.refusals[CLUSTER].reason == "bad"


def test_a_cluster_that_changed_has_its_assignment_sent_again(client):
    client.ask(CLUSTER)
    client.ask(ENDPOINT, "c")
    client.take(ONE)
    client.acknowledge(CLUSTER)
    client.acknowledge(ENDPOINT, "c")
    assert client.take(changed(ONE, CLUSTER, c="c2")) == [CLUSTER, ENDPOINT]


def test_an_assignment_that_changed_alone_goes_alone(client):
    client.ask(CLUSTER)
    client.ask(ENDPOINT, "c")
    client.take(ONE)
    client.acknowledge(CLUSTER)
    client.acknowledge(ENDPOINT, "c")
    assert client.take(changed(ONE, ENDPOINT, c="e2")) == [ENDPOINT]


def test_a_cluster_that_is_gone_is_taken_away_after_the_routes_to_it():
    client = Client("delta")
    for kind, names in ((CLUSTER, ()), (LISTENER, ()), (ROUTE, ("r",))):
        client.ask(kind, *names)
    both = changed(ONE, CLUSTER, c="c1", old="o")
    while kinds := client.take(both):
        for kind in kinds:
            client.acknowledge(kind, *(["r"] if kind == ROUTE else []))
    after = changed(changed(both, CLUSTER, c="c1"), ROUTE, r="r2")
    assert client.take(after) == [ROUTE]
    assert client.take(after) == []
    client.acknowledge(ROUTE, "r")
    assert client.take(after) == [CLUSTER]
    assert client.last[CLUSTER].removed == ("old",)


def test_synced_means_that_everything_but_loads_is_answered_for(client):
    client.ask(CLUSTER)
    client.ask(LOADS)
    client.take(ONE)
    assert not client.session.synced(ONE)
    client.acknowledge(CLUSTER)
    assert client.session.synced(ONE)
    assert client.session.accounts[CLUSTER].acked == 1
