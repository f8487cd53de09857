"""What outlives the process: what was finished, and what a process has died of."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import Depth
from .running import durable, numbered, write_config

_CALLBACK = """
import ctypes, os, signal, time
out = os.open({out!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(message):
    os.write(out, b"%d\\n" % message.body["n"])

def die(message):
    if message.body.get("bad"):
        {death}
    note(message)
"""
_DEATHS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "segfault": "ctypes.string_at(0)",
    "exit": "os._exit(0)",
    # From what is in use on: a free-threaded Python reserves a gigabyte.
    "memory": (
        "import psutil, resource as r; most = psutil.Process().memory_info().vms + 2**29; "
        "r.setrlimit(r.RLIMIT_AS, (most, most)); bytes(2**31)"
    ),
}


@pytest.fixture(params=["classic", "quorum"])
def arguments(request):
    """The arguments of a queue of each kind, without a delivery limit."""
    quorum = {"x_queue_type": "quorum", "x_delivery_limit": 1_000_000}
    return quorum if request.param == "quorum" else {}


class Stage:
    """Starts the command again and again, with one configuration and one account of its runs."""

    def __init__(self, run_command, folder, url, queue, arguments, death="pass", **top):
        self._run_command, self._folder = run_command, folder
        self.state, self.kept = folder / "state", folder / "kept"
        self._out = folder / "finished"
        self._out.touch()
        callback = folder / "callback.py"
        callback.write_text(_CALLBACK.format(out=str(self._out), death=death))
        self._config = write_config(
            folder / "config.toml",
            url,
            durable(queue, **arguments),
            f"[failures]\nmax_attempts = 3\nkeep_in = {json.dumps(str(self.kept))}\n",
            **{"state": str(self.state), **top},
        )
        self._callback = callback

    def start(self, function="note", **environment):
        """Start the command."""
        callback = f"{self._callback}:{function}"
        env = {name: str(value) for name, value in environment.items()}
        return self._run_command("--config", self._config, "--callback-file", callback, env=env)

    def finished(self):
        """Give the numbers of the messages that the callback finished, in order."""
        return [int(line) for line in self._out.read_text().split()]


@pytest.fixture
def stage(run_command, tmp_path, broker, new_queue, arguments):
    """Make a stage on a queue of each kind; further arguments as for `Stage`."""

    def make(url=None, **more):
        queue = new_queue(**arguments)
        made = Stage(run_command, tmp_path, url or broker.url(), queue, arguments, **more)
        made.queue = queue
        return made

    return make


def test_finished_before_a_kill(broker, proxy, stage):
    """What was finished, and not acknowledged, does not run again after SIGKILL."""
    there = stage(url=proxy.url())
    command = there.start()
    command.wait_for("consuming from")
    broker.publish(there.queue, numbered(1))
    wait_until(lambda: broker.depth(there.queue) == Depth(0, 0) and there.finished())
    broker.publish(there.queue, [{"n": number} for number in range(1, 6)])
    wait_until(lambda: len(there.finished()) == 6)
    # Stopped first, so that nothing that is on its way arrives.
    wait_until(lambda: broker.depth(there.queue) == Depth(0, 0))
    proxy.stall()
    broker.publish(there.queue, [{"n": number} for number in range(6, 9)])
    command.kill()
    command.wait()
    proxy.resume()
    proxy.cut()
    again = there.start()
    wait_until(lambda: broker.depth(there.queue) == Depth(0, 0))
    again.send_signal(signal.SIGTERM)
    assert again.wait(PATIENCE) == 0, again.logged()
    assert sorted(there.finished()) == list(range(9))


@pytest.mark.parametrize(
    ("death", "workers"), [("killed", 1), ("killed", 8), ("segfault", 8), ("exit", 1)]
)
def test_message_that_kills(broker, stage, death, workers):
    """It is set aside after `max_attempts`, and its neighbours are not."""
    there = stage(death=_DEATHS[death], workers=workers)
    broker.publish(there.queue, [{"n": number, "bad": number == 50} for number in range(100)])
    for _ in range(3):
        assert there.start("die").wait(PATIENCE) in (-signal.SIGKILL, -signal.SIGSEGV, 0)
    command = there.start("die")
    wait_until(lambda: broker.depth(there.queue) == Depth(0, 0))
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0
    assert "set aside, kept as" in command.logged()
    assert "its consumer died 3 times while it ran" in command.logged()
    finished = there.finished()
    assert set(finished) == set(range(100)) - {50}
    # A callback that has done its last act, but has not returned, is not finished.
    assert len(finished) <= 99 + (workers - 1)
    (kept,) = there.kept.iterdir()
    found = json.loads(kept.read_text())
    assert (found["attempts"], found["reason"]) == (3, "its consumer died 3 times while it ran")


def test_message_that_hangs(broker, stage):
    """A callback that a watchdog ends has had an attempt."""
    there = stage(death="time.sleep(600)", callback_timeout=0.2)
    broker.publish(there.queue, [{"n": 0, "bad": True}, {"n": 1}])
    for _ in range(3):
        command = there.start("die")
        command.wait_for("past callback_timeout")
        command.send_signal(signal.SIGABRT)
        assert command.wait(PATIENCE) == -signal.SIGABRT
    command = there.start("die")
    wait_until(lambda: broker.depth(there.queue) == Depth(0, 0))
    assert "its consumer died 3 times while it ran" in command.wait_for("set aside, kept as")
    assert there.finished() == [1]


@pytest.mark.parametrize(
    "death",
    [
        "raise ValueError",
        _DEATHS["memory"],
    ],
    ids=["exception", "memory"],
)
def test_attempts_outlive_the_process(broker, stage, death):
    """A callback that raises ends the consumer, and each start counts as an attempt."""
    there = stage(death=death)
    broker.publish(there.queue, [{"n": 0, "bad": True}, {"n": 1}])
    codes = []
    for _ in range(2):
        command = there.start("die")
        codes.append(command.wait(PATIENCE))
    assert codes == [13, 13]
    command = there.start("die")
    command.wait_for("set aside, kept as")
    wait_until(lambda: there.finished() == [1])


def _return_unrun(broker, queue):
    """Get a message and give it back, so that it comes redelivered."""
    with broker.channel() as channel:
        method, _, _ = channel.basic_get(queue)
        channel.basic_nack(method.delivery_tag, requeue=True)


def test_equal_message_after_a_stop(broker, stage):
    """After a stop an equal message is another one, even if it comes redelivered."""
    there = stage()
    for number in range(1, 4):
        broker.publish(there.queue, [{"n": 0}], message_id="the same", headers={})
        _return_unrun(broker, there.queue)
        command = there.start("note")
        wait_until(lambda: broker.depth(there.queue) == Depth(0, 0))
        command.send_signal(signal.SIGTERM)
        assert command.wait(PATIENCE) == 0
        assert there.finished() == [0] * number


def test_returns_are_no_attempts(broker, stage):
    """What came back without a run does not count towards the attempts of one that died."""
    there = stage(death="os.kill(os.getpid(), 9)")
    broker.publish(there.queue, [{"n": 0, "bad": True}])
    for _ in range(4):
        _return_unrun(broker, there.queue)
    for _ in range(3):
        assert there.start("die").wait(PATIENCE) == -signal.SIGKILL
    command = there.start("die")
    command.wait_for("its consumer died 3 times while it ran")
    wait_until(lambda: broker.depth(there.queue) == Depth(0, 0))


@pytest.mark.parametrize("message_id", ["the same", None])
def test_equal_messages_that_kill(broker, stage, message_id):
    """Each of two has its attempts, and a rejection is with the broker before the next one runs."""
    there = stage(death="os.kill(os.getpid(), 9)", workers=8)
    bad = [{"n": 0, "bad": True}] * 2
    broker.publish(there.queue, bad, message_id=message_id, headers={})
    broker.publish(there.queue, [{"n": 1}])
    for _ in range(20):
        command = there.start("die")
        wait_until(
            lambda command=command: (
                command.poll() is not None or broker.depth(there.queue) == Depth(0, 0)
            )
        )
        if command.poll() is None:
            break
    assert command.poll() is None, "it still dies"
    # Killed after the callback's last act, and before its return, it is not finished.
    assert there.finished() in ([1], [1, 1])
    assert len(list(there.kept.iterdir())) == 2


def test_second_signal_is_no_death(broker, stage):
    """What an operator abandons has had no attempt."""
    there = stage(death="time.sleep(600)")
    broker.publish(there.queue, [{"n": 0, "bad": True}])
    for _ in range(4):
        command = there.start("die")
        command.wait_for("consuming from")
        wait_until(lambda: broker.depth(there.queue) == Depth(0, 1))
        command.send_signal(signal.SIGTERM)
        command.wait_for("stopping")
        assert command.insist(signal.SIGTERM) == 128 + signal.SIGTERM
        wait_until(lambda: broker.depth(there.queue) == Depth(1, 0))
        assert "died" not in command.logged()


def test_others_know(broker, proxy, run_command, tmp_path, queue):
    """Another process on this host knows what a killed one had finished."""
    first = Stage(run_command, tmp_path, proxy.url(), queue, {})
    command = first.start()
    command.wait_for("consuming from")
    second = first.start()
    second.wait_for("consuming from")
    broker.publish(queue, numbered(400))
    wait_until(lambda: len(first.finished()) > 100)
    command.kill()
    command.wait()
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE) == 0, second.logged()
    # A kill between the callback's last act and the mark cannot be told from one before it.
    assert len(first.finished()) <= 401
    assert set(first.finished()) == set(range(400))


def _spoil_with_a_file(state: Path) -> None:
    state.write_text("not a folder")


def _spoil_the_secret(state: Path) -> None:
    state.mkdir()
    (state / "secret").write_bytes(b"torn")


def _spoil_a_seat(state: Path) -> None:
    state.mkdir()
    (state / "seat-0").write_bytes(b"somebody else's file")


@pytest.mark.parametrize("spoil", [_spoil_with_a_file, _spoil_the_secret, _spoil_a_seat])
def test_state_that_cannot_be_used(broker, run_command, tmp_path, queue, spoil):
    """One warning; the consumer works, and the file stays as it is."""
    there = Stage(run_command, tmp_path, broker.url(), queue, {})
    spoil(there.state)
    before = {path: path.read_bytes() for path in there.state.rglob("*")}
    broker.publish(queue, numbered(10))
    command = there.start()
    wait_until(lambda: broker.depth(queue) == Depth(0, 0) and len(there.finished()) == 10)
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0
    warnings = [line for line in command.logged().splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert f"state '{there.state}' cannot be used" in warnings[0]
    for path, content in before.items():
        assert path.read_bytes() == content


def test_torn_seat(broker, run_command, tmp_path, queue):
    """What is left of a seat that was cut short, or is full of noise, is used."""
    there = Stage(run_command, tmp_path, broker.url(), queue, {})
    for spoil in (
        lambda path: os.truncate(path, 40_000),
        lambda path: path.write_bytes(path.read_bytes()[:36_900] + os.urandom(100_000)),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
    ):
        broker.publish(queue, numbered(10))
        command = there.start()
        wait_until(lambda: broker.depth(queue) == Depth(0, 0))
        command.send_signal(signal.SIGTERM)
        assert command.wait(PATIENCE) == 0
        assert "WARNING" not in command.logged()
        spoil(there.state / "seat-0")
    assert len(there.finished()) == 40


def test_state_directory(broker, run_command, tmp_path, queue):
    """Under systemd the service's own directory is the default."""
    there = Stage(run_command, tmp_path, broker.url(), queue, {}, state="")
    broker.publish(queue, numbered(1))
    command = there.start(STATE_DIRECTORY=f"{tmp_path}/var:{tmp_path}/other")
    wait_until(lambda: there.finished() == [0])
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0
    assert sorted(path.name for path in (tmp_path / "var/state").iterdir()) == ["seat-0", "secret"]
    assert not there.state.exists()
