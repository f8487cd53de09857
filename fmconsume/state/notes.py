"""Tells a process what it, and others on this host, have received, finished or died of.

A folder has a secret, and a seat for each process that uses it. A process takes the first seat that
is free. It notes the messages that it receives, what each worker runs, and each outcome: that is
the worker's act, before anybody else knows the outcome. It reads its own seat at the start, and the
seats of others when a message comes again.

A message is known by a number that depends on the secret, so that nobody can make up two messages
with one number. The queue is part of it, so that services may share a folder.

A fault of the folder ends the notes, and nothing else: one warning, and the consumer goes on as if
there were no folder.

Any thread may call `fingerprint` and `fail`, and each worker uses a desk of its own; only the
supervisor's thread calls the rest.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import marshal
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from time import time
from typing import NamedTuple

from ..delivery import ACK, DROP, RETURNS, SET_ASIDE, Delivery, Verdict
from ..log import get_logger
from ..text import describe
from .seat import NO_SLOT, SLOTS, Record, Seat, encode

__all__ = ["Desk", "Mark", "Notes", "count_finished", "explain"]

_log = get_logger(__name__)

_time_of = attrgetter("time")

#: Kinds of records. A session begins: what was received before, and is not finished, is back in its
#: queue, or will be. A message is received, for the first time or again; a worker runs it (in the
#: worker's slot, never in the ring); it went back; a process died while it ran. The process ends,
#: and the broker has told it that it has every verdict.
_SESSION, _RECEIVED, _AGAIN, _RUNS, _RETURNED, _DIED, _SETTLED = range(1, 8)
#: A message was finished with this verdict. What is only rejected is as good as returned: its
#: callback never saw it.
_FINISHED = {16: ACK, 17: DROP, 18: SET_ASIDE}
_KINDS = {verdict: kind for kind, verdict in _FINISHED.items()}
_ACKED = _KINDS[ACK]
#: Added to a kind where the message has an id, so that it may be known again.
_HAS_ID = 128

#: Seats of a folder at most.
_MOST_SEATS = 256
#: Records for each message that is remembered, and for sessions and messages that come again.
_RECORDS_EACH, _RECORDS_MORE = 2, 1024


_SECRET_BYTES = 32


class Mark(NamedTuple):
    """What another process, or an earlier one, did with a message.

    Attributes:
        number: Its fingerprint.
        has_id: It has a message id.
        verdict: What it was finished with; None where it is not finished.
        is_new: It is the first mark of this very message.
        returns: How many runs of it ended, and it is to run again.
        deaths: How many of these ended with the process.
        is_settled: The broker has its verdict: if it comes again, it is another message.
    """

    number: int
    has_id: bool
    verdict: Verdict | None = None
    is_new: bool = False
    returns: int = 0
    deaths: int = 0
    is_settled: bool = False


class _Dated(NamedTuple):
    """A mark, when it was made, and the number of its message's queue."""

    time: float
    queue: int
    mark: Mark


class _QueueNumbers(dict[str, int]):
    """Numbers for the names of queues, by the secret of a folder."""

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self._secret = secret

    def __missing__(self, queue: str) -> int:
        digest = hashlib.blake2b(
            queue.encode("utf-8", "surrogatepass"), digest_size=4, key=self._secret
        ).digest()
        self[queue] = int.from_bytes(digest, "little")
        return self[queue]


