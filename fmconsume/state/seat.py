"""Keeps the records of one process in a file of fixed size, where other processes can read them.

The file has a header, a record for each worker of what it ran last, and a ring of records. Each
record is written in one call, without a lock: its checksum tells a reader whether it is whole, and
its sequence number where the ring ends. Nothing waits for the disk: what is written outlives the
process, and perhaps the machine.

A process that has the seat holds a lock on the file; so a file without a lock is that of a process
that is gone. (A child that a callback forks closes its copy.)

Any thread may write; only the supervisor's thread calls the rest.
"""

from __future__ import annotations

import fcntl
import os
import weakref
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

__all__ = ["NO_SLOT", "SLOTS", "Record", "Seat", "encode"]

#: How a file of ours begins. Another layout gets another number.
_MAGIC = b"fmconsume seat 1"
#: Magic, records in the ring.
_HEADER = Struct("<16sI")
_BODY, _CHECK = Struct("<QQdIHHBB"), Struct("<H")
_pack_body, _pack_check, _crc32 = _BODY.pack, _CHECK.pack, zlib.crc32
_RECORD = Struct(_BODY.format + "H")
_SIZE = _RECORD.size
#: Workers whose message has a place. The header has a page of its own.
SLOTS = 1024
_SLOTS_AT = 4096
_RING_AT = _SLOTS_AT + SLOTS * _SIZE
#: The slot of a record that no worker made.
NO_SLOT = 0xFFFF
_MOST_ATTEMPTS, _MOST_DEATHS = 0xFFFF, 0xFF
#: Records that a look at another process reads at once.
_PIECE = 128


class Record(NamedTuple):
    """One record.

    Attributes:
        number: The fingerprint of a message; below 2^64, like sequence.
        sequence: From 1; no other record in the ring has the same number.
        time: When it was made, seconds since the epoch.
        queue: The number of a queue; below 2^32.
        attempt: 65,535 at most, like slot.
        slot: The number of the worker, from 0.
        kind: What it says, as notes.py defines; 255 at most, like deaths.
    """

    number: int
    sequence: int
    time: float
    queue: int
    attempt: int
    slot: int
    kind: int
    deaths: int


def encode(
    number: int,
    sequence: int,
    when: float,
    queue: int,
    attempt: int,
    slot: int,
    kind: int,
    deaths: int,
) -> bytes:
    """Give the bytes of a Record; numbers that are too large are cut."""
    if attempt > _MOST_ATTEMPTS or deaths > _MOST_DEATHS:
        attempt, deaths = min(attempt, _MOST_ATTEMPTS), min(deaths, _MOST_DEATHS)
    # Names of this module's own are faster, and this runs three times for every message.
    body = _pack_body(number, sequence, when, queue, attempt, slot, kind, deaths)
    return body + _pack_check(_crc32(body) & 0xFFFF)


def _decode(data: bytes) -> Iterator[Record]:
    """Give the records in these bytes, without those that are torn, or were never written."""
    whole = len(data) - len(data) % _SIZE
    for at, (*fields, check) in zip(range(0, whole, _SIZE), _RECORD.iter_unpack(data[:whole])):
        record = Record(*fields)
        if record.sequence and check == _crc32(data[at : at + _BODY.size]) & 0xFFFF:
            yield record


class Seat:
    """The file of one process.

    Args:
        path: Made if it does not exist.

    Raises:
        ValueError: The file is none of ours.
        OSError: It cannot be opened, or not be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        #: Closes the file once nobody needs it. A worker that was left behind may still write, and
        #: must not write to the next file with the same descriptor.
        self._close = weakref.finalize(self, os.close, self._fd)
        _seats.add(self)
        #: Records in the ring; 0 before anybody has taken the seat.
        self.capacity = self._read_capacity()

    def _read_capacity(self) -> int:
        header = os.pread(self._fd, _HEADER.size, 0)
        if not header.strip(b"\0"):
            return 0
        if len(header) == _HEADER.size:
            magic, capacity = _HEADER.unpack(header)
            if magic == _MAGIC and capacity:
                return int(capacity)
        raise ValueError(f"{self.path.name} is no file of fmconsume's")

    # -- the lock ----------------------------------------------------------

    def take(self) -> bool:
        """Lock the file; tell whether that was possible."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def format(self, capacity: int) -> bool:
        """Make the ring of a file that is locked; tell whether it has this capacity now."""
        self.capacity = self._read_capacity() or capacity
        if self.capacity == capacity:
            # All of it now, so that a disk that gets full later does not matter.
            os.posix_fallocate(self._fd, 0, _RING_AT + capacity * _SIZE)
            self._write(_HEADER.pack(_MAGIC, capacity), 0)
        return self.capacity == capacity

    def release(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    # -- the ring ----------------------------------------------------------

    def write(self, sequence: int, record: bytes) -> None:
        """Write an encoded record; raises OSError. Thread: any."""
        self._write(record, _RING_AT + sequence % self.capacity * _SIZE)

    def write_all(self, records: Iterable[tuple[int, bytes]]) -> None:
        """Write encoded records by their sequence numbers, which ascend; raises OSError."""
        run: list[bytes] = []
        first = 0
        for sequence, record in records:
            if run and sequence == first + len(run) and sequence % self.capacity:
                run.append(record)
                continue
            if run:
                self.write(first, b"".join(run))
            first, run = sequence, [record]
        if run:
            self.write(first, b"".join(run))

    def read_after(self, sequence: int) -> list[Record]:
        """Give the records after this one, oldest first."""
        found: list[Record] = []
        last = sequence
        while True:
            begin = (last + 1) % self.capacity
            count = min(_PIECE, self.capacity - begin)
            piece = self._read(begin, count, last)
            if not piece:
                return found
            if piece[-1].sequence > last + count:
                return self.read_all(sequence)  # The writer has come round the ring.
            found += piece
            last = piece[-1].sequence

    def read_all(self, sequence: int = 0) -> list[Record]:
        """Give the records after this one, wherever they are in the ring, oldest first."""
        return self._read(0, self.capacity, sequence)

    def _read(self, begin: int, count: int, sequence: int) -> list[Record]:
        data = os.pread(self._fd, count * _SIZE, _RING_AT + begin * _SIZE)
        found = [record for record in _decode(data) if record.sequence > sequence]
        return sorted(found, key=lambda record: record.sequence)

    # -- the slots ---------------------------------------------------------

    def write_slot(self, slot: int, record: bytes) -> None:
        """Write what a worker runs; raises OSError. Thread: the worker's."""
        self._write(record, _SLOTS_AT + slot * _SIZE)

    def read_slots(self) -> list[Record]:
        """Give what the workers ran last."""
        return list(_decode(os.pread(self._fd, SLOTS * _SIZE, _SLOTS_AT)))

    def clear_slots(self) -> None:
        """Forget what the workers ran; raises OSError."""
        self._write(bytes(SLOTS * _SIZE), _SLOTS_AT)

    def _write(self, data: bytes, at: int) -> None:
        written = os.pwrite(self._fd, data, at)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes were written")


#: The seats of this process, which a forked child has to close.
_seats: weakref.WeakSet[Seat] = weakref.WeakSet()


def _close_in_child() -> None:
    for seat in list(_seats):
        seat._close()


os.register_at_fork(after_in_child=_close_in_child)
