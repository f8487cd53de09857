"""Tests of the mailbox: whoever posts wakes the one who waits, and nothing is missed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any, Callable

import pytest

from fmconsume.engine import mailbox as mailbox_module
from fmconsume.engine.mailbox import Mailbox
from tests.waiting import wait_until

from .fakes import TIMEOUT


def make_item(name: str = "") -> Callable[[], None]:
    """Make something to post."""

    def item() -> None:
        raise AssertionError(f"the mailbox runs nothing, not even {name}")

    return item


class Network:
    """Counts how often it is woken."""

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def network() -> Network:
    """Give a network to wait for."""
    return Network()


@pytest.fixture
def mailbox(network: Network) -> Mailbox:
    """Give a mailbox whose owner waits for the network."""
    result = Mailbox()
    result.attach(network.wake)
    return result


@pytest.fixture
def inbox() -> SimpleQueue[Any]:
    """Give the workers' inbox."""
    return SimpleQueue()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nothing but a worker end the lingering."""
    monkeypatch.setattr(mailbox_module, "_LINGER", 2 * TIMEOUT)
    return iter(())


def test_post_wakes_once(mailbox: Mailbox, network: Network) -> None:
    """Of those who post between two collections, the first wakes the network."""
    for _ in range(3):
        mailbox.post(make_item())
    assert network.wakes == 1
    assert len(list(mailbox.collect())) == 3
    mailbox.post(make_item())
    assert network.wakes == 2


def test_post_to_next_network(mailbox: Mailbox, network: Network) -> None:
    """That the last network was woken says nothing of the next one."""
    mailbox.post(make_item())
    mailbox.attach((other := Network()).wake)
    mailbox.post(make_item())
    assert (network.wakes, other.wakes) == (1, 1)


def test_post_late_to_last_network(mailbox: Mailbox) -> None:
    """Whoever wakes the last network although there is a new one takes no wake from that."""
    other = Network()

    def wake_while_it_changes() -> None:
        mailbox.attach(other.wake)

    mailbox.attach(wake_while_it_changes)
    mailbox.post(make_item())
    mailbox.post(make_item())
    assert other.wakes == 1


def test_post_without_network(network: Network) -> None:
    """Without a network there is nobody to be woken: the item ends a `wait`."""
    mailbox = Mailbox()
    mailbox.attach(network.wake)
    mailbox.detach()
    item = make_item()
    thread = threading.Thread(target=mailbox.post, args=[item])
    thread.start()
    assert mailbox.wait(TIMEOUT) is item
    thread.join()
    assert network.wakes == 0
    with pytest.raises(Empty):
        mailbox.wait(0)


def test_collect_what_comes_meanwhile(mailbox: Mailbox) -> None:
    """A collection gives everything in order, also what is posted while it lasts."""
    items = [make_item(str(number)) for number in range(4)]
    mailbox.post(items[0])
    mailbox.post(items[1])
    found = []
    for item in mailbox.collect():
        found.append(item)
        if len(found) == 1:
            mailbox.post(items[2])
            mailbox.post(items[3])
    assert found == items


@pytest.mark.usefixtures("patient")
def test_linger_until_inbox_is_empty(
    mailbox: Mailbox, network: Network, inbox: SimpleQueue[Any]
) -> None:
    """Lingering ends with the first post that finds the inbox empty, and wakes no network."""
    looks: list[bool] = []

    def work() -> None:
        while not mailbox.is_lingering:
            pass
        for _ in range(5):
            inbox.get()
            mailbox.post(make_item())
            looks.append(mailbox.is_lingering)

    for _ in range(5):
        inbox.put(None)
    worker = threading.Thread(target=work)
    worker.start()
    mailbox.linger(inbox, 5)
    worker.join()
    assert looks == [True, True, True, True, False]
    assert len(list(mailbox.collect())) == 5
    assert network.wakes == 0


@pytest.mark.usefixtures("patient")
def test_linger_over_empty_inbox(mailbox: Mailbox, inbox: SimpleQueue[Any]) -> None:
    """Where the workers have nothing to take there is nothing to wait for."""
    mailbox.linger(inbox, 0)
    assert not mailbox.is_lingering


@pytest.mark.usefixtures("patient")
def test_linger_for_lone_delivery(
    mailbox: Mailbox, network: Network, inbox: SimpleQueue[Any]
) -> None:
    """What a waiting worker got at once, and so was never counted, is waited for."""

    def work() -> None:
        inbox.get()
        while not mailbox.is_lingering:
            pass
        mailbox.post(make_item())

    worker = threading.Thread(target=work)
    worker.start()
    inbox.put(None)
    wait_until(inbox.empty)
    mailbox.linger(inbox, 1)
    worker.join()
    assert len(list(mailbox.collect())) == 1
    assert network.wakes == 0


@pytest.mark.usefixtures("patient")
def test_linger_after_outcome(mailbox: Mailbox, inbox: SimpleQueue[Any]) -> None:
    """Where the worker was faster there is nothing to wait for."""
    mailbox.post(make_item())
    mailbox.linger(inbox, 1)
    assert len(list(mailbox.collect())) == 1


def test_linger_not_for_ever(mailbox: Mailbox, inbox: SimpleQueue[Any]) -> None:
    """A worker that is busy holds nobody up for longer than a millisecond."""
    inbox.put(None)
    mailbox.linger(inbox, 1)
    assert not mailbox.is_lingering


def test_linger_after_late_end(
    mailbox: Mailbox, inbox: SimpleQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ends a lingering too late does not end the next one."""
    inbox.put(None)
    mailbox.linger(inbox, 1)  # Its time is up right when a worker looks.
    mailbox._emptied.put(None)
    monkeypatch.setattr(mailbox_module, "_LINGER", 2 * TIMEOUT)

    def work() -> None:
        while not mailbox.is_lingering:
            pass
        inbox.get()
        mailbox.post(make_item())

    worker = threading.Thread(target=work)
    worker.start()
    mailbox.linger(inbox, 0)
    assert inbox.empty()
    worker.join()


