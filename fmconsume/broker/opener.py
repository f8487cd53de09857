"""Opens a session on a thread of its own, so that a stop never waits for the network.

The supervisor starts it, and either gets the session or abandons the opener.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable

from .session import Session

__all__ = ["SessionOpener"]


class SessionOpener(threading.Thread):
    """Opens a session, starts its consumers, and hands it over; closes it if abandoned.

    Args:
        open_session: Gives the session, or raises.
        prefetch_count: With which it begins, as for `Session.consume`.
        call_when_done: Called on this thread as its last act, when the result is there to `get`.
    """

    def __init__(
        self,
        open_session: Callable[[], Session],
        prefetch_count: int,
        call_when_done: Callable[[], None],
    ) -> None:
        super().__init__(name="fmconsume-opener", daemon=True)
        self._open_session = open_session
        self._prefetch_count = prefetch_count
        self._call_when_done = call_when_done
        #: The session, or why there is none. The thread that gets the session from here owns it.
        self._result: SimpleQueue[Session | Exception] = SimpleQueue()
        #: The supervisor does not want the session any more. Set once by it, read by this thread.
        self._is_abandoned = False

    def run(self) -> None:
        """Open the session."""
        self._result.put(self._open())
        # This thread puts, then reads the flag; `abandon` sets the flag, then gets. So at least
        # one of them finds the session, and the queue gives it to one only.
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
                session.consume(self._prefetch_count)
        except Exception as exc:
            session.discard()
            return exc
        return session

    def get(self) -> Session:
        """Give the session, or raise why there is none. Thread: supervisor.

        Raises:
            queue.Empty: Not done yet.
            SessionLost, ConnectionException, PermissionException: As `open_session` and
                `Session.consume` raised it.
        """
        result = self._result.get_nowait()
        if isinstance(result, Exception):
            raise result
        return result

    def abandon(self) -> None:
        """Give the session up; it is closed as soon as it is open. Thread: supervisor."""
        self._is_abandoned = True
        self._discard()

    def _discard(self) -> None:
        with suppress(Empty):
            result = self._result.get_nowait()
            if not isinstance(result, Exception):
                result.discard()
