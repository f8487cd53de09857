"""Publishes messages that were set aside to their queues again, and tells what is kept.

This is --requeue and --failed. One thread calls the functions.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import IO, NamedTuple

from .broker.request import Request
from .broker.wire import EncodedProperties, Properties
from .console import say
from .exceptions import (
    ConnectionException,
    PublishException,
    PublishForbidden,
    PublishReturned,
    ValidationError,
)
from .kept import KeptMessage, find_kept, lock_folder, parse_kept
from .publisher import send
from .text import brief, printable

__all__ = ["requeue", "tell_kept"]

#: Seconds that the broker gets for each message, connecting included.
_TIMEOUT = 30.0
#: Headers whose routing keys RabbitMQ adds to that of the message.
_MORE_KEYS = ("CC", "BCC")
#: Why a file is skipped that is not the one that was found.
_GONE = "another process has requeued or kept it meanwhile"
#: Characters of a topic, and of an error, in the table of what is kept.
_TOPIC_LENGTH, _ERROR_LENGTH = 40, 100


class _Left(Exception):
    """Raised when a file is left where it is, because of an error."""


class _Skipped(Exception):
    """Raised when a file is left where it is, as there is nothing to do."""


# -- requeue ---------------------------------------------------------------------------


def requeue(place: str, limit: int | None = None, *, is_dry: bool = False) -> int:
    """Publish messages that were set aside to their queues, and print a table of it.

    Each has the body and the properties that it came with. Its file is removed once the broker
    has confirmed it: if the process dies in between, the message is there and in its queue.

    Args:
        place: A file, or a folder of them; the oldest comes first.
        limit: Stop after so many messages.
        is_dry: Change nothing, and connect to nothing.

    Returns:
        1 if a file was left because of an error, else 0.

    Raises:
        ConfigurationException: There is no such place, or the configuration cannot be used.
    """
    paths = find_kept(place)
    rows = [_identify(path) for path in paths]
    widths = [max(map(len, column)) for column in zip(*rows)]
    counts: Counter[str] = Counter()
    run = _Run(is_dry)
    done = "would be requeued" if is_dry else "requeued"
    for path, row in zip(paths, rows):
        if counts[done] == limit:
            break
        word, text = run.handle(path)
        counts[word] += 1
        say(f"{_align(row, widths)}  {word}{text and ': '}{text}")
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    say(f"{sum(counts.values())} files: {summary}" if counts else f"no kept messages in {place}")
    return 1 if counts["left"] else 0


class _Row(NamedTuple):
    name: str
    message_id: str
    queue: str


def _identify(path: Path) -> _Row:
    """Give what the table calls a file and its message."""
    name = printable(path.name)
    try:
        message = parse_kept(path.read_bytes())
    except (OSError, ValidationError):
        return _Row(name, "?", "?")
    return _Row(name, printable(message.message_id or "no id"), printable(message.queue))


def _align(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{text:{width}}" for text, width in zip(row, widths))


class _Run:
    """Publishes one file after the other, until there is no broker to publish to."""

    def __init__(self, is_dry: bool) -> None:
        self._is_dry = is_dry
        #: Why no other message is tried; "" as long as they are.
        self._trouble = ""

    def handle(self, path: Path) -> tuple[str, str]:
        """Requeue the message in a file.

        Returns:
            What has become of it in a word, and why.
        """
        try:
            with open(path, "rb") as file:
                return self._handle(path, file)
        except FileNotFoundError:
            return "skipped", _GONE
        except _Skipped as exc:
            return "skipped", str(exc)
        except (_Left, ValidationError) as exc:
            return "left", brief(str(exc))
        except OSError as exc:
            return "left", brief(f"{exc.strerror or exc}")

    def _handle(self, path: Path, file: IO[bytes]) -> tuple[str, str]:
        _lock(path, file)
        message = parse_kept(file.read())
        request = _make_request(message)
        if self._is_dry:
            return "would be requeued", _tell_lost(message)
        if self._trouble:
            raise _Left(f"not tried: {self._trouble}")
        if not os.access(path.parent, os.W_OK):
            raise _Left("not tried: the folder cannot be written, and the file not be removed")
        self._publish(request)
        try:
            _remove(path, file)
        except OSError as exc:
            reason = exc.strerror or exc
            raise _Left(f"requeued, but the file cannot be removed ({reason}): remove it") from exc
        return "requeued", _tell_lost(message)

    def _publish(self, request: Request) -> None:
        request.deadline = monotonic() + _TIMEOUT
        try:
            send(request)
        except (PublishReturned, PublishForbidden) as exc:
            raise _Left(f"queue {request.routing_key!r}: {exc}") from exc
        except (PublishException, ConnectionException) as exc:
            # The next message would fare no better.
            self._trouble = str(exc)
            raise _Left(str(exc)) from exc


def _tell_lost(message: KeptMessage) -> str:
    return f"without {printable(', '.join(message.lost))}" if message.lost else ""


def _make_request(message: KeptMessage) -> Request:
    """Make the request that publishes a message as it came.

    Raises:
        _Skipped, _Left: It is not to be published, or cannot be.
        ValidationError: It cannot be encoded.
    """
    if not message.is_set_aside:
        raise _Skipped("it was not set aside: the message is in its queue")
    if not message.queue or message.raw_body is None or message.raw_properties is None:
        raise _Left("holds no kept message: queue, raw_body or raw_properties is missing")
    headers = Properties().decode(message.raw_properties).headers
    for name in _MORE_KEYS:
        if headers and name in headers:
            raise _Left(f"its header {name} would send copies to other queues")
    properties = EncodedProperties(message.raw_properties)
    # The nameless exchange delivers to the queue that the routing key names, and to no other.
    return Request("", message.queue, message.raw_body, properties, 0.0, mandatory=True)


def _lock(path: Path, file: IO[bytes]) -> None:
    """Claim a file, so that another process which requeues it at the same time leaves it alone."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _Skipped("another process requeues it") from None
    except OSError:  # Not every file system has locks.
        return
    if not _is_same(path, file):
        raise _Skipped(_GONE)


