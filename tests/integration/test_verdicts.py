"""What the broker holds after each verdict of a callback, and after what no callback sees."""

from __future__ import annotations

import logging
import time
from collections import Counter

import pytest

from fmconsume.exceptions import ConsumeException, Drop, HaltConsumer, Nack
from tests.waiting import wait_until

from .broker import Depth
from .running import durable, failures, numbered


@pytest.fixture
def dead_letters(new_queue):
    """A queue for the rejected messages of `dying_queue`."""
    return new_queue()


@pytest.fixture
def dying_queue(new_queue, dead_letters):
    """A queue that dead-letters what is rejected, as `run_consumer` takes it."""
    arguments = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": dead_letters}
    return durable(new_queue(**arguments), **arguments)


def _numbers(received):
    """Read the numbers in the bodies {"n": 0}."""
    return [int(message.body[6:-1]) for message in received]


def _are_redelivered(received):
    return all(message.method.redelivered for message in received)


def test_verdict_return(broker, queue, run_consumer):
    """A message whose callback returned is gone at once, while the consumer goes on."""
    running = run_consumer(lambda message: None, queue)
    broker.publish(queue, numbered(3))
    wait_until(lambda: running.consumer.stats.acknowledged == 3)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    assert running.is_alive()


@pytest.mark.parametrize(
    "make", [lambda m: Nack, lambda m: Nack(), lambda m: Nack(m), lambda m: Nack(m, "later")]
)
def test_verdict_nack(broker, queue, run_consumer, make):
    """A message whose callback raised Nack is redelivered, and runs again."""
    seen = []

    def callback(message):
        seen.append((message.body["n"], message.redelivered))
        if message.body["n"] == 0 and not message.redelivered:
            raise make(message)

    running = run_consumer(callback, queue, failures=failures(delay={"initial": 0.05, "max": 1.0}))
    broker.publish(queue, numbered(2))
    wait_until(lambda: len(seen) == 3)
    running.stop()
    assert seen == [(0, False), (1, False), (0, True)]
    assert broker.ready(queue) == 0


def test_verdict_nack_without_a_delay(broker, queue, run_consumer):
    """With failures.delay.initial = 0 a message comes back at once."""
    times = []

    def callback(message):
        times.append(time.monotonic())
        if len(times) < 50:
            raise Nack

    running = run_consumer(callback, queue, failures=failures(delay={"initial": 0.0, "max": 60.0}))
    broker.publish(queue, [{}])
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    assert times[-1] - times[0] < 5
    assert running.consumer.stats.requeued == 49


def test_verdict_nack_backs_off(broker, queue, run_consumer):
    """The delay of a message that is returned again and again doubles up to its maximum."""
    times = []

    def callback(message):
        times.append(time.monotonic())
        raise Nack

    run_consumer(callback, queue, failures=failures(delay={"initial": 0.1, "max": 0.4}))
    broker.publish(queue, [{}])
    wait_until(lambda: len(times) >= 5)
    delays = [later - earlier for earlier, later in zip(times, times[1:])]
    for delay, least in zip(delays, (0.1, 0.2, 0.4, 0.4)):
        assert least * 0.95 <= delay < least + 0.3


def test_verdict_nack_is_held_until_a_stop(broker, queue, run_consumer):
    """A held Nack is unacknowledged, holds up no other message, and goes back with a stop."""
    seen = []

    def callback(message):
        seen.append(message.body["n"])
        if message.body["n"] == 0:
            raise Nack

    running = run_consumer(callback, queue, failures=failures(delay={"initial": 60.0, "max": 60.0}))
    broker.publish(queue, numbered(3))
    wait_until(lambda: running.consumer.stats.acknowledged == 2)
    wait_until(lambda: broker.depth(queue) == Depth(0, 1))
    running.stop()
    returned = broker.drain(queue)
    assert _numbers(returned) == [0]
    assert _are_redelivered(returned)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    "make", [lambda m: Drop, lambda m: Drop(), lambda m: Drop(m), lambda m: Drop(m, "no")]
)
def test_verdict_drop(broker, dying_queue, dead_letters, run_consumer, make):
    """A message whose callback raised Drop is dead-lettered where the queue says so."""
    seen = []

    def callback(message):
        seen.append(message.body["n"])
        if message.body["n"] == 0:
            raise make(message)

    running = run_consumer(callback, dying_queue)
    broker.publish(*dying_queue, numbered(2))
    wait_until(lambda: broker.ready(dead_letters))
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    running.stop()
    (dead,) = broker.drain(dead_letters)
    assert _numbers([dead]) == [0]
    assert dead.properties.headers["x-death"][0]["reason"] == "rejected"
    assert seen == [0, 1]
    assert broker.ready(*dying_queue) == 0


def test_verdict_drop_without_a_dead_letter_exchange(broker, queue, run_consumer):
    """A message whose callback raised Drop is gone where the queue has no dead-letter exchange."""

    def callback(message):
        raise Drop

    running = run_consumer(callback, queue)
    broker.publish(queue, numbered(2))
    wait_until(lambda: running.consumer.stats.dropped == 2)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))


