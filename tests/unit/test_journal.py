"""Tests of log lines for the journal."""

from __future__ import annotations

import logging
import os

import pytest

from fmconsume.service.journal import Formatter


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
    ("level", "priority"), [(1, 7), (10, 7), (20, 6), (25, 6), (30, 4), (40, 3), (50, 2), (99, 2)]
)
def test_format_priority(level: int, priority: int) -> None:
    """Each line starts with the syslog priority of its level."""
    assert Formatter().format(make_record(level)) == f"<{priority}>text"


@pytest.mark.usefixtures("journal")
def test_format_every_line() -> None:
    """The journal makes an entry of each line, so each has the priority."""
    text = Formatter("[%(levelname)s] %(message)s").format(make_record(logging.ERROR, "a\nb\n<0>c"))
    assert text.splitlines() == ["<3>[ERROR] a", "<3>b", "<3><0>c"]


@pytest.mark.parametrize("stream", [None, "", "8:1", "soup"])
def test_format_not_the_journal(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    """Nothing is added where standard error goes elsewhere, as it may within a service."""
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert Formatter().format(make_record(logging.ERROR, "a\nb")) == "a\nb"


@pytest.mark.usefixtures("journal")
def test_format_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without standard error logs as elsewhere."""

    def fail(descriptor: int) -> None:
        raise OSError(9, "Bad file descriptor")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        formatter = Formatter()
    assert formatter.format(make_record(logging.ERROR)) == "text"
