"""Tests of what is remembered for monitors."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from fmconsume.delivery import ACK, DROP, FAIL, NACK, REJECT, SET_ASIDE, Outcome, Verdict
from fmconsume.engine.states import Phase, Snapshot, State, Stats
from fmconsume.exceptions import HaltConsumer
from fmconsume.service import history as history_module
from fmconsume.service.history import BOUNDS, STEP, STEPS, History, Recent

from .fakes import make_delivery


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the history believes it is; the test moves them."""
    now = [1000.0]
    monkeypatch.setattr(history_module, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def history() -> History:
    """A history of nothing."""
    return History(Stats)


def make_outcome(
    verdict: Verdict = ACK,
    error: BaseException | None = None,
    seconds: float = 0.25,
    queue: str = "fruit",
    message_id: str = "apple",
) -> Outcome:
    """Make what became of a delivery."""
    return Outcome(make_delivery(queue=queue, message_id=message_id), verdict, error, seconds)


def make_snapshot(received: int = 0, broker: str = "") -> Snapshot:
    """Make a look at the engine."""
    return Snapshot(State(Phase.CONSUMING, ""), Stats(received=received), 0, 0, 0, 0, 0, broker)


# -- outcomes


@pytest.mark.parametrize(
    ("verdict", "error", "name"),
    [
        (ACK, None, "acknowledged"),
        (NACK, None, "requeued"),
        (DROP, None, "dropped"),
        (REJECT, None, "rejected"),
        (SET_ASIDE, None, "set aside"),
        (FAIL, ValueError("no"), "failed"),
        (ACK, HaltConsumer(), "acknowledged"),
        (NACK, HaltConsumer(requeue=True), "requeued"),
    ],
)
def test_on_outcome_counts(
    history: History, verdict: Verdict, error: BaseException | None, name: str
) -> None:
    """Each outcome is counted once, under its name and its queue."""
    history.on_outcome(make_outcome(verdict, error))
    history.on_outcome(make_outcome(verdict, error, queue="nuts"))
    assert set(history.tallies) == {"fruit", "nuts"}
    counts = history.tallies["nuts"].verdicts
    assert {key.value: count for key, count in counts.items() if count} == {name: 1}


@pytest.mark.parametrize(
    ("verdict", "seconds", "count"),
    [
        *((verdict, 0.1, 1) for verdict in (NACK, SET_ASIDE, FAIL)),
        *((verdict, 0.1, 0) for verdict in (ACK, DROP, REJECT)),
        # The consumer was stopped, the body did not decode, or an earlier process was killed.
        *((verdict, 0.0, 0) for verdict in (NACK, SET_ASIDE, FAIL)),
    ],
)
def test_on_outcome_failed_attempts(
    history: History, verdict: Verdict, seconds: float, count: int
) -> None:
    """A run that ended in a Nack or an exception is a failed attempt; no run is none."""
    history.on_outcome(make_outcome(verdict, seconds=seconds))
    assert history.tallies["fruit"].failed_attempts == count


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0001, 0), (0.001, 0), (0.0011, 1), (1800, 16), (1801, 17)]
)
def test_on_outcome_duration(history: History, seconds: float, bucket: int) -> None:
    """A callback falls into the bucket whose upper bound it does not pass."""
    history.on_outcome(make_outcome(seconds=seconds))
    buckets = history.tallies["fruit"].buckets
    assert len(buckets) == len(BOUNDS) + 1
    assert [number for number, count in enumerate(buckets) if count] == [bucket]
    assert history.tallies["fruit"].seconds == seconds


def test_on_outcome_callback_never_called(history: History) -> None:
    """A message that is rejected before the callback sees it has no duration."""
    history.on_outcome(make_outcome(REJECT, seconds=0.0))
    assert sum(history.tallies["fruit"].buckets) == 0


def test_on_outcome_slowest(history: History) -> None:
    """The slowest callbacks are remembered, slowest first, and no more than a few."""
    for seconds in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5):
        history.on_outcome(make_outcome(seconds=seconds, message_id=f"took {seconds}"))
    assert [slow.seconds for slow in history.slowest] == [9, 6, 5, 5, 5, 4, 3, 3]
    assert history.slowest[0][2:] == ("acknowledged", "took 9", "fruit", "fruit.ripe")


def test_on_outcome_rate(history: History, clock: list[float]) -> None:
    """Outcomes are counted by the time in which they came, and forgotten after a while."""
    history.on_outcome(make_outcome())
    history.on_outcome(make_outcome())
    clock[0] += STEP
    history.on_outcome(make_outcome())
    assert history.rate == {200: 2, 201: 1}
    clock[0] += STEP * (STEPS - 1)
    history.on_tick(make_snapshot())
    assert history.rate == {200: 2, 201: 1}
    clock[0] += STEP
    history.on_tick(make_snapshot())
    assert history.rate == {201: 1}


# -- the rest of the engine