class Notes:
    """The notes of one process, and what it knows of others.

    Args:
        folder: An absolute path, as the callback may change the working directory; made if it
            does not exist.
        remember: How many finished messages are remembered.

    Raises:
        ValueError: A file there is none of ours.
        OSError: The folder cannot be used.
    """

    def __init__(self, folder: Path, remember: int) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = _read_secret(folder)
        self._hash = hashlib.blake2b(digest_size=8, key=secret)
        #: The queues of this process. What others know of other queues is not for it.
        self._queues = _QueueNumbers(secret)
        self._seat = _take_seat(folder, _RECORDS_EACH * remember + _RECORDS_MORE)
        reader = _Reader(self._seat)
        #: What was found at the start.
        self._past = reader.read()
        #: Gives each number once, to any thread.
        self._numbers = itertools.count(reader.position + 1)
        #: The last number that the supervisor has given.
        self._latest = reader.position
        #: Whether it still writes and reads. Any thread sets it to False.
        self.is_on = True
        self._past += self._bury(reader)
        #: By path, the seats of others.
        self._others: dict[Path, _Reader] = {}
        _all.add(self)

    # -- for any thread ----------------------------------------------------

    def fingerprint(self, delivery: Delivery) -> int:
        """Give a number for all that was published with a message: the same in every process."""
        hasher = self._hash.copy()
        # Version 2, as later ones depend on which objects are the same.
        parts = delivery.queue, delivery.routing_key, delivery.body, *delivery.published
        hasher.update(marshal.dumps(parts, 2))
        return int.from_bytes(hasher.digest(), "little") or 1

    def __str__(self) -> str:
        """Say where the state is and how much it holds. Thread: any."""
        if not self.is_on:
            return f"state {str(self.folder)!r} is not in use"
        count = min(self._latest, self._seat.capacity)
        return f"state {str(self.folder)!r} holds {count:,} notes"

    def make_desk(self, slot: int) -> Desk:
        """Make the place where a worker takes its notes."""
        return Desk(self, self._seat, self._queues, self._numbers, slot, self._latest + 1)

    def fail(self, exc: Exception) -> None:
        """Take no more notes, and say why."""
        if self.is_on:
            self.is_on = False
            _log.warning("%s", explain(self.folder, exc))

    # -- for the supervisor ------------------------------------------------

    def begin_session(self, queues: Iterable[str]) -> None:
        """Note that a session with these queues begins."""
        for queue in queues:
            self._queues[queue]
        self._note(_SESSION)

    def receive(self, deliveries: Iterable[Delivery]) -> None:
        """Note deliveries that go to the workers."""
        records = []
        for each in deliveries:
            if each.identity or each.returns:
                sequence, kind = next(self._numbers), _AGAIN if each.redelivered else _RECEIVED
                self._latest = sequence
                queue = self._queues[each.queue]
                record = _encode(sequence, kind, NO_SLOT, each, each.returns, queue)
                records.append((sequence, record))
        self._write(records)

    def news(self) -> list[Mark]:
        """Give what others did, and this process before its start, since the last call."""
        found, self._past = self._past, []
        if self.is_on:
            try:
                for reader in self._list_others():
                    found += self._read_other(reader)
            except (OSError, ValueError) as exc:
                self.fail(exc)
        ours = set(self._queues.values())
        return [each.mark for each in sorted(found, key=_time_of) if each.queue in ours]

    def settle(self) -> None:
        """Note that the broker has said that it has every verdict."""
        self._note(_SETTLED)

    def close(self) -> None:
        """Give the seat back. A callback that still runs was abandoned, which is no death."""
        if self.is_on:
            self.is_on = False
            with suppress(OSError):
                self._seat.clear_slots()
        self._seat.release()

    def _note(self, kind: int) -> None:
        """Note what is about no message."""
        sequence = self._latest = next(self._numbers)
        self._write([(sequence, encode(0, sequence, time(), 0, 0, NO_SLOT, kind, 0))])

    def _write(self, records: list[tuple[int, bytes]]) -> None:
        if self.is_on:
            try:
                self._seat.write_all(records)
            except OSError as exc:
                self.fail(exc)

    # -- other processes ---------------------------------------------------

    def _list_others(self) -> list[_Reader]:
        for path in _list_seats(self.folder):
            if path.name != self._seat.path.name and path not in self._others:
                seat = Seat(path)
                if seat.capacity:
                    self._others[path] = _Reader(seat)
        return list(self._others.values())

    def _read_other(self, reader: _Reader) -> list[_Dated]:
        if not reader.seat.take():
            return reader.read()
        try:
            return reader.read() + self._bury(reader)
        finally:
            reader.seat.release()

    def _bury(self, reader: _Reader) -> list[_Dated]:
        """Note what a process has died of, in a seat that this process has locked."""
        found: list[_Dated] = []
        records = []
        slots = reader.seat.read_slots()
        if slots:
            latest = {record.slot: record.sequence for record in reader.seat.read_all()}
            for each in slots:
                if latest.get(each.slot, 0) < each.sequence:  # No outcome has come after it.
                    sequence, kind = next(self._numbers), _DIED | (each.kind & _HAS_ID)
                    died = each._replace(
                        sequence=sequence,
                        time=time(),
                        slot=NO_SLOT,
                        kind=kind,
                        deaths=each.deaths + 1,
                    )
                    records.append((sequence, encode(*died)))
                    found.append(_Dated(died.time, died.queue, _make_mark(died)))
            self._seat.write_all(records)
            reader.seat.clear_slots()
        return found


class Desk:
    """Takes the notes of one worker, on that worker's thread.

    Args:
        slot: The number of the worker, from 0; no seat has a place for very many.
        after: The number after the latest record of the worker who had this place before.
    """

    def __init__(
        self,
        notes: Notes,
        seat: Seat,
        queues: Mapping[str, int],
        numbers: Iterator[int],
        slot: int,
        after: int,
    ) -> None:
        self._notes = notes
        self._seat = seat
        self._queues = queues
        self._numbers = numbers
        self._slot = slot if slot < SLOTS else NO_SLOT
        #: The number after the worker's latest record.
        self._after = after

    def begin(self, delivery: Delivery) -> None:
        """Note that the worker runs a message."""
        slot = self._slot
        if self._notes.is_on and slot != NO_SLOT:
            queue = self._queues[delivery.queue]
            record = _encode(self._after, _RUNS, slot, delivery, delivery.returns + 1, queue)
            try:
                self._seat.write_slot(slot, record)
            except OSError as exc:
                self._notes.fail(exc)

    def finish(self, delivery: Delivery, verdict: Verdict) -> None:
        """Note what came of a message."""
        if not self._notes.is_on:
            return
        returns = delivery.returns + (verdict in RETURNS)
        # The first comparison is for speed: up to Python 3.11 a look-up of a Verdict is slow.
        kind = _ACKED if verdict is ACK else _KINDS.get(verdict, _RETURNED)
        sequence, queue = next(self._numbers), self._queues[delivery.queue]
        record = _encode(sequence, kind, self._slot, delivery, returns, queue)
        try:
            self._seat.write(sequence, record)
        except OSError as exc:
            self._notes.fail(exc)
        self._after = sequence + 1


