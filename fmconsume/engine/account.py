"""The account of deliveries: which of them run, and what the broker is told of each.

Theory of operation. A delivery is in one of these states:

    received --> running --> concluded --> settled            the usual way
                    |            +-------> held --> settled   a verdict that returns the message
                    +--> returned unstarted --> settled               no worker had begun
    received --> settled                                      it has run already: a redelivery
    received --> adopted                                      its twin runs since an earlier session

The owner calls `receive` for each delivery, `conclude` for each outcome, and sends what
`take_frames` gives. Then it calls `flush`, which remembers what was concluded: the broker is told
first, so that it works meanwhile. The order is not the owner's to keep: whatever depends on
the memory flushes first.

A session may be lost at any moment. Then the broker returns everything that it has not seen
settled to its queue. What no worker had begun is forgotten. What runs goes on as an orphan, and
when the broker delivers the same message again, the orphan adopts that delivery: the outcome
settles it. What had finished is settled with its own verdict when it comes again, but only where
memory.py is sure which message that is.

Pure: no pika, no threads, no clock. The supervisor owns it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Sequence

from ..delivery import NACK, RETURNS, Delivery, Frame, Outcome, Verdict
from .ledger import Ledger
from .memory import RecentVerdicts, delivery_count, identity

__all__ = ["DeliveryAccount"]

_NO_SESSION = 0


class DeliveryAccount:
    """Every delivery that the broker still waits for, and every callback that runs.

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
        #: By identity, running deliveries of earlier sessions that nothing was adopted for yet.
        self._orphans: dict[int, dict[Delivery, None]] = {}
        #: For a callback that outlived its session: the redelivery that its outcome settles.
        self._adopted: dict[Delivery, Delivery] = {}
        #: Concluded and not yet remembered, oldest first.
        self._concluded: deque[Outcome] = deque()
        #: Remembered, and not yet given to the owner.
        self._flushed: list[Outcome] = []
        self._memory = RecentVerdicts(remember)

    def __len__(self) -> int:
        """Give how many deliveries the broker waits for."""
        return len(self._ledger)

    @property
    def running(self) -> int:
        """How many deliveries were handed out to run and have no outcome."""
        return len(self._running)

    @property
    def oldest(self) -> Delivery | None:
        """The delivery that was handed out first and has no outcome."""
        return next(iter(self._running), None)

    @property
    def held(self) -> int:
        """How many verdicts are held back."""
        return len(self._held)

    @property
    def oldest_held(self) -> Delivery | None:
        """The delivery whose verdict has been held back longest."""
        return next((outcome.delivery for outcome in self._held.values()), None)

    # -- sessions ----------------------------------------------------------

    def begin(self, session: int) -> None:
        """Start the account of a new session."""
        self._session = session
        self._ledger = Ledger()

    def lose(self, unstarted: Iterable[Delivery]) -> None:
        """Forget a session; the broker returns to its queues all that it has not seen settled.

        Callbacks that run go on, and adopt their redelivery when it comes.

        Args:
            unstarted: Deliveries that no worker had begun.
        """
        self._session = _NO_SESSION
        self.leave_unstarted(unstarted)
        self._verdicts.clear()
        self._held.clear()
        self._adopted.clear()
        for delivery in self._running:
            self._memory.note_unfinished(delivery.identity)
            if delivery.identity:
                self._orphans.setdefault(delivery.identity, {})[delivery] = None

    # -- deliveries --------------------------------------------------------

    def receive(self, delivery: Delivery) -> bool:
        """Add a delivery; tell whether it has to run."""
        self._ledger.deliver(delivery.tag)
        delivery.identity = identity(delivery)
        # A message that was not delivered before is new, even where an equal one is remembered.
        if delivery.redelivered and delivery.identity and self._is_known(delivery):
            return False
        self._running[delivery] = None
        return True

    def conclude(self, outcome: Outcome) -> None:
        """Note what became of a running delivery; the broker is told with the next frames.

        A verdict that returns the message is held until its release.
        """
        delivery = outcome.delivery
        del self._running[delivery]
        target = outcome.target = self._adopted.pop(delivery, delivery)
        if self._orphans:
            self._disown(target)
        if target.session == self._session:
            if outcome.verdict in RETURNS:
                self._held[target.tag] = outcome
            else:
                self._verdicts[target.tag] = outcome.verdict
        self._concluded.append(outcome)

    def take_frames(self) -> list[Frame]:
        """Give what has to be sent now; it counts as sent from here on."""
        verdicts, self._verdicts = self._verdicts, {}
        return self._ledger.settle(verdicts) if verdicts else []

    def flush(self) -> list[Outcome]:
        """Remember what was concluded, and give each outcome once, oldest first.

        Each outcome then has its `target`, and its `returns` where it returns the message.
        """
        self._remember_concluded()
        flushed, self._flushed = self._flushed, []
        return flushed

    def leave_unstarted(self, unstarted: Iterable[Delivery]) -> None:
        """Leave it to the broker to find out about deliveries that no worker had begun."""
        self._remember_concluded()
        for delivery in unstarted:
            del self._running[delivery]
            self._memory.note_returned(delivery.identity)

    def return_unstarted(self, unstarted: Sequence[Delivery]) -> None:
        """Return deliveries to the broker that no worker had begun."""
        self.leave_unstarted(unstarted)
        self._verdicts.update((delivery.tag, NACK) for delivery in unstarted)

    def release(self, tag: int) -> None:
        """Let a verdict go that was held, if it still is."""
        if tag in self._held:
            self._verdicts[tag] = self._held.pop(tag).verdict

    def release_all(self) -> None:
        """Let every held verdict go."""
        for tag in list(self._held):
            self.release(tag)

    # -- the memory --------------------------------------------------------

    def _remember_concluded(self) -> None:
        while self._concluded:
            outcome = self._concluded.popleft()
            key = outcome.delivery.identity
            if outcome.verdict in RETURNS:
                self._memory.note_returned(key)
                outcome.returns = self._count_return(outcome.target)
            else:
                self._memory.note_finished(key, outcome.verdict, outcome.target.session)
            self._flushed.append(outcome)

    def _count_return(self, delivery: Delivery) -> int:
        """Count a return to the queue; give how often the message was delivered before."""
        ours = self._memory.count_return(delivery.identity)
        theirs = delivery_count(delivery) if delivery.queue in self._counting else 0
        return max(ours, theirs)

    def _is_known(self, delivery: Delivery) -> bool:
        """Let an orphan adopt a redelivery, or settle one that has run already.

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
        """Let a delivery wait no more for its redelivery, if it does."""
        orphans = self._orphans.get(delivery.identity, {})
        orphans.pop(delivery, None)
        if not orphans:
            self._orphans.pop(delivery.identity, None)
