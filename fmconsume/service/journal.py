"""Formats log records for standard error, where that is the journal; any thread may log."""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["Formatter"]

#: Python's levels from the highest, and what syslog calls them.
_PRIORITIES = ((50, 2), (40, 3), (30, 4), (20, 6), (0, 7))


class Formatter(logging.Formatter):
    """A logging.Formatter whose lines tell the journal their priority: "<3>" for an error.

    It adds nothing where standard error is not the journal. The time it leaves to the journal.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_journal = _is_journal()

    def format(self, record: logging.LogRecord) -> str:
        """Write a record, which may be several lines."""
        text = super().format(record)
        if not self._is_journal:
            return text
        mark = next(f"<{syslog}>" for level, syslog in _PRIORITIES if record.levelno >= level)
        # The journal makes an entry of each line.
        return mark + text.replace("\n", f"\n{mark}")


def _is_journal() -> bool:
    """Tell whether standard error goes to the journal.

    Source: systemd.exec(5), $JOURNAL_STREAM: device and inode of what the journal reads.
    """
    try:
        status = os.fstat(2)
    except OSError:  # It is closed.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
