"""Keeps messages that were set aside or failed in a folder, a file for each; lists and reads them.

A file is one JSON object. For people and for --replay it has the fields of `record_fields`; for
--requeue it has the bytes of body and properties as they came. Any thread may call.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import reprlib
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pika import BasicProperties

from .broker.wire import Properties, encode_published, salvage
from .decoding import parse_body
from .delivery import Delivery
from .exceptions import ConfigurationException, UnavailableException, ValidationError
from .headers import to_text
from .jsonlines import record_fields
from .log import get_logger
from .message import Message
from .text import describe

__all__ = [
    "KeptMessage",
    "KeptMessages",
    "find_kept",
    "lock_folder",
    "parse_kept",
    "readable_fields",
]

_log = get_logger(__name__)

#: Seconds for which a partial file counts as being written, even if it is not locked.
_WRITING = 60.0
#: Names of the files of KeptMessages, and of no others.
_KEPT = re.compile(r".*-[0-9a-f]{16}\.fmconsume\.json", re.DOTALL)
#: Beginning and end of such a file's name while it is written.
_PARTIAL = ".fmconsume-", ".part"
#: Bytes of a topic in such a name; file systems take 255 in all.
_TOPIC_BYTES = 100
#: How such a file begins, by whether its message was set aside.
_BEGINNINGS = {b'{"set_aside": true': True, b'{"set_aside": false': False}


# -- Keeping ---------------------------------------------------------------------------


class KeptMessages:
    """A folder of messages that were set aside, or on which the callback failed.

    Several processes may share the folder. Files with other names are never touched.

    Args:
        folder: Made if it does not exist.
        limit: How many files are kept. Beyond that the oldest goes whose message was not set
            aside; if all were, the oldest.
        body_mode: As for `decode`.

    Raises:
        UnavailableException: The folder cannot be made, or not written.
    """

    def __init__(self, folder: str, limit: int, body_mode: str = "object") -> None:
        # The callback may change the working directory.
        self._folder = Path(folder).absolute()
        self._limit = limit
        self._body_mode = body_mode
        #: Whether each file's message was set aside, by the file's time and path, so that only new
        #: files are read. Any worker sets and reads it.
        self._known: dict[tuple[int, Path], bool] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._try_to_write()
        except OSError as exc:
            raise UnavailableException(f"failures.keep_in {folder!r}: {exc.strerror}") from exc
        self._remove_leftovers()

    def keep(self, delivery: Delivery, error: BaseException | str, *, is_set_aside: bool) -> Path:
        """Write a message and what was wrong; a message that fails again replaces its file.

        When this returns, the file is on the disk.

        Args:
            error: The exception, whose traceback is kept, or the reason.
            is_set_aside: The message will be rejected, so that this may be its only copy;
                else it goes back to its queue.

        Returns:
            The file; of a message that goes back, it may be gone if the folder was full.

        Raises:
            OSError: The file cannot be written.
        """
        exact = _exact(delivery)
        with lock_folder(self._folder):
            name = self._choose_name(delivery, is_set_aside)
            previous = _read_fields(self._folder / name)
            history = _describe_history(delivery, previous, is_set_aside)
            fields = {
                **history,
                **readable_fields(delivery, self._body_mode),
                **_explain(error),
                **exact,
            }
            self._write(json.dumps(fields).encode() + b"\n", name)
        try:
            self._remove_oldest()
        except OSError as exc:
            _log.error("failures.keep_in: an old one cannot be removed: %s", describe(exc))
        return self._folder / name

    def _choose_name(self, delivery: Delivery, is_set_aside: bool) -> str:
        """Give the name of a message's file.

        The file of a message that was set aside is never replaced: it may be the only copy, and
        nobody can tell a message from its equal.
        """
        name = _file_name(delivery)
        if not _is_set_aside(self._folder / name):
            return name
        return _file_name(delivery, uuid.uuid4().hex if is_set_aside else "another")

    def _write(self, line: bytes, name: str) -> None:
        """Write a file that only its owner may read; it gets its name once it is on the disk."""
        number, path = tempfile.mkstemp(_PARTIAL[1], _PARTIAL[0], self._folder)
        try:
            with open(number, "wb") as file:
                with suppress(OSError):  # Not every file system has locks.
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.write(line)
                file.flush()
                # The file system's own clock may be too coarse to tell the oldest file.
                os.utime(number, ns=(time.time_ns(), time.time_ns()))
                os.fsync(number)
                os.replace(path, self._folder / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise
        _sync_folder(self._folder)

    def _try_to_write(self) -> None:
        number, path = tempfile.mkstemp(_PARTIAL[1], _PARTIAL[0], self._folder)
        try:
            os.write(number, b"\n")
        finally:
            os.close(number)
            os.unlink(path)

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
        """Remove what is above the limit."""
        found = _scan(self._folder)
        excess = len(found) - self._limit
        if excess <= 0:
            return
        known = self._known
        states = {key: known[key] if key in known else _is_set_aside(key[1]) for key in found}
        self._known = states
        free = [path for (_, path), is_set_aside in states.items() if not is_set_aside][:excess]
        for path in free:
            path.unlink(missing_ok=True)  # Another worker removes files too.
        spared = [path for (_, path), is_set_aside in states.items() if is_set_aside]
        for path in spared[: excess - len(free)]:
            path.unlink(missing_ok=True)
            _log.warning(
                "failures.keep_in holds more than failures.keep = %d messages that were set "
                "aside: removed the oldest, %s, which may have been the only copy",
                *(self._limit, path),
            )


def _file_name(delivery: Delivery, twin: str = "") -> str:
    """Return the file name of a message, the same each time that it is delivered.

    Args:
        twin: Tells it from the file of an equal message.
    """
    known = repr((delivery.queue, delivery.message_id, delivery.routing_key))
    digest = hashlib.sha256(f"{known}{twin}".encode() + delivery.body).hexdigest()[:16]
    encoding = sys.getfilesystemencoding()
    readable = re.sub(r"[^\w.-]+", "_", str(delivery.routing_key)).encode(encoding, "ignore")
    return f"{readable[:_TOPIC_BYTES].decode(encoding, 'ignore')}-{digest}.fmconsume.json"


def _describe_history(
    delivery: Delivery, previous: dict[str, Any], is_set_aside: bool
) -> dict[str, Any]:
    """Give the fields about attempts; `set_aside` is the first, where `_is_set_aside` looks."""
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    first = previous.get("first_failed")
    return {
        "set_aside": is_set_aside,
        "attempts": delivery.attempt,
        "first_failed": first if isinstance(first, str) else now,
        "last_failed": now,
        "exchange": to_text(delivery.exchange),
    }


def readable_fields(delivery: Delivery, body_mode: str) -> dict[str, Any]:
    """Give the fields for people and for --replay, of any delivery.

    Args:
        body_mode: As for `decode`; a body that does not decode stays as it came.
    """
    properties: Any = _as_published(delivery)
    message = Message(topic=delivery.routing_key, properties=properties)
    message.body, message.queue = _parse_if_possible(delivery, body_mode), delivery.queue
    try:
        fields = record_fields(message)
        json.dumps(fields)
    except Exception:  # A callback made it contain itself, or it is nested too deep.
        message.body, headers = delivery.body, reprlib.repr(properties.headers)
        message._properties = BasicProperties(message_id=message.id, priority=message.priority)
        return {**record_fields(message), "unreadable_headers": headers}
    return fields


def _parse_if_possible(delivery: Delivery, body_mode: str) -> Any:
    if body_mode != "bytes":
        with suppress(Exception):
            return parse_body(delivery.body, delivery.properties.content_encoding)
    return delivery.body


def _as_published(delivery: Delivery) -> BasicProperties:
    """Give the properties as they came; the callback may have changed the delivery's own."""
    if len(delivery.published) < 3:
        return delivery.properties
    return Properties().decode(encode_published(delivery.published))


