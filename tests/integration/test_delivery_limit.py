"""A quorum queue gives up what came back too often: at most what ran, and never its neighbours."""

from __future__ import annotations

import signal

import pytest

from tests.waiting import wait_until

from .broker import Depth
from .running import durable, numbered, write_config

_LIMIT = 2
_CALLBACK = """
import fmconsume, itertools, os, time
numbers = itertools.count(1)
out = os.open({out!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def hang(message):
    os.write(out, b"%d\\n" % message.body["n"])
    time.sleep(600)
def take(message):
    os.write(out, b"%d\\n" % message.body["n"])
def die(message):
    os.write(out, b"%d\\n" % message.body["n"])
    time.sleep(0.02)
    if next(numbers) == 5:
        os.kill(os.getpid(), 9)
def nack(message):
    os.write(out, b"%d\\n" % message.body["n"])
    raise fmconsume.Nack
def fail(message):
    os.write(out, b"%d\\n" % message.body["n"])
    if message.body["n"] == 3:
        raise RuntimeError("the disk is full")
"""
#: Not the tests' own connection, over which nothing is consumed.
_CLOSE = """
[rabbit_networking:close_connection(Pid, "test")
 || Pid <- rabbit_networking:connections(),
    [{client_properties, Table}] <- [rabbit_reader:info(Pid, [client_properties])],
    lists:keymember(<<"app">>, 1, Table)].
"""


class Stage:
    """A quorum queue with a limit and dead letters, and callbacks that note what they get."""

    def __init__(self, broker, new_queue, run_command, folder):
        self.broker = broker
        self.dead = new_queue()
        self.arguments = {
            "x_queue_type": "quorum",
            "x_delivery_limit": _LIMIT,
            "x_dead_letter_exchange": "",
            "x_dead_letter_routing_key": self.dead,
        }
        self.queue = new_queue(**self.arguments)
        self.settings = durable(self.queue, **self.arguments)
        self._run, self._folder = run_command, folder
        self._out = folder / "seen"
        self._out.touch()
        (folder / "callback.py").write_text(_CALLBACK.format(out=str(self._out)))

    def start(self, function, *args, prefetch=10):
        """Start the command."""
        tables = f"[qos]\nprefetch_count = {prefetch}\n"
        config = write_config(
            self._folder / "config.toml", self.broker.url(), self.settings, tables
        )
        callback = f"{self._folder / 'callback.py'}:{function}"
        return self._run("--config", config, "--callback-file", callback, *args)

    @property
    def seen(self):
        """The numbers that callbacks got, in order."""
        return [int(line) for line in self._out.read_text().split()]

    @property
    def dead_letters(self):
        """The numbers of the messages that the queue gave up."""
        return [int(message.body[6:-1]) for message in self.broker.drain(self.dead)]

    def wait_for_none(self):
        """Wait until nobody has a message."""
        wait_until(lambda: self.broker.depth(self.queue).unacked == 0)

    def wait_for_all(self, count):
        """Wait until nobody has a message, and so many are in the queue or given up."""
        wait_until(
            lambda: (
                self.broker.depth(self.queue).unacked == 0
                and self.broker.ready(self.queue) + self.broker.ready(self.dead) == count
            )
        )


@pytest.fixture
def stage(broker, new_queue, run_command, tmp_path):
    """Give a stage."""
    return Stage(broker, new_queue, run_command, tmp_path)


def test_limit_killed(broker, stage):
    """A consumer that is killed again and again costs at most the message that ran."""
    broker.publish(stage.queue, numbered(10))
    for number in range(1, _LIMIT + 3):
        command = stage.start("hang")
        wait_until(lambda n=number: len(stage.seen) == n)
        command.kill()
        command.wait()
        stage.wait_for_all(10)
    assert len(stage.dead_letters) <= 1


@pytest.mark.parametrize("how", ["cut", "closed"])
def test_limit_connection_lost(broker, proxy, stage, run_consumer, gate, how):
    """A connection that is lost while a callback runs costs at most the message that ran."""
    broker.publish(stage.queue, numbered(10))
    running = run_consumer(gate, stage.settings, amqp_url=proxy.url())
    for number in range(1, _LIMIT + 3):
        wait_until(lambda: broker.depth(stage.queue).unacked)
        if how == "cut":
            proxy.cut()
        else:
            broker.eval(_CLOSE)
        running.wait_until_consuming(reconnections=number)
    gate.open.set()
    wait_until(lambda: broker.depth(stage.queue) == Depth(0, 0))
    running.stop()
    assert sorted(gate.seen) == list(range(10))
    assert len(stage.dead_letters) <= 1


def test_limit_terminated(broker, stage):
    """A consumer that is stopped again and again after one message loses none."""
    broker.publish(stage.queue, numbered(30))
    while len(set(stage.seen)) < 30:
        before = len(stage.seen)
        command = stage.start("take", prefetch=50)
        wait_until(lambda b=before: len(stage.seen) > b)
        command.send_signal(signal.SIGTERM)
        assert command.wait() == 0
    assert stage.seen == list(range(30))
    assert stage.dead_letters == []


def test_limit_one_by_one(broker, stage):
    """Runs with --limit take the messages in order, and lose none."""
    broker.publish(stage.queue, numbered(20))
    for _ in range(10):
        assert stage.start("take", "--limit", "1").wait() == 0
    assert stage.start("take", "--limit", "3").wait() == 0
    assert stage.seen == list(range(13))
    stage.wait_for_all(7)
    assert stage.dead_letters == []


def _waiting(broker, queue):
    """Take what is in a queue; give the number of each message and how often it was counted."""
    return [
        (int(message.body[6:-1]), message.properties.headers.get("x-delivery-count", 0))
        for message in broker.drain(queue)
    ]


def test_limit_killed_under_way(broker, stage):
    """A consumer that is killed once it has more than one message loses none that never ran."""
    broker.publish(stage.queue, numbered(40))
    for _ in range(7):
        assert stage.start("die").wait() == -signal.SIGKILL
        stage.wait_for_none()
    assert set(stage.dead_letters) <= set(stage.seen)


def test_limit_nacked(broker, stage):
    """Runs with --limit take no more than they run."""
    broker.publish(stage.queue, numbered(12))
    for _ in range(_LIMIT + 2):
        assert stage.start("nack", "--limit", "4").wait() == 0
        stage.wait_for_none()
    assert set(stage.dead_letters) <= set(stage.seen)


def test_limit_exception(broker, stage):
    """A callback that raises costs its message one count each time, and its neighbours none."""
    broker.publish(stage.queue, [{"n": n} for n in range(3, 10)])
    for _ in range(_LIMIT):
        assert stage.start("fail").wait() == 13
        stage.wait_for_all(7)
    assert stage.seen == [3] * _LIMIT
    assert stage.dead_letters == []
    assert _waiting(broker, stage.queue) == [(3, _LIMIT), *((n, 0) for n in range(4, 10))]


def test_limit_exception_under_way(broker, stage):
    """A message that fails once others are prefetched stays ahead of them."""
    broker.publish(stage.queue, numbered(10))
    assert stage.start("fail").wait() == 13
    stage.wait_for_all(7)
    waiting = _waiting(broker, stage.queue)
    assert [number for number, _ in waiting] == list(range(3, 10))
    assert waiting[0][1] == 1
    assert max(count for _, count in waiting) == 1
