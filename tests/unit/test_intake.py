"""Tests of the intake: what waits for a worker, and what comes back."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from fmconsume.delivery import Delivery
from fmconsume.engine.intake import Intake

from .fakes import make_delivery


def fill(intake: Intake, count: int) -> list[Delivery]:
    """Add so many deliveries."""
    deliveries = [make_delivery(tag=number) for number in range(1, count + 1)]
    for delivery in deliveries:
        intake.add(delivery)
    return deliveries


def make_intake(limit: int | None = None) -> Intake:
    """Make an empty one."""
    return Intake(SimpleQueue(), limit)


def test_hand_out_together() -> None:
    """The workers get nothing before the supervisor hands out, and then all in order."""
    intake = make_intake()
    deliveries = fill(intake, 3)
    assert (intake.inbox.qsize(), len(intake)) == (0, 3)
    intake.hand_out()
    assert [intake.inbox.get_nowait() for _ in range(3)] == deliveries
    assert len(intake) == 0


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_hand_out_within_limit(limit: int) -> None:
    """Beyond the limit nothing is handed out, however often."""
    intake = make_intake(limit)
    fill(intake, 3)
    intake.hand_out()
    intake.hand_out()
    assert (intake.inbox.qsize(), len(intake)) == (limit, 3)


def test_take_back_in_order() -> None:
    """What no worker has begun comes back, oldest first, and counts for no limit."""
    intake = make_intake(2)
    deliveries = fill(intake, 4)
    intake.hand_out()
    assert intake.inbox.get_nowait() is deliveries[0]
    assert intake.take_back() == deliveries[1:]
    assert len(intake) == 0
    fill(intake, 2)
    intake.hand_out()
    assert intake.inbox.qsize() == 1
