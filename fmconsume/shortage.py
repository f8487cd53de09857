"""Tells an error of a machine that is short of something from a bug; any thread may call.

A shortage may pass: the same call may work later.
"""

from __future__ import annotations

import errno

from .exceptions import UnavailableException

__all__ = ["shortage"]

#: Python's RuntimeError for a thread that the system refuses can only be told by its text.
_NO_THREAD = "can't start new thread"


def shortage(exc: BaseException) -> UnavailableException | None:
    """Return an error that names the thing this machine is short of; None for any other error."""
    text = ""
    if isinstance(exc, RuntimeError) and str(exc) == _NO_THREAD:
        text = "no thread can be started now: see the unit's TasksMax=, or ulimit -u"
    elif isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        text = "no file can be opened now: see the unit's LimitNOFILE=, or ulimit -n"
    elif isinstance(exc, MemoryError):
        text = "there is no memory left: see the unit's MemoryMax=, or ulimit -v"
    if not text:
        return None
    result = UnavailableException(text)
    result.__cause__ = exc
    return result
