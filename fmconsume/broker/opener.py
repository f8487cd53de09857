"""An opener makes one session on a thread of its own, so that a stop never waits for the network.

The supervisor starts it, and either takes the session or abandons the opener.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable

from .session import Session

__all__ = ["Opener"]


class Opener(threading.Thread):
    """Opens a session and hands it over whole; closes it when nobody wants it any more.

    Args:
        session: A new one.
        call_when_done: Called on this thread once `take` has something to give.
    """

    def __init__(self, session: Session, call_when_done: Callable[[], None]) -> None:
        super().__init__(name="fmconsume-opener", daemon=True)
        self._session = session
        self._call_when_done = call_when_done
        #: The session or what went wrong. Whoever gets it out of here owns it.
        self._result: SimpleQueue[Session | Exception] = SimpleQueue()
        #: Nobody waits any more; set once by the supervisor.
        self._is_abandoned = False

    def run(self) -> None:
        """Open the session."""
        try:
            self._session.connect()
            self._session.declare()
            if not self._is_abandoned:
                self._session.consume()
            self._result.put(self._session)
        except Exception as exc:
            self._result.put(exc)
            self._session.discard()
        # The flag is read after the put and set before the get, so that one side sees the other.
        if self._is_abandoned:
            self._discard()
        self._call_when_done()

    def take(self) -> Session:
        """Give the session, or raise why there is none. Thread: supervisor.

        Raises:
            queue.Empty: Not done yet.
            SessionLost, ConnectionException, PermissionException: From the session.
        """
        result = self._result.get_nowait()
        if isinstance(result, Exception):
            raise result
        return result

    def abandon(self) -> None:
        """Want the session no more; it is closed as soon as it is open. Thread: supervisor."""
        self._is_abandoned = True
        self._discard()

    def _discard(self) -> None:
        with suppress(Empty):
            result = self._result.get_nowait()
            if isinstance(result, Session):
                result.discard()
