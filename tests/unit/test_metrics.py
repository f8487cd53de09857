"""Tests of the metrics, read back as Prometheus reads them."""

from __future__ import annotations

import sys
from time import time

import pytest
from prometheus_client import Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from fmconsume.delivery import Verdict
from fmconsume.engine.states import Phase, Run, Snapshot, State, Stats
from fmconsume.identity import Identity
from fmconsume.service import metrics as metrics_module
from fmconsume.service.history import History
from fmconsume.version import __version__

from .fakes import make_delivery
from .prometheus import promtool
from .test_history import DROP, NACK, SET_ASIDE, make_outcome

IDENTITY = Identity('sa"mple', "far.example", 4711)

Samples = dict[tuple[str, ...], float]


def read(history: History) -> Samples:
    """Scrape; values by name and labels."""
    content_type, text = metrics_module.write(history, "")
    assert content_type.startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def history() -> History:
    """A history of a few messages from two queues."""
    stats = Stats(received=7, deduplicated=2, reconnections=1)
    runs = [Run("fmconsume-worker-1", make_delivery(), 0.0)] * 3
    history = History(lambda: stats, lambda: runs, ["fruit"], IDENTITY)
    history.on_state(State(Phase.BUSY, "apple is in hand for 61 s"))
    history.on_tick(Snapshot(history.state, stats, 4, 5, 1, 0, "far", 62.5, workers=4))
    history.on_depths({"fruit": 9})
    for seconds in (0.004, 0.2, 0.3, 7000):
        history.on_outcome(make_outcome(seconds=seconds))
    history.on_outcome(make_outcome(DROP, seconds=2.5, queue='nu"ts\n'))
    return history


def test_write_counters(history: History) -> None:
    """Deliveries are counted, by queue and outcome."""
    samples = read(history)
    assert samples["fmconsume_received_total",] == 7
    assert samples["fmconsume_deduplicated_total",] == 2
    assert samples["fmconsume_reconnections_total",] == 1
    assert samples["fmconsume_deliveries_total", "acknowledged", "fruit"] == 4
    assert samples["fmconsume_deliveries_total", "failed", "fruit"] == 0
    assert samples["fmconsume_deliveries_total", "dropped", 'nu"ts\n'] == 1


def test_write_failed_attempts(history: History) -> None:
    """Failed attempts are counted by queue, the last one of a message set aside among them."""
    for verdict in (NACK, NACK, SET_ASIDE):
        history.on_outcome(make_outcome(verdict))
    samples = read(history)
    assert samples["fmconsume_deliveries_total", "set aside", "fruit"] == 1
    assert samples["fmconsume_failed_attempts_total", "fruit"] == 3
    assert samples["fmconsume_failed_attempts_total", 'nu"ts\n'] == 0


def test_write_histogram(history: History) -> None:
    """Durations are a histogram with cumulative buckets."""
    samples = read(history)
    name = "fmconsume_callback_seconds"
    assert samples[f"{name}_bucket", "0.0025", "fruit"] == 0
    assert samples[f"{name}_bucket", "0.005", "fruit"] == 1
    assert samples[f"{name}_bucket", "0.5", "fruit"] == 3
    assert samples[f"{name}_bucket", "1800.0", "fruit"] == 3
    assert samples[f"{name}_bucket", "+Inf", "fruit"] == 4
    assert samples[f"{name}_count", "fruit"] == 4
    assert samples[f"{name}_sum", "fruit"] == pytest.approx(7000.504)


def test_write_gauges(history: History) -> None:
    """The engine of the moment is shown in gauges."""
    samples = read(history)
    assert samples["fmconsume_consuming",] == 1
    assert samples["fmconsume_state", "busy"] == 1
    assert samples["fmconsume_state", "consuming"] == 0
    assert samples["fmconsume_workers",] == 4
    assert samples["fmconsume_busy_workers",] == 3
    assert samples["fmconsume_dead_workers",] == 0
    assert samples["fmconsume_prefetched",] == 4
    assert samples["fmconsume_held_nacks",] == 5
    assert samples["fmconsume_oldest_held_seconds",] == 62.5
    assert samples["fmconsume_overdue_callbacks",] == 1
    assert samples["fmconsume_queue_messages_ready", "fruit"] == 9
    assert 0 <= samples["fmconsume_last_delivery_age_seconds",] < 60
    assert 0 <= samples["fmconsume_uptime_seconds",] < 60


