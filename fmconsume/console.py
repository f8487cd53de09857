"""Writes lines for a person to standard output and standard error, and never fails at it.

They may be closed, full, a pipe that nobody reads, or know only ASCII: none of this raises, or
changes the exit status. The main thread calls `prepare`, any thread the rest.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from . import log

__all__ = ["complain", "end", "end_soon", "flush", "prepare", "say"]

#: Seconds that the reader of standard error gets to make room for a line.
_PATIENCE = 1.0
#: Seconds that the program's own threads get to end after the command is done.
_LAST_PATIENCE = 5.0


def prepare() -> None:
    """Replace closed streams, and flush the others at exit without ever failing."""
    with suppress(OSError):
        _occupy_standard_descriptors()
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # Python found it closed.
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # atexit runs the last function first: register this one before a callback's module can.
    atexit.unregister(flush)
    atexit.register(flush)


def say(text: str) -> None:
    """Print a line to standard output."""
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """Print a line to standard error, wherever the log goes; a pipe that nobody reads gets none."""
    if _is_read(sys.stderr):
        _write(sys.stderr, f"fmconsume: {text}")


def end(status: int) -> None:
    """End the process without the interpreter's shutdown, which could wait for ever."""
    if _is_read(sys.stderr):
        # On another thread: one that hangs may hold a lock of logging.
        last = threading.Thread(target=logging.shutdown, name="fmconsume-farewell", daemon=True)
        with suppress(RuntimeError):
            last.start()
            last.join(_PATIENCE)
        flush()
    os._exit(status)


def end_soon(status: int) -> None:
    """After five seconds, end a process that failed, whatever threads still run in it.

    A process that did not fail waits for the program's own threads, which may have work to
    finish, and says so.
    """
    watch = threading.Thread(target=_end_late, args=(status,), name="fmconsume-end", daemon=True)
    with suppress(RuntimeError):
        watch.start()


def _end_late(status: int) -> None:
    time.sleep(_LAST_PATIENCE)
    main = threading.main_thread()
    ours = (main, threading.current_thread())
    left = [each.name for each in threading.enumerate() if not (each.daemon or each in ours)]
    names = f"the callback's own threads {', '.join(left)}"
    if left:
        complain(f"{'left behind' if status else 'waiting; a signal ends that'}: {names}")
    if status:
        end(status)


def flush() -> None:
    """Flush both streams; if Python's own flush failed, the exit status would be 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # A program may have put any object there.
            _silence(stream)


def _occupy_standard_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed.

    The system would give it to a connection, and C code that prints would write into that.
    """
    number = 0
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


def _is_read(stream: Any) -> bool:
    """Tell whether a stream takes a line now; a pipe that is full does not."""
    if log.is_stuck():
        return False
    try:
        return bool(select.select([], [stream], [], _PATIENCE)[1])
    except (OSError, ValueError, TypeError, AttributeError):
        return True  # It has no descriptor; only writing tells.


def _write(stream: Any, text: str) -> None:
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except Exception:  # A program may have put any object there.
        _silence(stream)


def _silence(stream: Any) -> None:
    """Point a stream that cannot be written to at /dev/null, so that no later write fails."""
    # A stream without a descriptor is the program's own object: leave it alone.
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
