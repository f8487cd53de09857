"""Writes for a person: to standard output and standard error, whatever these are.

They may be closed, full, a pipe that nobody reads, or know only ASCII. None of this is a reason to
fail, nor to end with another exit status. The main thread calls `prepare`, any thread the rest.
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

#: Seconds that whoever reads standard error gets to make room for a line.
_PATIENCE = 1.0
#: Seconds that threads of the program's own get to end once there is nothing more to do.
_LAST_PATIENCE = 5.0


def prepare() -> None:
    """Stand in for streams that are closed, and see to it that the others fail no exit."""
    with suppress(OSError):
        _occupy_standard_descriptors()
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # Python found it closed.
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # Registered before a callback is imported, so that it runs after what that registers.
    atexit.unregister(flush)
    atexit.register(flush)


def say(text: str) -> None:
    """Print a line to standard output."""
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """Print a line to standard error, wherever the log goes, unless nobody reads it."""
    if _is_read(sys.stderr):
        _write(sys.stderr, f"fmconsume: {text}")


def end(status: int) -> None:
    """End the process without the interpreter's farewell, which could wait for ever."""
    if _is_read(sys.stderr):
        # Not here: who holds a lock of logging may not give it back.
        last = threading.Thread(target=logging.shutdown, name="fmconsume-farewell", daemon=True)
        with suppress(RuntimeError):
            last.start()
            last.join(_PATIENCE)
        flush()
    os._exit(status)


def end_soon(status: int) -> None:
    """See to it that a process that failed ends, even where a thread of the program's own does not.

    One that was stopped waits for it, and says so: it may have something to finish.
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
    """Write out what is left; Python would end with status 120 where that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # A program may have put anything there.
            _silence(stream)


def _occupy_standard_descriptors() -> None:
    """Keep descriptors 0 to 2 from being given to a connection, which C code would write to."""
    number = 0
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


def _is_read(stream: Any) -> bool:
    """Tell a stream that takes a line from a pipe that is full."""
    if log.is_stuck():
        return False
    try:
        return bool(select.select([], [stream], [], _PATIENCE)[1])
    except (OSError, ValueError, TypeError, AttributeError):
        return True  # It is no file of the system's; writing tells.


def _write(stream: Any, text: str) -> None:
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except Exception:  # A program may have put anything there.
        _silence(stream)


def _silence(stream: Any) -> None:
    """Lead a stream that cannot be written to nowhere, so that nothing that follows fails."""
    # What has no descriptor is a program's own, and its own affair.
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
