"""Keeps a wrong `body` in the configuration from emptying a queue.

The supervisor's thread owns it.
"""

from __future__ import annotations

from ..broker.topology import Topology
from ..delivery import NACK, REJECT, Outcome
from ..exceptions import BodiesUnreadable
from ..log import get_logger
from .account import DeliveryAccount

__all__ = ["BodyGuard"]

_log = get_logger(__name__)

#: Messages that do not decode, after which a consumer of which none has ever decoded ends.
_ENOUGH = 10
_CURE = (
    'set body = "json" or body = "bytes" for messages of another kind, or failures.keep_in to a '
    "folder that keeps what does not decode"
)


class BodyGuard:
    """Holds messages that do not decode until one does, where rejecting them would lose them.

    Args:
        is_on: Nothing keeps what is rejected, but perhaps the dead-letter exchange of a queue.
    """

    def __init__(self, account: DeliveryAccount, topology: Topology, is_on: bool) -> None:
        #: A message has decoded, or nobody has to be careful.
        self.is_open = not is_on
        self._account = account
        self._safe = topology.dead_lettering_queues
        self._enough = _ENOUGH
        if topology.has_single_active_consumer:  # What is held there takes up the prefetch.
            self._enough = min(_ENOUGH, topology.prefetch_count or _ENOUGH)
        self._count = 0
        #: The consumer ends: nothing more is held, and all goes back.
        self._has_given_up = False

    def holds(self, outcome: Outcome) -> bool:
        """Tell whether the verdict has to wait, and see to it; call this until the guard is open.

        Raises:
            BodiesUnreadable: Enough messages have come, and none decodes. They are all held.
        """
        if not outcome.flaw:
            self.is_open = True
            self._account.end_postponement(REJECT)
            return False
        if outcome.delivery.queue in self._safe:
            return False
        if self._has_given_up:
            outcome.verdict = NACK
            return False
        if not self._count:
            _log.warning("no message has decoded yet: those that do not are held until one does")
        self._count += 1
        self._account.postpone(outcome)
        if self._count >= self._enough:
            reason = f"none of the first {self._count} messages decodes ({outcome.flaw}): {_CURE}"
            raise BodiesUnreadable(reason)
        return True

    def give_up(self) -> None:
        """Return all that is held to its queue, since the consumer ends."""
        self._has_given_up = True
        self._account.end_postponement(NACK)