def test_write_nothing_yet() -> None:
    """Before the first delivery it has no age, and nothing fails."""
    samples = read(History(Stats))
    assert samples["fmconsume_oldest_held_seconds",] == 0
    assert ("fmconsume_last_delivery_age_seconds",) not in samples
    assert samples["fmconsume_consuming",] == 0
    assert samples["fmconsume_state", "connecting"] == 1


def test_write_info(history: History) -> None:
    """One series says who consumes, with which version."""
    assert read(history)["fmconsume_info", 'sa"mple', "far.example", "4711", __version__] == 1


def test_write_from_the_start() -> None:
    """Every series of a configured queue is there before its first message, at zero."""
    history = History(Stats, queues=["fruit", ""])
    before = read(history)
    for queue in ("fruit", "(server-named)"):
        for verdict in Verdict:
            assert before["fmconsume_deliveries_total", verdict.value, queue] == 0
        assert before["fmconsume_failed_attempts_total", queue] == 0
        for name in ("fmconsume_callback_seconds", "fmconsume_message_age_seconds"):
            assert before[f"{name}_bucket", "+Inf", queue] == before[f"{name}_sum", queue] == 0
    history.on_outcome(make_outcome())
    assert read(history).keys() == before.keys()


def test_write_ages(history: History) -> None:
    """The ages of messages are a histogram, of those that say when they were published."""
    outcome = make_outcome(seconds=0.5)
    outcome.delivery.properties.timestamp = int(time()) - 100
    history.on_outcome(outcome)
    samples = read(history)
    name = "fmconsume_message_age_seconds"
    assert samples[f"{name}_bucket", "60.0", "fruit"] == 0
    assert samples[f"{name}_bucket", "300.0", "fruit"] == samples[f"{name}_count", "fruit"] == 1
    assert 99 <= samples[f"{name}_sum", "fruit"] < 160


def test_write_as_prometheus_wants_it(history: History) -> None:
    """Prometheus' own checker has nothing to say about names, units and help."""
    assert promtool("check", "metrics", text=metrics_module.write(history, "")[1]) == ""


def test_write_openmetrics(history: History) -> None:
    """A client that asks for OpenMetrics gets it."""
    content_type, text = metrics_module.write(history, "application/openmetrics-text")
    assert content_type.startswith("application/openmetrics-text")
    assert "fmconsume_deliveries" in {family.name for family in parse_open(text.decode())}


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=soup",
        "application/openmetrics-text; version=1.0.0; escaping=\x1b[2J",
        "text/plain; version=1.0.0; escaping=soup",
        "text/plain; version=9999999999999999999999.x",
        "text/plain;version",
        ";;;=,,,\xff",
        "text/plain" * 1000,
    ],
)
def test_write_hostile_accept(history: History, accept: str) -> None:
    """A header that makes no sense gets text, and its own text is in no header of the answer."""
    content_type, text = metrics_module.write(history, accept)
    assert b"fmconsume_received_total 7.0" in text
    assert content_type.isprintable()
    assert "soup" not in content_type


def test_write_silent_supervisor(history: History) -> None:
    """A supervisor that is dead consumes nothing, whatever its last state was."""
    assert read(history)["fmconsume_consuming",] == 1
    history.seen -= 100
    samples = read(history)
    assert samples["fmconsume_consuming",] == 0
    assert 100 <= samples["fmconsume_tick_age_seconds",] < 160


def test_write_same_series_after_reconnections(history: History) -> None:
    """A queue that has another name in each session adds no series."""
    counts = set()
    for number in range(50):
        name = f"amq.gen-{number}"
        history.on_outcome(make_outcome(queue=name))
        history.on_depths({name: 0})
        counts.add(len(read(history)))
    assert len(counts) == 1


def test_write_with_those_of_the_callback(history: History) -> None:
    """What a callback counts with prometheus-client is there too."""
    Counter("test_metrics_of_the_callback", "Builds seen").inc(3)
    assert read(history)["test_metrics_of_the_callback_total",] == 3


def test_write_without_the_library(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client there is an ImportError, when it is asked for and not before."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError):
        metrics_module.write(history, "")
