"""What the picker counts, as Prometheus metrics, served from a thread of the library's."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from picker.pools import Pools
from picker.server import Picker
from xds.client import Link


class PickerMetrics(Collector):
    """Made when it is asked; `clock` is the event loop's."""

    def __init__(
        self, picker: Picker, pools: Pools, link: Link, clock: Callable[[], float]
    ) -> None:
        self._picker = picker
        self._pools = pools
        self._link = link
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        # `dict` copies in one step: the event loop goes on counting meanwhile.
        streams = CounterMetricFamily(
            "weir_picker_streams", "ext_proc streams, by outcome.", labels=["outcome"]
        )
        for outcome, count in dict(self._picker.counts).items():
            streams.add_metric([outcome], count)
        picks = CounterMetricFamily(
            "weir_picker_picks", "Requests sent to an endpoint.", labels=["pool", "endpoint"]
        )
        for (pool, endpoint), count in dict(self._picker.picks).items():
            picks.add_metric([pool, endpoint], count)
        unserved = CounterMetricFamily(
            "weir_picker_unserved", "Requests that no endpoint would do for.", labels=["pool"]
        )
        for pool, count in dict(self._picker.unserved).items():
            unserved.add_metric([pool], count)
        yield from (streams, picks, unserved)
        yield GaugeMetricFamily("weir_picker_pools", "Pools known.", len(self._pools.names()))
        link, lost_at = self._link, self._link.lost_at
        yield GaugeMetricFamily("weir_picker_connected", "To the control plane.", link.connected)
        away = 0.0 if link.connected or lost_at is None else self._clock() - lost_at
        yield GaugeMetricFamily(
            "weir_picker_control_plane_away_seconds", "Since the control plane was lost.", away
        )
        yield CounterMetricFamily("weir_picker_nacks", "Resources refused.", link.nacks)

    def describe(self) -> Iterator[Metric]:
        return iter(())


def expose(address: str, metrics: PickerMetrics) -> None:
    """Serve /metrics at "host:port". Raises `OSError` where it cannot be bound."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(metrics)
    start_http_server(int(port), host or "::", registry)
