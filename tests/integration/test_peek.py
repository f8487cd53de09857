"""Recording what is in a queue without taking it away."""

from __future__ import annotations

import json
import signal
import struct

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import Depth, free_port
from .running import durable, numbered, write_config


@pytest.fixture
def config(broker, queue, tmp_path):
    """A configuration for the test's queue."""
    return write_config(tmp_path / "config.toml", broker.url(), queue)


@pytest.fixture
def peek(config, run_command, tmp_path):
    """Run --record --peek until it ends; gives what it recorded."""

    def peek(*options):
        path = tmp_path / "recorded"
        command = run_command("--config", config, "--record", path, "--peek", *options)
        assert command.wait(PATIENCE) == 0, command.logged()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert command.printed() == f"{len(lines)} messages: recorded and returned\n"
        return lines

    return peek


def test_peek_returns_everything(broker, queue, peek):
    """All is recorded, in order, and in the queue as before, but flagged redelivered."""
    broker.publish(queue, numbered(300))
    assert [line["body"]["n"] for line in peek()] == list(range(300))
    wait_until(lambda: broker.depth(queue) == Depth(300, 0))
    received = broker.drain(queue)
    assert [json.loads(each.body)["n"] for each in received] == list(range(300))
    assert {each.method.redelivered for each in received} == {True}


def test_peek_limit(broker, queue, peek):
    """--limit ends it earlier; the rest was never touched."""
    broker.publish(queue, numbered(5))
    assert [line["body"]["n"] for line in peek("--limit", 2)] == [0, 1]
    wait_until(lambda: broker.depth(queue) == Depth(5, 0))
    assert [each.method.redelivered for each in broker.drain(queue)] == [True] * 2 + [False] * 3


def test_peek_empty(broker, queue, peek):
    """An empty queue gives an empty file."""
    assert peek() == []


def test_peek_returns_what_does_not_decode(broker, queue, peek):
    """A body that is no JSON, and headers that cannot be read, are recorded and returned, too."""
    nested = b""
    for _ in range(300):
        nested = b"A" + struct.pack(">I", len(nested)) + nested
    table = b"\x03odd" + nested
    broker.publish(queue, [b"\xff\x00", "text", {"n": 1}])
    with broker.channel() as channel:
        properties = _Raw(b"\x20\x00" + struct.pack(">I", len(table)) + table)
        channel.basic_publish("", queue, b"{}", properties)
    wait_until(lambda: broker.ready(queue) == 4)
    lines = peek()
    assert [line.get("body_encoding") for line in lines] == ["base64", "base64", None, None]
    wait_until(lambda: broker.depth(queue) == Depth(4, 0))


class _Raw:
    """Properties that go out as these bytes."""

    INDEX = 60
    delivery_mode = None

    def __init__(self, raw):
        self._raw = raw

    def encode(self):
        return [self._raw]


def test_peek_is_replayed(broker, queue, peek, config, run_command, tmp_path):
    """What was recorded replays."""
    (tmp_path / "callbacks.py").write_text("def take(message):\n    print(message.body)\n")
    broker.publish(queue, numbered(2))
    peek()
    options = ("--callback", "callbacks:take", "--replay", "recorded")
    command = run_command("--config", config, *options, cwd=tmp_path)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert "{'n': 1}" in command.printed()


def test_peek_several_queues(broker, new_queue, run_command, tmp_path):
    """Each configured queue is looked into, or the one that --queue-name names."""
    names = [new_queue(), new_queue()]
    config = write_config(tmp_path / "two.toml", broker.url(), durable(*names))
    for name in names:
        broker.publish(name, numbered(1))
    options = ("--config", config, "--peek", "--record")
    both = run_command(*options, tmp_path / "both")
    assert both.wait(PATIENCE) == 0, both.logged()
    one = run_command(*options, tmp_path / "one", "--queue-name", names[1])
    assert one.wait(PATIENCE) == 0, one.logged()
    found = [
        [json.loads(line)["queue"] for line in (tmp_path / file).read_text().splitlines()]
        for file in ("both", "one")
    ]
    assert found == [names, names[1:]]


def test_peek_missing_queue(broker, queue, config, run_command, tmp_path):
    """A queue that is not there is told of, and not declared."""
    broker.delete(queue)
    command = run_command("--config", config, "--record", tmp_path / "recorded", "--peek")
    assert command.wait(PATIENCE) == 1
    assert f"cannot look into queue '{queue}': 404 NOT_FOUND" in command.logged()


def test_peek_exclusive_queue_of_another(broker, run_command, tmp_path):
    """A queue that another connection has for itself is told of as at the start of a consumer."""
    with broker.channel() as channel:
        name = channel.queue_declare("", exclusive=True).method.queue
        config = write_config(tmp_path / "exclusive.toml", broker.url(), name)
        command = run_command("--config", config, "--record", tmp_path / "recorded", "--peek")
        status = command.wait(PATIENCE)
        channel.queue_delete(name)
    assert status == 10
    told = f"queue {name!r}: RESOURCE_LOCKED - it is exclusive to another connection"
    assert told in command.logged()


@pytest.mark.parametrize("is_cut", [True, False], ids=["line cut", "interrupted"])
def test_peek_ends_early(broker, queue, proxy, run_command, tmp_path, is_cut):
    """A peek that ends before its time returns what it has taken, too."""
    total = 20_000  # It must not be through before this test acts.
    broker.publish(queue, numbered(total))
    path = tmp_path / "recorded"
    config = write_config(tmp_path / "proxy.toml", proxy.url(), queue)
    command = run_command("--config", config, "--record", path, "--peek")
    wait_until(lambda: path.exists() and path.stat().st_size > 10_000)
    if is_cut:
        proxy.cut()
    else:
        command.send_signal(signal.SIGINT)
    assert command.wait(PATIENCE) == (1 if is_cut else 130), command.logged()
    wait_until(lambda: broker.depth(queue) == Depth(total, 0))


def test_peek_no_broker(run_command, tmp_path):
    """A broker that is not there is told of; it is not waited for."""
    config = write_config(tmp_path / "offline.toml", f"amqp://127.0.0.1:{free_port()}", "q")
    command = run_command("--config", config, "--record", tmp_path / "recorded", "--peek")
    assert command.wait(PATIENCE) == 1
    assert "refused" in command.logged()
