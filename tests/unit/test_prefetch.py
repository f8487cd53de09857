"""Tests of when a session consumes again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from fmconsume.broker.topology import Topology
from fmconsume.delivery import ACK, CHANNEL, NACK, Delivery, Frame, Outcome, Verdict
from fmconsume.engine import prefetch as prefetch_module
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.prefetch import Prefetch

from .fakes import PLAIN, make_delivery

SINGLE = PLAIN._replace(queues={"fruit": {"arguments": {"x-single-active-consumer": True}}})


class FakeSession:
    """Notes what is asked of it."""

    number = 1

    def __init__(self, *queues: str) -> None:
        self.queues = list(queues)
        self.calls: list[Any] = []
        self.has_channels = True
        #: The number of the latest channel.
        self.channel = 0

    def open_channel(self) -> int | None:
        self.channel += self.has_channels
        return self.channel if self.has_channels else None

    def consume_again(self, queues: list[str], prefetch_count: int) -> None:
        self.calls.append((*queues, prefetch_count, self.channel))

    def close_channel(self, number: int) -> None:
        self.calls.append(f"close {number}")


class Stage:
    """An account, its prefetch, and messages."""

    def __init__(
        self, topology: Topology = PLAIN, workers: int = 1, queues: Sequence[str] = ("fruit",)
    ) -> None:
        self.account = DeliveryAccount(10)
        self.session = FakeSession(*queues)
        self.prefetch = Prefetch(self.account, topology, workers)
        self.begin()

    def begin(self) -> None:
        """Begin a session."""
        self.prefetch.begin(self.session)  # type: ignore[arg-type]
        self.tags: Counter[int] = Counter()
        self.session.channel = 0

    def receive(self, count: int = 1, queue: str = "fruit") -> list[Delivery]:
        """Receive messages, on the channel where the consumer of the queue is."""
        deliveries = []
        channel = self.account.grants.latest[queue].channel
        for _ in range(count):
            self.tags[channel] += 1
            tag = channel * CHANNEL + self.tags[channel]
            deliveries.append(make_delivery(1, tag, queue=queue, message_id=str(tag)))
            self.account.receive(deliveries[-1])
        return deliveries

    def conclude(self, deliveries: list[Delivery], verdict: Verdict = ACK) -> None:
        """Let callbacks end."""
        for delivery in deliveries:
            self.account.conclude(Outcome(delivery=delivery, verdict=verdict))

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
    assert Stage(topology, workers).prefetch.prepare() == first


def test_slow_start() -> None:
    """Each callback that ends doubles the prefetch, before its message is settled."""
    stage = Stage(workers=2)
    first, second = stage.receive(2)
    assert stage.ask() == []
    stage.conclude([first])
    assert stage.ask() == [("fruit", 4, 0)]
    stage.conclude([second])
    assert stage.ask() == []
    deliveries = stage.receive(4)
    assert stage.ask() == []
    stage.conclude(deliveries[:1])
    assert stage.ask() == [("fruit", 8, 0)]
    stage.conclude(stage.receive(8)[:1])
    assert stage.ask() == [("fruit", 10, 0)]
    stage.conclude(stage.receive(10))
    assert stage.ask() == []


@pytest.mark.parametrize(("whole", "last"), [(0, 0), (1000, 1000), (100, 100)])
def test_slow_start_ends(whole: int, last: int) -> None:
    """Few steps lead to a large prefetch, or to none."""
    stage = Stage(PLAIN._replace(prefetch_count=whole))
    asked = []
    for size in (1, 2, 4, 8, 16, 32, 64):
        stage.conclude(stage.receive(size))
        asked += stage.ask()
    assert [count for _, count, _ in asked] == [2, 4, 8, 16, 32, 64, last]
    stage.conclude(stage.receive(2000))
    assert stage.ask() == []


def test_slow_start_after_returns() -> None:
    """A message that came back before gives no more prefetch: it may be what consumers die of."""
    stage = Stage()
    (first,) = stage.receive()
    first.attempt = 2
    stage.conclude([first])
    assert stage.ask() == []
    stage.conclude(stage.receive())
    assert stage.ask() == [("fruit", 2, 0)]


def test_limit() -> None:
    """No more is asked for than may run, but for what runs since an earlier session."""
    room = [5.0]
    stage = Stage()
    stage.prefetch = Prefetch(stage.account, PLAIN, 8, lambda: room[0])
    assert stage.prefetch.prepare() == 5
    stage.begin()
    deliveries = stage.receive(5)
    room[0] = 0
    stage.conclude(deliveries[:2])
    assert stage.ask() == []
    stage.account.lose([])
    assert stage.prefetch.prepare() == 3
    stage.begin()
    stage.conclude(stage.receive(3)[:1])
    room[0] = 2
    assert stage.ask() == [("fruit", 2, 0)]


def test_slow_start_of_several_queues() -> None:
    """Each queue has its own prefetch."""
    stage = Stage(queues=("fruit", "nuts"))
    stage.conclude(stage.receive())
    assert stage.ask() == [("fruit", 2, 0)]
    stage.conclude([*stage.receive(2), *stage.receive(1, "nuts")])
    assert stage.ask() == [("fruit", 4, 0), ("nuts", 2, 0)]


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
    assert stage.ask() == [("fruit", 10, 0)]
    stage.conclude(deliveries[5:], NACK)
    assert stage.ask() == []
    assert not stage.prefetch.is_used_up
    stage.conclude(stage.receive(10), NACK)
    assert stage.ask() == [("fruit", 10, 0)]


def test_held_at_the_head() -> None:
    """A held message that keeps acknowledgements apart for long enough is left behind."""
    stage = Stage(workers=10)
    (held,) = stage.receive()
    stage.conclude([held], NACK)
    asked = []
    for _ in range(3):
        stage.conclude(stage.receive(9))
        asked += stage.ask()
    assert asked == [("fruit", 10, 1)]
    stage.conclude(stage.receive(10))
    assert stage.ask() == []
    stage.account.release(held.tag)
    stage.account.take_frames()
    assert stage.ask() == ["close 0"]


@pytest.mark.parametrize("most", [0, 100])
def test_held_without_another_channel(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Where no channel is to be had, as many may be held on the one that there is."""
    monkeypatch.setattr(prefetch_module, "_MOST_CHANNELS", most)
    stage = Stage(workers=10)
    stage.session.has_channels = False
    for _ in range(5):
        stage.conclude(stage.receive(10), NACK)
        assert stage.ask() == [("fruit", 10, 0)]
        assert not stage.prefetch.is_used_up
    fresh = stage.receive(10)
    stage.account.release_all()
    assert stage.ask() == []
    grant = stage.account.grants.latest["fruit"]
    assert (grant.outstanding, grant.held) == (10, 0)
    stage.conclude(fresh)
    assert stage.ask() == []
    assert len(stage.account) == grant.outstanding == 0


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
    assert stage.prefetch.prepare() == 10
    stage.conclude(stage.receive(10), NACK)
    assert stage.ask() == []
    assert stage.prefetch.is_used_up


