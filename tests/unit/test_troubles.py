"""Tests of what was in the way of messages."""

from __future__ import annotations

import pytest

from fmconsume.engine.states import Phase, State
from fmconsume.service import troubles as troubles_module
from fmconsume.service.troubles import Trouble, Troubles

CONSUMING = State(Phase.CONSUMING, "consuming")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds since the epoch that the troubles believe it is; the test moves them."""
    now = [1000.0]
    monkeypatch.setattr(troubles_module, "time", lambda: now[0])
    return now


def follow(troubles: Troubles, now: list[float], *states: State) -> None:
    """Enter states, one each second."""
    for state in states:
        now[0] += 1
        troubles.on_state(state)


def test_troubles_begin_and_end(now: list[float]) -> None:
    """A trouble has its begin, the last words of its state, and its end once that has come."""
    troubles = Troubles()
    follow(troubles, now, CONSUMING)
    assert troubles.present is None
    follow(troubles, now, State(Phase.STUCK, "for 1 s"), State(Phase.STUCK, "for 2 s"))
    assert troubles.present == Trouble(Phase.STUCK, "for 2 s", 1002.0)
    follow(troubles, now, CONSUMING)
    assert troubles.present is None
    assert troubles.all == (Trouble(Phase.STUCK, "for 2 s", 1002.0, 1004.0),)
    follow(troubles, now, CONSUMING)
    assert troubles.all[0].ended == 1004.0


def test_troubles_outage_is_one(now: list[float]) -> None:
    """An attempt to connect neither ends an outage nor is one of its own."""
    troubles = Troubles()
    connecting, waiting = State(Phase.CONNECTING, "to far"), State(Phase.WAITING, "refused")
    follow(troubles, now, connecting)
    assert troubles.all == ()
    follow(troubles, now, waiting, connecting, waiting, connecting)
    assert troubles.all == (Trouble(Phase.WAITING, "refused", 1002.0),)
    follow(troubles, now, CONSUMING)
    assert troubles.all == (Trouble(Phase.WAITING, "refused", 1002.0, 1006.0),)


def test_troubles_of_two_kinds(now: list[float]) -> None:
    """Where one trouble takes the place of another, both are told."""
    troubles = Troubles()
    follow(troubles, now, State(Phase.BUSY, "a"), State(Phase.STUCK, "b"))
    assert troubles.all == (
        Trouble(Phase.BUSY, "a", 1001.0, 1002.0),
        Trouble(Phase.STUCK, "b", 1002.0),
    )
    follow(troubles, now, State(Phase.STOPPING, "c"))
    assert troubles.present is None


def test_troubles_are_bounded(now: list[float]) -> None:
    """Only the last ones are remembered."""
    troubles = Troubles()
    for number in range(30):
        follow(troubles, now, State(Phase.BUSY, str(number)), CONSUMING)
    assert [trouble.text for trouble in troubles.all] == [str(number) for number in range(18, 30)]