#: The notes of this process, which are no business of a forked child.
_all: weakref.WeakSet[Notes] = weakref.WeakSet()


def _end_in_child() -> None:
    for notes in list(_all):
        notes.is_on = False


os.register_at_fork(after_in_child=_end_in_child)


class _Reader:
    """Reads a seat, again and again."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        #: The number of the last record that was read; 0 before the first.
        self.position = 0
        #: Numbers of the messages that were received in its session, and have no outcome.
        self._open: set[int] = set()

    def read(self) -> list[_Dated]:
        """Give a mark for each record that was not read before."""
        read = self.seat.read_after if self.position else self.seat.read_all
        found: list[_Dated] = []
        for record in read(self.position):
            self.position = record.sequence
            if record.kind == _SESSION:
                self._open.clear()
            elif record.kind == _SETTLED:
                found += self._list_settled(record)
            else:
                found.append(_Dated(record.time, record.queue, self._translate(record)))
        return found

    def _list_settled(self, end: Record) -> list[_Dated]:
        """Give a mark for each message that was finished before the end of a process."""
        finished = [
            each
            for each in self.seat.read_all()
            if each.sequence < end.sequence and each.kind & ~_HAS_ID in _FINISHED
        ]
        return [
            _Dated(end.time, each.queue, _make_mark(each)._replace(is_settled=True))
            for each in finished
        ]

    def _translate(self, record: Record) -> Mark:
        kind, number = record.kind & ~_HAS_ID, record.number
        if kind == _AGAIN and number in self._open:
            kind = _RECEIVED  # A session gets each message once: this is another one, equal to it.
        if kind in (_RECEIVED, _AGAIN):
            self._open.add(number)
        else:
            self._open.discard(number)
        return _make_mark(record)._replace(is_new=kind == _RECEIVED)


def _make_mark(record: Record) -> Mark:
    kind, has_id = record.kind & ~_HAS_ID, bool(record.kind & _HAS_ID)
    return Mark(record.number, has_id, _FINISHED.get(kind), False, record.attempt, record.deaths)


def _encode(
    sequence: int, kind: int, slot: int, delivery: Delivery, returns: int, queue: int
) -> bytes:
    """Give the bytes of the record of a delivery."""
    return encode(
        delivery.fingerprint,
        sequence,
        time(),
        queue,
        returns,
        slot,
        kind | _HAS_ID if delivery.identity else kind,
        delivery.deaths,
    )


# -- the files of a folder ---------------------------------------------------------------


def _read_secret(folder: Path) -> bytes:
    """Read the secret of a folder; make one if there is none."""
    path = folder / "secret"
    with suppress(FileNotFoundError):
        return _check_secret(path)
    mine = folder / f"secret-{secrets.token_hex(8)}"
    fd = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):  # Another process was faster.
            os.link(mine, path)
    finally:
        os.unlink(mine)
    return _check_secret(path)


def _check_secret(path: Path) -> bytes:
    # What is no file must not keep anybody waiting.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        secret = file.read(_SECRET_BYTES + 1)
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"{path.name} does not have {_SECRET_BYTES} bytes: remove it")
    return secret


def _take_seat(folder: Path, capacity: int) -> Seat:
    """Lock the first seat of this size that nobody has, or make one."""
    for number in range(_MOST_SEATS):
        seat = Seat(folder / f"seat-{number}")
        if seat.take():
            if seat.format(capacity):
                return seat
            seat.release()
    raise ValueError(f"it has {_MOST_SEATS} seats, which are taken or of another size")


def _list_seats(folder: Path) -> Iterator[Path]:
    for number in range(_MOST_SEATS):
        path = folder / f"seat-{number}"
        if not path.exists():
            return
        yield path


def explain(folder: Path, exc: Exception) -> str:
    """Say in one line why there is no state, and what that means."""
    return (
        f"state {str(folder)!r} cannot be used ({describe(exc)}): going on without, so what is "
        "finished from now on may run again after the process has ended"
    )


def count_finished(folder: Path) -> int:
    """Give how many finished messages the folder knows.

    It changes nothing: who looks may be another user than the consumer.

    Raises:
        ValueError, OSError: As for `Notes`.
    """
    if not folder.exists():
        return 0
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    with suppress(FileNotFoundError):
        _check_secret(folder / "secret")
    numbers: set[int] = set()
    for path in _list_seats(folder):
        seat = Seat(path)
        if seat.capacity:
            found = seat.read_all()
            numbers.update(each.number for each in found if each.kind & ~_HAS_ID in _FINISHED)
    return len(numbers)