def _remove(path: Path, file: IO[bytes]) -> None:
    """Remove a file, unless the message has failed again meanwhile and replaced it."""
    with lock_folder(path.parent):
        if _is_same(path, file):
            path.unlink()


def _is_same(path: Path, file: IO[bytes]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


# -- what is kept ----------------------------------------------------------------------


def tell_kept(folder: str) -> int:
    """Print a table of the messages in a folder, the newest first.

    Args:
        folder: The configured one, or another; "" if there is none.

    Returns:
        0, as an exit status.

    Raises:
        ConfigurationException: The folder cannot be read.
    """
    if not folder:
        say("no messages are kept: failures.keep_in is not set")
    elif not os.path.isdir(folder):
        say(f"no messages are kept: there is no folder {printable(folder)}")
    else:
        rows = sorted(map(_tell, find_kept(folder)), reverse=True)
        _say_table([row for _, row in rows], folder)
    return 0


_TITLES = ("last failed (UTC)", "queue", "topic", "attempts", "message", "file", "error")


def _say_table(rows: list[tuple[str, ...]], folder: str) -> None:
    if not rows:
        say(f"no kept messages in {printable(folder)}")
        return
    widths = [max(map(len, column)) for column in zip(*rows, _TITLES)][:-1]
    for row in (_TITLES, *rows):
        say(f"{_align(row, widths)}  {row[-1]}")


def _tell(path: Path) -> tuple[float, tuple[str, ...]]:
    """Give when a message was kept, in seconds since 1970, and its row."""
    name = printable(path.name)
    try:
        message = parse_kept(path.read_bytes())
        when = _read_time(message.last_failed) or path.stat().st_mtime
    except (OSError, ValidationError) as exc:
        return 0.0, (*"?????", name, brief(str(exc)))
    return when, (
        f"{datetime.fromtimestamp(when, timezone.utc):%Y-%m-%d %H:%M:%S}",
        printable(message.queue),
        printable(message.topic, _TOPIC_LENGTH),
        "?" if message.attempts is None else str(message.attempts),
        "set aside" if message.is_set_aside else "returned",
        name,
        printable(message.error, _ERROR_LENGTH),
    )


def _read_time(text: str) -> float:
    """Give the seconds since 1970; 0 for what is no time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
