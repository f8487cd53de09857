"""Remembers the last warnings and errors of the whole program, for the monitoring server.

The thread that logs adds entries; any thread may read them without a lock.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from .journal import PlainFormatter

__all__ = ["Entry", "Recent"]

#: How many log entries are remembered.
_ENTRIES = 20
#: Characters to which a log entry is cut.
_ENTRY_LENGTH = 4000
#: What differs in warnings that are alike: times of day, durations, and counts of attempts.
_DIFFERS = re.compile(r"\b(\d\d:\d\d:\d\d|[\d.]+ s|\d+ attempts?|attempt \d+)\b")


class Entry(NamedTuple):
    """A log record as a person reads it, or several that are alike.

    Attributes:
        created: Of the first one, seconds since the epoch; `last` is that of the last one.
        text: Of the last one.
        times: How many there were.
    """

    created: float
    last: float
    level: str
    text: str
    times: int = 1


class Recent(logging.Handler):
    """Remembers the last warnings and errors of the whole program, within a `with` block.

    Those that are alike are one entry, which counts them: else one that comes every minute would
    soon be the only one that is left.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(PlainFormatter())
        #: The entries that came last, oldest first; replaced whole by the thread that logs.
        self.entries: tuple[Entry, ...] = ()
        #: The same entries by their levels and by what does not differ in those that are alike.
        self._known: dict[tuple[str, str], Entry] = {}
        #: Each logger to which this handler, or Python's last resort, was added.
        self._added: list[tuple[logging.Logger, logging.Handler]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        text = self.format(record)[:_ENTRY_LENGTH]
        level, created = record.levelname, record.created
        key = level, _DIFFERS.sub("", text)
        earlier = self._known.pop(key, Entry(created, created, level, text, 0))
        self._known[key] = earlier._replace(last=created, text=text, times=earlier.times + 1)
        if len(self._known) > _ENTRIES:
            del self._known[next(iter(self._known))]
        self.entries = tuple(self._known.values())

    def __enter__(self) -> Recent:
        root, ours = logging.getLogger(), logging.getLogger("fmconsume")
        if logging.lastResort and not ours.hasHandlers():
            # Python uses it only while there is no handler, and this handler writes nothing.
            self._added.append((root, logging.lastResort))
        self._added += [(root, self)] if ours.propagate else [(root, self), (ours, self)]
        for logger, handler in self._added:
            logger.addHandler(handler)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for logger, handler in self._added:
            logger.removeHandler(handler)
