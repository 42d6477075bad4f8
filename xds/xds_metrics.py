"""What the xDS server counts, as Prometheus metrics: our names, and istiod's beside them.

    ours                                istiod's                        type label of istiod's
    weir_xds_pushes_total               pilot_xds_pushes_total          cds, eds, lds, rds
    weir_xds_nacks_total                pilot_total_xds_rejects_total   the same
    weir_xds_ack_seconds                pilot_proxy_convergence_time
    weir_xds_clients                    pilot_xds
    weir_xds_resource_bytes             pilot_xds_config_size_bytes     (the sum of what is served)

Ours are by resource type ("ClusterLoadAssignment"). `weir_xds_ack_seconds` runs from the publishing
of a change to a client's ACK of it.
"""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from xds.snapshot import TypeUrl
from xds.streams import XdsServer
from xds.traffic import BUCKETS, Histogram

SHORT = {
    TypeUrl.CLUSTER.value: "cds",
    TypeUrl.ENDPOINT.value: "eds",
    TypeUrl.LISTENER.value: "lds",
    TypeUrl.ROUTE.value: "rds",
}


class XdsMetrics(Collector):
    """Made from the server's counts when it is asked."""

    def __init__(self, server: XdsServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        yield from self._by_type()
        traffic = self._server.traffic
        clients = len(self._server.roster.sessions)
        yield GaugeMetricFamily("weir_xds_clients", "Open xDS streams.", clients)
        yield GaugeMetricFamily("pilot_xds", "Open xDS streams.", clients)
        yield CounterMetricFamily(
            "weir_xds_out_of_scope", "Names asked for that are another's.", traffic.out_of_scope
        )
        turned_away = CounterMetricFamily(
            "weir_xds_turned_away", "Streams that we ended, by gRPC status.", labels=["status"]
        )
        for status, count in traffic.turned_away.items():
            turned_away.add_metric([status], count)
        yield turned_away

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def _by_type(self) -> Iterator[Metric]:
        counters = {
            name: CounterMetricFamily(name, text, labels=["type"])
            for name, text in (
                ("weir_xds_pushes", "Responses sent."),
                ("weir_xds_push_bytes", "Bytes of responses sent."),
                ("weir_xds_acks", "Responses accepted."),
                ("weir_xds_nacks", "Responses refused."),
                ("pilot_xds_pushes", "Responses sent."),
                ("pilot_total_xds_rejects", "Responses refused."),
            )
        }
        ack = HistogramMetricFamily(
            "weir_xds_ack_seconds", "From publishing a change to its ACK.", labels=["type"]
        )
        sizes = GaugeMetricFamily("weir_xds_resource_bytes", "What is served.", labels=["type"])
        pilot_sizes = GaugeMetricFamily(
            "pilot_xds_config_size_bytes", "What is served.", labels=["type"]
        )
        convergence = Histogram()
        for type_url, traffic in self._server.traffic.types.items():
            name = type_url.rpartition(".")[2]
            counters["weir_xds_pushes"].add_metric([name], traffic.pushes)
            counters["weir_xds_push_bytes"].add_metric([name], traffic.bytes)
            counters["weir_xds_acks"].add_metric([name], traffic.acks)
            counters["weir_xds_nacks"].add_metric([name], traffic.nacks)
            ack.add_metric([name], *_buckets(traffic.convergence))
            if type_url in SHORT:
                counters["pilot_xds_pushes"].add_metric([SHORT[type_url]], traffic.pushes)
                counters["pilot_total_xds_rejects"].add_metric([SHORT[type_url]], traffic.nacks)
                convergence = convergence + traffic.convergence
        for type_url, resources in self._server.snapshots.value.types.items():
            size = sum(len(each.body) for each in resources.by_name.values())
            sizes.add_metric([type_url.rpartition(".")[2]], size)
            pilot_sizes.add_metric([SHORT.get(type_url, type_url)], size)
        pilot_ack = HistogramMetricFamily(
            "pilot_proxy_convergence_time", "From publishing a change to its ACK, Envoy's types."
        )
        pilot_ack.add_metric([], *_buckets(convergence))
        yield from (*counters.values(), ack, sizes, pilot_sizes, pilot_ack)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    bounds, total, rows = [*map(str, BUCKETS), "+Inf"], 0, []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows, histogram.sum
