"""Tests of what is remembered for monitors."""

from __future__ import annotations

import pytest

from fmconsume.delivery import ACK, DROP, FAIL, NACK, REJECT, SET_ASIDE, Outcome, Verdict
from fmconsume.engine.states import Phase, Snapshot, State, Stats
from fmconsume.exceptions import HaltConsumer
from fmconsume.service import history as history_module
from fmconsume.service.history import AGES, BOUNDS, STEP, STEPS, History

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
    return Snapshot(State(Phase.CONSUMING, ""), Stats(received=received), broker=broker)


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
    durations = history.tallies["fruit"].durations
    assert len(durations.buckets) == len(BOUNDS) + 1
    assert [number for number, count in enumerate(durations.buckets) if count] == [bucket]
    assert durations.seconds == seconds


def test_on_outcome_callback_never_called(history: History) -> None:
    """A message that is rejected before the callback sees it has no duration."""
    history.on_outcome(make_outcome(REJECT, seconds=0.0))
    assert sum(history.tallies["fruit"].durations.buckets) == 0


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


@pytest.mark.parametrize(
    ("published", "seconds", "bucket"),
    [
        (1_000_000, 0.5, 3),  # 9.5 s old when its callback began.
        (1_000_009, 0.5, 0),
        (1_000_009, 20.0, 0),  # The publisher's clock is ahead of ours.
        (2_000_000_000_000, 0.5, 0),  # It counts in milliseconds.
        (1, 0.5, AGES.index(604800) + 1),
        *((nothing, 0.5, None) for nothing in (None, "soon", True, 1e300, 0, -5)),
        (1_000_000, 0.0, None),  # The callback was not called.
    ],
)
def test_on_outcome_age(
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    published: object,
    seconds: float,
    bucket: int | None,
) -> None:
    """A message is as old as it was when its callback began, and never younger than new."""
    monkeypatch.setattr(history_module, "time", lambda: 1_000_010.0)
    outcome = make_outcome(seconds=seconds)
    outcome.delivery.properties.timestamp = published  # type: ignore[assignment]
    history.on_outcome(outcome)
    ages = history.tallies["fruit"].ages
    assert [number for number, count in enumerate(ages.buckets) if count] == (
        [] if bucket is None else [bucket]
    )
    assert ages.seconds >= 0


def test_queues_from_the_start() -> None:
    """The queues of the consumer are known before anything has come from them."""
    history = History(Stats, queues=["fruit", ""])
    assert list(history.tallies) == ["fruit", "(server-named)"]
    assert set(history.tallies["fruit"].verdicts.values()) == {0}


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


@pytest.mark.parametrize(
    ("depths", "trend"),
    [
        ([100], None),
        ([100, 70], -120.0),
        ([100, 100, 130], 60.0),
        ([5, 5], 0.0),
        # Of the last minute only.
        ([9999, 100, 100, 100, 100, 40], -60.0),
    ],
)
def test_trend(
    history: History, clock: list[float], depths: list[int], trend: float | None
) -> None:
    """A queue grows by so many messages a minute as its last depths show."""
    assert history.trend("fruit") is None
    for depth in depths:
        clock[0] += history.depth_interval
        history.on_depths({"fruit": depth, "nuts": 1})
    assert history.trend("fruit") == trend


def test_trend_new_session(history: History, clock: list[float]) -> None:
    """What a queue did before the session was lost is not its trend."""
    history.on_depths({"fruit": 1000})
    history.on_tick(make_snapshot())
    clock[0] += 15
    history.on_depths({"fruit": 0})
    assert history.trend("fruit") is None
    history.on_depths({"fruit": 7})  # In no time.
    assert history.trend("fruit") is None


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
