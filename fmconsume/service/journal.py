"""Formats log records for standard error, which may be the journal; any thread may call."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime
from typing import Any

from ..context import message_fields
from ..text import describe, printable, printable_lines

__all__ = ["Formatter", "JsonFormatter", "PlainFormatter"]

#: Python's levels, the highest first, each with its priority in syslog.
_PRIORITIES = ((50, 2), (40, 3), (30, 4), (20, 6))
#: What every record has, or gets from a formatter. All else was given with `extra`, or by a filter.
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


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
    """A PlainFormatter for standard error, which may be the journal.

    For the journal each line begins with its priority: "<3>" for an error. Elsewhere a record
    begins with its time, unless the format has a time of its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_journal = _is_journal()

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, which may be several lines."""
        text = self._write(record)
        if not self._is_journal:
            return text
        syslog = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        mark = f"<{syslog}>"
        # The journal makes an entry of each line.
        return mark + text.replace("\n", f"\n{mark}")

    def _write(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        has_time = self._is_journal or self.usesTime()
        return text if has_time else f"{_tell_time(record)} {text}"


class JsonFormatter(Formatter):
    """A Formatter that writes each record as a JSON object, in one line; it ignores the format.

    The object has time, level, logger and message; exception and stack, as texts, where the record
    has them; what `message_fields` gives; and what was given with `extra`.
    """

    def _write(self, record: logging.LogRecord) -> str:
        fields = {"time": _tell_time(record), "level": record.levelname, "logger": record.name}
        try:
            ours = {**fields, **self._list_texts(record)}
            # First for whoever reads the line, and last so that they win.
            return json.dumps({**ours, **self._list_more(record), **ours})
        except Exception as exc:
            return json.dumps({**fields, "message": _explain(record, exc), **message_fields()})

    def _list_more(self, record: logging.LogRecord) -> dict[str, Any]:
        """Give what was added to the record, and the message that runs."""
        more = {name: value for name, value in vars(record).items() if name not in _USUAL}
        return {**message_fields(), **{name: _simplify(value) for name, value in more.items()}}

    def _list_texts(self, record: logging.LogRecord) -> dict[str, str]:
        """Give the texts of the record."""
        texts = {"message": record.getMessage()}
        if record.exc_info:
            texts["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            texts["stack"] = self.formatStack(record.stack_info)
        return texts


def _tell_time(record: logging.LogRecord) -> str:
    """Give the time of a record in ISO 8601: local, to the millisecond, with its zone's offset."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _simplify(value: Any) -> Any:
    """Give a value as it is where JSON has it, and else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except Exception:
        return str(value)
    return value


def _is_journal() -> bool:
    """Tell whether standard error goes to the journal.

    Source: systemd.exec(5), $JOURNAL_STREAM: device and inode of the stream to the journal.
    """
    try:
        status = os.fstat(2)
    except OSError:  # Standard error is closed.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
