"""The option --drain: consume what is there, and end."""

from __future__ import annotations

import uuid

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import Depth
from .running import durable, numbered, write_config

_CALLBACKS = r"""
import os
import sys
import time
from fmconsume import Nack, publish, Message

def take(message):
    sys.stdout.write(f"{message.body['n']}\n")

def return_the_first(message):
    if message.body["n"] < 23:
        raise Nack
    sys.stdout.write(f"{message.body['n']}\n")

def return_each_fourth(message):
    if message.body["n"] % 4 == 0:
        raise Nack

def feed(message):
    n = message.body["n"]
    if n:
        publish(Message(topic=message.queue, body={"n": n - 1}), "")
    sys.stdout.write(f"{n}\n")

def fail(message):
    raise RuntimeError("the disk is full")

def wait(message):
    sys.stdout.write("begun\n")
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


@pytest.fixture
def drain(tmp_path, run_command):
    """Drain with one of the callbacks above, from a broker and queues; return the command."""
    (tmp_path / "callbacks.py").write_text(_CALLBACKS)

    def start(broker, queues, callback, *args, url=None):
        tables = "[failures.delay]\ninitial = 0.1\nmax = 0.1"
        config = write_config(tmp_path / "config.toml", url or broker.url(), queues, tables)
        options = ("--config", config, "--callback", f"callbacks:{callback}", "--drain")
        return run_command(*options, *args, cwd=tmp_path)

    return start


def numbers(command):
    """Return the numbers that the command printed."""
    return [int(line) for line in command.printed().splitlines()]


@pytest.mark.parametrize("workers", [1, 4])
def test_drain_all(broker, queue, drain, workers):
    """Every message runs and is acknowledged; then it ends with 0 and says how many."""
    broker.publish(queue, numbered(200))
    command = drain(broker, queue, "take", "--workers", workers)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert sorted(numbers(command)) == list(range(200))
    assert "acknowledged 200" in command.logged()
    assert broker.depth(queue) == Depth(0, 0)


def test_drain_empty(broker, queue, drain):
    """With nothing to do it ends at once."""
    command = drain(broker, queue, "take")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert "nothing received" in command.logged()


def test_drain_several_queues(broker, queue, new_queue, drain):
    """It ends when all of its queues are empty."""
    other = new_queue()
    broker.publish(queue, numbered(30))
    broker.publish(other, numbered(50))
    command = drain(broker, durable(queue, other), "take")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert len(numbers(command)) == 80
    assert (broker.ready(queue), broker.ready(other)) == (0, 0)


@pytest.mark.parametrize("arguments", [{}, {"x_queue_type": "quorum"}], ids=["classic", "quorum"])
def test_drain_returned_messages(broker, new_queue, drain, arguments):
    """What a callback returned is not waited for; what is behind it runs, and it says what is left.

    More is returned than is prefetched.
    """
    queue = new_queue(**arguments)
    broker.publish(queue, numbered(25))
    command = drain(broker, durable(queue, **arguments), "return_the_first")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert numbers(command) == [23, 24]
    assert "drained; 23 messages that were returned are left" in command.logged()
    wait_until(lambda: broker.depth(queue) == Depth(23, 0))


def test_drain_good_among_many_bad(broker, queue, drain):
    """It ends, however many are returned and wherever they are."""
    broker.publish(queue, numbered(2400))
    command = drain(broker, queue, "return_each_fourth")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert "acknowledged 1800" in command.logged()
    wait_until(lambda: broker.depth(queue) == Depth(600, 0))


def test_drain_auto_delete(broker, drain):
    """A queue that goes with its last consumer is drained whole, beside what was returned."""
    queue = f"auto-{uuid.uuid4()}"
    settings = {queue: {"durable": False, "auto_delete": True}}
    with broker.channel() as channel:
        channel.queue_declare(queue, auto_delete=True)
    broker.publish(queue, numbered(25))
    command = drain(broker, settings, "return_the_first")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert numbers(command) == [23, 24]


def test_drain_single_active_consumer(broker, new_queue, drain):
    """Where a full prefetch was returned, and no more can be had, it says so and fails."""
    queue = new_queue(x_single_active_consumer=True)
    broker.publish(queue, numbered(25))
    command = drain(broker, durable(queue, x_single_active_consumer=True), "return_the_first")
    assert command.wait(PATIENCE) == 1, command.logged()
    assert "not drained" in command.logged()
    wait_until(lambda: broker.depth(queue) == Depth(25, 0))


def test_drain_messages_that_come_meanwhile(broker, queue, drain):
    """What the callbacks themselves add to the queue is drained too."""
    broker.publish(queue, [{"n": 20}])
    command = drain(broker, queue, "feed")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert numbers(command) == list(range(20, -1, -1))
    assert broker.depth(queue) == Depth(0, 0)


def test_drain_failure(broker, queue, drain):
    """A callback that fails ends it as it ends any consumer."""
    broker.publish(queue, numbered(3))
    command = drain(broker, queue, "fail")
    assert command.wait(PATIENCE) == 13
    assert broker.depth(queue) == Depth(3, 0)


def test_drain_one_channel(broker, queue, drain):
    """A drain ends also where RabbitMQ ends the connection over what it would like to ask."""
    user = f"user-{uuid.uuid4()}"
    broker.ctl("add_user", user, "unused")
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    if broker.version >= (3, 10):  # The older ones know no such limit.
        name, limits = f'<<"{user}">>', '#{<<"max-channels">> => 1}'
        broker.eval(f'rabbit_auth_backend_internal:set_user_limits({name}, {limits}, <<"test">>).')
    command = drain(broker, queue, "take", url=broker.url(user=user, password="unused"))
    assert command.wait(PATIENCE) == 0, command.logged()
    broker.ctl("delete_user", user)


def test_drain_exclusive_queue_of_another(broker, drain):
    """A queue that another connection has for itself is not waited for."""
    name = f"exclusive-{uuid.uuid4()}"
    with broker.channel() as channel:
        channel.queue_declare(name, exclusive=True)
        command = drain(broker, {name: {"exclusive": True}}, "take")
        status = command.wait(PATIENCE)
        channel.queue_delete(name)
    assert status == 10, command.logged()
    last = command.logged().splitlines()[-1]
    assert f"{name!r}: RESOURCE_LOCKED - it is exclusive to another connection" in last


def test_drain_exclusive_contradiction(broker, queue, drain):
    """A queue that is there, and not exclusive, does not become exclusive by waiting."""
    command = drain(broker, {queue: {"durable": True, "exclusive": True}}, "take")
    assert command.wait(PATIENCE) == 10, command.logged()
    last = command.logged().splitlines()[-1]
    assert last.endswith("and not exclusive: set exclusive = false, or delete it")


def test_drain_queue_gone_after_reconnection(broker, queue, proxy, drain, tmp_path):
    """A queue that is not to be declared and has gone meanwhile is not waited for."""
    broker.publish(queue, numbered(1))
    command = drain(proxy, {queue: {"passive": True}}, "wait")
    wait_until(lambda: command.printed())
    proxy.stall()  # The broker's cancel does not arrive.
    broker.delete(queue)
    proxy.cut()
    proxy.resume()
    (tmp_path / "go").touch()
    assert command.wait(PATIENCE) == 10, command.logged()
    assert f"queue {queue!r}: NOT_FOUND" in command.logged().splitlines()[-1]


def test_drain_broker_down(frail_broker, queue, drain):
    """A broker that is down is waited for."""
    frail_broker.publish(queue, numbered(3))
    frail_broker.stop()
    command = drain(frail_broker, queue, "take")
    command.wait_for("not consuming since")
    frail_broker.start()
    assert command.wait(PATIENCE) == 0, command.logged()
    assert numbers(command) == [0, 1, 2]
