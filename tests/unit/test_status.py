"""Tests of when the status looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from fmconsume.context import MessageFilter
from fmconsume.delivery import NACK, Outcome
from fmconsume.engine import status as status_module
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.intake import Intake
from fmconsume.engine.prefetch import Prefetch
from fmconsume.engine.states import Observer, Phase, Snapshot, Stats
from fmconsume.engine.status import Status
from fmconsume.engine.stay import Step

from .fakes import PLAIN, make_delivery


class Looker(Observer):
    """Counts the ticks, and keeps the last snapshot."""

    ticks = 0
    snapshot: Snapshot

    def on_tick(self, snapshot: Snapshot) -> None:
        self.ticks += 1
        self.snapshot = snapshot


def make_status(
    looker: Looker,
    account: DeliveryAccount,
    workers: Sequence[Any] = (),
    callback_timeout: float | None = None,
) -> Status:
    """Make the status of an engine."""
    return Status(
        observers=[looker],
        stats=Stats(),
        account=account,
        intake=Intake(SimpleQueue(), None),
        workers=workers,
        callback_timeout=callback_timeout,
        prefetch=Prefetch(account, PLAIN, 1),
    )


@pytest.mark.parametrize(
    ("interval", "times", "ticks"),
    [
        (5.0, [0.0, 0.9, 1.0, 1.9, 2.0], 3),
        # The supervisor's turns are as long as the interval, give or take what a turn does.
        (1.0, [0.0, 0.99, 1.98, 2.97], 4),
        (0.2, [0.0, 0.05, 0.199, 0.398], 3),
    ],
)
def test_tick_times(
    monkeypatch: pytest.MonkeyPatch, interval: float, times: list[float], ticks: int
) -> None:
    """A turn that comes a little early is a tick nevertheless, but not every turn is one."""
    looker = Looker()
    looker.interval = interval
    status = make_status(looker, DeliveryAccount(0))
    for now in times:
        monkeypatch.setattr(status_module, "monotonic", lambda now=now: 1000.0 + now)
        status.tick(None)
    assert looker.ticks == ticks


def test_tick_oldest_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot tells how many Nacks are held, and when the first of them was delivered."""
    looker, account = Looker(), DeliveryAccount(0)
    status = make_status(looker, account)
    account.begin(1, ["fruit"])
    now = 1000.0
    monkeypatch.setattr(status_module, "monotonic", lambda: now)
    status.tick(None)
    assert (looker.snapshot.held, looker.snapshot.oldest_held) == (0, 0.0)
    for tag, received in ((1, 990.0), (2, 995.0)):
        delivery = make_delivery(1, tag)
        delivery.received = received
        account.receive(delivery)
        account.conclude(Outcome(delivery, NACK))
    now = 1007.5
    status.tick(None)
    assert (looker.snapshot.held, looker.snapshot.oldest_held) == (2, 17.5)


# -- callbacks that hang


class FakeWorker:
    """A worker that is in a callback since a moment, or in none, or has ended."""

    def __init__(self, number: int, began: float | None = None, is_alive: bool = True) -> None:
        self.name, self.number = f"fmconsume-worker-{number}", number
        self.step: Step | None = None
        delivery = make_delivery(1, number, message_id=f"apple {number}")
        self.current = None if began is None else (delivery, began)
        self.is_alive = lambda: is_alive

    def describe(self) -> str:
        return "its stack"


class FakeSession:
    """A session that notes its timers."""

    name, blocked, address = "fruit at far", "", SimpleNamespace(name="far")

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append((seconds, action))


