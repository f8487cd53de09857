"""Tests of the account of deliveries, by a model that loses sessions, acks and whole brokers."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, Optional

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fmconsume.engine.delivery import RETURNS, Delivery, Outcome, Verdict
from fmconsume.engine.ledger import Frame
from fmconsume.engine.unsettled import Unsettled

from .fakes import make_delivery

VERDICTS = st.sampled_from([Verdict.NACK, *Verdict])


class Message:
    """One message at the broker; others may be its equals to the letter."""

    def __init__(self, message_id: Optional[str]) -> None:
        self.id = message_id
        #: Whether the broker has delivered it before.
        self.was_delivered = False
        #: Whether a callback of ours has run for it to the end.
        self.is_done = False


class Recovery(RuleBasedStateMachine):
    """A broker, a line that may be cut, workers and another consumer, around one Unsettled.

    The model knows which message is which; the account knows only what a delivery shows.
    """

    @initialize(
        ids=st.lists(st.sampled_from(["a", "a", "b", "c", "d", None]), min_size=1, max_size=8)
    )
    def publish(self, ids: list[Optional[str]]) -> None:
        """Fill the queue with messages, some equal and some without an id."""
        self.unsettled = Unsettled(remember=100)
        self.ready = [Message(each) for each in ids]
        #: How many there are of each kind, and how often one was run to the end, by anybody.
        self.copies: Counter[Optional[str]] = Counter(ids)
        self.runs: Counter[Optional[str]] = Counter()
        self.gone: list[Message] = []
        #: What another consumer has.
        self.elsewhere: list[Message] = []
        self.session = self.last_session = 0
        self.tag = 0
        self.is_cut = False
        #: Outstanding at the broker, and from the consumer's point of view.
        self.out: dict[int, Message] = {}
        self.open: dict[int, Message] = {}
        self.inbox: list[tuple[Delivery, Message]] = []
        self.running: list[tuple[Delivery, Message]] = []

    # -- sessions ----------------------------------------------------------

    @precondition(lambda self: not self.session)
    @rule()
    def begin(self) -> None:
        """Open a session; tags start at 1 again."""
        self.last_session += 1
        self.session, self.tag, self.is_cut = self.last_session, 0, False
        self.unsettled.begin(self.session)

    @precondition(lambda self: self.session)
    @rule(data=st.data(), is_silent=st.booleans())
    def lose(self, data: st.DataObject, is_silent: bool) -> None:
        """Lose the session, perhaps after sending in vain; the broker may have lost acks too."""
        if is_silent:
            self.is_cut = True
            self.flush()
        self.unsettled.lose([delivery for delivery, _ in self.inbox])
        back = data.draw(st.lists(st.sampled_from(self.gone), unique=True)) if self.gone else []
        self.gone = [message for message in self.gone if message not in back]
        self.ready += [*self.out.values(), *back]
        for store in (self.inbox, self.out, self.open):
            store.clear()
        self.session = 0

    # -- another consumer --------------------------------------------------

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def hand_to_another(self, data: st.DataObject) -> None:
        """Deliver a message elsewhere."""
        message = data.draw(st.sampled_from(self.ready))
        self.ready.remove(message)
        message.was_delivered = True
        self.elsewhere.append(message)

    @precondition(lambda self: self.elsewhere)
    @rule(data=st.data(), is_done=st.booleans())
    def come_from_another(self, data: st.DataObject, is_done: bool) -> None:
        """Let the other consumer finish its message, or die.

        What it returns unfinished and what this one finished before cannot be told apart where
        they are equal, so only a message that has no equal is returned.
        """
        message = data.draw(st.sampled_from(self.elsewhere))
        self.elsewhere.remove(message)
        if is_done or self.copies[message.id] > 1:
            self.runs[message.id] += 1
            self.gone.append(message)
        else:
            self.ready.append(message)

    # -- deliveries --------------------------------------------------------

    @precondition(lambda self: self.session and self.ready)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Deliver messages in any order."""
        messages = data.draw(st.lists(st.sampled_from(self.ready), min_size=1, unique=True))
        for message in messages:
            self.ready.remove(message)
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        self.tag += 1
        delivery = make_delivery(
            self.session, self.tag, redelivered=message.was_delivered, message_id=message.id
        )
        message.was_delivered = True
        self.out[self.tag] = self.open[self.tag] = message
        if self.unsettled.receive(delivery):
            self.inbox.append((delivery, message))

    @precondition(lambda self: self.inbox)
    @rule()
    def start(self) -> None:
        """Let a worker take the oldest delivery."""
        delivery, message = self.inbox.pop(0)
        if message.id and self.copies[message.id] == 1:
            assert not message.is_done, "it was finished already"
            assert all(m is not message for _, m in self.running), "it runs already"
        self.running.append((delivery, message))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), verdict=VERDICTS, hold=st.booleans(), is_prompt=st.booleans())
    def conclude(self, data: st.DataObject, verdict: Verdict, hold: bool, is_prompt: bool) -> None:
        """Let a callback end, perhaps long after its session; a return may be held.

        Its verdict may be sent promptly, before all is accounted for.
        """
        index = data.draw(st.integers(0, len(self.running) - 1))
        delivery, message = self.running.pop(index)
        if verdict not in RETURNS:
            message.is_done = True
            self.runs[message.id] += 1
        outcome = Outcome(delivery, verdict)
        target = self.unsettled.conclude(outcome)
        if is_prompt:
            self.flush()
        self.unsettled.remember(outcome, target)
        if not hold:
            self.unsettled.release(target.tag)

    @precondition(lambda self: self.inbox)
    @rule(data=st.data(), verdict=VERDICTS, hold=st.booleans(), is_prompt=st.booleans())
    def work(self, data: st.DataObject, verdict: Verdict, hold: bool, is_prompt: bool) -> None:
        """Let a callback begin, and one end."""
        self.start()
        self.conclude(data, verdict, hold, is_prompt)

    @precondition(lambda self: self.session and self.inbox)
    @rule()
    def take_back(self) -> None:
        """Return what no worker has begun."""
        self.unsettled.take_back([delivery for delivery, _ in self.inbox])
        self.inbox.clear()

    # -- settling ----------------------------------------------------------

    @precondition(lambda self: self.session and self.tag)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Let a timer go off, even one whose verdict is gone."""
        self.unsettled.release(data.draw(st.integers(1, self.tag)))

    @rule()
    def release_all(self) -> None:
        """Let every held verdict go."""
        self.unsettled.release_all()

    @rule()
    def flush(self) -> None:
        """Send all that can be sent; it arrives unless the line is cut."""
        for frame in self.unsettled.take_frames():
            assert frame.tag in self.open, "a tag of another session, or one settled before"
            covered = [t for t in self.open if t == frame.tag or (frame.multiple and t < frame.tag)]
            for tag in covered:
                message = self.open.pop(tag)
                if not self.is_cut:
                    del self.out[tag]
                    (self.ready if frame.verdict in RETURNS else self.gone).append(message)

    # -- always ------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        """Of each kind no more is gone than was run."""
        if hasattr(self, "gone"):
            assert Counter(message.id for message in self.gone) <= self.runs

    @invariant()
    def counts_agree(self) -> None:
        """Nothing outstanding is forgotten, nothing is counted twice."""
        if hasattr(self, "unsettled"):
            assert self.unsettled.running == len(self.inbox) + len(self.running)
            if self.session:
                assert len(self.unsettled) == len(self.open)

    def teardown(self) -> None:
        """Stop gracefully from wherever this is: everything outstanding gets settled."""
        if getattr(self, "session", 0):
            self.take_back()
            self.unsettled.release_all()
            for delivery, message in self.running:
                self.runs[message.id] += 1
                self.unsettled.conclude(Outcome(delivery, Verdict.ACK))
            self.running.clear()
            self.flush()
            self.nothing_is_lost()
            assert not self.open
            assert len(self.unsettled) == self.unsettled.running == self.unsettled.held == 0


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(max_examples=300, stateful_step_count=50)


def open_session(remember: int = 10) -> Unsettled:
    """Begin an account."""
    unsettled = Unsettled(remember)
    unsettled.begin(1)
    return unsettled


def finish(unsettled: Unsettled, delivery: Delivery, verdict: Verdict = Verdict.ACK) -> None:
    """Let a callback end."""
    outcome = Outcome(delivery, verdict)
    unsettled.remember(outcome, unsettled.conclude(outcome))


def test_receive_redelivery_of_running() -> None:
    """A callback that outlived its session settles its redelivery, under the new tag."""
    unsettled = open_session()
    first = make_delivery(1, 4)
    assert unsettled.receive(first)
    unsettled.lose([])
    unsettled.begin(2)
    assert not unsettled.receive(make_delivery(2, 1, redelivered=True))
    assert unsettled.conclude(Outcome(first, Verdict.DROP)).tag == 1
    assert unsettled.take_frames() == [Frame(1, Verdict.DROP, False)]


def test_receive_not_redelivered() -> None:
    """A message that the broker never delivered before runs, however much it looks like another."""
    unsettled = open_session()
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first)
    assert unsettled.receive(make_delivery(1, 2))


def test_receive_same_message_running_in_this_session() -> None:
    """What runs in this very session cannot be redelivered: this is another copy."""
    unsettled = open_session()
    unsettled.receive(make_delivery(1, 1))
    assert unsettled.receive(make_delivery(1, 2, redelivered=True))


def test_receive_two_copies_outlive_session() -> None:
    """Two copies of one message each settle one redelivery."""
    unsettled = open_session()
    copies = [make_delivery(1, 1), make_delivery(1, 2)]
    for copy in copies:
        unsettled.receive(copy)
    unsettled.lose([])
    unsettled.begin(2)
    for tag in (1, 2):
        assert not unsettled.receive(make_delivery(2, tag, redelivered=True))
    settled = [unsettled.conclude(Outcome(copy, Verdict.ACK)) for copy in copies]
    assert [(each.session, each.tag) for each in settled] == [(2, 1), (2, 2)]


def test_receive_without_message_id() -> None:
    """A redelivery without a message id runs again, as AMQP promises."""
    unsettled = open_session()
    unsettled.receive(make_delivery(1, 1, message_id=None))
    unsettled.lose([])
    unsettled.begin(2)
    assert unsettled.receive(make_delivery(2, 1, message_id=None, redelivered=True))


def test_receive_memory_turned_off() -> None:
    """Without a memory a finished message runs again."""
    unsettled = open_session(remember=0)
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first)
    unsettled.lose([])
    unsettled.begin(2)
    assert unsettled.receive(make_delivery(2, 1, redelivered=True))


def test_conclude_after_callback_changed_message() -> None:
    """A message is known again although its callback changed the message's id."""
    unsettled = open_session()
    first = make_delivery(1, 1)
    unsettled.receive(first)
    first.properties.message_id = "changed by the callback"
    finish(unsettled, first)
    unsettled.lose([])
    unsettled.begin(2)
    assert not unsettled.receive(make_delivery(2, 1, redelivered=True))


