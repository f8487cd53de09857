"""Tests of the file in which a process keeps its records."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fmconsume.state.seat import SLOTS, Record, Seat, encode


def make_seat(folder: Path, capacity: int = 10) -> Seat:
    """Take a seat."""
    seat = Seat(folder / "seat")
    assert seat.take()
    assert seat.format(capacity)
    return seat


def record(sequence: int, **fields: int) -> bytes:
    """Make a record whose number is ten times its sequence number."""
    values = {"queue": 5, "attempt": 1, "slot": 2, "kind": 3, "deaths": 4, **fields}
    return encode(10 * sequence, sequence, 1000.5, *values.values())


def write(seat: Seat, *sequences: int) -> None:
    """Write records."""
    seat.write_all((sequence, record(sequence)) for sequence in sequences)


def test_record(tmp_path: Path) -> None:
    """A record comes back as it was written; numbers that do not fit are cut."""
    seat = make_seat(tmp_path)
    seat.write(1, encode(2**64 - 1, 1, 1000.5, 2**32 - 1, 100_000, 7, 255, 300))
    assert seat.read_all() == [Record(2**64 - 1, 1, 1000.5, 2**32 - 1, 0xFFFF, 7, 255, 0xFF)]


@pytest.mark.parametrize("written", [0, 1, 9, 10, 11, 25, 1000])
@pytest.mark.parametrize("known", [0, 1, 9, 10, 24])
def test_read(tmp_path: Path, written: int, known: int) -> None:
    """The last records are there, oldest first, and so are those after any of them."""
    seat = make_seat(tmp_path)
    write(seat, *range(1, written + 1))
    last = [sequence for sequence in range(1, written + 1) if sequence > written - 10]
    assert [each.sequence for each in seat.read_all()] == last
    found = [each.sequence for each in seat.read_after(known)]
    assert found == [sequence for sequence in last if sequence > known]


def test_read_over_a_gap(tmp_path: Path) -> None:
    """A number that was given to a thread that never wrote hides nothing."""
    seat = make_seat(tmp_path, 1000)
    write(seat, 1, 2, 4, 5)
    assert [each.sequence for each in seat.read_after(1)] == [2, 4, 5]
    write(seat, *range(7, 600))
    assert [each.sequence for each in seat.read_after(5)] == list(range(7, 600))


def test_read_torn(tmp_path: Path) -> None:
    """What is torn, or noise, is passed over."""
    seat = make_seat(tmp_path)
    write(seat, 1, 2, 3)
    seat.write(2, record(2)[:20] + bytes(16))
    seat.write(4, os.urandom(36))
    assert [each.sequence for each in seat.read_all()] == [1, 3]
    os.truncate(seat.path, seat.path.stat().st_size - 36 * 7 - 10)
    assert [each.sequence for each in seat.read_all()] == [1]
    assert [each.sequence for each in seat.read_after(0)] == [1]


def test_write_all_in_pieces(tmp_path: Path) -> None:
    """Records that follow one another are written together, but never beyond the end."""
    seat = make_seat(tmp_path)
    size = seat.path.stat().st_size
    write(seat, 8, 9, 10, 11, 13, 14)
    assert [each.sequence for each in seat.read_all()] == [8, 9, 10, 11, 13, 14]
    assert seat.path.stat().st_size == size


def test_slots(tmp_path: Path) -> None:
    """Each worker has a place."""
    seat = make_seat(tmp_path)
    assert seat.read_slots() == []
    for slot in (0, 5, SLOTS - 1):
        seat.write_slot(slot, record(slot + 1, slot=slot))
    assert [each.slot for each in seat.read_slots()] == [0, 5, SLOTS - 1]
    assert seat.read_all() == []
    seat.clear_slots()
    assert seat.read_slots() == []


def test_take(tmp_path: Path) -> None:
    """One at a time has a seat, in this process or another."""
    seat = make_seat(tmp_path)
    other = Seat(seat.path)
    assert other.capacity == 10
    assert not other.take()
    seat.release()
    assert other.take()
    assert not other.format(11)
    assert other.format(10)


def test_take_after_a_fork(tmp_path: Path) -> None:
    """A child of the process that is gone does not hold its seat, nor close another file."""
    seat = make_seat(tmp_path)
    parent, childs = socket.socketpair()
    child = os.fork()
    if not child:
        other = os.open(os.devnull, os.O_RDONLY)  # It may get the descriptor of the seat.
        del seat
        childs.send(b"forked")
        childs.recv(1)
        os.fstat(other)
        os._exit(0)
    assert parent.recv(10) == b"forked"
    seat._close()
    assert Seat(tmp_path / "seat").take()
    parent.send(b"x")
    assert os.waitpid(child, 0)[1] == 0
    parent.close()
    childs.close()


@pytest.mark.parametrize("content", [b"x", b"fmconsume seat 2" + bytes(100), b"{}" * 10_000])
def test_foreign(tmp_path: Path, content: bytes) -> None:
    """A file of somebody else is refused, and stays as it is."""
    path = tmp_path / "seat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="seat is no file of fmconsume's"):
        Seat(path)
    assert path.read_bytes() == content


def test_write_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is not written in whole is an error."""
    seat = make_seat(tmp_path)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: len(data) - 1)
    with pytest.raises(OSError, match="only 35 of 36 bytes"):
        seat.write(1, record(1))
