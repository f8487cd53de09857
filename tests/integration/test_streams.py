"""Streams are refused: they would be consumed from "next", and keep whatever a callback answers."""

from __future__ import annotations

import pytest

from fmconsume.exceptions import BadDeclaration
from tests.waiting import PATIENCE, wait_until

from .running import durable, numbered, write_config


@pytest.fixture
def stream(broker, new_queue):
    """Give the name of a stream."""
    if broker.version < (3, 9):
        pytest.skip("RabbitMQ before 3.9 has no streams")
    return new_queue(x_queue_type="stream")


@pytest.fixture
def config(tmp_path, broker, stream):
    """Write a configuration that does not say what kind of queue it is."""
    return write_config(
        tmp_path / "config.toml", broker.url(), durable(stream), passive_declares=True
    )


@pytest.fixture
def run(tmp_path, run_command):
    """Run the command with a configuration; give its status, and what it printed and logged."""
    callback = tmp_path / "callback.py"
    callback.write_text("def callback(message):\n    pass\n")

    def run(config, *more):
        command = run_command("--config", config, "--callback-file", f"{callback}:callback", *more)
        return command.wait(PATIENCE), command.printed(), command.logged()

    return run


def test_stream_configured(run, broker, tmp_path):
    """A stream in the configuration is an error of it."""
    config = write_config(
        tmp_path / "config.toml", broker.url(), durable("events", x_queue_type="stream")
    )
    for more in ([], ["--check"]):
        status, _, error = run(config, *more)
        assert status == 2
        assert "queues.events.arguments.x-queue-type: found 'stream'" in error


def test_stream_checked(run, config, stream):
    """The check tells that an existing queue is a stream."""
    status, printed, _ = run(config, "--check")
    assert status == 10
    (row,) = (line for line in printed.splitlines() if f"queue          {stream}" in line)
    assert "cannot be consumed: it is a stream" in row


def test_stream_drained(run, config, broker, stream):
    """A drain does not take a stream for an empty queue."""
    broker.publish(stream, numbered(3))
    status, _, error = run(config, "--drain")
    assert status == 10
    assert f"queue {stream!r}: it is a stream" in error


@pytest.mark.parametrize("options", [["--drain"], ["--record"], ["--record", "--peek"], []])
def test_stream_declared(run_command, broker, stream, tmp_path, options):
    """A queue that is configured without a type, and is a stream, is told of at the start."""
    config = write_config(tmp_path / "config.toml", broker.url(), stream)
    path = tmp_path / "recorded"
    options = [each for option in options for each in (option, path)[: 1 + (option == "--record")]]
    if "--record" not in options:
        options += ["--callback", "fmconsume.example:printer"]
    command = run_command("--config", config, *options)
    assert command.wait(PATIENCE) == 10
    assert f"queue {stream!r}: it is a stream" in command.logged().splitlines()[-1]


def test_stream_peeked(run_command, config, broker, queue, stream, tmp_path):
    """No message of any queue is recorded where one of them is a stream."""
    broker.publish(queue, numbered(1))
    broker.publish(stream, numbered(1))
    with config.open("a") as file:
        file.write(f"[queues.{queue}]\ndurable = true\n")
    path = tmp_path / "recorded"
    command = run_command("--config", config, "--record", path, "--peek")
    assert command.wait(PATIENCE) == 10
    (line,) = command.logged().splitlines()
    assert f"queue {stream!r}: it is a stream" in line
    assert path.read_bytes() == b""
    assert not any(each.method.redelivered for each in broker.drain(queue))


def test_stream_recorded(run_command, config, broker, stream, tmp_path):
    """The first message tells a recorder; nothing is recorded."""
    path = tmp_path / "recorded"
    command = run_command("--config", config, "--record", path)
    command.wait_for("consuming from")
    broker.publish(stream, numbered(3))
    assert command.wait(PATIENCE) == 10
    assert f"queue {stream!r}: it is a stream" in command.logged().splitlines()[-1]
    assert path.read_bytes() == b""


def test_stream_consumed(broker, stream, run_consumer):
    """The first message tells that a queue is a stream: it does not run."""
    seen = []
    running = run_consumer(seen.append, durable(stream), wait=True, passive_declares=True)
    broker.publish(stream, numbered(3))
    with pytest.raises(BadDeclaration, match="it is a stream"):
        running.result()
    assert seen == []


def test_header_of_a_stream(broker, queue, run_consumer):
    """A message in a queue that looks as from a stream ends nobody."""
    seen = []
    running = run_consumer(lambda message: seen.append(message.body["n"]), queue)
    broker.publish(queue, numbered(3), headers={"x-stream-offset": 7})
    wait_until(lambda: running.consumer.stats.acknowledged == 3)
    running.stop()
    assert seen == [0, 1, 2]
    assert running.consumer.stats.reconnections == 0
