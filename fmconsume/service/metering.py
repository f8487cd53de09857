"""Gives the metrics of the consumer to OpenTelemetry, where a provider of meters is set up.

The supervisor's thread makes the instruments, and a thread of OpenTelemetry's reads them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Callable

from ..engine.states import Observer, Snapshot
from ..log import get_logger
from ..version import __version__
from .history import History
from .metrics import Collector
from .tracing import is_set_up

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from prometheus_client.core import Metric, Sample

__all__ = ["Metering", "list_observers"]

_log = get_logger(__name__)

#: By provider: OpenTelemetry forgets no instrument, and takes none of the same name.
_meterings: weakref.WeakKeyDictionary[MeterProvider, Metering] = weakref.WeakKeyDictionary()


def list_observers(history: History | None, make: Callable[[], History]) -> list[Observer]:
    """List the observers that serve OpenTelemetry; none where nobody has set up a provider.

    Args:
        history: One that is an observer already; None makes another one.
        make: Makes a history.
    """
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    if not is_set_up(provider):
        return []
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        _log.warning("OpenTelemetry gets no metrics: they need the extra monitoring, too")
        return []
    made = [] if history else [make()]
    if provider not in _meterings:
        _meterings[provider] = Metering(provider.get_meter("fmconsume", __version__))
    _meterings[provider].history = weakref.ref(history or made[0])
    return [*made, _meterings[provider]]


class Metering(Observer):
    """Makes an instrument for each metric that /metrics has, of the same name.

    OpenTelemetry has no histogram that is only read: of one it gets the sum and the count.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        #: Of the consumer that was made last; gives None once that is gone. Set by the thread that
        #: makes a consumer, read by any.
        self.history: Callable[[], History | None] = lambda: None
        #: The names of the instruments; owned by the supervisor's thread.
        self._made: set[str] = set()

    def on_tick(self, snapshot: Snapshot) -> None:
        """Make an instrument for each metric that is new: some come with their first value."""
        for name, (metric, _) in self._read().items():
            if name not in self._made:
                self._made.add(name)
                self._make(name, metric)

    def _make(self, name: str, metric: Metric) -> None:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            from opentelemetry.metrics import Observation

            for sample in self._read().get(name, (metric, []))[1]:
                yield Observation(sample.value, sample.labels)

        kind = "gauge" if metric.type in ("gauge", "info") else "counter"
        make = getattr(self._meter, f"create_observable_{kind}")
        make(name, [observe], description=metric.documentation)

    def _read(self) -> dict[str, tuple[Metric, list[Sample]]]:
        """Return each metric with its samples, by the name of its instrument. Thread: any."""
        history = self.history()
        found: dict[str, tuple[Metric, list[Sample]]] = {}
        for metric in Collector(history).collect() if history else ():
            for sample in metric.samples:
                if "le" not in sample.labels:
                    # Where Prometheus gets it from OpenTelemetry, it has "_total" again.
                    name = sample.name.removesuffix("_total")
                    found.setdefault(name, (metric, []))[1].append(sample)
        return found