def test_receive_published_again_and_lost() -> None:
    """A second copy of a finished message runs, also when its session is lost before it starts."""
    unsettled = Unsettled(10)
    unsettled.begin(1)
    first = make_delivery(1, 1)
    assert unsettled.receive(first)
    finish(unsettled, first)
    again = make_delivery(1, 2)
    assert unsettled.receive(again)
    unsettled.lose([again])
    unsettled.begin(2)
    assert unsettled.receive(make_delivery(2, 1, redelivered=True))


def test_receive_published_again_and_returned_late() -> None:
    """A second copy runs again when its callback returned it after its session was lost."""
    unsettled = Unsettled(10)
    unsettled.begin(1)
    first, again = make_delivery(1, 1), make_delivery(1, 2)
    unsettled.receive(first)
    finish(unsettled, first)
    unsettled.receive(again)
    unsettled.lose([])
    finish(unsettled, again, Verdict.NACK)
    unsettled.begin(2)
    assert unsettled.receive(make_delivery(2, 1, redelivered=True))


def test_receive_published_again_beside_the_first() -> None:
    """The first copy, finished and redelivered, does not run again for the second one's sake."""
    unsettled = Unsettled(10)
    unsettled.begin(1)
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first)
    unsettled.lose([])
    unsettled.begin(2)
    assert unsettled.receive(make_delivery(2, 1))
    assert not unsettled.receive(make_delivery(2, 2, redelivered=True))


