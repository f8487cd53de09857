"""A session opener works on a thread of its own, so that a stop never waits for the network.

The supervisor starts it, and either takes the session or abandons the opener.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable

from .session import Session

__all__ = ["SessionOpener"]


class SessionOpener(threading.Thread):
    """Opens a session, lets it consume, and hands it over; closes it when nobody wants it any more.

    Args:
        open_session: Gives the session, or raises.
        call_when_done: Called on this thread once `get` has something to give.
    """

    def __init__(
        self, open_session: Callable[[], Session], call_when_done: Callable[[], None]
    ) -> None:
        super().__init__(name="fmconsume-opener", daemon=True)
        self._open_session = open_session
        self._call_when_done = call_when_done
        #: The session or what went wrong. Whoever gets it out of here owns it.
        self._result: SimpleQueue[Session | Exception] = SimpleQueue()
        #: Nobody waits any more; set once by the supervisor.
        self._is_abandoned = False

    def run(self) -> None:
        """Open the session."""
        self._result.put(self._open())
        # The flag is read after the put and set before the get, so that one side sees the other.
        if self._is_abandoned:
            self._discard()
        self._call_when_done()

    def _open(self) -> Session | Exception:
        try:
            session = self._open_session()
        except Exception as exc:
            return exc
        try:
            if not self._is_abandoned:
                session.consume()
        except Exception as exc:
            session.discard()
            return exc
        return session

    def get(self) -> Session:
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
            if not isinstance(result, Exception):
                result.discard()
