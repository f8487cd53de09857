"""Tests of telling a machine that is short of something from a bug."""

from __future__ import annotations

import errno
import threading

import pytest

from fmconsume.shortage import shortage


def test_shortage_of_threads_is_what_python_says() -> None:
    """A thread that cannot be started for want of memory for its stack is a shortage."""
    before = threading.stack_size(2**46)
    try:
        with pytest.raises(RuntimeError) as caught:
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    short = shortage(caught.value)
    assert short is not None
    assert str(short).startswith("no thread can be started now: see the unit's TasksMax=")
    assert short.__cause__ is caught.value


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "no file can be opened now"),
        (OSError(errno.ENFILE, "File table overflow"), "no file can be opened now"),
        (MemoryError(), "there is no memory left"),
    ],
)
def test_shortage_named(error: BaseException, text: str) -> None:
    """What the machine is short of is named, with the limit to look at."""
    assert str(shortage(error)).startswith(f"{text}: ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("threads can only be started once"),
        OSError(errno.ENOENT, "No such file"),
        KeyError("a bug"),
    ],
    ids=repr,
)
def test_shortage_none(error: BaseException) -> None:
    """Anything else is no shortage."""
    assert shortage(error) is None
