"""Tests of the guard against a wrong `body`."""

from __future__ import annotations

import pytest

from fmconsume.delivery import ACK, NACK, REJECT, Frame, Outcome, Verdict
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.bodies import BodyGuard
from fmconsume.exceptions import BodiesUnreadable, ExitCode

from .fakes import PLAIN, make_delivery


class Stage:
    """An account, its guard, and messages that decode or do not."""

    def __init__(self, *, is_on: bool = True, arguments: dict[str, str] | None = None) -> None:
        topology = PLAIN._replace(queues={"fruit": {"arguments": arguments or {}}})
        self.account = DeliveryAccount(10)
        self.account.begin(1, ["fruit"])
        self.guard = BodyGuard(self.account, topology, is_on)
        self.tag = 0

    def run(self, flaw: str = "") -> None:
        """Let a message decode, or not."""
        self.tag += 1
        delivery = make_delivery(1, self.tag, message_id=str(self.tag))
        self.account.receive(delivery)
        verdict = REJECT if flaw else ACK
        outcome = Outcome(delivery=delivery, verdict=verdict, flaw=flaw)
        if self.guard.is_open or not self.guard.holds(outcome):
            self.account.conclude(outcome)

    def ends_with(self) -> set[Verdict]:
        """Give the verdicts that would be sent if everything were released now."""
        return {outcome.verdict for outcome in self.account._held.values()}

    def frames(self) -> list[Frame]:
        """Give what is to be sent."""
        return self.account.take_frames()


def test_held_until_one_decodes() -> None:
    """What does not decode waits for the first that does, and is rejected then."""
    stage = Stage()
    stage.run("no JSON")
    stage.run("no JSON")
    assert stage.frames() == []
    assert stage.account.held == 2
    assert stage.ends_with() == {NACK}
    stage.run()
    assert {(frame.tag, frame.verdict) for frame in stage.frames()} == {
        (1, REJECT),
        (2, REJECT),
        (3, ACK),
    }
    stage.run("no JSON")
    assert stage.frames() == [Frame(4, REJECT, False)]
    verdicts = [outcome.verdict for outcome in stage.account.flush()]
    assert sorted(map(str, verdicts)) == sorted(map(str, [ACK, REJECT, REJECT, REJECT]))


def test_ten_end_the_consumer() -> None:
    """Ten that do not decode end the consumer with the cure, and go back to their queue."""
    stage = Stage()
    for _ in range(9):
        stage.run("no JSON")
    with pytest.raises(
        BodiesUnreadable, match=r"none of the first 10 .*no JSON.* body = "
    ) as caught:
        stage.run("no JSON")
    assert caught.value.exit_code == ExitCode.BODIES == 16
    assert stage.frames() == []
    stage.guard.give_up()
    stage.run("no JSON")
    stage.account.release_all()
    frames = stage.frames()
    assert {frame.verdict for frame in frames} == {NACK}
    assert len(frames) == 11
    assert len(stage.account) == 0


@pytest.mark.parametrize(
    ("is_on", "arguments"), [(False, {}), (True, {"x-dead-letter-exchange": "dead"})]
)
def test_with_a_place(is_on: bool, arguments: dict[str, str]) -> None:
    """Where what is rejected has a place, it is rejected at once, and the consumer never stops."""
    stage = Stage(is_on=is_on, arguments=arguments)
    for tag in range(1, 31):
        stage.run("no JSON")
        assert stage.frames() == [Frame(tag, REJECT, False)]


def test_lost_session() -> None:
    """After a loss what was held comes again, and nothing is settled for it."""
    stage = Stage()
    stage.run("no JSON")
    stage.account.lose([])
    stage.account.begin(2, ["fruit"])
    stage.guard.give_up()
    assert stage.frames() == []
    assert stage.account.receive(make_delivery(2, 1, message_id="1", redelivered=True))
