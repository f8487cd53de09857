"""Tests of log lines for the journal."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.service.journal import Formatter, PlainFormatter


def make_record(level: int, text: str = "text") -> logging.LogRecord:
    """Make a record as a logger would."""
    return logging.LogRecord("fmconsume.engine", level, __file__, 1, text, None, None)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard error be the journal's."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    ("level", "priority"),
    [(-1, 7), (1, 7), (10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2), (99, 2)],
)
def test_format_priority(level: int, priority: int) -> None:
    """Each line starts with the syslog priority of its level."""
    assert Formatter().format(make_record(level)) == f"<{priority}>text"


@pytest.mark.usefixtures("journal")
def test_format_every_line() -> None:
    """The journal makes an entry of each line, so each has the priority."""
    text = Formatter("[%(levelname)s] %(message)s").format(make_record(logging.ERROR, "a\nb\n<0>c"))
    assert text.splitlines() == ["<3>[ERROR] a", "<3>  b", "<3>  <0>c"]


@pytest.mark.parametrize("stream", [None, "", "8:1", "soup"])
def test_format_not_the_journal(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    """Nothing is added where standard error goes elsewhere, as it may within a service."""
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert Formatter().format(make_record(logging.ERROR, "a\nb")) == "a\n  b"


@pytest.mark.usefixtures("journal")
def test_format_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without standard error logs as elsewhere."""

    def fail(descriptor: int) -> None:
        raise OSError(9, "Bad file descriptor")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        formatter = Formatter()
    assert formatter.format(make_record(logging.ERROR)) == "text"


# -- records that mean no good


@given(text=st.text(), error=st.none() | st.text())
def test_format_one_record(text: str, error: str | None) -> None:
    """Whatever is logged, no line of it begins as a record does, and none commands a terminal."""
    try:
        raise ValueError(error)
    except ValueError:
        exc_info = sys.exc_info() if error is not None else None
    record = logging.LogRecord("a", logging.ERROR, "b.py", 1, "%s", (text,), exc_info)
    first, *rest = PlainFormatter("[%(levelname)s] %(message)s").format(record).split("\n")
    assert first.startswith("[ERROR] ")
    assert all(line.startswith("  ") for line in rest)
    shown = {char for line in (first, *rest) for char in line if not char.isprintable()}
    assert shown <= set("\t\xa0\u2009\u202f\u3000\u200c\u200d")


@pytest.mark.usefixtures("journal")
def test_format_nul() -> None:
    """The journal also makes an entry of what follows a NUL, which therefore does not get there."""
    assert Formatter().format(make_record(logging.INFO, "a\x00<0>b")) == r"<6>a\x00<0>b"


class Speechless:
    """Cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("msg", "args", "exc_info", "reason"),
    [
        ("%d", ("x",), None, "TypeError: "),
        ("%s %s", ("x",), None, "TypeError: not enough arguments"),
        ("%(a)s", ({"b": 1},), None, "KeyError: 'a'"),
        ("%s", (Speechless(),), None, "RuntimeError: no text"),
        (Speechless(), (), None, "RuntimeError: no text"),
        ("text", (), "no error", ""),
    ],
)
def test_format_never_raises(msg: Any, args: Any, exc_info: Any, reason: str) -> None:
    """A record that cannot be written is a line that says where it came from, and why."""
    record = logging.LogRecord("a", logging.ERROR, "b.py", 7, msg, args, exc_info)
    text = Formatter().format(record)
    assert text.startswith("a log record of a")
    assert f", b.py line 7, cannot be written: {reason}" in text
    assert "\n" not in text
