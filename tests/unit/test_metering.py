"""Tests of what OpenTelemetry reads of the metrics."""

from __future__ import annotations

import gc
import logging
import sys
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum

from fmconsume import Consumer
from fmconsume.engine.states import Phase, Snapshot, State, Stats
from fmconsume.service.history import History
from fmconsume.service.metering import Metering, list_observers
from fmconsume.service.metrics import Collector

from .test_history import DROP, NACK, make_outcome

IDLE = Snapshot(State(Phase.CONSUMING, "consuming"), Stats(received=7), broker="far")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """Set up OpenTelemetry; reads its metrics."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    return reader


def list_metrics(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Collect, and give our metrics by name: some versions of the SDK have metrics of their own."""
    data = reader.get_metrics_data()
    scopes = (
        [scope for each in data.resource_metrics for scope in each.scope_metrics] if data else []
    )
    ours = [scope for scope in scopes if scope.scope.name == "fmconsume"]
    return {metric.name: metric for scope in ours for metric in scope.metrics}


def read(reader: InMemoryMetricReader) -> dict[tuple[Any, ...], float]:
    """Collect, and give the values by name and labels."""
    return {
        (name, *(point.attributes or {}).values()): point.value
        for name, metric in list_metrics(reader).items()
        for point in metric.data.data_points
    }


def tick(observers: list[Any], snapshot: Snapshot = IDLE) -> None:
    """Let the supervisor look at the engine."""
    for observer in observers:
        observer.on_tick(snapshot)


def test_metering_values(reader: InMemoryMetricReader) -> None:
    """The values are those of the history, when they are read."""
    stats = Stats(received=7)
    observers = list_observers(None, lambda: History(lambda: stats))
    history, _ = observers
    assert isinstance(history, History)
    history.on_outcome(make_outcome(NACK, seconds=0.5))
    tick(observers)
    history.on_outcome(make_outcome(DROP, seconds=2, queue="nut"))
    history.on_depths({"fruit": 9})
    stats.received = 8
    values = read(reader)
    assert values["fmconsume_received",] == 8
    assert values["fmconsume_deliveries", "fruit", "requeued"] == 1
    assert values["fmconsume_deliveries", "nut", "dropped"] == 1
    assert values["fmconsume_failed_attempts", "fruit"] == 1
    assert values["fmconsume_callback_seconds_sum", "nut"] == 2
    assert values["fmconsume_callback_seconds_count", "nut"] == 1
    assert values["fmconsume_consuming",] in (0, 1)
    assert ("fmconsume_queue_messages_ready", "fruit") not in values
    tick(observers)
    assert read(reader)["fmconsume_queue_messages_ready", "fruit"] == 9


def test_metering_every_metric(reader: InMemoryMetricReader) -> None:
    """Each metric that /metrics has is there, as a counter or a gauge, and with its description."""
    observers = list_observers(None, lambda: History(lambda: Stats(received=7)))
    history: Any = observers[0]
    history.on_outcome(make_outcome())
    history.on_depths({"fruit": 9})
    history.delivered = history.started
    observers[1].on_tick(IDLE)
    found = list_metrics(reader)
    for family in Collector(history).collect():
        names = [family.name]
        if family.type == "histogram":
            names = [f"{family.name}_sum", f"{family.name}_count"]
        elif family.type == "info":
            names = [f"{family.name}_info"]
        for name in names:
            metric = found.pop(name)
            assert metric.description == family.documentation
            assert isinstance(metric.data, Gauge if family.type in ("gauge", "info") else Sum)
    assert not found


def test_metering_same_history(reader: InMemoryMetricReader) -> None:
    """A history that is there already is the one that is read."""
    history = History(lambda: Stats(received=9))
    (metering,) = list_observers(history, lambda: history)
    metering.on_tick(IDLE)
    assert read(reader)["fmconsume_received",] == 9


def test_metering_next_consumer(
    reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer that is gone tells nothing any more, and the next one takes its place."""
    observers = list_observers(None, lambda: History(lambda: Stats(received=7)))
    tick(observers)
    assert read(reader)["fmconsume_received",] == 7
    del observers
    gc.collect()
    assert read(reader) == {}
    tick(others := list_observers(None, lambda: History(lambda: Stats(received=1))))
    assert read(reader)["fmconsume_received",] == 1
    assert others
    # asyncio tells of tasks that other tests left, when they are collected.
    assert not [record for record in caplog.records if record.name != "asyncio"]


def test_list_observers_not_set_up() -> None:
    """Without a provider there is nothing to serve."""
    assert list_observers(None, lambda: History(Stats)) == []


def test_list_observers_without_extra(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without prometheus-client a line says what is missing."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    caplog.set_level(logging.WARNING)
    assert list_observers(None, lambda: History(Stats)) == []
    assert "they need the extra monitoring" in caplog.text


def test_consumer_observers(reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer has the observers where OpenTelemetry is set up, and only there."""

    def list_kinds() -> list[type]:
        return [type(each) for each in Consumer(print)._supervisor._status._observers]

    assert list_kinds() == [History, Metering]
    monkeypatch.delitem(sys.modules, "opentelemetry.metrics")
    assert list_kinds() == []
