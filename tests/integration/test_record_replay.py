"""Recording from a real queue, replaying without a broker, and what a failure leaves behind."""

from __future__ import annotations

import json
import signal
import stat

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import Depth, free_port
from .running import failures, numbered, write_config

_CALLBACKS = """
from fmconsume import Drop, Nack

def take(message):
    print("took", message.topic, message.body["n"], message.headers["sent-at"], flush=True)

def judge(message):
    if message.body["n"] == 1:
        raise Nack
    if message.body["n"] == 2:
        raise Drop

def fail_once(message):
    if message.body["n"] == 1:
        raise RuntimeError("the disk is full")
"""


@pytest.fixture
def folder(tmp_path):
    """The directory where the command is started, with a module of callbacks."""
    (tmp_path / "callbacks.py").write_text(_CALLBACKS)
    return tmp_path


@pytest.fixture
def config(broker, queue, folder):
    """A configuration for the test's queue."""
    return write_config(folder / "config.toml", broker.url(), queue)


@pytest.fixture
def offline(folder):
    """A configuration for a broker that is not there."""
    return write_config(folder / "offline.toml", f"amqp://127.0.0.1:{free_port()}")


def test_record_and_replay_through_a_pipe(broker, queue, folder, config, offline, run_command):
    """`-` is standard output, and standard input."""
    broker.publish(queue, numbered(2))
    recording = run_command("--config", config, "--record", "-", "--limit", 2, cwd=folder)
    assert recording.wait(PATIENCE) == 0, recording.logged()
    (folder / "file").write_text(recording.printed())
    options = ("--config", offline, "--replay", "-", "--callback", "callbacks:take")
    with (folder / "file").open() as stdin:
        replaying = run_command(*options, cwd=folder, stdin=stdin)
        assert replaying.wait(PATIENCE) == 0, replaying.logged()
    assert replaying.printed().count("took") == 2
    assert not (folder / "-").exists()


def test_record_and_replay(broker, queue, folder, config, offline, run_command):
    """What --record takes from a queue, --replay gives to a callback without a broker."""
    broker.publish(queue, numbered(5))
    recording = run_command("--config", config, "--record", "file", "--limit", 5, cwd=folder)
    assert recording.wait(PATIENCE) == 0, recording.logged()
    assert broker.depth(queue) == Depth(0, 0)
    lines = [json.loads(line) for line in (folder / "file").read_text().splitlines()]
    assert [line["body"]["n"] for line in lines] == [0, 1, 2, 3, 4]
    assert {line["queue"] for line in lines} == {queue}

    options = ("--config", offline, "--replay", "file")
    taking = run_command(*options, "--callback", "callbacks:take", cwd=folder)
    assert taking.wait(PATIENCE) == 0, taking.logged()
    took = [f"took {queue} {n} {line['headers']['sent-at']}" for n, line in enumerate(lines)]
    assert [line for line in taking.printed().splitlines() if line.startswith("took")] == took
    assert taking.printed().endswith("5 messages: 5 acknowledged\n")

    judging = run_command(*options, "--callback", "callbacks:judge", cwd=folder)
    assert judging.wait(PATIENCE) == 0, judging.logged()
    assert judging.printed().endswith("5 messages: 3 acknowledged, 1 requeued, 1 dropped\n")


def test_record_killed(broker, queue, folder, config, run_command):
    """A recorder that is killed has every message that the broker no longer has."""
    broker.publish(queue, numbered(2000))
    path = folder / "file"
    first = run_command("--config", config, "--record", path, cwd=folder)
    wait_until(lambda: path.exists() and path.stat().st_size > 20_000)
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    second = run_command("--config", config, "--record", path, "--drain", cwd=folder)
    assert second.wait(PATIENCE) == 0, second.logged()
    lines = path.read_text().splitlines()
    recorded = {json.loads(line)["body"]["n"] for line in lines if line.endswith("}")}
    assert recorded == set(range(2000))


