"""Log lines of this package are written by a thread of their own, so that no handler, filter or
stream can end or block the thread that has something to say.

Any thread may log. It waits until its line is written, but never longer than a second.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["get_logger", "is_stuck", "quieten_pika", "warn_once"]

#: Longest wait for a line to be written, seconds.
_PATIENCE = 1.0
#: Lines that wait at most while a handler is stuck; further ones are lost.
_MOST = 1000

#: Warnings of one kind at most: publishers choose the names in them.
_MOST_WARNINGS = 1000
#: The names that warnings named, by kind.
_warned: dict[str, set[str]] = {}


class _Writer:
    """Hands records to the loggers they are meant for, one after the other."""

    def __init__(self) -> None:
        #: Records, each with the place where its logging thread waits.
        self._queue: SimpleQueue[tuple[logging.LogRecord, SimpleQueue[None]]] = SimpleQueue()
        #: Set by whoever logs first.
        self._thread: threading.Thread | None = None
        #: A handler took longer than the patience. Set by who waited, cleared by the writer.
        self.is_stuck = False

    def write(self, record: logging.LogRecord) -> None:
        """Write a record, and wait a little for that."""
        # A handler that has something to log itself would wait for itself.
        if not self._has_thread() or threading.current_thread() is self._thread:
            _handle(record)
        elif self._queue.qsize() < _MOST:
            written: SimpleQueue[None] = SimpleQueue()
            self._queue.put((record, written))
            if not self.is_stuck:
                try:
                    written.get(timeout=_PATIENCE)
                except Empty:
                    self.is_stuck = True

    def _has_thread(self) -> bool:
        if self._thread is None:
            # Two threads that come at the same time start two writers, which does no harm.
            thread = threading.Thread(target=self._run, name="fmconsume-log", daemon=True)
            with suppress(RuntimeError):  # There may be no thread to be had just now.
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _run(self) -> None:
        while True:
            record, written = self._queue.get()
            _handle(record)
            self.is_stuck = False
            written.put(None)


def _handle(record: logging.LogRecord) -> None:
    """Let the record's logger have it; where a handler or filter fails, standard error."""
    try:
        logging.getLogger(record.name).handle(record)
    except BaseException:
        # A handler of logging's own only fails like this when it cannot complain either.
        with suppress(BaseException):
            assert logging.lastResort is not None
            logging.lastResort.handle(record)


_writer = _Writer()


def _start_anew() -> None:
    """Forget the writer of the parent process, whose thread is not in this one."""
    global _writer
    _writer = _Writer()


os.register_at_fork(after_in_child=_start_anew)


class _Relay(logging.Logger):
    """Makes the records of the logger of its name, and leaves the rest to the writer."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._real = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:
        """Tell what the real logger would, but without logging's lock: who holds it may block."""
        return level > self.manager.disable and level >= self._real.getEffectiveLevel()

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record, a plain one where the program's own factory fails."""
        try:
            return super().makeRecord(*args, **kwargs)
        except Exception:
            return logging.LogRecord(*args[:7])

    def handle(self, record: logging.LogRecord) -> None:
        """Have the record written."""
        _writer.write(record)


def get_logger(name: str) -> logging.Logger:
    """Give a logger that cannot end or block the thread that logs."""
    return _Relay(name)


def quieten_pika() -> None:
    """Leave out what pika logs, unless the program has set a level for its logger.

    pika logs inside its calls, where nothing keeps a handler that blocks from blocking whoever
    called. What matters of it is logged here in a line.
    """
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def is_stuck() -> bool:
    """Tell whether a handler has not come back for longer than a second."""
    return _writer.is_stuck


def warn_once(logger: logging.Logger, kind: str, name: str, text: str, *args: object) -> None:
    """Log a warning about a name, unless a warning of the same kind has named it before.

    Args:
        logger: Logs the warning.
        kind: What the warning is about. Each kind counts and remembers its names apart.
        name: Chosen by others, of any length; 255 characters of it count.
        text: Format of the warning; its first %r shows the name.
        args: For the rest of the format.
    """
    seen = _warned.setdefault(kind, set())
    name = name[:255]
    if name in seen or len(seen) >= _MOST_WARNINGS:
        return
    seen.add(name)
    logger.warning(text, name, *args)
    if len(seen) == _MOST_WARNINGS:
        logger.warning("that was warning number %d of this kind, and the last", _MOST_WARNINGS)