def test_post_after_lingering(mailbox: Mailbox, network: Network, inbox: SimpleQueue[Any]) -> None:
    """Between the lingering and the collection that follows it nobody has to be woken."""
    mailbox.linger(inbox, 0)
    mailbox.post(make_item())
    assert network.wakes == 0
    assert len(list(mailbox.collect())) == 1


class Owner:
    """Waits, lingers and collects as the supervisor does, until it has everything."""

    def __init__(self, expected: int) -> None:
        self.mailbox = Mailbox()
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._expected = expected
        self.mailbox.attach(lambda: self._wakes.put(None))

    def run(self) -> int:
        """Give how many items came."""
        found = 0
        while found < self._expected:
            self._wakes.get(timeout=TIMEOUT)  # It fails where something was missed.
            self.mailbox.linger(self.inbox, 0)
            found += len(list(self.mailbox.collect()))
            # A new session now and then.
            if not found % 7:
                self.mailbox.attach(lambda: self._wakes.put(None))
                self.mailbox.post(make_item())
                self._expected += 1
        return found


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_missed(seed: int) -> None:
    """Several threads post at random moments: the owner never sleeps over an item."""
    count, threads = 1000, 3
    owner = Owner(count * threads)
    chance = random.Random(seed)
    pauses = [[chance.randrange(200) for _ in range(count)] for _ in range(threads)]

    def work(turns: list[int]) -> None:
        for turn in turns:
            for _ in range(turn):
                pass
            if turn % 3:
                owner.inbox.put(None)
                owner.inbox.get()
            owner.mailbox.post(make_item())

    workers = [threading.Thread(target=work, args=[turns]) for turns in pauses]
    for worker in workers:
        worker.start()
    assert owner.run() >= count * threads
    for worker in workers:
        worker.join()
