"""One client's stream: its subscriptions by type, in the order in which types may be sent.

A proxy that learns of a route before the cluster behind it, or of a cluster before its endpoints,
answers with 503 meanwhile. So types go out clusters first, then assignments, listeners, routes, our
own; a type waits while one before it has an answer outstanding; and clusters that are gone are
taken away last, when everything else has been accepted ("make before break").

https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from xds.access import NOTHING, Identity, Node, Scope
from xds.discovery import DeltaRequest, Outcome, Response, SotwRequest
from xds.snapshot import Snapshot, TypeUrl
from xds.subscription import DeltaSubscription, Refusal, SotwSubscription

ORDER: tuple[str, ...] = (
    TypeUrl.CLUSTER,
    TypeUrl.ENDPOINT,
    TypeUrl.LISTENER,
    TypeUrl.ROUTE,
    TypeUrl.POOL,
    TypeUrl.POOL_LOAD,
)
AFTER: dict[str, tuple[TypeUrl, ...]] = {
    TypeUrl.LISTENER: (TypeUrl.CLUSTER, TypeUrl.ENDPOINT),
    TypeUrl.ROUTE: (TypeUrl.CLUSTER, TypeUrl.ENDPOINT, TypeUrl.LISTENER),
}
REMOVED_AFTER: dict[str, tuple[TypeUrl, ...]] = {TypeUrl.CLUSTER: (TypeUrl.LISTENER, TypeUrl.ROUTE)}


@dataclass(slots=True)
class Account:
    """What passed between us and one client about one type; instants in the server's clock."""

    asked: int = 0
    acked: int = 0
    refused: int = 0
    stale: int = 0
    sent: int = 0  # responses
    bytes: int = 0
    acked_at: float | None = None
    published_at: float | None = None  # when what was sent last became known


@dataclass(slots=True, eq=False)
class Session:
    """Owned by one stream; synchronous. A session is itself and no other, however alike."""

    peer: str
    node: Node = field(default_factory=Node)
    identity: Identity | None = None
    scope: Scope = NOTHING
    subscriptions: dict[str, SotwSubscription | DeltaSubscription] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    # The one subscription of a stream that has one type only, as those of Istio's clusters do.
    _only: SotwSubscription | DeltaSubscription | None = None

    def sotw(self, type_url: str, request: SotwRequest) -> Outcome:
        subscription = self.subscriptions.get(type_url)
        if not isinstance(subscription, SotwSubscription):
            subscription = SotwSubscription(type_url)
            self._add(type_url, subscription)
        return self._count(type_url, subscription.request(request))

    def delta(self, type_url: str, request: DeltaRequest) -> Outcome:
        subscription = self.subscriptions.get(type_url)
        if not isinstance(subscription, DeltaSubscription):
            subscription = DeltaSubscription(type_url)
            self._add(type_url, subscription)
        return self._count(type_url, subscription.request(request))

    def acknowledge(self, type_url: str, raw: bytes) -> bool:
        """Is this a delta request that accepts what is outstanding and says nothing else?

        If so it is applied; if not, it has to be read.
        """
        subscription = self.subscriptions.get(type_url)
        if not isinstance(subscription, DeltaSubscription) or not subscription.acknowledge(raw):
            return False
        self.accounts[type_url].acked += 1
        return True

    def responses(self, snapshot: Snapshot) -> Iterator[Response]:
        """What is due now, in order. Each counts as sent when it is taken.

        Requests may be applied while the caller is busy with one.
        """
        while (response := self.next(snapshot)) is not None:
            yield response

    @property
    def alone(self) -> bool:
        """Has the client asked for one type only?"""
        return self._only is not None

    @property
    def outstanding(self) -> bool:
        """Is there a response that the client has not answered?"""
        return any(each.outstanding for each in self.subscriptions.values())

    def next(self, snapshot: Snapshot) -> Response | None:
        """The first thing that is due now; it counts as sent."""
        if (only := self._only) is not None:  # there is no order to keep
            return only.respond(snapshot.types.get(only.type_url))
        for type_url, subscription in self.subscriptions.items():
            if any(self._outstanding(before) for before in AFTER.get(type_url, ())):
                continue
            keep = not all(
                self._settled(before, snapshot) for before in REMOVED_AFTER.get(type_url, ())
            )
            response = subscription.respond(snapshot.types.get(type_url), keep_removed=keep)
            if response is not None:
                if type_url == TypeUrl.CLUSTER and TypeUrl.ENDPOINT in self.subscriptions:
                    # A cluster that changed is warmed with its endpoints anew, but its
                    # subscription goes on, so nobody asks.
                    self.subscriptions[TypeUrl.ENDPOINT].again(r.name for r in response.resources)
                return response
        return None

    def stirred(self, snapshot: Snapshot) -> bool:
        """Could `responses` have something to say? Cheap, and on the safe side."""
        if (only := self._only) is not None:
            return not only.outstanding and only.stirred(snapshot.types.get(only.type_url))
        for type_url, subscription in self.subscriptions.items():
            if not subscription.outstanding and subscription.stirred(snapshot.types.get(type_url)):
                return True
        return False

    def synced(self, snapshot: Snapshot) -> bool:
        """Has the client answered for all that the snapshot has for it?

        Loads are left out: they change with every scrape, and nobody is ever up to date.
        """
        return all(
            self._settled(type_url, snapshot)
            for type_url in self.subscriptions
            if type_url != TypeUrl.POOL_LOAD
        )

    @property
    def refusals(self) -> dict[str, Refusal]:
        """NACKs that stand, by type."""
        return {
            type_url: subscription.refusal
            for type_url, subscription in self.subscriptions.items()
            if subscription.refusal is not None
        }

    def _outstanding(self, type_url: str) -> bool:
        subscription = self.subscriptions.get(type_url)
        return subscription is not None and subscription.outstanding

    def _settled(self, type_url: str, snapshot: Snapshot) -> bool:
        subscription = self.subscriptions.get(type_url)
        return subscription is None or subscription.settled(snapshot.types.get(type_url))

    def _add(self, type_url: str, subscription: SotwSubscription | DeltaSubscription) -> None:
        self.subscriptions[type_url] = subscription
        self.accounts.setdefault(type_url, Account())
        ordered = sorted(self.subscriptions.items(), key=lambda item: _place(item[0]))
        self.subscriptions = dict(ordered)
        self._only = subscription if len(ordered) == 1 else None

    def _count(self, type_url: str, outcome: Outcome) -> Outcome:
        account = self.accounts[type_url]
        match outcome:
            case Outcome.ACKED:
                account.acked += 1
            case Outcome.REFUSED:
                account.refused += 1
            case Outcome.STALE:
                account.stale += 1
            case Outcome.ASKED:
                account.asked += 1
        return outcome


def _place(type_url: str) -> int:
    return ORDER.index(type_url) if type_url in ORDER else len(ORDER)
