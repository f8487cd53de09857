"""Files of messages, as lines of JSON: every message recorded, and replayed.

A Recorder may be called on any worker; one thread calls `replay`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
import sys
from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import Any, Callable

from .console import say
from .delivery import Delivery, Outcome
from .engine.pool import rehearse
from .engine.processor import make_processor
from .exceptions import (
    ConfigurationException,
    ExitCode,
    HaltConsumer,
    UnavailableException,
    ValidationError,
)
from .jsonlines import dump_record, load_delivery
from .message import Message
from .service.tracing import trace
from .text import brief, describe, printable

__all__ = ["Recorder", "replay"]

#: The path that stands for standard output, or standard input.
_STANDARD = "-"
#: Characters of the progress bar.
_WIDTH = 40


class Recorder:
    """A callback that adds each message to a file.

    Args:
        path: The file; lines that it holds already stay. "-" is standard output.
        limit: How many messages there will be, for a progress bar on a terminal.

    Raises:
        ConfigurationException: The file cannot be opened.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self._path = path
        try:
            if path != _STANDARD:
                _end_torn_line(path)
        except OSError as exc:
            raise ConfigurationException(f"cannot record to {path!r}: {exc.strerror}") from exc
        self._limit = limit if sys.stderr and sys.stderr.isatty() else None
        self._count = itertools.count(1)

    def __call__(self, message: Message) -> None:
        """Write one message; when this returns, the operating system has it.

        Raises:
            HaltConsumer: It cannot be written, and goes back, whatever [failures] says.
        """
        try:
            self.write(dump_record(message))
        except Exception as exc:
            reason = exc if isinstance(exc, UnavailableException) else describe(exc)
            raise HaltConsumer(ExitCode.TEMPORARY, str(reason), requeue=True) from exc

    def write(self, line: bytes) -> None:
        """Write the line of one message.

        Raises:
            UnavailableException: It cannot be written, and nothing of it is.
        """
        try:
            self._append(line)
        except OSError as exc:
            raise UnavailableException(f"cannot record to {self._path!r}: {exc.strerror}") from exc
        if self._limit is not None:
            _show_progress(next(self._count), self._limit)

    def _append(self, line: bytes) -> None:
        """Write the whole line, or nothing."""
        is_standard = self._path == _STANDARD
        with open(1 if is_standard else self._path, "ab", 0, closefd=not is_standard) as file:
            with suppress(OSError):  # Another worker or process; not every file has locks.
                fcntl.flock(file, fcntl.LOCK_EX)
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            end = file.seek(0, os.SEEK_END) if is_regular else None
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                if end is not None:
                    file.truncate(end)
                raise


def _end_torn_line(path: str) -> None:
    """Make the file; if a recorder was killed while it wrote the last line, end that line."""
    with open(path, "ab"):
        pass
    if os.path.isfile(path) and os.path.getsize(path):
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")


def _show_progress(count: int, limit: int) -> None:
    bar = "#" * (_WIDTH * count // limit)
    end = "\n" if count == limit else ""
    with suppress(OSError):  # The terminal was closed.
        print(f"\r[{bar:{_WIDTH}}] {count}/{limit}", end=end, file=sys.stderr, flush=True)


# -- Replay ----------------------------------------------------------------------------


def replay(
    path: str, callback: Callable[..., Any], body_mode: str = "object", limit: int | None = None
) -> int:
    """Call a callback with each message in a file, and print its verdict.

    Args:
        path: As a Recorder or KeptMessages wrote it; "-" is standard input.
        callback: As for a Consumer.
        body_mode: As for `decode`.
        limit: Stop after so many messages.

    Returns:
        1 if a line holds no message, a message was rejected or the callback failed; else the
        exit code with which the callback halted, or 0.

    Raises:
        ConfigurationException: The file cannot be opened.
        ValueError: The callback cannot be called with a message.
        Exception: Whatever the constructor of a callback class raises.
    """
    try:
        is_standard = path == _STANDARD
        file = open(0 if is_standard else path, "rb", closefd=not is_standard)  # noqa: SIM115
    except OSError as exc:
        raise ConfigurationException(f"cannot replay {path!r}: {exc.strerror}") from exc
    counts: Counter[str] = Counter()
    halt = None
    with file, rehearse(make_processor(callback, body_mode, wrap=trace)) as run:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in islice(lines, limit):
            word, text, halt = _replay_line(run, line, number)
            counts[word] += 1
            say(f"{word}: {text}")
            if halt is not None:
                break
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    say(f"{sum(counts.values())} messages: {summary}" if counts else "no messages")
    has_failed = any(counts[word] for word in ("broken", "failed", "rejected"))
    return 1 if has_failed else getattr(halt, "exit_code", 0)


def _replay_line(
    run: Callable[[Delivery], Outcome], line: bytes, number: int
) -> tuple[str, str, HaltConsumer | None]:
    """Run the message in a line.

    Returns:
        The verdict in a word, the details, and the HaltConsumer that ends the replay, if any.
    """
    try:
        outcome = run(load_delivery(line, number))
    except ValidationError as exc:
        return "broken", exc.summary, None
    text, error = f"line {number}, {printable(outcome.delivery.name)}", outcome.error
    if error is None:
        return outcome.verdict.value, text, None
    if isinstance(error, HaltConsumer):
        return "halted", f"{text}: {brief(str(error))}", error
    return "failed", f"{text}: {describe(error)}", None
