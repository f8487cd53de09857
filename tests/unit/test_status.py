"""Tests of when the status looks."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from fmconsume.delivery import NACK, Outcome
from fmconsume.engine import status as status_module
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.intake import Intake
from fmconsume.engine.prefetch import Prefetch
from fmconsume.engine.states import Observer, Snapshot, Stats
from fmconsume.engine.status import Status

from .fakes import PLAIN, make_delivery


class Looker(Observer):
    """Counts the ticks, and keeps the last snapshot."""

    ticks = 0
    snapshot: Snapshot

    def on_tick(self, snapshot: Snapshot) -> None:
        self.ticks += 1
        self.snapshot = snapshot


def make_status(looker: Looker, account: DeliveryAccount) -> Status:
    """Make the status of an engine without workers."""
    return Status(
        observers=[looker],
        stats=Stats(),
        account=account,
        intake=Intake(SimpleQueue(), None),
        workers=[],
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
