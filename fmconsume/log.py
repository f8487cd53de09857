"""Writes log lines on a thread of its own: no handler, filter or stream can end or block another.

Any thread may log. It waits until its line is written, but no longer than a second. If no thread
can be started, it writes the line itself.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["get_logger", "is_stuck", "quieten_pika", "warn_once"]

#: Longest wait for a line to be written, seconds.
_PATIENCE = 1.0
#: Lines that may wait while a handler is stuck; any more are lost.
_MOST = 1000

#: Warnings of one kind that are logged: publishers choose the names in them, without end.
_MOST_WARNINGS = 1000
#: The names of which a warning was logged, by kind; each with what the thread put there that
#: logged it. `setdefault` is atomic, so that of several threads one logs.
_warned: dict[str, dict[str, object]] = {}


class _Writer:
    """A thread that passes each record to its logger, one after the other."""

    def __init__(self) -> None:
        #: Records, each with the context of its call, and with the queue on which the thread that
        #: logged it waits.
        self._queue: SimpleQueue[tuple[logging.LogRecord, Context, SimpleQueue[None]]] = (
            SimpleQueue()
        )
        #: The thread, once it has begun. `setdefault` is atomic: where threads that log at the same
        #: time have started several, one stays.
        self._begun: dict[str, threading.Thread] = {}
        #: A line took longer than the patience. Set by a thread that waited, cleared by this one.
        self.is_stuck = False

    def write(self, record: logging.LogRecord) -> None:
        """Have a record written, and wait for that within the patience. Thread: any."""
        # A handler that logs does so on the writer's thread, which must not wait for itself.
        if not self._has_thread() or threading.current_thread() is self._begun.get("thread"):
            _handle(record)
        elif self._queue.qsize() < _MOST:
            written: SimpleQueue[None] = SimpleQueue()
            self._queue.put((record, copy_context(), written))
            if not self.is_stuck:
                try:
                    written.get(timeout=_PATIENCE)
                except Empty:
                    self.is_stuck = True

    def _has_thread(self) -> bool:
        if "thread" not in self._begun:
            thread = threading.Thread(target=self._run, name="fmconsume-log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # The system may refuse a thread now.
                return "thread" in self._begun
        return True

    def _run(self) -> None:
        ours = threading.current_thread()
        while self._begun.setdefault("thread", ours) is ours:
            record, context, written = self._queue.get()
            # Filters and formatters see which message, trace or request the record belongs to.
            context.run(_handle, record)
            self.is_stuck = False
            written.put(None)


def _handle(record: logging.LogRecord) -> None:
    """Pass a record to its logger; if a handler or filter raises, write it to standard error."""
    try:
        logging.getLogger(record.name).handle(record)
    except BaseException:
        # lastResort reports its own errors to standard error, and raises if it cannot even do that.
        with suppress(BaseException):
            assert logging.lastResort is not None
            logging.lastResort.handle(record)


_writer = _Writer()


def _start_anew() -> None:
    """Replace the writer after a fork: its thread runs in the parent process only."""
    global _writer
    _writer = _Writer()


os.register_at_fork(after_in_child=_start_anew)


class _Relay(logging.Logger):
    """A logger that makes records; the writer passes them to the real logger of the same name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._real = logging.getLogger(name)

    def isEnabledFor(self, level: int) -> bool:
        """Answer as the real logger does, but without logging's lock: its holder may hang."""
        return level > self.manager.disable and level >= self._real.getEffectiveLevel()

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record; a plain one if the program's own record factory raises."""
        try:
            return super().makeRecord(*args, **kwargs)
        except Exception:
            return logging.LogRecord(*args[:7])

    def handle(self, record: logging.LogRecord) -> None:
        """Have the record written."""
        _writer.write(record)


def get_logger(name: str) -> logging.Logger:
    """Return a logger that cannot end or block the thread that logs."""
    return _Relay(name)


def quieten_pika() -> None:
    """Silence pika's logger below CRITICAL, unless the program wants all that it says (DEBUG).

    pika logs on the thread that calls it, which a handler that hangs would block. fmconsume logs
    each failed connection itself, in a line; pika does so in a dozen, with tracebacks.
    """
    logger = logging.getLogger("pika")
    if logger.level != logging.DEBUG:
        logger.setLevel(logging.CRITICAL)


def is_stuck() -> bool:
    """Tell whether a handler has run for longer than a second and has not returned since."""
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
    seen, ours = _warned.setdefault(kind, {}), object()
    name = name[:255]
    if len(seen) >= _MOST_WARNINGS or seen.setdefault(name, ours) is not ours:
        return
    logger.warning(text, name, *args)
    if len(seen) == _MOST_WARNINGS:
        logger.warning("that was warning number %d of this kind, and the last", _MOST_WARNINGS)
