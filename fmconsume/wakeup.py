"""A queue for one thread that waits; any thread and any signal handler may put something into it.

The waiting thread calls `open` and `get`; any thread calls `put`.
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

__all__ = ["WakeupQueue"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class WakeupQueue:
    """A queue whose reader is also woken by a signal.

    Python runs signal handlers only in the main thread, and only when that is awake. A main
    thread that waited for a plain queue would miss a signal that came right before it blocked,
    or that the kernel gave to another thread. So it waits for a socket, to which Python's own
    C handler writes at once.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[Any] = SimpleQueue()
        #: Any thread writes to it to wake the reader; None outside `open`.
        self._sender: socket.socket | None = None

    def put(self, item: Any) -> None:
        """Add an item; safe in a signal handler. Thread: any."""
        self._items.put(item)
        sender = self._sender
        if sender is not None:
            # If its buffer is full, the reader wakes anyway; if it is closed, no reader waits.
            with suppress(OSError):
                sender.send(b"!")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make `get` possible; in the main thread, let stop signals put their numbers here.

        A handler of the program's own stays. The others are put back at the end of the `with`
        block.
        """
        self._receiver, self._sender = socket.socketpair()
        with self._receiver, self._sender:
            self._sender.setblocking(False)
            with self._signals(self._sender.fileno()):
                yield
            self._sender = None

    def get(self, timeout: float | None) -> Any:
        """Wait for an item.

        Args:
            timeout: Seconds to wait, counted anew after each wakeup; None is no limit.

        Raises:
            queue.Empty: There was no item in that time.
        """
        self._receiver.settimeout(timeout)
        while True:
            with suppress(Empty):
                return self._items.get_nowait()
            try:
                self._receiver.recv(4096)
            except (socket.timeout, BlockingIOError):
                raise Empty from None

    @contextmanager
    def _signals(self, descriptor: int) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        pid = os.getpid()

        def put_number(number: int, frame: Any) -> None:
            if os.getpid() == pid:
                self.put(number)
            else:  # A child that the callback forked; its signals are its own.
                signal.signal(number, before[number] or signal.SIG_DFL)
                os.kill(os.getpid(), number)

        wakeup = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        usual = [n for n in _STOP_SIGNALS if not _is_programs_own(signal.getsignal(n))]
        before: dict[int, Any] = {n: signal.signal(n, put_number) for n in usual}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(wakeup)


def _is_programs_own(handler: Any) -> bool:
    return callable(handler) and handler not in (signal.default_int_handler, *signal.Handlers)
