"""WakeupQueue: what one thread waits for, and what others leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from queue import Empty

import pytest

from fmconsume.wakeup import WakeupQueue
from tests.waiting import PATIENCE


def test_get_left_before_bell() -> None:
    """An item that was put before anybody waited is not lost."""
    queue = WakeupQueue()
    queue.put("early")
    with queue.open():
        assert queue.get(1) == "early"


def test_get_in_order() -> None:
    """WakeupQueue come in the order in which they were left, however often the bell rang."""
    queue = WakeupQueue()
    with queue.open():
        for number in range(100_000):
            queue.put(number)
        assert [queue.get(1) for _ in range(100_000)] == list(range(100_000))


def test_get_nothing() -> None:
    """Where nobody puts anything, waiting ends with the time."""
    queue = WakeupQueue()
    with queue.open(), pytest.raises(Empty):
        queue.get(0.01)


def test_put_other_thread() -> None:
    """An item from another thread ends the wait."""
    queue = WakeupQueue()
    with queue.open():
        thread = threading.Thread(target=queue.put, args=("hello",))
        thread.start()
        assert queue.get(30) == "hello"
        thread.join()


def test_put_afterwards() -> None:
    """An item that comes when nobody waits any more harms nobody."""
    queue = WakeupQueue()
    with queue.open():
        pass
    queue.put("late")


def test_bell_signal_to_other_thread() -> None:
    """A signal is put even when the kernel hands it to another thread."""
    queue = WakeupQueue()
    with queue.open():
        sender = threading.Thread(
            target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        )
        sender.start()
        assert queue.get(30) == signal.SIGTERM
        sender.join()


def test_bell_puts_back() -> None:
    """Handlers and wake-up descriptor are afterwards what they were before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with WakeupQueue().open():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_bell_leaves_programs_own() -> None:
    """A handler of the program's own stays, and is called."""
    queue, heard = WakeupQueue(), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    own = signal.getsignal(signal.SIGTERM)
    try:
        with queue.open():
            assert signal.getsignal(signal.SIGTERM) is own
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert queue.get(30) == signal.SIGINT
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_bell_other_thread() -> None:
    """Outside the main thread signals are left alone, and queue work."""
    queue, heard = WakeupQueue(), []
    before = signal.getsignal(signal.SIGTERM)

    def wait() -> None:
        with queue.open():
            heard.append(signal.getsignal(signal.SIGTERM))
            heard.append(queue.get(30))

    thread = threading.Thread(target=wait)
    thread.start()
    queue.put("hello")
    thread.join()
    assert heard == [before, "hello"]


FORKING = """
import os, signal, time
from fmconsume.wakeup import WakeupQueue

with WakeupQueue().open():
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
        [sys.executable, "-c", FORKING],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == [str(int(signal.SIGTERM))]