@pytest.mark.parametrize(
    ("make", "exit_code", "left"),
    [
        (lambda m: HaltConsumer, 0, [2, 3]),
        (lambda m: HaltConsumer(), 0, [2, 3]),
        (lambda m: HaltConsumer(m), 1, [2, 3]),
        (lambda m: HaltConsumer(3, "full"), 3, [2, 3]),
        (lambda m: HaltConsumer(requeue=True), 0, [1, 2, 3]),
        (lambda m: HaltConsumer(exit_code=5, reason="full", requeue=True), 5, [1, 2, 3]),
    ],
)
def test_verdict_halt(broker, queue, run_consumer, make, exit_code, left):
    """HaltConsumer settles its message as it says, returns the prefetched ones and is raised."""
    seen = []

    def callback(message):
        seen.append(message.body["n"])
        if message.body["n"] == 1:
            raise make(message)

    broker.publish(queue, numbered(4))
    running = run_consumer(callback, queue, wait=False)
    with pytest.raises(HaltConsumer) as raised:
        running.result()
    assert raised.value.exit_code == running.consumer.exit_code == exit_code
    assert seen == [0, 1]
    returned = broker.drain(queue)
    assert _numbers(returned) == left
    assert _are_redelivered(returned[:1])  # The others may not have been delivered.


@pytest.mark.parametrize(
    "error",
    [RuntimeError("boom"), SystemExit(0), KeyboardInterrupt(), ConsumeException("none of ours")],
    ids=repr,
)
def test_verdict_exception(broker, queue, run_consumer, caplog, error):
    """Any other exception is logged and raised; its message and the prefetched ones are back."""
    seen = []

    def callback(message):
        seen.append(message.body["n"])
        if message.body["n"] == 1:
            raise error

    broker.publish(queue, numbered(5))
    running = run_consumer(callback, queue, wait=False)
    with pytest.raises(type(error)) as raised:
        running.result()
    assert raised.value is error
    assert running.consumer.exit_code == 13
    assert seen == [0, 1]
    returned = broker.drain(queue)
    assert _numbers(returned) == [1, 2, 3, 4]
    assert _are_redelivered(returned[:1])  # The others may not have been delivered.
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info[1] is error


def test_verdict_exception_counts_once(broker, new_queue, run_consumer):
    """A failure counts once towards the delivery limit of a quorum queue.

    RabbitMQ 4.3 counts nothing else; earlier ones count each return, also of what never ran.
    """
    arguments = {"x_queue_type": "quorum"}
    queue = new_queue(**arguments)
    broker.publish(queue, numbered(3))

    runs = Counter()

    def fail(message):
        runs[message.id] += 1
        raise RuntimeError("the disk is full")

    for _ in range(4):
        running = run_consumer(fail, durable(queue, **arguments), wait=False)
        with pytest.raises(RuntimeError):
            running.result()
        wait_until(lambda: broker.depth(queue) == Depth(3, 0))
    assert sum(runs.values()) == 4
    for message in broker.drain(queue):
        count = message.properties.headers.get("x-delivery-count", 0)
        assert count in (runs[message.properties.message_id], 4)


def test_verdict_exception_among_several_workers(broker, queue, run_consumer, gate):
    """A failure lets the other workers finish, and their messages are acknowledged."""

    def callback(message):
        if message.body["n"] == 2:
            raise RuntimeError("boom")
        gate(message)

    running = run_consumer(callback, queue, workers=3)
    broker.publish(queue, numbered(6))
    wait_until(lambda: broker.ready(queue) == 4)
    gate.open.set()
    with pytest.raises(RuntimeError, match="boom"):
        running.result()
    assert sorted(gate.seen) == [0, 1]
    assert sorted(_numbers(broker.drain(queue))) == [2, 3, 4, 5]


_DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b'{"n": ', {}),
        (b"", {}),
        (b"[]", {}),
        (b"null", {}),
        (_DEEP, {}),
        (b'{"n": ' + _DEEP, {}),
        (b'{"n": "\xff"}', {}),
        (b"{}", {"content_encoding": "klingon"}),
        (b"{}", {"content_encoding": "utf-16"}),
        (b"{}", {"content_encoding": "zlib"}),
        (b"{}", {"headers": {"fedora_messaging_severity": 42}}),
        (b"{}", {"headers": {"fedora_messaging_severity": "loud"}}),
        (b"{}", {"headers": {"fedora_messaging_severity": {"a": []}}}),
        (b"{}", {"headers": {"fedora_messaging_schema": 7}}),
    ],
    ids=range(14),
)
def test_verdict_undecodable(
    broker, dying_queue, dead_letters, run_consumer, caplog, body, properties
):
    """What does not decode is dead-lettered with one warning that names it; the next one runs."""
    seen = []
    broker.publish(*dying_queue, [body], message_id="a-bad-one", **properties)
    broker.publish(*dying_queue, [{"n": 1}])
    running = run_consumer(lambda message: seen.append(message.body["n"]), dying_queue)
    wait_until(lambda: broker.ready(dead_letters))
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    running.stop()
    (dead,) = broker.drain(dead_letters)
    assert dead.body == body
    assert dead.properties.headers["x-death"][0]["reason"] == "rejected"
    assert seen == [1]
    assert broker.ready(*dying_queue) == 0
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.levelno == logging.WARNING
    assert "a-bad-one" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 500


def test_verdict_bare_message(broker, queue, run_consumer):
    """A message without headers, severity, encoding and id reaches the callback as a Message."""
    messages = []
    running = run_consumer(messages.append, queue)
    broker.publish(queue, [b'{"n": 1}'])
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    (message,) = messages
    assert (message.body, message.severity, message.id) == ({"n": 1}, 20, None)