def test_on_state_since(history: History, clock: list[float]) -> None:
    """The time of a state runs from the change of its name."""
    clock[0] += 1
    history.on_state(State(Phase.BUSY, "apple is in hand for 61 s"))
    clock[0] += 1
    history.on_state(State(Phase.BUSY, "apple is in hand for 62 s"))
    assert history.since == 1001.0
    assert history.state.text == "apple is in hand for 62 s"


def test_on_tick_delivered(history: History, clock: list[float]) -> None:
    """The last delivery was when the count of them had grown."""
    history.on_tick(make_snapshot())
    assert history.delivered is None
    history.on_tick(make_snapshot(received=1))
    clock[0] += 7
    history.on_tick(make_snapshot(received=1))
    assert history.delivered == 1000.0


def test_on_tick_broker(history: History) -> None:
    """The broker is remembered while there is no connection."""
    history.on_tick(make_snapshot(broker="far"))
    history.on_tick(make_snapshot())
    assert history.broker == "far"


def test_on_depths(history: History) -> None:
    """The queues' depths are asked for, and known."""
    history.on_depths({"fruit": 3})
    assert history.depths == {"fruit": 3}
    assert history.depth_interval == 15.0


def test_queue_named_by_the_broker(history: History) -> None:
    """A queue that the broker names anew for each session is one, however often that was."""
    for number in range(50):
        name = f"amq.gen-{number}"
        history.on_outcome(make_outcome(queue=name))
        history.on_depths({name: number, "fruit": 3})
    assert list(history.tallies) == ["(server-named)"]
    assert history.tallies["(server-named)"].verdicts[Verdict.ACK] == 50
    assert history.depths == {"(server-named)": 49, "fruit": 3}


def test_on_tick_without_session(history: History) -> None:
    """Nobody knows the depth of a queue while there is no session."""
    history.on_depths({"fruit": 3})
    history.on_tick(make_snapshot(broker="far"))
    assert history.depths == {"fruit": 3}
    history.on_tick(make_snapshot())
    assert history.depths == {}


@pytest.mark.parametrize("sign", ["state", "tick"])
def test_silence(clock: list[float], sign: str) -> None:
    """A supervisor that has not been heard of for a minute is dead, until it is heard of again."""
    history = History(Stats)
    history.on_state(State(Phase.CONSUMING, "consuming from fruit"))
    clock[0] += 60
    assert (history.silence, history.is_consuming) == ("", True)
    clock[0] += 1
    assert history.silence == "no sign of life from the supervisor for 61 s"
    assert not history.is_consuming
    if sign == "state":
        history.on_state(State(Phase.CONSUMING, "consuming from fruit"))
    else:
        history.on_tick(make_snapshot())
    assert (history.silence, history.is_consuming) == ("", True)


def test_slowest_printable(history: History) -> None:
    """Names that were chosen to do harm are remembered as they can be shown."""
    history.on_outcome(make_outcome(message_id="a\nb\x1b[2J"))
    assert history.slowest[0].message_id == r"a\nb\x1b[2J"


# -- the log


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """Our logger and the root, without handlers, as in a program that configures no logging."""
    loggers = [logging.getLogger(), logging.getLogger("fmconsume")]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
    yield loggers[1]
    for logger, handlers, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate


@pytest.mark.parametrize("propagate", [True, False])
def test_recent_sees_everything_once(ours: logging.Logger, propagate: bool) -> None:
    """Warnings of the whole program are noted once, however our logger is configured."""
    ours.propagate = propagate
    ours.addHandler(logging.NullHandler())
    with Recent() as recent:
        logging.getLogger("fmconsume.engine").warning("from us: %s", 1)
        logging.getLogger("their.callback").error("from them")
        logging.getLogger("their.callback").info("no matter")
    logging.getLogger("fmconsume.engine").warning("too late")
    assert [(entry.level, entry.text) for entry in recent.entries] == [
        ("WARNING", "from us: 1"),
        ("ERROR", "from them"),
    ]


def test_recent_takes_nothing_away(ours: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python prints while no logging is configured, it prints still."""
    stderr = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
        patch.setattr("sys.stderr", stderr)
        with Recent() as recent:
            ours.warning("look")
        assert logging.getLogger().handlers == []
    assert stderr.getvalue() == "look\n"
    assert len(recent.entries) == 1


def test_recent_is_bounded(ours: logging.Logger) -> None:
    """Only the last entries are kept, and of a long one the beginning."""
    ours.addHandler(logging.NullHandler())
    with Recent() as recent:
        for number in range(30):
            ours.error("%d %s", number, "x" * 10_000)
    assert [entry.text.split()[0] for entry in recent.entries] == [str(n) for n in range(10, 30)]
    assert {len(entry.text) for entry in recent.entries} == {4000}


def test_recent_survives_a_bad_record(
    ours: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that cannot be written is noted as such, also where nobody can be told."""
    ours.addHandler(logging.NullHandler())
    ours.propagate = False  # pytest's own handler would raise.
    monkeypatch.setattr("sys.stderr", io.StringIO())
    sys.stderr.close()
    with Recent() as recent:
        ours.error("%d", "no number")
    (entry,) = recent.entries
    assert entry.text.startswith("a log record of fmconsume (%d), ")
