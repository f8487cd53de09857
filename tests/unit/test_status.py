"""Tests of when the status looks."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from fmconsume.engine import status as status_module
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.intake import Intake
from fmconsume.engine.states import Observer, Snapshot, Stats
from fmconsume.engine.status import Status


class Looker(Observer):
    """Counts the ticks."""

    ticks = 0

    def on_tick(self, snapshot: Snapshot) -> None:
        self.ticks += 1


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
    status = Status(
        observers=[looker],
        stats=Stats(),
        account=DeliveryAccount(0),
        intake=Intake(SimpleQueue(), None),
        workers=[],
    )
    for now in times:
        monkeypatch.setattr(status_module, "monotonic", lambda now=now: 1000.0 + now)
        status.tick(None)
    assert looker.ticks == ticks
