"""Every delivery that the broker still waits for, and every callback that outlived its session.

Pure: no pika, no threads, no clock. The supervisor owns it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .delivery import NACK, Delivery, Outcome, Verdict
from .ledger import Frame, Ledger
from .memory import Memory, identity

__all__ = ["Unsettled"]

_NO_SESSION = 0


class Unsettled:
    """Decides which deliveries run, and what the broker is told of each.

    Args:
        remember: Finished messages remembered against a second run.
    """

    def __init__(self, remember: int) -> None:
        self._session = _NO_SESSION
        self._ledger = Ledger()
        #: Verdicts that wait to be sent, by tag.
        self._verdicts: dict[int, Verdict] = {}
        #: Verdicts held back, by tag.
        self._held: dict[int, Verdict] = {}
        #: Handed out to run and without an outcome, oldest first; some of sessions gone by.
        self._running: dict[Delivery, None] = {}
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
        for delivery in self._running:
            if not delivery.redelivered:
                # A copy of a finished message, published again; its redelivery has to run.
                self._memory.forget(delivery)
        for delivery in not_started:
            del self._running[delivery]
        self._verdicts.clear()
        self._held.clear()
        self._adopted.clear()

    # -- deliveries --------------------------------------------------------

    def receive(self, delivery: Delivery) -> bool:
        """Take a delivery in; tell whether it has to run."""
        self._ledger.deliver(delivery.tag)
        # What was not delivered before is new, even where its like is remembered.
        if delivery.redelivered and self._is_known(delivery):
            return False
        self._running[delivery] = None
        return True

    def conclude(self, outcome: Outcome) -> int | None:
        """Take in what the broker is to be told of an outcome; a Nack is held until its release.

        The rest, `remember` or `count_nack`, follows when the broker has been told: in the same
        order, and before anything else is received or lost.

        Returns:
            The tag that it settles in this session, None when there is none.
        """
        delivery, verdict = outcome.delivery, outcome.verdict
        del self._running[delivery]
        target = self._adopted.pop(delivery, delivery)
        if target.session != self._session:
            return None
        verdicts = self._held if verdict is NACK else self._verdicts
        verdicts[target.tag] = verdict
        return target.tag

    def remember(self, outcome: Outcome) -> None:
        """Remember the message, if it is finished."""
        if outcome.verdict is not NACK:
            self._memory.finish(outcome.delivery, outcome.verdict)

    def take_back(self, not_started: Iterable[Delivery]) -> None:
        """Return to the broker what was handed out and came back unseen."""
        for delivery in not_started:
            del self._running[delivery]
            self._verdicts[delivery.tag] = NACK

    def count_nack(self, delivery: Delivery) -> int:
        """Count a Nack; give the number of earlier ones of the same message."""
        return self._memory.count_nack(delivery)

    def release(self, tag: int) -> None:
        """Let a verdict go that was held, if it still is."""
        if tag in self._held:
            self._verdicts[tag] = self._held.pop(tag)

    def release_all(self) -> None:
        """Let every held verdict go."""
        self._verdicts.update(self._held)
        self._held.clear()

    def take_frames(self) -> list[Frame]:
        """Give what is to be sent now; it counts as sent from here on."""
        verdicts, self._verdicts = self._verdicts, {}
        return self._ledger.settle(verdicts) if verdicts else []

    def _is_known(self, delivery: Delivery) -> bool:
        """Adopt a redelivery of what runs now, or settle one of what is finished."""
        runner = self._runner_of(delivery)
        if runner is not None:
            self._adopted[runner] = delivery
            return True
        verdict = self._memory.recall(delivery)
        if verdict is not None:
            self._verdicts[delivery.tag] = verdict
        return verdict is not None

    def _runner_of(self, delivery: Delivery) -> Delivery | None:
        """Find the callback of an earlier session that runs this message."""
        if not delivery.message_id:
            return None
        wanted = identity(delivery)
        for running in self._running:
            is_orphan = running.session != self._session and running not in self._adopted
            if is_orphan and identity(running) == wanted:
                return running
        return None
