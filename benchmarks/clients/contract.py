"""What all clients do alike: read the same arguments, tally the messages, print one line of JSON.

`Tally.see` may be called by several threads at once; the rest is for the main thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Tally", "arguments"]


def arguments() -> argparse.Namespace:
    """Read the command line; only some clients heed the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("queue", help="or several, with commas between them")
    parser.add_argument("count", type=int, help="messages to consume, numbered from 0")
    parser.add_argument("prefetch", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that a callback sleeps")
    parser.add_argument("--steps", type=int, default=0, help="that a callback computes")
    parser.add_argument("--coroutine", action="store_true", help="use an async callback")
    parser.add_argument("--state", help="a folder for what outlives the process")
    parser.add_argument("--database", help="its URL; the callback writes a row")
    parser.add_argument("--inbox", action="store_true", help="write it in an inbox's transaction")
    return parser.parse_args()


class _Reading(NamedTuple):
    """What the clocks said at one moment, in seconds."""

    wall: float
    cpu: float


def _read_clocks() -> _Reading:
    return _Reading(time.perf_counter(), time.process_time())


class Tally:
    """Counts messages by their number, and measures from the first to the last of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        #: How often each number has come.
        self._seen = bytearray(count)
        #: Atomic, unlike `+= 1`.
        self._number = itertools.count(1).__next__
        self._begin: _Reading | None = None
        self._end: _Reading | None = None
        #: Resident memory when the last message came.
        self._rss_kb = 0
        #: Nanoseconds from publishing to here, of messages that are stamped.
        self._latencies: list[int] = []

    def see(self, body: dict[str, Any]) -> bool:
        """Take note of a message; tell whether it was the last."""
        if "sent" in body:
            self._latencies.append(time.monotonic_ns() - body["sent"])
        if self._begin is None:
            self._begin = _read_clocks()
        self._seen[body["n"]] += 1
        if self._number() < self._count:
            return False
        self._end = _read_clocks()
        self._rss_kb = _resident_kb()
        return True

    def report(self, **more: Any) -> None:
        """Print the result; to be called once everything is acknowledged and closed."""
        if self._begin is None or self._end is None:
            raise RuntimeError("the client ended before it had seen every message")
        result = {
            "messages": self._count,
            "seconds": self._end.wall - self._begin.wall,
            "cpu_seconds": self._end.cpu - self._begin.cpu,
            "rss_kb": self._rss_kb,
            "missing": self._seen.count(0),
            "repeated": sum(times > 1 for times in self._seen),
            "latencies_us": [ns / 1000 for ns in self._latencies],
        }
        print(json.dumps({**result, **more}))


def _resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // 1024
