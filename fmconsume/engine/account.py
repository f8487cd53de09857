"""Keeps the account of deliveries: which are in hand, and which verdict the broker gets on each.

Theory of operation. A delivery is in one of these states. A running one is in hand: it waits for a
worker, or a worker has begun it.

    received --> running --> concluded --> settled            the usual way
                    |            +-------> held --> settled   a verdict that returns the message
                    +--> returned unstarted --> settled               no worker had begun
    received --> settled                        a redelivery of a message that has run already
    received --> adopted                        a redelivery of a message that still runs

The owner calls `receive` for each delivery and `conclude` for each outcome, and sends the frames of
`take_frames`. Then it calls `flush`, which puts the concluded outcomes into the memory: the broker
is told first, so that it works meanwhile. The memory is right even if the owner flushes late, since
every method that uses the memory puts them there first.

A session may be lost at any moment. Then the broker returns to its queue every delivery whose
settlement it has not seen. Deliveries that no worker had begun are forgotten. A callback that runs
goes on, and its delivery is an orphan. When the broker delivers the same message again, the orphan
adopts that redelivery: the callback's outcome settles it. If a message that has finished comes
again, it is settled with its own verdict, but only where memory.py is sure which message it is.

No pika, no threads, no clock, and no file but those of notes. The supervisor owns it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Iterable, Sequence
from typing import Callable

from ..delivery import NACK, RETURNS, Delivery, Frame, Outcome, Verdict
from ..state.notes import Mark, Notes
from .grants import Grants
from .memory import RecentVerdicts, delivery_count, fingerprint

__all__ = ["DeliveryAccount"]

_NO_SESSION = 0


class DeliveryAccount:
    """Every delivery that the broker waits to see settled, and every callback that runs.

    Args:
        remember: How many finished messages are remembered, so that none runs again.
        counting: Names of the queues that count deliveries themselves (quorum queues).
        notes: What outlives the process; None is nothing.
    """

    def __init__(
        self, remember: int, counting: Container[str] = (), notes: Notes | None = None
    ) -> None:
        self._fingerprint = fingerprint if notes is None else notes.fingerprint
        #: Gives what other processes have done since the last call.
        self._news: Callable[[], Sequence[Mark]] = tuple if notes is None else notes.news
        self._session = _NO_SESSION
        self._counting = counting
        #: The deliveries of this session that the broker waits to see settled.
        self.grants = Grants()
        #: Verdicts that `take_frames` sends next, by tag.
        self._verdicts: dict[int, Verdict] = {}
        #: Outcomes whose verdict is held back, by tag, oldest first.
        self._held: dict[int, Outcome] = {}
        #: Deliveries in hand, oldest first; some are of earlier sessions.
        self._in_hand: dict[Delivery, None] = {}
        #: By identity, running deliveries of earlier sessions that have adopted no redelivery yet.
        self._orphans: dict[int, dict[Delivery, None]] = {}
        #: For a callback that outlived its session: the redelivery that its outcome settles.
        self._adopted: dict[Delivery, Delivery] = {}
        #: Concluded outcomes that are not in the memory yet, oldest first.
        self._concluded: deque[Outcome] = deque()
        #: Outcomes that are in the memory, but that `flush` has not given yet.
        self._flushed: list[Outcome] = []
        self._memory = RecentVerdicts(remember)
        #: Held outcomes without a verdict, by tag.
        self._postponed: dict[int, Outcome] = {}

    def __len__(self) -> int:
        """Give how many deliveries the broker waits to see settled."""
        return len(self.grants)

    @property
    def in_hand(self) -> int:
        """How many deliveries are in hand: received to run, and without an outcome."""
        return len(self._in_hand)

    @property
    def oldest(self) -> Delivery | None:
        """The delivery that has been in hand longest."""
        return next(iter(self._in_hand), None)

    @property
    def held(self) -> int:
        """How many verdicts are held back."""
        return len(self._held)

    @property
    def oldest_held(self) -> Delivery | None:
        """The delivery whose verdict has been held back longest."""
        return next((outcome.target for outcome in self._held.values()), None)

    @property
    def next_due(self) -> float:
        """When the next held message goes back, monotonic seconds; 0 where none is held."""
        dues = (outcome.due for outcome in self._held.values() if outcome.due)
        return min(dues, default=0.0)

    @property
    def oldest_outstanding(self) -> Delivery | None:
        """The delivery of this session that the broker has waited for longest, held or not."""
        in_hand = (self._adopted.get(delivery, delivery) for delivery in self._in_hand)
        held = (outcome.target for outcome in self._held.values())
        ours = [each for each in (*in_hand, *held) if each.session == self._session]
        return min(ours, key=lambda each: each.received, default=None)

    def is_held(self, delivery: Delivery) -> bool:
        """Tell whether the verdict on a delivery of this session is held back."""
        return delivery.tag in self._held

    # -- sessions ----------------------------------------------------------

    def begin(self, session: int, queues: Iterable[str], size: float = math.inf) -> None:
        """Start the account of a new session.

        Args:
            queues: What it consumes from.
            size: Messages that each consumer may get ahead at first.
        """
        self._session = session
        self.grants = Grants(queues, size)

    def lose(self, unstarted: Iterable[Delivery]) -> None:
        """Forget a session; the broker returns to its queues all that it has not seen settled.

        Callbacks that run go on, and adopt their redelivery when it comes.

        Args:
            unstarted: Deliveries that no worker had begun.
        """
        self._session = _NO_SESSION
        self.grants = Grants()
        self.forget_unstarted(unstarted)
        self._verdicts.clear()
        self._held.clear()
        self._postponed.clear()
        self._adopted.clear()
        for delivery in self._in_hand:
            self._note_earlier_returns(delivery)
            self._memory.note_unfinished(delivery.identity)
            if delivery.identity:
                self._orphans.setdefault(delivery.identity, {})[delivery] = None

    # -- deliveries --------------------------------------------------------

    def receive(self, delivery: Delivery) -> bool:
        """Add a delivery; tell whether it has to run."""
        self.grants.deliver(delivery.tag, delivery.queue)
        number = delivery.fingerprint = self._fingerprint(delivery)
        delivery.identity = number if delivery.message_id else 0
        if delivery.redelivered:
            self._remember_concluded()
            for mark in self._news():
                self._memory.note_mark(mark)
            delivery.returns, delivery.deaths = self._memory.take_returns(number)
            delivery.attempt = 1 + max(delivery.returns, self._count_of(delivery))
        # A message that was not delivered before is new, even where an equal one is remembered.
        if delivery.redelivered and delivery.identity and self._is_known(delivery):
            return False
        self._in_hand[delivery] = None
        return True

    def conclude(self, outcome: Outcome) -> None:
        """Note the outcome of a delivery in hand; the next frames tell the broker its verdict.

        A verdict that returns the message is held until its release.
        """
        target = outcome.target = self._settle_in_hand(outcome.delivery)
        if target.session == self._session:
            self._note_run(target)
            if outcome.verdict in RETURNS:
                self._hold(outcome)
            else:
                self._verdicts[target.tag] = outcome.verdict
        self._concluded.append(outcome)

    def _settle_in_hand(self, delivery: Delivery) -> Delivery:
        """Remove a delivery from those in hand, and give the one that its outcome settles."""
        del self._in_hand[delivery]
        target = self._adopted.pop(delivery, delivery)
        if self._orphans:
            self._disown(target)
        return target

    def _note_run(self, target: Delivery) -> None:
        # One that came back before says nothing of what is to come: it, or another one near it, may
        # be what its consumers die of, and each death counts for all that are in hand.
        if target.attempt == 1:
            self.grants.note_run(target.tag)

    def _hold(self, outcome: Outcome) -> None:
        self._held[outcome.target.tag] = outcome
        self.grants.hold(outcome.target.tag)

    def postpone(self, outcome: Outcome) -> None:
        """Hold a delivery in hand until `end_postponement`; what ends the session returns it."""
        outcome.verdict = NACK
        target = outcome.target = self._settle_in_hand(outcome.delivery)
        if target.session == self._session:
            self._note_run(target)
            self._hold(outcome)
            self._postponed[target.tag] = outcome

    def end_postponement(self, verdict: Verdict) -> None:
        """Give all that is postponed the same verdict, and send it with the next frames."""
        postponed, self._postponed = self._postponed, {}
        for tag, outcome in postponed.items():
            outcome.verdict = verdict
            self.release(tag)
            self._concluded.append(outcome)

    def take_frames(self) -> list[Frame]:
        """Give the frames that have to be sent now; the account counts them as sent."""
        verdicts, self._verdicts = self._verdicts, {}
        return self.grants.settle(verdicts)

    def flush(self) -> list[Outcome]:
        """Put the concluded outcomes into the memory, and give each outcome once, oldest first.

        Each outcome then has its `target`, and its `returns` where it returns the message.
        """
        self._remember_concluded()
        flushed, self._flushed = self._flushed, []
        return flushed

    def forget_unstarted(self, unstarted: Iterable[Delivery]) -> None:
        """Remove deliveries that no worker had begun; the channel's end returns them."""
        self._remember_concluded()
        for delivery in unstarted:
            del self._in_hand[delivery]
            self._note_earlier_returns(delivery)
            self._memory.note_returned(delivery.identity)

    def return_unstarted(self, unstarted: Sequence[Delivery]) -> None:
        """Remove deliveries that no worker had begun; the next frames return them."""
        self.forget_unstarted(unstarted)
        self._verdicts.update((delivery.tag, NACK) for delivery in unstarted)

    def release(self, tag: int) -> None:
        """Send a held verdict with the next frames; do nothing if it is not held any more."""
        if tag in self._held:
            self._verdicts[tag] = self._held.pop(tag).verdict
            self.grants.release(tag)

    def release_all(self) -> None:
        """Send every held verdict with the next frames."""
        for tag in list(self._held):
            self.release(tag)

    # -- the memory --------------------------------------------------------

    def _remember_concluded(self) -> None:
        while self._concluded:
            outcome = self._concluded.popleft()
            key = outcome.delivery.identity
            if outcome.verdict in RETURNS:
                self._memory.note_returned(key)
                attempt = max(outcome.delivery.attempt, outcome.target.attempt)
                outcome.returns = attempt - 1
                deaths = max(outcome.delivery.deaths, outcome.target.deaths)
                returns = 1 + max(outcome.delivery.returns, outcome.target.returns)
                self._memory.note_returns(outcome.target.fingerprint, returns, deaths)
            else:
                self._memory.note_finished(key, outcome.verdict, outcome.target.session)
            self._flushed.append(outcome)

    def _note_earlier_returns(self, delivery: Delivery) -> None:
        """Note the returns that a message had before this delivery, which ends without one."""
        if delivery.returns:
            self._memory.note_returns(delivery.fingerprint, delivery.returns, delivery.deaths)

    def _count_of(self, delivery: Delivery) -> int:
        """Give how often a quorum queue says that a message came back; 0 for other queues."""
        return delivery_count(delivery) if delivery.queue in self._counting else 0

    def _is_known(self, delivery: Delivery) -> bool:
        """Let an orphan adopt a redelivery, or settle it from the memory; tell whether one did.

        It makes no difference which of several equal orphans adopts it.
        """
        self._remember_concluded()
        orphans = self._orphans.get(delivery.identity)
        if orphans:
            orphan = next(iter(orphans))
            self._disown(orphan)
            self._adopted[orphan] = delivery
            return True
        verdict = self._memory.recall(delivery.identity, self._session)
        if verdict is not None:
            self._verdicts[delivery.tag] = verdict
        return verdict is not None

    def _disown(self, delivery: Delivery) -> None:
        """Remove a delivery from the orphans, if it is one."""
        orphans = self._orphans.get(delivery.identity, {})
        orphans.pop(delivery, None)
        if not orphans:
            self._orphans.pop(delivery.identity, None)
