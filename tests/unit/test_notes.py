"""Tests of what outlives the process: who knows what of whom."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fmconsume.delivery import ACK, DROP, FAIL, NACK, REJECT, SET_ASIDE, Delivery, Verdict
from fmconsume.state.notes import Mark, Notes, count_finished
from fmconsume.state.seat import Seat

from .fakes import make_delivery


def die(notes: Notes) -> None:
    """Let its process die."""
    notes._seat.release()


def receive(notes: Notes, message_id: str | None = "apple", **more: object) -> Delivery:
    """Receive a message, as the account numbers it."""
    delivery = make_delivery(message_id=message_id, **more)  # type: ignore[arg-type]
    delivery.fingerprint = notes.fingerprint(delivery)
    delivery.identity = delivery.fingerprint if message_id else 0
    notes.receive([delivery])
    return delivery


class Process(Notes):
    """The notes of a process with a few workers."""

    def __init__(self, folder: Path, remember: int = 10) -> None:
        super().__init__(folder, remember)
        self.begin_session(["fruit"])
        self.desks = [self.make_desk(slot) for slot in range(4)]

    def run(self, verdict: Verdict, delivery: Delivery, slot: int = 0) -> None:
        """Run a message to its end."""
        self.desks[slot].begin(delivery)
        self.desks[slot].finish(delivery, verdict)


@pytest.mark.parametrize("verdict", [ACK, DROP, SET_ASIDE])
def test_finished(tmp_path: Path, verdict: Verdict) -> None:
    """The next process, and another one, know what was finished, and how."""
    first, other = Process(tmp_path, 10), Process(tmp_path, 10)
    apple = receive(first)
    first.run(verdict, apple)
    number = apple.fingerprint
    expected = [Mark(number, True, is_new=True), Mark(number, True, verdict)]
    assert other.news() == expected
    assert other.news() == []
    die(first)
    assert Process(tmp_path, 10).news() == expected
    assert count_finished(tmp_path) == 1


@pytest.mark.parametrize(
    ("verdict", "attempt"), [(NACK, 3), (FAIL, 3), (REJECT, 2)], ids=["nack", "fail", "reject"]
)
def test_returned(tmp_path: Path, verdict: Verdict, attempt: int) -> None:
    """Attempts are counted on; what the callback never saw is not finished, and no attempt."""
    first = Process(tmp_path, 10)
    apple = receive(first)
    apple.returns = 2
    first.run(verdict, apple)
    die(first)
    (_, back) = Process(tmp_path, 10).news()
    assert back == Mark(apple.fingerprint, True, None, False, attempt)


def test_died(tmp_path: Path) -> None:
    """What ran when the process died is known, once; what had ended or not begun is not."""
    first = Process(tmp_path, 10)
    apple, plum, pear, fig = (receive(first, name) for name in ("apple", "plum", "pear", "fig"))
    first.run(ACK, apple, slot=0)
    first.run(ACK, pear, slot=1)
    first.desks[0].begin(plum)
    die(first)
    second = Process(tmp_path, 10)
    (death,) = [mark for mark in second.news() if mark.deaths]
    assert death == Mark(plum.fingerprint, True, None, False, 1, 1)
    plum.returns, plum.deaths = 1, 1
    second.desks[3].begin(plum)
    die(second)
    third = Process(tmp_path, 10)
    assert [mark.deaths for mark in third.news() if mark.number == plum.fingerprint] == [0, 1, 2]
    assert fig.fingerprint not in [mark.number for mark in third.news() if mark.deaths]


def test_died_beside_others(tmp_path: Path) -> None:
    """A process that lives notices that another one died, and tells the next ones."""
    first, other = Process(tmp_path, 10), Process(tmp_path, 10)
    apple = receive(first, None)
    first.desks[0].begin(apple)
    assert not [mark for mark in other.news() if mark.deaths]
    die(first)
    assert other.news() == [Mark(apple.fingerprint, False, None, False, 1, 1)]
    assert other.news() == []
    third = Process(tmp_path, 10)
    assert [mark.deaths for mark in third.news()] == [1]


def test_closed(tmp_path: Path) -> None:
    """An end is no death, even where a callback was left behind; its outcome is not noted."""
    first = Process(tmp_path, 10)
    apple = receive(first)
    first.desks[0].begin(apple)
    first.close()
    first.desks[0].finish(apple, ACK)
    first.desks[0].begin(apple)
    assert Process(tmp_path, 10).news() == [Mark(apple.fingerprint, True, is_new=True)]


def test_settled(tmp_path: Path) -> None:
    """After an end that the broker has confirmed, what comes again is another message."""
    first, other = Process(tmp_path, 10), Process(tmp_path, 10)
    apple = receive(first)
    first.run(ACK, apple)
    assert [mark.is_settled for mark in other.news()] == [False, False]
    first.settle()
    first.close()
    settled = Mark(apple.fingerprint, True, ACK, is_settled=True)
    assert other.news() == [settled]
    assert Process(tmp_path, 10).news()[-1] == settled


def test_secret_is_no_file(tmp_path: Path) -> None:
    """A pipe that somebody has put there keeps nobody waiting."""
    os.mkfifo(tmp_path / "secret")
    with pytest.raises(ValueError, match="secret does not have 32 bytes"):
        Notes(tmp_path, 10)


def test_equal_messages(tmp_path: Path) -> None:
    """Of two in one session the second is another one; after a session it may be the first."""
    first = Process(tmp_path, 10)
    first.begin_session(["fruit"])
    receive(first)
    receive(first, redelivered=True)
    first.begin_session(["fruit"])
    receive(first, redelivered=True)
    die(first)
    assert [mark.is_new for mark in Process(tmp_path, 10).news()] == [True, True, False]


def test_fingerprint(tmp_path: Path) -> None:
    """It is the same in each process that uses the folder, and depends on queue and secret."""
    notes, same = Process(tmp_path / "a", 10), Process(tmp_path / "a", 10)
    other = Process(tmp_path / "b", 10)
    apple = make_delivery()
    assert notes.fingerprint(apple) == same.fingerprint(make_delivery(session=2, redelivered=True))
    for different in (
        make_delivery(queue="leaf"),
        make_delivery(message_id="plum"),
        make_delivery(body=b"[]"),
        make_delivery(routing_key="b"),
        make_delivery(headers={"a": 1}),
    ):
        assert notes.fingerprint(different) != notes.fingerprint(apple)
    assert other.fingerprint(apple) != notes.fingerprint(apple)


def test_size(tmp_path: Path) -> None:
    """It is bounded, keeps what was finished last, and another size is another seat."""
    notes = Process(tmp_path, 100)
    size = (tmp_path / "seat-0").stat().st_size
    finished = []
    for number in range(2000):
        finished.append(receive(notes, str(number)).fingerprint)
        notes.run(ACK, make_delivery())
        notes.desks[0].finish(receive(notes, str(number), redelivered=True), ACK)
    assert (tmp_path / "seat-0").stat().st_size == size
    die(notes)
    larger = Process(tmp_path, 200)
    done = [mark.number for mark in larger.news() if mark.verdict is ACK]
    assert set(done) >= set(finished[-100:])
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "seat-0", "seat-1"}


def test_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the folder ends the notes with one warning, and nothing else."""
    notes = Process(tmp_path, 10)
    apple = receive(notes)

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write", "write_slot", "write_all", "read_slots", "clear_slots"):
        monkeypatch.setattr(Seat, name, fail)
    for _ in range(3):
        notes.run(ACK, apple)
        notes.receive([apple])
        notes.begin_session(["fruit"])
        assert notes.news() == []
    notes.close()
    (warning,) = caplog.records
    assert "No space left on device" in warning.getMessage()
    assert f"state '{tmp_path}' cannot be used" in warning.getMessage()


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secret_torn(tmp_path: Path, size: int) -> None:
    """A secret of another size is left alone, and named."""
    (tmp_path / "secret").write_bytes(b"x" * size)
    with pytest.raises(ValueError, match="secret does not have 32 bytes: remove it"):
        Process(tmp_path, 10)


