"""Every delivery that the broker still waits for, and every callback that outlived its session.

Pure: no pika, no threads, no clock. The supervisor owns it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from ..delivery import NACK, RETURNS, Delivery, Frame, Outcome, Verdict
from .ledger import Ledger
from .memory import Memory, delivery_count, identity

__all__ = ["Unsettled"]

_NO_SESSION = 0


class Unsettled:
    """Decides which deliveries run, and what the broker is told of each.

    Args:
        remember: Finished messages remembered against a second run.
        counting: Names of the queues that count deliveries themselves (quorum queues).
    """

    def __init__(self, remember: int, counting: Container[str] = ()) -> None:
        self._session = _NO_SESSION
        self._counting = counting
        self._ledger = Ledger()
        #: Verdicts that wait to be sent, by tag.
        self._verdicts: dict[int, Verdict] = {}
        #: Outcomes whose verdict is held back, by tag, oldest first.
        self._held: dict[int, Outcome] = {}
        #: Handed out to run and without an outcome, oldest first; some of earlier sessions.
        self._running: dict[Delivery, None] = {}
        #: By identity, those of earlier sessions that wait for their redelivery.
        self._orphans: dict[int, dict[Delivery, None]] = {}
        #: For a callback that outlived its session: the redelivery that its outcome settles.
        self._adopted: dict[Delivery, Delivery] = {}
        self._memory = Memory(remember)

    def __len__(self) -> int:
        return len(self._ledger)

    @property
    def running(self) -> int:
        """How many were handed out to run and have no outcome."""
        return len(self._running)

    @property
    def oldest(self) -> Delivery | None:
        """What was handed out first and has no outcome."""
        return next(iter(self._running), None)

    @property
    def held(self) -> int:
        """How many verdicts are held back."""
        return len(self._held)

    @property
    def oldest_held(self) -> Delivery | None:
        """What was held back first, and still is."""
        return next((outcome.delivery for outcome in self._held.values()), None)

    # -- sessions ----------------------------------------------------------

    def begin(self, session: int) -> None:
        """Start the account of a new session."""
        self._session = session
        self._ledger = Ledger()

    def lose(self, not_started: Iterable[Delivery]) -> None:
        """Forget a session; the broker requeues what it had not seen settled.

        Callbacks that run go on, and adopt their redelivery when it comes.

        Args:
            not_started: What was handed out and came back unseen.
        """
        self._session = _NO_SESSION
        self.leave(not_started)
        self._verdicts.clear()
        self._held.clear()
        self._adopted.clear()
        for delivery in self._running:
            self._memory.meet(delivery.identity)
            if delivery.identity:
                self._orphans.setdefault(delivery.identity, {})[delivery] = None

    # -- deliveries --------------------------------------------------------

    def receive(self, delivery: Delivery) -> bool:
        """Take a delivery in; tell whether it has to run."""
        self._ledger.deliver(delivery.tag)
        delivery.identity = identity(delivery)
        # What was not delivered before is new, even where its like is remembered.
        if delivery.redelivered and delivery.identity and self._is_known(delivery):
            return False
        self._running[delivery] = None
        return True

    def conclude(self, outcome: Outcome) -> Delivery:
        """Take in what the broker is to be told of an outcome; a return is held until its release.

        `remember` follows when the broker has been told: in the same order, and before anything
        else is received or lost.

        Returns:
            The delivery that it settles: its own, or the redelivery that it has adopted.
        """
        delivery = outcome.delivery
        del self._running[delivery]
        target = self._adopted.pop(delivery, delivery)
        if self._orphans:
            self._disown(target)
        if target.session == self._session:
            if outcome.verdict in RETURNS:
                self._held[target.tag] = outcome
            else:
                self._verdicts[target.tag] = outcome.verdict
        return target

    def remember(self, outcome: Outcome, target: Delivery) -> None:
        """Remember that the message is finished, or that the broker has it unfinished."""
        key = outcome.delivery.identity
        if outcome.verdict in RETURNS:
            self._memory.owe(key)
        else:
            self._memory.finish(key, outcome.verdict, target.session)

    def leave(self, not_started: Iterable[Delivery]) -> None:
        """Leave to the broker, which will find out, what was handed out and came back unseen."""
        for delivery in not_started:
            del self._running[delivery]
            self._memory.owe(delivery.identity)

    def take_back(self, not_started: Sequence[Delivery]) -> None:
        """Return to the broker what was handed out and came back unseen."""
        self.leave(not_started)
        self._verdicts.update((delivery.tag, NACK) for delivery in not_started)

    def count_return(self, delivery: Delivery) -> int:
        """Count a return to the queue; give how often the message was delivered before."""
        ours = self._memory.count_return(delivery.identity)
        theirs = delivery_count(delivery) if delivery.queue in self._counting else 0
        return max(ours, theirs)

    def release(self, tag: int) -> None:
        """Let a verdict go that was held, if it still is."""
        if tag in self._held:
            self._verdicts[tag] = self._held.pop(tag).verdict

    def release_all(self) -> None:
        """Let every held verdict go."""
        for tag in list(self._held):
            self.release(tag)

    def take_frames(self) -> list[Frame]:
        """Give what is to be sent now; it counts as sent from here on."""
        verdicts, self._verdicts = self._verdicts, {}
        return self._ledger.settle(verdicts) if verdicts else []

    def _is_known(self, delivery: Delivery) -> bool:
        """Adopt a redelivery of what runs now, or settle one of what is finished.

        Which of several equal messages an orphan adopts makes no difference.
        """
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
        """Let a delivery wait no more for its redelivery, if it does."""
        orphans = self._orphans.get(delivery.identity, {})
        orphans.pop(delivery, None)
        if not orphans:
            self._orphans.pop(delivery.identity, None)
