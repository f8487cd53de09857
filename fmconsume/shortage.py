"""Tells a machine that is short of something, which may pass, from a bug; any thread may call."""

from __future__ import annotations

import errno

from .exceptions import UnavailableException

__all__ = ["shortage"]

#: What Python says for the system's EAGAIN; it has no exception of its own for it.
_NO_THREAD = "can't start new thread"


def shortage(exc: BaseException) -> UnavailableException | None:
    """Say what this machine is short of, if that is what an exception means."""
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