def test_record_other_bodies(broker, queue, folder, run_command):
    """With body = "bytes" anything can be recorded and replayed as it came."""
    config = write_config(folder / "bytes.toml", broker.url(), queue, body="bytes")
    (folder / "raw.py").write_text("def show(message):\n    print(message.body)\n")
    broker.publish(queue, [b"\xff\x00", "text"])
    recording = run_command("--config", config, "--record", "file", "--limit", 2, cwd=folder)
    assert recording.wait(PATIENCE) == 0, recording.logged()
    options = ("--config", config, "--replay", "file", "--callback", "raw:show")
    replaying = run_command(*options, cwd=folder)
    assert replaying.wait(PATIENCE) == 0, replaying.logged()
    assert replaying.printed().splitlines()[::2][:2] == [r"b'\xff\x00'", "b'text'"]


@pytest.mark.parametrize("rule", ['on_exception = "drop"', "max_attempts = 1"])
def test_record_to_a_full_disk(broker, queue, folder, run_command, rule):
    """What cannot be recorded stays, even where [failures] would have the callback lose it."""
    path = write_config(folder / "my.toml", broker.url(), queue, f"[failures]\n{rule}")
    broker.publish(queue, numbered(20))
    command = run_command("--config", path, "--record", "/dev/full", "--drain", cwd=folder)
    assert command.wait(PATIENCE) == 1, command.logged()
    assert "cannot record to '/dev/full': No space left on device" in command.logged()
    assert "Traceback" not in command.logged()
    wait_until(lambda: broker.depth(queue) == Depth(20, 0))


def test_record_to_nowhere(broker, queue, folder, config, run_command):
    """A file that cannot be written is a usage error, and no message is taken."""
    broker.publish(queue, numbered(1))
    command = run_command("--config", config, "--record", folder / "no" / "file", cwd=folder)
    assert command.wait(PATIENCE) == 2
    assert "No such file or directory" in command.logged()
    assert broker.depth(queue) == Depth(1, 0)


def test_replay_failure(folder, offline, run_command):
    """A callback that fails makes the exit status 1, and the other messages run."""
    lines = [json.dumps({"topic": "t", "body": body}) for body in numbered(3)]
    (folder / "file").write_text("\n".join([lines[0], "broken", *lines[1:]]))
    options = ("--config", offline, "--replay", "file", "--callback", "callbacks:fail_once")
    command = run_command(*options, cwd=folder)
    assert command.wait(PATIENCE) == 1, command.logged()
    assert "broken: line 2 holds no message" in command.printed()
    assert "failed: line 3, " in command.printed()
    assert "RuntimeError: the disk is full" in command.printed()
    assert command.printed().endswith("4 messages: 2 acknowledged, 1 broken, 1 failed\n")


def test_failed_message_is_kept(broker, queue, folder, run_command):
    """A callback that fails leaves its delivery behind, which replays to the same failure."""
    kept = folder / "kept"
    config = write_config(
        folder / "keep.toml",
        broker.url(),
        queue,
        callback="callbacks:fail_once",
        failures=failures(keep_in=str(kept)),
    )
    broker.publish(queue, numbered(3))
    for _ in range(2):  # As it would be started again and again.
        consuming = run_command("--config", config, cwd=folder)
        assert consuming.wait(PATIENCE) == 13, consuming.logged()
    (file,) = kept.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    line = json.loads(file.read_text())
    assert (line["body"], line["topic"]) == ({"n": 1}, queue)
    assert "RuntimeError: the disk is full" in line["traceback"]
    assert broker.depth(queue) == Depth(2, 0)

    replaying = run_command("--config", config, "--replay", file, cwd=folder)
    assert replaying.wait(PATIENCE) == 1
    assert "RuntimeError: the disk is full" in replaying.printed()


def test_failed_message_cannot_be_kept(broker, queue, folder, run_command):
    """A folder that cannot be written to changes nothing else about a failure."""
    kept = folder / "kept"
    config = write_config(
        folder / "keep.toml",
        broker.url(),
        queue,
        callback="callbacks:fail_once",
        failures=failures(keep_in=str(kept)),
    )
    (folder / "callbacks.py").write_text(
        f"{_CALLBACKS}\nimport os\nfull = fail_once\n"
        f"def fail_once(message):\n    os.rmdir({str(kept)!r})\n    full(message)\n"
    )
    broker.publish(queue, [{"n": 1}])
    command = run_command("--config", config, cwd=folder)
    assert command.wait(PATIENCE) == 13, command.logged()
    assert "could not be kept" in command.logged()
    assert broker.depth(queue) == Depth(1, 0)
