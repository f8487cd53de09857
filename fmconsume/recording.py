"""Files of messages, as lines of JSON: every message recorded, failed ones kept, either replayed.

A Recorder and FailedMessages may be called on any worker; one thread calls `replay`.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import reprlib
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Callable

from pika import BasicProperties

from .console import say
from .decoding import parse_body
from .delivery import Delivery, Outcome
from .engine.pool import rehearse
from .engine.processor import make_processor
from .exceptions import (
    ConfigurationException,
    HaltConsumer,
    UnavailableException,
    ValidationError,
)
from .jsonlines import dump_record, load_delivery
from .log import get_logger
from .message import Message
from .text import brief, describe, printable

__all__ = ["FailedMessages", "Recorder", "replay"]

_log = get_logger(__name__)

#: Seconds for which a partial file counts as being written, even if it is not locked.
_WRITING = 60.0

#: Characters of the progress bar.
_WIDTH = 40
#: Names of the files of FailedMessages, and of no others.
_KEPT = re.compile(r".*-[0-9a-f]{16}\.fmconsume\.json", re.DOTALL)
#: Beginning and end of such a file's name while it is written.
_PARTIAL = ".fmconsume-", ".part"
#: Bytes of a topic in such a name; file systems take 255 in all.
_TOPIC_BYTES = 100


class Recorder:
    """A callback that adds each message to a file.

    Args:
        path: The file; lines that it holds already stay.
        limit: How many messages there will be, for a progress bar on a terminal.

    Raises:
        ConfigurationException: The file cannot be opened.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self._path = path
        try:
            _end_torn_line(path)
        except OSError as exc:
            raise ConfigurationException(f"cannot record to {path!r}: {exc.strerror}") from exc
        self._limit = limit if sys.stderr and sys.stderr.isatty() else None
        self._count = itertools.count(1)

    def __call__(self, message: Message) -> None:
        """Write one message; when this returns, the operating system has it."""
        with open(self._path, "ab") as file:
            file.write(dump_record(message))
        if self._limit is not None:
            _show_progress(next(self._count), self._limit)


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


class FailedMessages:
    """A folder of messages on which the callback failed, each in a file that can be replayed.

    Several processes may share the folder. Files with other names are never touched.

    Args:
        folder: Made if it does not exist.
        limit: How many files are kept; beyond that the oldest is removed.
        body_mode: As for `decode`.

    Raises:
        UnavailableException: The folder cannot be made.
    """

    def __init__(self, folder: str, limit: int, body_mode: str = "object") -> None:
        # The callback may change the working directory.
        self._folder = Path(folder).absolute()
        self._limit = limit
        self._body_mode = body_mode
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UnavailableException(f"failed_messages {folder!r}: {exc.strerror}") from exc
        self._remove_leftovers()

    def keep(self, delivery: Delivery, error: BaseException) -> None:
        """Write a message and the traceback; a message that fails again replaces its file.

        Raises:
            OSError: The file cannot be written.
        """
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._write(self._line_of(delivery, trace), _file_name(delivery))
        try:
            self._remove_oldest()
        except OSError as exc:
            _log.error("failed_messages: an old one cannot be removed: %s", describe(exc))

    def _line_of(self, delivery: Delivery, trace: str) -> bytes:
        properties: Any = delivery.properties
        message = Message(topic=delivery.routing_key, properties=properties)
        message.body, message.queue = self._body_of(delivery), delivery.queue
        try:
            return dump_record(message, traceback=trace)
        except Exception:  # A callback made it contain itself, or it is nested too deep.
            message.body, headers = delivery.body, reprlib.repr(properties.headers)
            message._properties = BasicProperties(message_id=message.id, priority=message.priority)
            return dump_record(message, traceback=trace, unreadable_headers=headers)

    def _body_of(self, delivery: Delivery) -> Any:
        body = delivery.body
        if self._body_mode != "bytes":
            with suppress(Exception):  # A body that does not decode is kept as it came.
                return parse_body(body, delivery.properties.content_encoding)
        return body

    def _write(self, line: bytes, name: str) -> None:
        """Write a file that only its owner may read; it gets its name once it is whole."""
        number, path = tempfile.mkstemp(_PARTIAL[1], _PARTIAL[0], self._folder)
        try:
            with open(number, "wb") as file:
                with suppress(OSError):  # Not every file system has locks.
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.write(line)
                file.flush()
                # The file system's own clock may be too coarse to tell the oldest file.
                os.utime(number, ns=(time.time_ns(), time.time_ns()))
                os.replace(path, self._folder / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def _remove_leftovers(self) -> None:
        """Remove the partial files of processes that were killed."""
        for path in self._folder.glob("*".join(_PARTIAL)):
            # A file that is being written is locked, or so new that it will be at once.
            with suppress(OSError), open(path, "rb+") as file:
                if time.time() - os.fstat(file.fileno()).st_mtime < _WRITING:
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _remove_oldest(self) -> None:
        ages = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _KEPT.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # Another worker removes files too.
                        ages.append((entry.stat().st_mtime_ns, entry.path))
        for _, path in sorted(ages)[: -self._limit]:
            with suppress(FileNotFoundError):
                os.unlink(path)


def _file_name(delivery: Delivery) -> str:
    """Return the file name of a message, the same each time that it is delivered."""
    known = repr((delivery.queue, delivery.message_id, delivery.routing_key))
    digest = hashlib.sha256(known.encode() + delivery.body).hexdigest()[:16]
    encoding = sys.getfilesystemencoding()
    readable = re.sub(r"[^\w.-]+", "_", str(delivery.routing_key)).encode(encoding, "ignore")
    return f"{readable[:_TOPIC_BYTES].decode(encoding, 'ignore')}-{digest}.fmconsume.json"


# -- Replay ----------------------------------------------------------------------------


def replay(
    path: str, callback: Callable[..., Any], body_mode: str = "object", limit: int | None = None
) -> int:
    """Call a callback with each message in a file, and print its verdict.

    Args:
        path: As a Recorder or FailedMessages wrote it.
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
        file = open(path, "rb")  # noqa: SIM115
    except OSError as exc:
        raise ConfigurationException(f"cannot replay {path!r}: {exc.strerror}") from exc
    counts: Counter[str] = Counter()
    halt = None
    with file, rehearse(make_processor(callback, body_mode)) as run:
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
