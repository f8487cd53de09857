"""Tests of what is said while nothing is consumed."""

from __future__ import annotations

import pytest

from fmconsume.engine import outage as outage_module
from fmconsume.engine.outage import Outage
from fmconsume.moments import clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds since the epoch that the outage believes it is; the test moves them."""
    now = [1_000_000.0]
    monkeypatch.setattr(outage_module, "time", lambda: now[0])
    return now


def test_outage_after_a_loss(now: list[float]) -> None:
    """It began with the loss, however often it is tried to end it."""
    outage = Outage()
    began = clock(now[0])
    assert outage.describe_wait(2.0) == f"not consuming since {began}, next at {clock(1_000_002)}"
    for count, tried in ((1, "1 attempt"), (2, "2 attempts"), (3, "3 attempts")):
        now[0] += 60
        outage.begin_attempt()
        assert outage.describe_attempt() == f"not consuming since {began}, attempt {count}: "
        due = clock(now[0] + 30)
        assert outage.describe_wait(30.0) == f"not consuming since {began} ({tried}), next at {due}"


def test_outage_at_the_start(now: list[float]) -> None:
    """The first attempt of all is no outage, until it has failed; then that began with it."""
    outage = Outage()
    outage.begin_attempt()
    assert outage.describe_attempt() == ""
    now[0] += 60
    text = f"not consuming since {clock(1_000_000)} (1 attempt), next at {clock(1_000_061)}"
    assert outage.describe_wait(1.0) == text