class Hanging:
    """An engine with these workers, at the 1000th second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *workers: FakeWorker) -> None:
        self.now = [1000.0]
        monkeypatch.setattr(status_module, "monotonic", lambda: self.now[0])
        account = DeliveryAccount(0)
        account.begin(1, ["fruit"])
        for worker in workers:
            if worker.current:
                worker.current[0].received = self.now[0]
                account.receive(worker.current[0])
        self.looker, self.session = Looker(), FakeSession()
        self.status = make_status(self.looker, account, workers, 60.0)

    def look(self) -> tuple[Phase, str]:
        """Come to the end of a turn, and give the state."""
        self.status.tick(self.session)  # type: ignore[arg-type]
        return self.status.state


@pytest.mark.parametrize(
    ("workers", "phase"),
    [
        ([FakeWorker(1, 940.0)], Phase.STUCK),
        ([FakeWorker(1, 940.0), FakeWorker(2, 100.0)], Phase.STUCK),
        ([FakeWorker(1, 940.0), FakeWorker(2)], Phase.PARTLY_STUCK),
        ([FakeWorker(1, 940.0), FakeWorker(2, 940.1)], Phase.PARTLY_STUCK),
        # Nobody is left who works.
        ([FakeWorker(1, 940.0), FakeWorker(2, is_alive=False)], Phase.STUCK),
        ([FakeWorker(1, 940.1)], Phase.CONSUMING),
    ],
)
def test_tick_stuck(
    monkeypatch: pytest.MonkeyPatch, workers: list[FakeWorker], phase: Phase
) -> None:
    """It is stuck where no worker is left, and partly stuck where one is."""
    assert Hanging(monkeypatch, *workers).look()[0] is phase


def test_tick_stuck_names_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state names the message that has run longest, its worker, for how long and how many."""
    engine = Hanging(monkeypatch, FakeWorker(1, 930.0), FakeWorker(2, 920.0), FakeWorker(3))
    text = (
        "partly stuck, 2 of 3 workers past callback_timeout (60 s): "
        "message apple 2 from queue 'fruit' runs for 80 s on fmconsume-worker-2"
    )
    assert engine.look() == (Phase.PARTLY_STUCK, text)
    assert engine.looker.snapshot.longest == text.partition(": ")[2]
    assert engine.looker.snapshot.overdue == 2


def test_tick_stuck_line_belongs_to_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The line about a callback past its time has the fields of the message that it works on."""
    caplog.handler.addFilter(MessageFilter())
    Hanging(monkeypatch, FakeWorker(1), FakeWorker(2, 920.0)).look()
    (record, *_) = caplog.records
    found = [getattr(record, name) for name in ("message_id", "queue", "worker")]
    assert found == ["apple 2", "fruit", 2]


def test_tick_enters_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that enters the callback past callback_timeout counts as overdue."""
    worker = FakeWorker(1)
    worker.step = Step("enters", None, 920.0)
    engine = Hanging(monkeypatch, worker)
    engine.look()
    assert engine.looker.snapshot.overdue == 1


@pytest.mark.parametrize(("began", "is_named"), [(999.0, True), (999.1, False), (None, False)])
def test_tick_longest(monkeypatch: pytest.MonkeyPatch, began: float, is_named: bool) -> None:
    """What has run for a second is named while all is well, and what is quick is not."""
    engine = Hanging(monkeypatch, FakeWorker(1, began))
    assert engine.look()[0] is Phase.CONSUMING
    named = "message apple 1 from queue 'fruit' runs for 1 s on fmconsume-worker-1"
    assert engine.looker.snapshot.longest == (named if is_named else "")


def test_tick_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer is for the callback that is past its time first; then there is a look at once."""
    worker = FakeWorker(1, 990.0)
    engine = Hanging(monkeypatch, worker, FakeWorker(2, 995.0))
    for _ in range(3):
        assert engine.look()[0] is Phase.CONSUMING
    ((seconds, ring),) = engine.session.timers
    assert seconds == 50.0
    engine.now[0] += seconds
    assert engine.looker.ticks == 1
    engine.status._next_tick = 2000.0
    ring()
    assert engine.look()[0] is Phase.PARTLY_STUCK
    assert [seconds for seconds, _ in engine.session.timers] == [50.0, 5.0]
    # Its end is seen in the next turn, too.
    engine.status._next_tick = 2000.0
    worker.current = None
    assert engine.look()[0] is Phase.CONSUMING


def test_tick_alarm_in_the_nick_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that passes its time during the look is not forgotten for another one."""
    engine = Hanging(monkeypatch, FakeWorker(1, 940.1), FakeWorker(2))
    moments = iter([1000.0])
    monkeypatch.setattr(status_module, "monotonic", lambda: next(moments, 1000.2))
    engine.look()
    assert [seconds for seconds, _ in engine.session.timers] == [pytest.approx(0.1)]