def test_secret_for_the_owner_only(tmp_path: Path) -> None:
    """Nobody else may read it, or could make up messages that look finished."""
    Process(tmp_path / "new", 10)
    assert (tmp_path / "new/secret").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "new").iterdir() if "secret-" in path.name] == []


def test_many_processes(tmp_path: Path) -> None:
    """There is an end to the seats."""
    taken = [Process(tmp_path, 1) for _ in range(256)]
    with pytest.raises(ValueError, match="256 seats"):
        Process(tmp_path, 1)
    die(taken[17])
    assert Process(tmp_path, 1)._seat.path.name == "seat-17"


def test_forked_child(tmp_path: Path) -> None:
    """A child that a callback forks takes no notes, and warns of nothing."""
    notes = Process(tmp_path, 10)
    apple = receive(notes)
    child = os.fork()
    if not child:
        notes.run(ACK, apple)
        os._exit(notes.is_on)
    assert os.waitpid(child, 0)[1] == 0
    notes.run(DROP, apple)
    marks = Process(tmp_path, 10).news()
    assert [mark.verdict for mark in marks] == [None, DROP]


def test_other_queues(tmp_path: Path) -> None:
    """What a service notes is not for another one, but for the next process that has its queue."""
    first, other = Process(tmp_path, 10), Notes(tmp_path, 10)
    other.begin_session(["leaf"])
    apple, leaf = receive(first), receive(first, "plum", queue="leaf")
    for delivery in (apple, leaf):
        first.run(ACK, delivery)
    first.desks[0].begin(apple)
    die(first)
    assert [mark.number for mark in other.news()] == [leaf.fingerprint] * 2
    die(other)
    third = Notes(tmp_path, 10)
    third.begin_session(["fruit", "leaf"])
    marks = third.news()
    assert {mark.number for mark in marks} == {apple.fingerprint, leaf.fingerprint}
    assert [mark.number for mark in marks if mark.deaths] == [apple.fingerprint]
