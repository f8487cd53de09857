"""Writes the metrics of the consumer for Prometheus; any thread may call.

prometheus-client is an extra, imported when the first scrape comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING

from ..engine.states import Phase
from ..version import __version__
from .history import History, Tally

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Collector", "write"]


def write(history: History, accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of /metrics.

    Metrics that the callback itself registers with prometheus-client are included.

    Args:
        history: Holds the values.
        accept: The Accept header, which says which formats the client reads.

    Raises:
        ImportError: prometheus-client is not installed.
    """
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(Collector(history))
    registry.register(REGISTRY)
    try:
        encode, content_type = choose_encoder(accept)
    except Exception:  # The client asks for a version or an escaping that does not exist.
        encode, content_type = choose_encoder("")
    return content_type, encode(registry)


class Collector:
    """The collector that prometheus-client asks for the metrics."""

    def __init__(self, history: History) -> None:
        self._history = history

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics with their present values."""
        yield _info(self._history)
        yield from _counters(self._history)
        yield from _gauges(self._history)
        yield from _tallies(self._history.tallies)


def _info(history: History) -> Metric:
    from prometheus_client.core import InfoMetricFamily

    identity = {} if history.identity is None else history.identity._asdict()
    labels = {"version": __version__, **{name: str(each) for name, each in identity.items()}}
    return InfoMetricFamily("fmconsume", "Who consumes, with which version", labels)


def _counters(history: History) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily

    stats = history.stats()
    for name, text, value in (
        ("received", "Deliveries received", stats.received),
        ("deduplicated", "Redeliveries that had run and did not run again", stats.deduplicated),
        ("reconnections", "Sessions with the broker after the first", stats.reconnections),
    ):
        yield CounterMetricFamily(f"fmconsume_{name}", text, value)


def _gauges(history: History) -> Iterable[Metric]:
    now, snapshot, state = monotonic(), history.snapshot, history.state
    is_state = {phase.value: phase is state.name for phase in Phase}
    yield _gauge("consuming", "Whether messages are taken as they come", history.is_consuming)
    yield _gauge("state", "Whether this is the state", is_state, "state")
    yield _gauge("uptime_seconds", "Time since the start", now - history.started)
    yield _gauge(
        "tick_age_seconds", "Time since the supervisor's last sign of life", now - history.seen
    )
    yield _gauge("workers", "Callbacks that can run at the same time", snapshot.workers)
    yield _gauge("busy_workers", "Workers that run a callback", len(history.runs()))
    yield _gauge("dead_workers", "Workers that ended too early", snapshot.dead_workers)
    yield _gauge("overdue_callbacks", "Callbacks past callback_timeout", snapshot.overdue)
    yield _gauge("prefetched", "Deliveries that wait for a worker", snapshot.prefetched)
    yield _gauge("held_nacks", "Nacks that are held back", snapshot.held)
    text = "Time since the Nack that is held longest was delivered; 0 without any"
    yield _gauge("oldest_held_seconds", text, snapshot.oldest_held)
    yield _gauge("queue_messages_ready", "Messages in the queue", history.depths, "queue")
    if history.delivered is not None:
        text = "Time since the last delivery"
        yield _gauge("last_delivery_age_seconds", text, now - history.delivered)


def _gauge(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    """Make a gauge of one value, or of one for each value of a label."""
    from prometheus_client.core import GaugeMetricFamily

    if isinstance(value, (int, float)):
        return GaugeMetricFamily(f"fmconsume_{name}", text, value)
    gauge = GaugeMetricFamily(f"fmconsume_{name}", text, labels=[label])
    for key, each in value.items():
        gauge.add_metric([key], each)
    return gauge


def _tallies(tallies: Mapping[str, Tally]) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    text = "What became of deliveries"
    deliveries = CounterMetricFamily("fmconsume_deliveries", text, labels=["queue", "outcome"])
    text = "Runs that ended in a Nack or in an exception"
    failures = CounterMetricFamily("fmconsume_failed_attempts", text, labels=["queue"])
    text = "How long callbacks ran"
    durations = HistogramMetricFamily("fmconsume_callback_seconds", text, labels=["queue"])
    text = "Time from a message's timestamp to the start of its callback"
    ages = HistogramMetricFamily("fmconsume_message_age_seconds", text, labels=["queue"])
    for queue, tally in tallies.items():
        for verdict, count in tally.verdicts.items():
            deliveries.add_metric([queue, verdict.value], count)
        failures.add_metric([queue], tally.failed_attempts)
        for family, histogram in ((durations, tally.durations), (ages, tally.ages)):
            bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
            buckets = list(zip(bounds, accumulate(histogram.buckets)))
            family.add_metric([queue], buckets, histogram.seconds)
    yield from (deliveries, failures, durations, ages)
