"""Tests of the account of deliveries, by a model that loses sessions, acks and whole brokers."""

from __future__ import annotations

from typing import Optional

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fmconsume.engine.delivery import Delivery, Outcome, Verdict
from fmconsume.engine.ledger import Frame
from fmconsume.engine.unsettled import Unsettled

from .fakes import make_delivery

VERDICTS = st.sampled_from([Verdict.NACK, *Verdict])


class Message:
    """One message at the broker."""

    def __init__(self, message_id: Optional[str]) -> None:
        self.id = message_id
        #: Whether the broker has delivered it before.
        self.was_delivered = False
        #: Its final verdict, once a callback has finished it.
        self.verdict: Optional[Verdict] = None


class Recovery(RuleBasedStateMachine):
    """A broker, a line that may be cut, and the workers, around one Unsettled."""

    @initialize(ids=st.lists(st.booleans(), min_size=1, max_size=6))
    def publish(self, ids: list[bool]) -> None:
        """Fill the queue with messages, some without an id."""
        self.unsettled = Unsettled(remember=100)
        self.ready = [Message(f"m{n}" if has_id else None) for n, has_id in enumerate(ids)]
        self.gone: list[Message] = []
        self.session = self.last_session = 0
        self.tag = 0
        self.is_cut = False
        #: Outstanding at the broker, and from the consumer's point of view.
        self.out: dict[int, Message] = {}
        self.open: dict[int, Message] = {}
        self.inbox: list[tuple[Delivery, Message]] = []
        self.running: list[tuple[Delivery, Message]] = []
        #: Each running callback to the tag of its redelivery.
        self.adopted: dict[Delivery, int] = {}
        self.pending: dict[int, Verdict] = {}
        self.held: dict[int, Verdict] = {}

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
        for store in (self.inbox, self.out, self.open, self.adopted, self.pending, self.held):
            store.clear()
        self.session = 0

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
        """Deliver a message; it runs unless a callback has it, or has finished it."""
        self.tag += 1
        delivery = make_delivery(
            self.session, self.tag, redelivered=message.was_delivered, message_id=message.id
        )
        message.was_delivered = True
        self.out[self.tag] = self.open[self.tag] = message
        runner = next((d for d, m in self.running if m is message and m.id), None)
        runs = self.unsettled.receive(delivery)
        if runner is not None:
            self.adopted[runner] = self.tag
        elif message.id and message.verdict:
            self.pending[self.tag] = message.verdict
        else:
            assert runs
            self.inbox.append((delivery, message))
            return
        assert not runs

    @precondition(lambda self: self.inbox)
    @rule()
    def start(self) -> None:
        """Let a worker take the oldest delivery; no message with an id runs twice."""
        delivery, message = self.inbox.pop(0)
        if message.id:
            assert message.verdict is None, "it was finished already"
            assert all(m is not message for _, m in self.running), "it runs already"
        self.running.append((delivery, message))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), verdict=VERDICTS, hold=st.booleans(), is_prompt=st.booleans())
    def conclude(self, data: st.DataObject, verdict: Verdict, hold: bool, is_prompt: bool) -> None:
        """Let a callback end, perhaps long after its session; a Nack may be held.

        Its verdict may be sent promptly, before all is accounted for.
        """
        index = data.draw(st.integers(0, len(self.running) - 1))
        delivery, message = self.running.pop(index)
        own = delivery.tag if delivery.session == self.session else None
        expected = self.adopted.pop(delivery, own)
        outcome = Outcome(delivery, verdict)
        tag = self.unsettled.conclude(outcome)
        assert tag == expected
        if verdict is not Verdict.NACK:
            message.verdict = verdict
        if tag is not None:
            (self.held if verdict is Verdict.NACK else self.pending)[tag] = verdict
        if is_prompt:
            self.flush()
        self.unsettled.remember(outcome)
        if tag in self.held:
            self.unsettled.count_nack(delivery)
            if not hold:
                self._release(tag)

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
        self.pending.update((delivery.tag, Verdict.NACK) for delivery, _ in self.inbox)
        self.inbox.clear()

    # -- settling ----------------------------------------------------------

    @precondition(lambda self: self.session and self.tag)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Let a timer go off, even one whose verdict is gone."""
        self._release(data.draw(st.integers(1, self.tag)))

    def _release(self, tag: int) -> None:
        self.unsettled.release(tag)
        if tag in self.held:
            self.pending[tag] = self.held.pop(tag)

    @rule()
    def release_all(self) -> None:
        """Let every held verdict go."""
        self.unsettled.release_all()
        self.pending.update(self.held)
        self.held.clear()

    @rule()
    def flush(self) -> None:
        """Send all that can be sent; it arrives unless the line is cut."""
        for frame in self.unsettled.take_frames():
            for tag in self._covered(frame):
                assert self.pending.pop(tag) is frame.verdict
                message = self.open.pop(tag)
                if not self.is_cut:
                    self._settle_at_broker(tag, message, frame.verdict)
        assert not self.pending, "what could be sent was held back"

    def _covered(self, frame: Frame) -> list[int]:
        assert frame.tag in self.open, "a tag of another session, or one settled before"
        return [t for t in self.open if t == frame.tag or (frame.multiple and t < frame.tag)]

    def _settle_at_broker(self, tag: int, message: Message, verdict: Verdict) -> None:
        del self.out[tag]
        (self.ready if verdict is Verdict.NACK else self.gone).append(message)

    # -- always ------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        """Nothing outstanding is forgotten, nothing is counted twice."""
        if hasattr(self, "unsettled"):
            assert self.unsettled.running == len(self.inbox) + len(self.running)
            assert self.unsettled.held == len(self.held)
            if self.session:
                assert len(self.unsettled) == len(self.open)

    def teardown(self) -> None:
        """Stop gracefully from wherever this is: everything outstanding gets settled."""
        if getattr(self, "session", 0):
            self.take_back()
            self.release_all()
            for delivery, message in self.running:
                tag = self.unsettled.conclude(Outcome(delivery, Verdict.ACK))
                if tag is not None:
                    self.pending[tag] = Verdict.ACK
                    assert self.open[tag] is message
            self.flush()
            assert not self.open
            assert len(self.unsettled) == self.unsettled.running == self.unsettled.held == 0


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(max_examples=200, stateful_step_count=50)


def open_session(remember: int = 10) -> Unsettled:
    """Begin an account."""
    unsettled = Unsettled(remember)
    unsettled.begin(1)
    return unsettled


def finish(unsettled: Unsettled, delivery: Delivery, verdict: Verdict = Verdict.ACK) -> None:
    """Let a callback end."""
    unsettled.conclude(Outcome(delivery, verdict))
    unsettled.remember(Outcome(delivery, verdict))


def test_receive_redelivery_of_running() -> None:
    """A callback that outlived its session settles its redelivery, under the new tag."""
    unsettled = open_session()
    first = make_delivery(1, 4)
    assert unsettled.receive(first)
    unsettled.lose([])
    unsettled.begin(2)
    assert not unsettled.receive(make_delivery(2, 1, redelivered=True))
    assert unsettled.conclude(Outcome(first, Verdict.DROP)) == 1
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
    settled = {unsettled.conclude(Outcome(copy, Verdict.ACK)) for copy in copies}
    assert settled == {1, 2}


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
