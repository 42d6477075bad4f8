"""What the control plane says of itself: the JSON of `/status` and the metrics, from one view."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xds.loads import LoadReports
from xds.plane import Plane
from xds.pool import Endpoint, Load, Observation, Share
from xds.problems import Problem
from xds.session import Session
from xds.snapshot import Snapshot
from xds.sources.source import Source
from xds.streams import XdsServer
from xds.tuning import settings


def status(  # noqa: PLR0913 - the whole of what there is to say
    plane: Plane,
    server: XdsServer,
    reports: LoadReports,
    source: Source,
    now: float,
    *,
    wiring: Mapping[str, Any] | None = None,
    unwired: Iterable[Problem] = (),
) -> dict[str, Any]:
    """Pools with their endpoints as the weigher sees them; clients with what they accepted.

    `problems` are of the source, `faults` of single objects in it, `unwired` among them. `wiring`
    is where that of pools stands whose EnvoyFilters we keep.
    """
    return {
        "pools": {
            name: {
                "policy": plane.trials.in_effect[name].tier.value,
                "mode": pool.policy.mode.value,
                "annotations": settings(pool.policy),
                "clusters": [each.name for each in pool.istio_clusters],
                "quarantined": [
                    {"what": each.what, "reason": each.reason} for each in plane.quarantines(name)
                ],
                "endpoints": [
                    _endpoint(
                        each,
                        plane.shares(name).get(each.id),
                        plane.computed(name).get(each.id),
                        plane.seen(each.id),
                        now,
                    )
                    for each in pool.endpoints
                ],
            }
            for name, pool in plane.pools.items()
        },
        "clients": [_client(session, server.view(session), now) for session in server.clients],
        "reports": [
            {
                "pool": row.pool,
                "node": row.node,
                "age_seconds": round(now - row.at, 3),
                "issued": row.issued,
                "succeeded": row.succeeded,
                "failed": row.failed,
                "dropped": row.dropped,
                "in_progress": row.in_progress,
                "endpoints": row.endpoints,
            }
            for row in reports
        ],
        "nacks": server.traffic.nacks,
        "problems": list(source.problems),
        "faults": [each.row() for each in (*source.faults, *unwired)],
        "wiring": wiring,
        "source": source.status(now),
    }


def waiting(source: Source, now: float) -> dict[str, Any]:
    """The same, as long as the source has not got all pools together and nobody is served."""
    return {
        "pools": {},
        "clients": [],
        "reports": [],
        "nacks": 0,
        "problems": list(source.problems),
        "faults": [each.row() for each in source.faults],
        "wiring": None,
        "source": source.status(now),
    }


class Metrics(Collector):
    """The same view as Prometheus metrics, made when they are asked for."""

    def __init__(self, view: Callable[[], Mapping[str, Any]]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view = self._view()
        labels = ["pool", "endpoint"]
        gauges = {
            key: GaugeMetricFamily(f"weir_endpoint_{name}", text, labels=labels)
            for key, name, text in (
                ("weight", "weight", "Load-balancing weight as pushed; 100 is ordinary."),
                ("priority", "priority", "Load-balancing priority as pushed; 0 serves."),
                ("computed_weight", "computed_weight", "Weight if the pool's mode were active."),
                ("computed_priority", "computed_priority", "Likewise the priority."),
                ("waiting", "waiting_requests", "Requests in the model server's queue."),
                ("running", "running_requests", "Requests in the model server's batch."),
                ("kv_cache_usage", "kv_cache_usage_ratio", "KV cache in use, 0 to 1."),
                ("age_seconds", "load_age_seconds", "Age of the last load."),
            )
        }
        for pool, content in view["pools"].items():
            for endpoint in content["endpoints"]:
                for key, gauge in gauges.items():
                    if endpoint[key] is not None:
                        gauge.add_metric([pool, endpoint["endpoint"]], endpoint[key])
        yield from gauges.values()
        clients = view["clients"]
        behind = sum(not client["synced"] for client in clients)
        yield GaugeMetricFamily("weir_xds_clients_behind", "Streams with news to ACK.", behind)
        refusing = sum(bool(client["refusals"]) for client in clients)
        yield GaugeMetricFamily("weir_xds_clients_refusing", "Streams with a NACK.", refusing)
        quarantined = GaugeMetricFamily(
            "weir_pool_quarantined", "Refused by clients, not in effect.", labels=["pool", "what"]
        )
        issued = CounterMetricFamily(
            "weir_reported_requests", "Requests as reported over LRS.", labels=["pool", "node"]
        )
        for pool, content in view["pools"].items():
            for each in content["quarantined"]:
                quarantined.add_metric([pool, each["what"]], 1)
        for row in view["reports"]:
            issued.add_metric([row["pool"], row["node"]], row["issued"])
        yield from (quarantined, issued)
        yield from _wiring(view["wiring"])
        yield _faults(view["faults"])
        problems = len(view["problems"])
        yield GaugeMetricFamily("weir_config_problems", "Manifests that are wrong now.", problems)
        yield from _source_metrics(view["source"])

    def describe(self) -> Iterator[Metric]:
        return iter(())


def _wiring(wiring: Mapping[str, Any] | None) -> Iterator[Metric]:
    if wiring is None:
        return
    acting = float(wiring["acting"])
    yield GaugeMetricFamily("weir_wiring_acting", "Does this replica keep the wiring?", acting)
    done = GaugeMetricFamily(
        "weir_wiring_done", "Is all of a pool in place there?", labels=["pool", "gateway"]
    )
    places: dict[tuple[str, str], bool] = {}
    for each in wiring["places"]:
        place = each["pool"], each["gateway"]
        places[place] = places.get(place, True) and each["done"]
    for place, is_done in places.items():
        done.add_metric(place, is_done)
    yield done


def _source_metrics(source: Mapping[str, Any]) -> Iterator[Metric]:
    """By kind; the oldest of its namespaces is how old it is."""
    age = GaugeMetricFamily(
        "weir_source_age_seconds", "Since the source last spoke of a kind.", labels=["kind"]
    )
    stale = GaugeMetricFamily(
        "weir_source_stale", "Is what we have of a kind possibly out of date?", labels=["kind"]
    )
    objects = GaugeMetricFamily("weir_source_objects", "Objects known.", labels=["kind"])
    refused = GaugeMetricFamily(
        "weir_source_refused_objects", "Objects that could not be read.", labels=["kind"]
    )
    lists = CounterMetricFamily("weir_source_lists", "Complete lists.", labels=["kind"])
    failures = CounterMetricFamily(
        "weir_source_failures", "Lists and watches that failed.", labels=["kind"]
    )
    for kind in sorted({each["kind"] for each in source["kinds"]}):
        rows = [each for each in source["kinds"] if each["kind"] == kind]
        ages = [each["age_seconds"] for each in rows if each["age_seconds"] is not None]
        if ages:
            age.add_metric([kind], max(ages))
        stale.add_metric([kind], any(each["stale"] for each in rows))
        for family, key in (
            (objects, "objects"),
            (refused, "refused"),
            (lists, "lists"),
            (failures, "failures"),
        ):
            family.add_metric([kind], sum(each[key] for each in rows))
    complete = float(source["complete"])
    yield GaugeMetricFamily("weir_source_complete", "Are the first pools known?", complete)
    yield from (age, stale, objects, refused, lists, failures)


def _endpoint(
    endpoint: Endpoint,
    share: Share | None,
    computed: Share | None,
    seen: Observation,
    now: float,
) -> dict[str, Any]:
    load = seen.load or Load(at=now)
    return {
        "endpoint": endpoint.id,
        "pod": endpoint.pod,
        "ready": endpoint.ready,
        "draining": endpoint.draining,
        "weight": share.weight if share else None,
        "priority": share.priority if share else None,
        "computed_weight": computed.weight if computed else None,
        "computed_priority": computed.priority if computed else None,
        "reachability": seen.reachability.value,
        "problem": seen.problem,
        "age_seconds": round(now - load.at, 3) if seen.load else None,
        "waiting": load.waiting,
        "running": load.running,
        "kv_cache_usage": load.kv_cache_usage,
        "prefix_hit_rate": _ratio(load.prefix_hits, load.prefix_queries),
        "adapters": sorted(load.adapters),
    }


def _faults(rows: Iterable[Mapping[str, Any]]) -> Metric:
    """By what is bounded: of a misspelt annotation the name, never a value."""
    labels = ["namespace", "name", "knob", "reason"]
    gauge = GaugeMetricFamily(
        "weir_annotation_problems", "Annotations and objects that are wrong now.", labels=labels
    )
    for values, count in Counter(tuple(row[label] for label in labels) for row in rows).items():
        gauge.add_metric(values, count)
    return gauge


def _client(session: Session, snapshot: Snapshot, now: float) -> dict[str, Any]:
    return {
        "node": session.node.id,
        "peer": session.peer,
        "identity": None if session.identity is None else str(session.identity),
        "kind": session.node.kind,
        "sees": sorted(session.scope.patterns),
        "synced": bool(session.subscriptions) and session.synced(snapshot),
        "types": {
            _short(type_url): _subscription(session, type_url, snapshot, now)
            for type_url in session.subscriptions
        },
        "refusals": {
            _short(type_url): {"version": refusal.version, "reason": refusal.reason}
            for type_url, refusal in session.refusals.items()
        },
    }


def _subscription(
    session: Session, type_url: str, snapshot: Snapshot, now: float
) -> dict[str, Any]:
    subscription, account = session.subscriptions[type_url], session.accounts[type_url]
    known = snapshot.types.get(type_url)
    if subscription.refusal is not None:
        state = "NACKED"
    elif subscription.settled(known) and not subscription.refused:  # nor held back
        state = "SYNCED"
    else:
        state = "STALE"
    return {
        "state": state,
        "accepted": subscription.accepted,
        "ack_age_seconds": None if account.acked_at is None else round(now - account.acked_at, 3),
        "sent": account.sent,
        "bytes": account.bytes,
        "acked": account.acked,
        "refused": account.refused,
        "stale": account.stale,
        "should_have": dict(subscription.wanted(known)),
        "has": dict(subscription.held),
        "refuses": dict(subscription.refused),
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]
