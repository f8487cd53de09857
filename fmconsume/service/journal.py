"""Formats log records for standard error, which may be the journal; any thread may call."""

from __future__ import annotations

import logging
import os
from typing import Any

from ..text import describe, printable, printable_lines

__all__ = ["Formatter", "PlainFormatter"]

#: Python's levels, the highest first, each with its priority in syslog.
_PRIORITIES = ((50, 2), (40, 3), (30, 4), (20, 6))


class PlainFormatter(logging.Formatter):
    """A logging.Formatter that never fails, and whose records cannot imitate others.

    A record that Python cannot format becomes a line that says where it came from. All lines but
    the first are indented, and control characters are escaped, so that no text in a record looks
    like another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, which may be several lines."""
        try:
            text = super().format(record)
        except Exception as exc:  # Arguments that do not fit, or whose __str__ fails.
            text = _explain(record, exc)
        return printable_lines(text).replace("\n", "\n  ")


def _explain(record: logging.LogRecord, error: Exception) -> str:
    """Say which record cannot be formatted, and why."""
    text = f" ({printable(record.msg)})" if isinstance(record.msg, str) else ""
    place = f"{record.pathname} line {record.lineno}"
    return f"a log record of {record.name}{text}, {place}, cannot be written: {describe(error)}"


class Formatter(PlainFormatter):
    """A PlainFormatter whose lines begin with their priority for the journal: "<3>" for an error.

    It adds nothing where standard error is not the journal, and never a time: the journal has one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_journal = _is_journal()

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, which may be several lines."""
        text = super().format(record)
        if not self._is_journal:
            return text
        syslog = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        mark = f"<{syslog}>"
        # The journal makes an entry of each line.
        return mark + text.replace("\n", f"\n{mark}")


def _is_journal() -> bool:
    """Tell whether standard error goes to the journal.

    Source: systemd.exec(5), $JOURNAL_STREAM: device and inode of the stream to the journal.
    """
    try:
        status = os.fstat(2)
    except OSError:  # Standard error is closed.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