def _explain(error: BaseException | str) -> dict[str, str]:
    if isinstance(error, str):
        return {"reason": error}
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {"traceback": "".join(lines)}


def _exact(delivery: Delivery) -> dict[str, Any]:
    """Give the fields for --requeue."""
    properties: Any = delivery.properties
    lost: list[str] = []
    if len(delivery.published) >= 3:
        raw = encode_published(delivery.published)
    else:
        raw = getattr(properties, "raw", b"")
        if not raw:
            raw, lost = salvage(properties)
    fields = {"raw_properties": raw, "raw_body": delivery.body}
    encoded: dict[str, Any] = {
        name: base64.b64encode(value).decode() for name, value in fields.items()
    }
    flaw = getattr(properties, "flaw", "")
    return {**encoded, **({"flaw": flaw} if flaw else {}), **({"lost": lost} if lost else {})}


# -- The folder ------------------------------------------------------------------------


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other threads and processes from replacing or removing files of the folder.

    Raises:
        OSError: The folder is not there.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Not every file system has locks.
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _sync_folder(folder: Path) -> None:
    """Put the names of the folder's files on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Not every file system can do it for a folder.
            os.fsync(number)
    finally:
        os.close(number)


def _scan(folder: Path) -> list[tuple[int, Path]]:
    """List the files of KeptMessages with their times, nanoseconds; the oldest first."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _KEPT.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # Others remove files too.
                    found.append((entry.stat().st_mtime_ns, entry.path))
    return [(age, Path(path)) for age, path in sorted(found)]


