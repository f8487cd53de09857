"""Notes: what one thread waits for, and what others leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from queue import Empty

import pytest

from fmconsume.wakeup import Notes


def test_get_left_before_bell() -> None:
    """A note that was left before anybody waited is not lost."""
    notes = Notes()
    notes.put("early")
    with notes.bell():
        assert notes.get(1) == "early"


def test_get_in_order() -> None:
    """Notes come in the order in which they were left, however often the bell rang."""
    notes = Notes()
    with notes.bell():
        for number in range(100_000):
            notes.put(number)
        assert [notes.get(1) for _ in range(100_000)] == list(range(100_000))


def test_get_nothing() -> None:
    """Where nobody leaves a note, waiting ends with the time."""
    notes = Notes()
    with notes.bell(), pytest.raises(Empty):
        notes.get(0.01)


def test_put_other_thread() -> None:
    """A note from another thread ends the wait."""
    notes = Notes()
    with notes.bell():
        thread = threading.Thread(target=notes.put, args=("hello",))
        thread.start()
        assert notes.get(30) == "hello"
        thread.join()


def test_put_afterwards() -> None:
    """A note that comes when nobody waits any more harms nobody."""
    notes = Notes()
    with notes.bell():
        pass
    notes.put("late")


def test_bell_signal_to_other_thread() -> None:
    """A signal is noted even when the kernel hands it to another thread."""
    notes = Notes()
    with notes.bell():
        sender = threading.Thread(
            target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        )
        sender.start()
        assert notes.get(30) == signal.SIGTERM
        sender.join()


def test_bell_puts_back() -> None:
    """Handlers and wake-up descriptor are afterwards what they were before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Notes().bell():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_bell_other_thread() -> None:
    """Outside the main thread signals are left alone, and notes work."""
    notes, heard = Notes(), []
    before = signal.getsignal(signal.SIGTERM)

    def wait() -> None:
        with notes.bell():
            heard.append(signal.getsignal(signal.SIGTERM))
            heard.append(notes.get(30))

    thread = threading.Thread(target=wait)
    thread.start()
    notes.put("hello")
    thread.join()
    assert heard == [before, "hello"]


FORKING = """
import os, signal, time
from fmconsume.wakeup import Notes

with Notes().bell():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"ready")  # Python drops signals that come while it forks.
        for _ in range(3000):
            time.sleep(0.01)
        os._exit(0)
    os.read(reader, 5)
    os.kill(child, signal.SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_bell_forked_child() -> None:
    """A child that a callback forks ends on SIGTERM, as any process does."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.split() == [str(int(signal.SIGTERM))]
