"""Decides when the queues are drained: empty, but for what the callback sent back.

The supervisor's thread calls it, after each turn of a consumer that drains.
"""

from __future__ import annotations

from typing import Callable

from ..broker.session import Session
from ..exceptions import ExitCode, UnavailableException
from ..log import get_logger
from .account import DeliveryAccount
from .prefetch import MOST_HELD, Prefetch
from .states import End

__all__ = ["Drain"]

_log = get_logger(__name__)


class Drain:
    """Holds what the callback sends back until the end, so that it does not come again."""

    def __init__(self, account: DeliveryAccount, prefetch: Prefetch) -> None:
        self._account = account
        self._prefetch = prefetch
        #: Whether the queues were asked if they are streams.
        self._has_asked = False

    def look(self, session: Session, receive: Callable[[], object]) -> End | None:
        """Tell how to end, if it is time to.

        Args:
            receive: Receives the deliveries that are here already, without a wait.

        Raises:
            SessionLost: From the session.
            BadDeclaration: What looks like an empty queue is a stream.
        """
        if not self._has_asked:
            # Once, and not in each session: it takes another channel, and where RabbitMQ grants the
            # user none it ends the connection.
            self._has_asked = True
            session.refuse_streams()
        held = self._account.held
        if self._is_drained(session, receive):
            if held:
                _log.warning("drained; %d messages that were returned are left", held)
            return End(None, ExitCode.OK)
        if self._prefetch.is_used_up and (self._prefetch.is_fixed or held >= MOST_HELD):
            reason = f"not drained: no more can be held than the {held} messages that were returned"
            full = UnavailableException(reason)
            return End(full, full.exit_code)
        return None

    def _is_drained(self, session: Session, receive: Callable[[], object]) -> bool:
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
