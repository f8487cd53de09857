"""Notes for one thread that waits, left by any thread and by signal handlers.

The waiting thread calls `bell` and `get`; any thread calls `put`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["Notes"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Notes:
    """A queue with a bell.

    A thread that waits for a queue misses a signal that comes right before it blocks, or that
    the kernel hands to another thread: Python runs handlers only in the main thread, once that
    wakes. So it waits for a socket, to which Python's own handler writes at once.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        #: Written to by any thread while somebody waits; None otherwise.
        self._button: socket.socket | None = None

    def put(self, note: Any) -> None:
        """Leave a note; safe in a signal handler."""
        self._queue.put(note)
        button = self._button
        if button is not None:
            # A full buffer has rung already; a closed one has nobody who waits.
            with suppress(OSError):
                button.send(b"!")

    @contextmanager
    def bell(self) -> Iterator[None]:
        """Make `get` possible, and stop signals leave their numbers where this is the main thread.

        What handled them before is put back.
        """
        self._bell, self._button = socket.socketpair()
        with self._bell, self._button:
            self._button.setblocking(False)
            with self._signals(self._button.fileno()):
                yield
            self._button = None

    def get(self, timeout: float | None) -> Any:
        """Wait for a note.

        Args:
            timeout: Seconds without any ring; None is no limit.

        Raises:
            queue.Empty: There was none in that time.
        """
        self._bell.settimeout(timeout)
        while True:
            with suppress(Empty):
                return self._queue.get_nowait()
            try:
                self._bell.recv(4096)
            except (socket.timeout, BlockingIOError):
                raise Empty from None

    @contextmanager
    def _signals(self, descriptor: int) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        pid = os.getpid()

        def note(number: int, frame: Any) -> None:
            if os.getpid() == pid:
                self.put(number)
            else:  # A child that the callback forked; its signals are its own.
                signal.signal(number, before[number] or signal.SIG_DFL)
                os.kill(os.getpid(), number)

        wakeup = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        before: dict[int, Any] = {n: signal.signal(n, note) for n in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(wakeup)