def test_begin_afresh() -> None:
    """Each session starts slowly."""
    stage = Stage()
    stage.conclude(stage.receive())
    assert stage.ask() == [("fruit", 2, 0)]
    stage.account.lose([])
    stage.begin()
    deliveries = stage.receive()
    assert stage.ask() == []
    stage.conclude(deliveries)
    assert stage.ask() == [("fruit", 2, 0)]


def test_several_queues() -> None:
    """Each queue asks for itself, since a consumer that has room may get a message meanwhile."""
    stage = Stage(workers=10, queues=("fruit", "leaf"))
    (held,) = stage.receive()
    stage.conclude([held], NACK)
    for _ in range(2):
        stage.conclude(stage.receive(9))
        assert stage.ask() == []
    others = stage.receive(4, "leaf")
    stage.conclude(stage.receive(9))
    assert stage.ask() == [("fruit", 10, 1)]
    # What still comes for the other one comes on its old channel, beside tags that are held.
    others += stage.receive(6, "leaf")
    fresh = stage.receive(3)
    assert [delivery.tag for delivery in fresh] == [CHANNEL + 1, CHANNEL + 2, CHANNEL + 3]
    stage.conclude([*others, *fresh])
    stage.prefetch.ask(stage.session)  # type: ignore[arg-type]
    frames = stage.account.take_frames()
    assert frames[-1] == Frame(CHANNEL + 3, ACK, True)
    assert {frame.tag for frame in frames[:-1]} == {delivery.tag for delivery in others}
    assert stage.ask() == []
    # Its frames go one by one, since something is held there; so it follows to the other channel.
    others = stage.receive(10, "leaf")
    stage.conclude(others)
    assert stage.ask() == [("leaf", 10, 1)]
    stage.account.release_all()
    stage.account.take_frames()
    assert stage.ask() == ["close 0"]
    stage.conclude(stage.receive(2, "leaf"))
    assert stage.account.take_frames() == [Frame(CHANNEL + 5, ACK, True)]
