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


def test_hand_out_suspect() -> None:
    """What ran when a process died runs alone; the others wait for it, and it for them."""
    in_hand = 0
    noted: list[Delivery] = []
    intake = Intake(SimpleQueue(), None, lambda: in_hand, noted.extend)

    def hand_out(*, may_be_suspect: bool = False) -> list[Delivery]:
        before = len(noted)
        intake.hand_out(may_be_suspect=may_be_suspect)
        found = [intake.inbox.get_nowait() for _ in range(intake.inbox.qsize())]
        assert found == noted[before:]
        return found

    deliveries = fill(intake, 6)
    for suspect in (deliveries[2], deliveries[3]):
        suspect.deaths = 1
    in_hand = 6
    assert not intake.is_held_up
    assert hand_out() == deliveries[:2]
    assert (intake.is_held_up, intake.is_alone) == (True, False)
    in_hand = 4
    assert (intake.is_held_up, intake.is_alone) == (True, True)
    assert hand_out() == []
    assert hand_out(may_be_suspect=True) == deliveries[2:3]
    assert hand_out(may_be_suspect=True) == []
    in_hand = 3
    assert hand_out(may_be_suspect=True) == deliveries[3:4]
    assert hand_out() == []
    in_hand = 2
    assert intake.is_held_up
    assert hand_out() == deliveries[4:]
    assert not intake.is_held_up
