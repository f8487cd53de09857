"""Tests of when a session consumes again."""

from __future__ import annotations

from typing import Any

import pytest

from fmconsume.broker.topology import Topology
from fmconsume.delivery import ACK, NACK, Delivery, Outcome, Verdict
from fmconsume.engine import prefetch as prefetch_module
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.prefetch import Prefetch

from .fakes import PLAIN, make_delivery

SINGLE = PLAIN._replace(queues={"fruit": {"arguments": {"x-single-active-consumer": True}}})


class FakeSession:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.has_channels = True

    def open_channel(self) -> bool:
        return self.has_channels

    def consume_again(self, prefetch_count: int) -> None:
        self.calls.append(prefetch_count)

    def close_channel(self, last_tag: int) -> None:
        self.calls.append(f"close {last_tag}")


class Stage:
    """An account, its prefetch, and messages."""

    def __init__(self, topology: Topology = PLAIN, workers: int = 1) -> None:
        self.account = DeliveryAccount(10)
        self.account.begin(1)
        self.session = FakeSession()
        self.prefetch = Prefetch(self.account, topology, workers)
        self.prefetch.begin()
        self.tag = 0

    def receive(self, count: int = 1) -> list[Delivery]:
        """Receive messages."""
        deliveries = []
        for _ in range(count):
            self.tag += 1
            deliveries.append(make_delivery(1, self.tag, message_id=str(self.tag)))
            self.account.receive(deliveries[-1])
        return deliveries

    def conclude(self, deliveries: list[Delivery], verdict: Verdict = ACK) -> None:
        """Let callbacks end."""
        for delivery in deliveries:
            self.account.conclude(Outcome(delivery=delivery, verdict=verdict))
            self.prefetch.note_run()

    def ask(self) -> list[Any]:
        """Give what is asked of the session now; then settle."""
        self.prefetch.ask(self.session)  # type: ignore[arg-type]
        self.account.take_frames()
        calls, self.session.calls = self.session.calls, []
        return calls


@pytest.mark.parametrize(
    ("workers", "prefetch_count", "first"), [(1, 10, 1), (4, 10, 4), (16, 10, 10), (3, 0, 3)]
)
def test_first(workers: int, prefetch_count: int, first: int) -> None:
    """A session begins with as many messages as there are workers."""
    topology = PLAIN._replace(prefetch_count=prefetch_count)
    assert Stage(topology, workers).prefetch.first == first


def test_slow_start() -> None:
    """The whole prefetch comes once a callback has ended, before its message is settled."""
    stage = Stage(workers=2)
    first, second = stage.receive(2)
    assert stage.ask() == []
    stage.conclude([first])
    assert stage.ask() == [10]
    stage.conclude([second])
    assert stage.ask() == []
    assert stage.ask() == ["close 2"]
    stage.conclude(stage.receive(10))
    assert stage.ask() == []


def test_slow_start_with_room() -> None:
    """While the broker may send more anyway, nothing is asked for: it would be cut off."""
    stage = Stage(workers=2)
    stage.conclude(stage.receive())
    assert stage.ask() == []


def test_held_half_a_prefetch() -> None:
    """Held messages take no prefetch: with half of it held, there is another one."""
    stage = Stage(workers=10)
    deliveries = stage.receive(10)
    stage.conclude(deliveries[:4], NACK)
    assert stage.ask() == []
    stage.conclude(deliveries[4:5], NACK)
    assert stage.ask() == [10]
    stage.conclude(deliveries[5:], NACK)
    assert stage.ask() == []
    assert not stage.prefetch.is_used_up
    stage.conclude(stage.receive(10), NACK)
    assert stage.ask() == [10]


def test_held_at_the_head() -> None:
    """A held message that keeps acknowledgements apart for long enough is left behind."""
    stage = Stage(workers=10)
    (held,) = stage.receive()
    stage.conclude([held], NACK)
    asked = []
    for _ in range(3):
        stage.conclude(stage.receive(9))
        asked += stage.ask()
    assert asked == [10]
    stage.conclude(stage.receive(10))
    assert stage.ask() == []
    stage.account.release(held.tag)
    stage.account.take_frames()
    assert stage.ask() == ["close 28"]


@pytest.mark.parametrize("most", [0, 100])
def test_held_without_another_channel(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Where no channel is to be had, as many may be held on the one that there is."""
    monkeypatch.setattr(prefetch_module, "_MOST_CHANNELS", most)
    stage = Stage(workers=10)
    stage.session.has_channels = False
    for _ in range(5):
        stage.conclude(stage.receive(10), NACK)
        assert stage.ask() == [10]
        assert not stage.prefetch.is_used_up
    fresh = stage.receive(10)
    stage.account.release_all()
    assert stage.ask() == []
    assert (stage.account.grants.fresh, stage.account.grants.fresh_held) == (10, 0)
    stage.conclude(fresh)
    assert stage.ask() == []
    assert len(stage.account) == stage.account.grants.fresh == 0


def test_held_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an end to it."""
    monkeypatch.setattr(prefetch_module, "MOST_HELD", 0)
    stage = Stage(workers=10)
    stage.conclude(stage.receive(10), NACK)
    assert stage.ask() == []
    assert stage.prefetch.is_used_up


def test_single_active_consumer() -> None:
    """A single active consumer keeps to its prefetch: another one would take over."""
    stage = Stage(SINGLE)
    assert stage.prefetch.first == 10
    stage.conclude(stage.receive(10), NACK)
    assert stage.ask() == []
    assert stage.prefetch.is_used_up


def test_begin_afresh() -> None:
    """Each session starts slowly."""
    stage = Stage()
    stage.conclude(stage.receive())
    assert stage.ask() == [10]
    stage.account.lose([])
    stage.account.begin(2)
    stage.prefetch.begin()
    delivery = make_delivery(2, 1)
    stage.account.receive(delivery)
    assert stage.ask() == []
    stage.conclude([delivery])
    assert stage.ask() == [10]
