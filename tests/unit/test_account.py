"""Tests of the account of deliveries, by a model that loses sessions, acks and whole brokers."""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmconsume.delivery import CHANNEL, RETURNS, Delivery, Frame, Outcome, Verdict
from fmconsume.engine.account import DeliveryAccount
from fmconsume.state.notes import Notes

from .fakes import make_delivery

#: The queue of a message by its id.
QUEUES = {"a": "fruit", "b": "leaf", None: "fruit"}
VERDICTS = [Verdict.ACK, Verdict.ACK, Verdict.ACK, Verdict.NACK, *Verdict]


class Message:
    """One message at the broker; others may be its equals to the letter."""

    def __init__(self, message_id: str | None) -> None:
        self.id = message_id
        #: Whether the broker has delivered it before.
        self.was_delivered = False
        #: Whether a callback of ours has run for it to the end.
        self.is_done = False


class World:
    """A broker, a line that may be cut, workers and another consumer, around one DeliveryAccount.

    It knows which message is which; the account knows only what a delivery shows.
    """

    #: Verdicts of which nothing is remembered.
    forgotten: tuple[Verdict, ...] = RETURNS

    def __init__(self, ids: list[str | None]) -> None:
        self.account = self.make_account()
        self.ready = [Message(each) for each in ids]
        #: How many there are of each kind, how many of them came here as new, and how often one
        #: was run to the end, by anybody.
        self.copies: Counter[str | None] = Counter(ids)
        self.seen: Counter[str | None] = Counter()
        self.runs: Counter[str | None] = Counter()
        self.gone: list[Message] = []
        #: What another consumer has.
        self.elsewhere: list[Message] = []
        self.session = 0
        #: Outstanding at the broker, and from the consumer's point of view.
        self.out: dict[int, Message] = {}
        self.open: dict[int, Message] = {}
        self.inbox: list[tuple[Delivery, Message]] = []
        self.running: list[tuple[Delivery, Message]] = []
        self.begin()

    def make_account(self) -> DeliveryAccount:
        """Make the account of a process."""
        return DeliveryAccount(remember=100)

    def note_receipt(self, delivery: Delivery) -> None:
        """Note what goes to the workers; nobody does without a folder."""

    def note_start(self, delivery: Delivery) -> None:
        """Note what a worker runs."""

    def note_end(self, outcome: Outcome) -> None:
        """Note an outcome."""

    def step(self, seed: int, actions: Sequence[Callable[..., None]]) -> None:
        """Let something happen, and check that nothing is lost and the counts agree."""
        self.rng = random.Random(seed)
        self.rng.choice(actions)(self)
        assert not Counter(message.id for message in self.gone) - self.runs
        assert self.account.in_hand == len(self.inbox) + len(self.running)
        assert len(self.account) == len(self.open)
        for queue, grant in self.account.grants.latest.items():
            fresh = [tag for tag in self.open if self.grant_of[tag] == (queue, self.grants[queue])]
            assert grant.outstanding == len(fresh) >= grant.held >= 0

    def some(self, things: list[Any]) -> list[Any]:
        """Choose some, in any order."""
        return self.rng.sample(things, self.rng.randint(0, len(things)))

    # -- sessions ----------------------------------------------------------

    def begin(self) -> None:
        """Open a session; tags start at 1 again."""
        self.session, self.is_cut = self.session + 1, False
        #: The latest tag on each channel.
        self.tags = [0]
        #: Of each queue the channel and the number of the latest grant; the number by tag.
        self.channels = dict.fromkeys(QUEUES.values(), 0)
        self.grants = dict(self.channels)
        self.grant_of: dict[int, tuple[str, int]] = {}
        self.account.begin(self.session, self.channels)

    def lose(self) -> None:
        """Lose the session, perhaps after sending in vain; the broker may have lost acks too.

        Callbacks may end before there is another one.
        """
        if self.rng.random() < 0.5:
            self.is_cut = True
            self.send()
        self.account.lose([delivery for delivery, _ in self.inbox])
        back = self.some(self.gone) if self.rng.random() < 0.5 else []
        self.gone = [message for message in self.gone if message not in back]
        self.ready += [*self.out.values(), *back]
        for store in (self.inbox, self.out, self.open):
            store.clear()
        for _ in self.some(self.running):
            self.conclude()
        self.begin()

    # -- another consumer --------------------------------------------------

    def hand_to_another(self) -> None:
        """Deliver a message elsewhere."""
        if self.ready:
            message = self.ready.pop(self.rng.randrange(len(self.ready)))
            message.was_delivered = True
            self.elsewhere.append(message)

    def come_from_another(self) -> None:
        """Let the other consumer finish its message, or die.

        Of a message that was never here nobody can know that it is not the one that was finished
        here, if it is equal to it and no third one was ever seen; so that it is not returned.
        """
        if self.elsewhere:
            message = self.elsewhere.pop(self.rng.randrange(len(self.elsewhere)))
            if self.rng.random() < 0.5 and self._are_all_known(message):
                self.ready.append(message)
            else:
                self.runs[message.id] += 1
                self.gone.append(message)

    def send_in_vain(self) -> None:
        """Send messages that are still on their way when the session is lost."""
        for message in self.some(self.ready):
            if self._are_all_known(message):
                message.was_delivered = True
        self.lose()

    def _are_all_known(self, message: Message) -> bool:
        return self.copies[message.id] == 1 or self.seen[message.id] > 1

    # -- deliveries --------------------------------------------------------

    def deliver(self) -> None:
        """Deliver messages in any order."""
        for message in self.some(self.ready):
            self.ready.remove(message)
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        queue = QUEUES[message.id]
        channel = self.channels[queue]
        tag = self.tags[channel] = self.tags[channel] + 1
        self.grant_of[tag] = queue, self.grants[queue]
        delivery = make_delivery(
            self.session,
            tag,
            queue=queue,
            redelivered=message.was_delivered,
            message_id=message.id,
        )
        self.seen[message.id] += not message.was_delivered
        message.was_delivered = True
        self.out[tag] = self.open[tag] = message
        if self.account.receive(delivery):
            self.note_receipt(delivery)
            self.inbox.append((delivery, message))

    def start(self) -> None:
        """Let a worker take the oldest delivery; what has no equals never runs twice."""
        if self.inbox:
            delivery, message = self.inbox.pop(0)
            if message.id and self.copies[message.id] == 1:
                assert not message.is_done, "it was finished already"
                assert all(m is not message for _, m in self.running), "it runs already"
            self.note_start(delivery)
            self.running.append((delivery, message))

    def conclude(self) -> None:
        """Let a callback end, perhaps long after its session; a return may be held.

        Its verdict may be sent promptly, before all is accounted for.
        """
        if self.running:
            verdict = self.rng.choice(VERDICTS)
            delivery, message = self.running.pop(self.rng.randrange(len(self.running)))
            if verdict not in RETURNS:
                message.is_done = verdict not in self.forgotten
                self.runs[message.id] += 1
            outcome = Outcome(delivery, verdict)
            self.note_end(outcome)
            self.account.conclude(outcome)
            if self.rng.random() < 0.5:
                self.send()
            if self.rng.random() < 0.5:
                assert outcome in self.account.flush()
            if self.rng.random() < 0.5:
                self.account.release(outcome.target.tag)

    def work(self) -> None:
        """Let callbacks begin and end."""
        for _ in self.some(self.inbox):
            self.start()
            self.conclude()

    def take_back(self) -> None:
        """Return what no worker has begun."""
        self.account.return_unstarted([delivery for delivery, _ in self.inbox])
        self.inbox.clear()

    # -- settling ----------------------------------------------------------

    def release(self) -> None:
        """Let a timer go off, even one whose verdict is gone."""
        self.account.release(self.rng.choice([*self.grant_of, 0]))

    def release_all(self) -> None:
        """Let every held verdict go."""
        self.account.release_all()

    def send(self) -> None:
        """Send all that can be sent; it arrives unless the line is cut."""
        for frame in self.account.take_frames():
            assert frame.tag in self.open, "a tag of another session, or one settled before"
            covered = [t for t in self.open if self._covers(frame, t)]
            for tag in covered:
                message = self.open.pop(tag)
                if not self.is_cut:
                    del self.out[tag]
                    (self.ready if frame.verdict in RETURNS else self.gone).append(message)

    def _covers(self, frame: Frame, tag: int) -> bool:
        """Tell whether a frame settles a tag: many only on one channel."""
        same = frame.tag // CHANNEL == tag // CHANNEL
        return tag == frame.tag or (frame.multiple and same and tag < frame.tag)

    def consume_again_on_another_channel(self) -> None:
        """Get another grant; channels that nobody needs are closed."""
        number = len(self.tags)
        self.tags.append(number * CHANNEL)
        self.account.grants.open_channel(number)
        self.consume_again()

    def consume_again(self) -> None:
        """Get another grant for one of the queues; what the others send comes where it came."""
        queue = self.rng.choice(list(self.channels))
        self.account.grants.renew(queue, 10)
        self.channels[queue] = len(self.tags) - 1
        self.grants[queue] += 1
        for number in self.account.grants.close_channels():
            assert number not in self.channels.values()
            assert not [tag for tag in self.open if tag // CHANNEL == number]
        needed = {*self.channels.values(), *(tag // CHANNEL for tag in self.open)}
        assert self.account.grants.channels == len(needed | {len(self.tags) - 1})

    def stop(self) -> None:
        """Stop gracefully from wherever this is: everything outstanding gets settled."""
        self.take_back()
        self.account.release_all()
        for delivery, message in self.running:
            self.runs[message.id] += 1
            self.note_end(Outcome(delivery, Verdict.ACK))
            self.account.conclude(Outcome(delivery, Verdict.ACK))
        self.send()
        assert not Counter(message.id for message in self.gone) - self.runs
        assert not self.open
        assert len(self.account) == self.account.in_hand == self.account.held == 0


ACTIONS = [
    *(World.lose, World.send_in_vain, World.hand_to_another, World.come_from_another),
    *(World.deliver, World.deliver, World.deliver, World.start, World.conclude),
    *(World.work, World.work, World.send, World.release, World.release_all, World.take_back),
    *(World.consume_again, World.consume_again_on_another_channel),
]


@settings(max_examples=1000)
@given(
    ids=st.lists(st.sampled_from(["a", "a", "a", "b", None]), min_size=1, max_size=7),
    seeds=st.lists(st.integers(0, 2**32), min_size=20, max_size=60),
)
def test_nothing_is_lost(ids: list[str | None], seeds: list[int]) -> None:
    """Of equal messages no more is ever gone than was run; others are settled, and run once."""
    world = World(ids)
    for seed in seeds:
        world.step(seed, ACTIONS)
    world.stop()


class MortalWorld(World):
    """The process dies, too, and another one takes its place with what is in a folder."""

    #: What was rejected, no callback has seen.
    forgotten = (*RETURNS, Verdict.REJECT)

    def __init__(self, ids: list[str | None], folder: Path) -> None:
        self.folder = folder
        self.notes = Notes(folder, 100)
        self.desks = [self.notes.make_desk(slot) for slot in range(100)]
        #: By delivery, the number of the worker that runs it.
        self.slots: dict[Delivery, int] = {}
        super().__init__(ids)

    def make_account(self) -> DeliveryAccount:
        """Make the account of a process."""
        return DeliveryAccount(remember=100, notes=self.notes)

    def begin(self) -> None:
        """Open a session, and note it."""
        super().begin()
        self.notes.begin_session(self.channels)

    def note_receipt(self, delivery: Delivery) -> None:
        """Note what goes to the workers."""
        self.notes.receive([delivery])

    def note_start(self, delivery: Delivery) -> None:
        """Let a worker note what it runs."""
        slot = next(each for each in range(100) if each not in self.slots.values())
        self.slots[delivery] = slot
        self.desks[slot].begin(delivery)

    def note_end(self, outcome: Outcome) -> None:
        """Let a worker note the outcome, before anybody else knows it."""
        self.desks[self.slots.pop(outcome.delivery)].finish(outcome.delivery, outcome.verdict)

    def die(self) -> None:
        """Kill the process: what ran is over, and the broker may have lost acks."""
        before = len(self.running)
        self.notes._seat.release()
        self.notes = Notes(self.folder, 100)
        self.desks = [self.notes.make_desk(slot) for slot in range(100)]
        assert [mark.deaths > 0 for _, _, mark in self.notes._past].count(True) >= before
        self.slots.clear()
        self.running.clear()
        self.account = self.make_account()
        self.inbox.clear()
        self.lose()


@settings(max_examples=200)
@given(
    ids=st.lists(st.sampled_from(["a", "a", "a", "b", None]), min_size=1, max_size=7),
    seeds=st.lists(st.integers(0, 2**32), min_size=20, max_size=60),
)
def test_nothing_is_lost_by_mortals(ids: list[str | None], seeds: list[int]) -> None:
    """With a state the same is true of a process that is killed and started again."""
    with tempfile.TemporaryDirectory() as folder:
        world = MortalWorld(ids, Path(folder))
        for seed in seeds:
            world.step(seed, [*ACTIONS, MortalWorld.die, MortalWorld.die])
        world.stop()


def open_session(remember: int = 10) -> DeliveryAccount:
    """Begin an account."""
    account = DeliveryAccount(remember)
    account.begin(1, ["fruit"])
    return account


def finish(account: DeliveryAccount, delivery: Delivery, verdict: Verdict = Verdict.ACK) -> None:
    """Let a callback end."""
    account.conclude(Outcome(delivery, verdict))


def test_receive_redelivery_of_running() -> None:
    """A callback that outlived its session settles its redelivery, under the new tag."""
    account = open_session()
    first = make_delivery(1, 4)
    assert account.receive(first)
    account.lose([])
    account.begin(2, ["fruit"])
    assert not account.receive(make_delivery(2, 1, redelivered=True))
    finish(account, first, Verdict.DROP)
    assert account.take_frames() == [Frame(1, Verdict.DROP, False)]


def test_receive_not_redelivered() -> None:
    """A message that the broker never delivered before runs, however much it looks like another."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first)
    assert account.receive(make_delivery(1, 2))


def test_receive_same_message_running_in_this_session() -> None:
    """What runs in this very session cannot be redelivered: this is another copy."""
    account = open_session()
    account.receive(make_delivery(1, 1))
    assert account.receive(make_delivery(1, 2, redelivered=True))


def test_receive_two_copies_outlive_session() -> None:
    """Two copies of one message each settle one redelivery."""
    account = open_session()
    copies = [make_delivery(1, 1), make_delivery(1, 2)]
    for copy in copies:
        account.receive(copy)
    account.lose([])
    account.begin(2, ["fruit"])
    for tag in (1, 2):
        assert not account.receive(make_delivery(2, tag, redelivered=True))
    for copy in copies:
        finish(account, copy)
    targets = [outcome.target for outcome in account.flush()]
    assert [(each.session, each.tag) for each in targets] == [(2, 1), (2, 2)]


def test_receive_without_message_id() -> None:
    """A redelivery without a message id runs again, as AMQP promises."""
    account = open_session()
    account.receive(make_delivery(1, 1, message_id=None))
    account.lose([])
    account.begin(2, ["fruit"])
    assert account.receive(make_delivery(2, 1, message_id=None, redelivered=True))


def test_receive_memory_turned_off() -> None:
    """Without a memory a finished message runs again."""
    account = open_session(remember=0)
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first)
    account.lose([])
    account.begin(2, ["fruit"])
    assert account.receive(make_delivery(2, 1, redelivered=True))


def test_conclude_after_callback_changed_message() -> None:
    """A message is known again although its callback changed the message's id."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    first.properties.message_id = "changed by the callback"
    finish(account, first)
    account.lose([])
    account.begin(2, ["fruit"])
    assert not account.receive(make_delivery(2, 1, redelivered=True))


def test_receive_published_again_and_lost() -> None:
    """A second copy of a finished message runs, also when its session is lost before it starts."""
    account = DeliveryAccount(10)
    account.begin(1, ["fruit"])
    first = make_delivery(1, 1)
    assert account.receive(first)
    finish(account, first)
    again = make_delivery(1, 2)
    assert account.receive(again)
    account.lose([again])
    account.begin(2, ["fruit"])
    assert account.receive(make_delivery(2, 1, redelivered=True))


def test_receive_published_again_and_returned_late() -> None:
    """A second copy runs again when its callback returned it after its session was lost."""
    account = DeliveryAccount(10)
    account.begin(1, ["fruit"])
    first, again = make_delivery(1, 1), make_delivery(1, 2)
    account.receive(first)
    finish(account, first)
    account.receive(again)
    account.lose([])
    finish(account, again, Verdict.NACK)
    account.begin(2, ["fruit"])
    assert account.receive(make_delivery(2, 1, redelivered=True))


def test_receive_published_again_beside_the_first() -> None:
    """The first copy, finished and redelivered, does not run again for the second one's sake."""
    account = DeliveryAccount(10)
    account.begin(1, ["fruit"])
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first)
    account.lose([])
    account.begin(2, ["fruit"])
    assert account.receive(make_delivery(2, 1))
    assert not account.receive(make_delivery(2, 2, redelivered=True))


def lose(account: DeliveryAccount, session: int, *not_started: Delivery) -> None:
    """Replace the session by the next one."""
    account.lose(not_started)
    account.begin(session, ["fruit"])


def receive_again(account: DeliveryAccount, session: int, count: int) -> list[bool]:
    """Receive equal redeliveries; give for each whether it has to run."""
    return [
        account.receive(make_delivery(session, tag, redelivered=True))
        for tag in range(1, count + 1)
    ]


def test_receive_finished_in_this_session() -> None:
    """What this very session finished cannot come again in it: a redelivery is another copy."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first)
    assert account.receive(make_delivery(1, 2, redelivered=True))


@pytest.mark.parametrize("verdict", [Verdict.ACK, Verdict.DROP, Verdict.REJECT])
def test_receive_finished_again_and_again(verdict: Verdict) -> None:
    """A finished message is settled with its own verdict after each loss, once for each session."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first, verdict)
    for session in (2, 3, 4):
        lose(account, session)
        assert receive_again(account, session, 1) == [False]
        assert account.take_frames() == [Frame(1, verdict, False)]
    assert account.receive(make_delivery(4, 2, redelivered=True))


def test_receive_equal_messages() -> None:
    """Of equal messages none settles another; as many as run still adopt a redelivery."""
    account = open_session()
    copies = [make_delivery(1, tag) for tag in range(1, 6)]
    for copy in copies:
        account.receive(copy)
    for copy in copies[:2]:
        finish(account, copy)
    lose(account, 2, *copies[3:])
    assert receive_again(account, 2, 6) == [False, True, True, True, True, True]


def test_receive_equal_message_running() -> None:
    """One that was finished settles no third one that was on its way, beside one that runs."""
    account = open_session()
    copies = [make_delivery(1, 1), make_delivery(1, 2)]
    for copy in copies:
        account.receive(copy)
    finish(account, copies[0])
    lose(account, 2)
    assert receive_again(account, 2, 2) == [False, True]


def test_receive_equal_message_returned() -> None:
    """A returned message runs again although its equal was finished by an earlier session."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first)
    lose(account, 2)
    second = make_delivery(2, 1)
    account.receive(second)
    finish(account, second, Verdict.NACK)
    assert receive_again(account, 2, 2) == [True, True]


def test_receive_dead_lettered() -> None:
    """What went through a dead-letter exchange is another message than the one it was."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    finish(account, first)
    lose(account, 2)
    headers = {"x-death": [{"queue": "fruit", "reason": "expired", "count": 1}]}
    assert account.receive(make_delivery(2, 1, redelivered=True, headers=headers))


def test_lose_after_adoption() -> None:
    """A callback whose redelivery was lost too adopts the next one, or what it did settles that."""
    account = open_session()
    first = make_delivery(1, 1)
    account.receive(first)
    for session in (2, 3):
        lose(account, session)
        assert receive_again(account, session, 1) == [False]
    lose(account, 4)
    finish(account, first)
    assert receive_again(account, 4, 1) == [False]
    assert account.take_frames() == [Frame(1, Verdict.ACK, False)]


@pytest.mark.parametrize("is_finished", [False, True])
def test_receive_takes_no_longer_for_many(is_finished: bool) -> None:
    """A redelivery costs the same however much is in hand."""
    account, count = open_session(remember=10_000), 10_000
    equal = [make_delivery(1, tag) for tag in range(1, count + 1)]
    for delivery in equal:
        account.receive(delivery)
    for delivery in equal if is_finished else []:
        finish(account, delivery)
    lose(account, 2)
    steps = 0

    def count_step(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        return count_step

    again = [make_delivery(2, tag, redelivered=True) for tag in range(1, count + 1)]
    before = sys.gettrace()
    sys.settrace(count_step)
    for delivery in again:
        assert account.receive(delivery) is is_finished
    sys.settrace(before)
    assert steps < 200 * count


def count_returns(delivery: Delivery) -> int:
    """Return a message, and give how often it was returned before."""
    account = DeliveryAccount(10, {"fruit"})
    account.begin(1, ["fruit"])
    account.receive(delivery)
    finish(account, delivery, Verdict.NACK)
    (outcome,) = account.flush()
    return outcome.returns


def test_flush_counts_returns() -> None:
    """What a quorum queue has counted counts, and so do the returns that were seen here."""
    headers = {"x-delivery-count": 5}
    assert count_returns(make_delivery(redelivered=True, headers=headers)) == 5
    account = open_session()
    for tag in (1, 2, 3):
        delivery = make_delivery(1, tag, redelivered=tag > 1)
        account.receive(delivery)
        finish(account, delivery, Verdict.NACK)
    assert [outcome.returns for outcome in account.flush()] == [0, 1, 2]


def test_flush_counts_returns_of_equal_messages() -> None:
    """Equal messages without an id each have their own count."""
    account = open_session()
    for tag in range(1, 7):
        delivery = make_delivery(1, tag, message_id=None, redelivered=tag > 3)
        account.receive(delivery)
        finish(account, delivery, Verdict.NACK)
    assert [outcome.returns for outcome in account.flush()] == [0, 0, 0, 1, 1, 1]


def test_lose_keeps_counts_of_returns() -> None:
    """A message that is lost before its next attempt ends has its earlier ones still."""
    account = open_session()
    for tag in (1, 2):
        delivery = make_delivery(1, tag, redelivered=tag > 1)
        account.receive(delivery)
        if tag == 1:
            finish(account, delivery, Verdict.NACK)
    account.lose([delivery])
    account.begin(2, ["fruit"])
    again = make_delivery(2, 1, redelivered=True)
    account.receive(again)
    assert again.attempt == 2


def test_flush_malformed_count() -> None:
    """Counts that no broker writes count for nothing."""
    for value in ("5", None, 2.5, True, -5000):
        headers = {"x-delivery-count": value}
        assert count_returns(make_delivery(redelivered=True, headers=headers)) == 0


def test_flush_count_of_first_delivery() -> None:
    """A count on a message that was never delivered before is the publisher's."""
    assert count_returns(make_delivery(headers={"x-delivery-count": 5})) == 0


def test_flush_once() -> None:
    """Each outcome is given once, whatever has remembered it meanwhile."""
    account = open_session()
    first, second = make_delivery(1, 1), make_delivery(1, 2, message_id="pear")
    for delivery in (first, second):
        account.receive(delivery)
    finish(account, first)
    account.lose([])
    finish(account, second)
    assert [outcome.delivery for outcome in account.flush()] == [first, second]
    assert account.flush() == []


def test_oldest_outstanding() -> None:
    """Of what this session delivered, the broker has waited for the oldest longest, held or not."""
    account = open_session()
    orphan, lost = make_delivery(1, 1), make_delivery(1, 2, message_id="pear")
    for delivery in (orphan, lost):
        account.receive(delivery)
    account.lose([])
    account.begin(2, ["fruit"])
    assert account.oldest_outstanding is None
    fresh = make_delivery(2, 1, message_id="plum")
    again = make_delivery(2, 2, redelivered=True)
    for delivery in (fresh, again):
        account.receive(delivery)
    assert account.oldest_outstanding is fresh
    finish(account, fresh)
    assert account.oldest_outstanding is again
    assert not account.is_held(again)
    finish(account, orphan, Verdict.NACK)
    assert account.oldest_outstanding is again
    assert account.is_held(again)


def test_oldest_held() -> None:
    """Of the verdicts that are held, the first one names the delivery that it settles."""
    account = open_session()
    orphan = make_delivery(1, 1)
    account.receive(orphan)
    account.lose([])
    account.begin(2, ["fruit"])
    again, fresh = make_delivery(2, 1, redelivered=True), make_delivery(2, 2, message_id="plum")
    for delivery in (again, fresh):
        account.receive(delivery)
    assert account.oldest_held is None
    finish(account, orphan, Verdict.NACK)
    finish(account, fresh, Verdict.NACK)
    assert account.oldest_held is again
    account.release(again.tag)
    assert account.oldest_held is fresh
    account.release(fresh.tag)
    assert account.oldest_held is None


def test_lose_settles_nothing() -> None:
    """After a loss the broker waits for nothing any more."""
    account = open_session()
    account.receive(make_delivery(1, 1))
    assert len(account) == 1
    account.lose([])
    assert len(account) == 0