def find_kept(place: str) -> list[Path]:
    """List the files of kept messages in a folder, the oldest first; or the one file.

    Raises:
        ConfigurationException: There is no such file or folder, or it cannot be read.
    """
    path = Path(place)
    try:
        if path.is_dir():
            return [each for _, each in _scan(path)]
        path.stat()
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigurationException(f"cannot read {place!r}: {reason}") from exc
    return [path]


# -- Reading ---------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptMessage:
    """The contents of one file.

    Attributes:
        attempts: Runs that failed; None where the file does not say.
        last_failed: When it was kept, ISO 8601; "" where the file does not say.
        error: The last line of the traceback, or the reason.
        lost: Properties and headers that could not be kept.
        raw_body: As it came; None where the file does not have it.
        raw_properties: As they came, in AMQP's encoding; None where the file does not have them.
    """

    is_set_aside: bool
    attempts: int | None
    last_failed: str
    queue: str
    topic: str
    message_id: str | None
    error: str
    lost: tuple[str, ...]
    raw_body: bytes | None
    raw_properties: bytes | None


def parse_kept(line: bytes) -> KeptMessage:
    """Read the contents of a file, those of earlier versions too.

    Raises:
        ValidationError: It is not what KeptMessages wrote: cut, edited or another file.
    """
    try:
        return _parse(json.loads(line))
    except Exception as exc:
        raise ValidationError(f"holds no kept message: {describe(exc)}") from exc


def _parse(fields: dict[str, Any]) -> KeptMessage:
    raw = {name: fields.get(name) for name in ("raw_body", "raw_properties")}
    decoded = {
        name: None if text is None else base64.b64decode(text, validate=True)
        for name, text in raw.items()
    }
    if decoded["raw_properties"] is not None and not _get(fields, "flaw", str, ""):
        _check_properties(decoded["raw_properties"])
    error = _get(fields, "reason", str, None) or _get(fields, "traceback", str, "")
    return KeptMessage(
        is_set_aside=_get(fields, "set_aside", bool, False),
        attempts=_get(fields, "attempts", int, None),
        last_failed=_get(fields, "last_failed", str, ""),
        queue=_get(fields, "queue", str, None) or "",
        topic=fields["topic"],
        message_id=_get(fields, "id", str, None),
        error=(error.strip().splitlines() or [""])[-1],
        lost=tuple(map(str, _get(fields, "lost", list, []))),
        **decoded,
    )


def _get(fields: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {reprlib.repr(value)}")
    return value


def _check_properties(raw: bytes) -> None:
    """Refuse bytes for which the broker would close the connection."""
    found = Properties().decode(raw)
    if found.flaw or encode_published(found.published) != raw:
        raise ValueError("raw_properties was changed")


def _read_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a file; {} without one that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        fields = json.loads(path.read_bytes())
        if isinstance(fields, dict):
            return fields
    return {}


def _is_set_aside(path: Path) -> bool:
    """Tell whether a file's message was set aside; without reading all of it, if possible."""
    with suppress(OSError), open(path, "rb") as file:
        beginning = file.read(max(map(len, _BEGINNINGS)))
        for known, answer in _BEGINNINGS.items():
            if beginning.startswith(known):
                return answer
    return _read_fields(path).get("set_aside") is True