def lose(unsettled: Unsettled, session: int, *not_started: Delivery) -> None:
    """Replace the session by the next one."""
    unsettled.lose(not_started)
    unsettled.begin(session)


def receive_again(unsettled: Unsettled, session: int, count: int) -> list[bool]:
    """Receive equal redeliveries; give for each whether it has to run."""
    return [
        unsettled.receive(make_delivery(session, tag, redelivered=True))
        for tag in range(1, count + 1)
    ]


def test_receive_finished_in_this_session() -> None:
    """What this very session finished cannot come again in it: a redelivery is another copy."""
    unsettled = open_session()
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first)
    assert unsettled.receive(make_delivery(1, 2, redelivered=True))


@pytest.mark.parametrize("verdict", [Verdict.ACK, Verdict.DROP, Verdict.REJECT])
def test_receive_finished_again_and_again(verdict: Verdict) -> None:
    """A finished message is settled with its own verdict after each loss, once for each session."""
    unsettled = open_session()
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first, verdict)
    for session in (2, 3, 4):
        lose(unsettled, session)
        assert receive_again(unsettled, session, 1) == [False]
        assert unsettled.take_frames() == [Frame(1, verdict, False)]
    assert unsettled.receive(make_delivery(4, 2, redelivered=True))


def test_receive_equal_messages() -> None:
    """Of equal messages as many run as were unfinished, and no more than were finished do not."""
    unsettled = open_session()
    copies = [make_delivery(1, tag) for tag in range(1, 6)]
    for copy in copies:
        unsettled.receive(copy)
    for copy in copies[:2]:
        finish(unsettled, copy)
    lose(unsettled, 2, *copies[2:])
    assert receive_again(unsettled, 2, 6) == [True, True, True, False, False, True]


