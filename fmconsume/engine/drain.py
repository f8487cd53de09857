"""Decides when the queues are drained: empty, but for what the callback sent back.

The supervisor's thread calls it, after each turn of a consumer that drains.
"""

from __future__ import annotations

from typing import Callable

from ..broker.session import Session
from ..broker.topology import Topology
from ..exceptions import ExitCode, UnavailableException
from ..log import get_logger
from .account import DeliveryAccount
from .states import End

__all__ = ["Drain"]

_log = get_logger(__name__)

#: Messages sent back that a drain holds at most, beside a prefetch.
_MOST_HELD = 1000


class Drain:
    """Holds what the callback sends back until the end, so that it does not come again."""

    def __init__(self, account: DeliveryAccount, topology: Topology) -> None:
        self._account = account
        self._prefetch = topology.prefetch_count
        #: Consuming again lets another consumer take the place of a single active one.
        self._may_consume_again = not topology.has_single_active_consumer
        #: Verdicts that were held when the session consumed last.
        self._held_before = 0

    def begin(self) -> None:
        """Begin with a new session."""
        self._held_before = 0

    def look(self, session: Session, receive: Callable[[], None]) -> End | None:
        """Tell how to end, if it is time to; make room for more messages if there is none.

        Args:
            receive: Receives the deliveries that are here already, without a wait.

        Raises:
            SessionLost: From the session.
        """
        held = self._account.held
        if self._is_drained(session, receive):
            if held:
                _log.warning("drained; %d messages that were returned are left", held)
            return End(None, ExitCode.OK)
        if not 0 < self._prefetch <= held - self._held_before:
            return None
        if held >= _MOST_HELD or not self._may_consume_again:
            reason = f"not drained: no more can be held than the {held} messages that were returned"
            full = UnavailableException(reason)
            return End(full, full.exit_code)
        self._held_before = held
        session.consume_again()
        return None

    def _is_drained(self, session: Session, receive: Callable[[], None]) -> bool:
        """Tell whether the queues are empty and everything is settled or held."""
        # Twice: a queue may answer that it is empty before its last message has been sent.
        for _ in range(2):
            if not self._has_only_held or any(session.depths().values()):
                return False
            # Deliveries that came before the answer are here, but not dispatched yet.
            receive()
        return self._has_only_held

    @property
    def _has_only_held(self) -> bool:
        return len(self._account) == self._account.held