def test_receive_equal_message_returned() -> None:
    """A returned message runs again although its equal was finished by an earlier session."""
    unsettled = open_session()
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first)
    lose(unsettled, 2)
    second = make_delivery(2, 1)
    unsettled.receive(second)
    finish(unsettled, second, Verdict.NACK)
    assert receive_again(unsettled, 2, 2) == [True, False]


def test_receive_dead_lettered() -> None:
    """What went through a dead-letter exchange is another message than the one it was."""
    unsettled = open_session()
    first = make_delivery(1, 1)
    unsettled.receive(first)
    finish(unsettled, first)
    lose(unsettled, 2)
    headers = {"x-death": [{"queue": "fruit", "reason": "expired", "count": 1}]}
    assert unsettled.receive(make_delivery(2, 1, redelivered=True, headers=headers))


@pytest.mark.parametrize("is_finished", [False, True])
def test_receive_takes_no_longer_for_many(is_finished: bool) -> None:
    """A redelivery costs the same however much is in hand."""
    unsettled, count = open_session(remember=10_000), 10_000
    equal = [make_delivery(1, tag) for tag in range(1, count + 1)]
    for delivery in equal:
        unsettled.receive(delivery)
    for delivery in equal if is_finished else []:
        finish(unsettled, delivery)
    lose(unsettled, 2)
    steps = 0

    def count_step(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        return count_step

    again = [make_delivery(2, tag, redelivered=True) for tag in range(1, count + 1)]
    before = sys.gettrace()
    sys.settrace(count_step)
    for delivery in again:
        assert not unsettled.receive(delivery)
    sys.settrace(before)
    assert steps < 200 * count


def test_count_return_malformed() -> None:
    """Counts that no broker writes count for nothing."""
    unsettled = Unsettled(10, {"fruit"})
    for value in ("5", None, 2.5, True, -5000):
        delivery = make_delivery(redelivered=True, headers={"x-delivery-count": value})
        assert unsettled.count_return(delivery) == 0


def test_count_return_first_delivery() -> None:
    """A count on a message that was never delivered before is the publisher's."""
    unsettled = Unsettled(10, {"fruit"})
    assert unsettled.count_return(make_delivery(headers={"x-delivery-count": 5})) == 0
