"""What is declared, bound and consumed, and that each message runs once and in order."""

from __future__ import annotations

import os
import threading
import time
import uuid
from unittest import mock

import pytest
from pika.exceptions import ChannelClosedByBroker

from fmconsume.api import Consumer
from fmconsume.broker.session import Session
from fmconsume.exceptions import BadDeclaration
from tests.waiting import PATIENCE, wait_until

from .running import Running, configured, durable, numbered, warm_up

_MANY = 20_000
_HEARTBEAT = 2
_SHARED = {"exclusive": False, "auto_delete": False}
_PREFETCH = {"prefetch_count": 250, "prefetch_size": 0}


@pytest.fixture
def key() -> str:
    """A routing key that no other test uses."""
    return f"test.{uuid.uuid4().hex[:12]}"


def test_consume_several_queues_bindings_and_routing_keys(broker, new_queue, run_consumer, key):
    """Each message whose routing key is bound arrives from its own queue, and no other does."""
    first, second = new_queue(), new_queue()
    seen = []
    running = run_consumer(
        lambda message: seen.append((message.queue, message.topic)),
        durable(first, second),
        [
            {"queue": first, "exchange": "amq.topic", "routing_keys": [f"{key}.a", f"{key}.b"]},
            {"queue": first, "exchange": "amq.direct", "routing_keys": [f"{key}.c"]},
            {"queue": second, "exchange": "amq.topic", "routing_keys": [f"{key}.d.#"]},
        ],
    )
    for topic in ("unbound", "a", "b", "d.e"):
        broker.publish(f"{key}.{topic}", [{}], "amq.topic")
    for topic in ("a", "c"):
        broker.publish(f"{key}.{topic}", [{}], "amq.direct")
    expected = {
        *((first, f"{key}.{topic}") for topic in "abc"),
        (second, f"{key}.d.e"),
    }
    wait_until(lambda: expected <= set(seen))
    running.stop()
    assert sorted(seen) == sorted(expected)


def test_consume_with_consumer_arguments(broker, queue, run_consumer):
    """The arguments of a queue's consumer reach RabbitMQ, also when it consumes again."""
    settings = {"durable": True, "consumer_arguments": {"x-priority": -1}}
    seen = [], []
    spare = run_consumer(seen[0].append, {queue: settings})
    broker.publish(queue, numbered(2))
    wait_until(lambda: spare.consumer.stats.acknowledged == 2)
    usual = run_consumer(seen[1].append, durable(queue))
    for count in range(1, 11):
        broker.publish(queue, numbered(1))
        wait_until(lambda count=count: usual.consumer.stats.acknowledged == count)
    usual.stop()
    spare.stop()
    assert [len(each) for each in seen] == [2, 10]


def test_consume_one_binding_as_a_dict(broker, queue, run_consumer, key):
    """A single binding may be given without a list around it."""
    topics = []
    run_consumer(
        lambda message: topics.append(message.topic),
        queue,
        {"queue": queue, "exchange": "amq.topic", "routing_keys": [key]},
    )
    broker.publish(key, [{}], "amq.topic")
    wait_until(lambda: topics == [key])


def test_consume_server_named_queue(broker, run_consumer, key):
    """The queue "" gets its name from the broker, and a binding without a queue is for it."""
    messages = []
    running = run_consumer(
        messages.append,
        {"": {"exclusive": True, "auto_delete": True}},
        [{"exchange": "amq.topic", "routing_keys": [key]}],
    )
    broker.publish(key, [{"n": 1}], "amq.topic")
    wait_until(lambda: messages)
    assert messages[0].body == {"n": 1}
    assert messages[0].queue.startswith("amq.gen-")
    assert messages[0].queue in running.consumer.state.text


def test_consume_server_named_queue_after_reconnection(broker, proxy, run_consumer, key):
    """A new session has a new server-named queue, bound as the first one was."""
    queues = []
    running = run_consumer(
        lambda message: queues.append(message.queue),
        {"": {"exclusive": True, "auto_delete": True}},
        [{"queue": "", "exchange": "amq.topic", "routing_keys": [key]}],
        amqp_url=proxy.url(),
    )
    broker.publish(key, [{}], "amq.topic")
    wait_until(lambda: len(queues) == 1)
    proxy.cut()
    running.wait_until_consuming(reconnections=1)
    broker.publish(key, [{}], "amq.topic")
    wait_until(lambda: len(queues) == 2)
    assert queues[1].startswith("amq.gen-")
    assert queues[1] != queues[0]


def test_consume_passive_declares(broker, queue, run_consumer):
    """With passive_declares a queue is consumed as it is, whatever the configuration says of it."""
    seen = []
    run_consumer(seen.append, {queue: {"exclusive": True}}, passive_declares=True)
    broker.publish(queue, [{}])
    wait_until(lambda: seen)


def test_consume_passive_queue(broker, queue, run_consumer):
    """A queue with passive of its own is consumed as it is."""
    seen = []
    run_consumer(seen.append, {queue: {"passive": True, "auto_delete": True}})
    broker.publish(queue, [{}])
    wait_until(lambda: seen)


def test_consume_passive_declares_missing_queue(broker, run_consumer, key):
    """With passive_declares a queue that is not there is a refused declaration, and not created."""
    running = run_consumer(print, {key: {}}, wait=False, passive_declares=True)
    with pytest.raises(BadDeclaration, match=f"cannot declare queue '{key}'.*NOT_FOUND"):
        running.result()
    with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):
        broker.ready(key)


def test_consume_declares_exchanges_first(broker, queue, run_consumer, key):
    """An exchange of the configuration is there when the queues are bound to it."""
    seen = []
    run_consumer(
        seen.append,
        queue,
        [{"queue": queue, "exchange": key, "routing_keys": ["in"]}],
        exchanges={key: {"type": "direct", "durable": False, "auto_delete": True, "arguments": {}}},
    )
    broker.publish("in", [{}], key)
    wait_until(lambda: seen)


def test_consume_without_arguments_takes_the_configuration(broker, queue, key):
    """Queues, bindings and workers come from the configuration where no argument gives them."""
    both = threading.Barrier(2)
    topics = []

    def callback(message):
        both.wait(PATIENCE)
        topics.append(message.topic)

    with configured(
        amqp_url=broker.url(),
        queues={queue: {**durable(queue)[queue], **_SHARED}},
        bindings=[{"queue": queue, "exchange": "amq.topic", "routing_keys": [key]}],
        workers=2,
    ):
        running = Running(Consumer(callback, limit=2))
    running.start()
    running.wait_until_consuming()
    broker.publish(key, numbered(2), "amq.topic")
    running.result()
    assert topics == [key, key]


def test_consume_queues_without_bindings_of_theirs(broker, queue, run_consumer):
    """Queues that no configured binding names are consumed without one."""
    seen = []
    run_consumer(seen.append, queue, None)
    broker.publish(queue, [{}])
    wait_until(lambda: seen)


def test_consume_many_messages_with_one_worker(broker, queue, run_consumer):
    """20,000 messages through one worker run in order, each exactly once."""
    seen = []
    running = run_consumer(lambda message: seen.append(message.body["n"]), queue, qos=_PREFETCH)
    broker.publish(queue, numbered(_MANY))
    wait_until(lambda: len(seen) >= _MANY)
    running.stop()
    assert seen == list(range(_MANY))
    assert broker.ready(queue) == 0


def test_consume_many_messages_with_eight_workers(broker, queue, run_consumer):
    """20,000 messages through eight workers run each exactly once."""
    seen, threads = [], set()

    def callback(message):
        seen.append(message.body["n"])
        threads.add(threading.current_thread())

    running = run_consumer(callback, queue, workers=8, qos=_PREFETCH)
    broker.publish(queue, numbered(_MANY))
    wait_until(lambda: len(seen) >= _MANY)
    running.stop()
    assert sorted(seen) == list(range(_MANY))
    assert len(threads) == 8
    assert broker.ready(queue) == 0


def test_consume_one_worker_keeps_the_order_across_queues(broker, new_queue, run_consumer, gate):
    """One worker takes the messages of all queues in the order in which they were delivered."""
    queues = [new_queue(), new_queue(), new_queue()]
    running = run_consumer(gate, durable(*queues))
    before = max(warm_up(broker, queue, running) for queue in queues)
    order = [0, 2, 1, 1, 0, 2, 2, 1, 0]
    for number, index in enumerate(order):
        broker.publish(queues[index], [{"n": number}])
        wait_until(lambda: running.consumer.stats.received == before + number + 1)  # noqa: B023
    assert gate.seen == [0]
    gate.open.set()
    wait_until(lambda: running.consumer.stats.acknowledged == before + len(order))
    assert gate.seen == list(range(len(order)))


def test_consume_one_worker_is_serial(broker, new_queue, run_consumer):
    """One worker never runs two callbacks at a time, however many queues it has."""
    queues = [new_queue(), new_queue(), new_queue()]
    alone, seen = threading.Lock(), {queue: [] for queue in queues}

    def callback(message):
        assert alone.acquire(blocking=False)
        time.sleep(0.001)  # long enough for another to begin
        seen[message.queue].append(message.body["n"])
        alone.release()

    running = run_consumer(callback, durable(*queues))
    for queue in queues:
        broker.publish(queue, numbered(100))
    wait_until(lambda: running.consumer.stats.acknowledged == 300 or not running.is_alive())
    running.stop()
    assert seen == {queue: list(range(100)) for queue in queues}


def _burn(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


@pytest.mark.parametrize("occupy", [time.sleep, _burn])
def test_consume_long_callback_keeps_the_connection(broker, queue, run_consumer, occupy):
    """A callback that sleeps or burns CPU for three heartbeat intervals costs no connection."""
    running = run_consumer(
        lambda message: occupy(message.body["seconds"]),
        queue,
        amqp_url=broker.url(heartbeat=_HEARTBEAT),
    )
    broker.publish(queue, [{"seconds": 3 * _HEARTBEAT}, {"seconds": 0}])
    wait_until(lambda: running.consumer.stats.acknowledged == 2)
    running.stop()
    assert running.consumer.stats.reconnections == 0
    assert broker.ready(queue) == 0


@pytest.mark.parametrize(("heartbeat", "turns"), [(1, 13), (60, 2)])
def test_consume_idle(broker, queue, run_consumer, gate, heartbeat, turns):
    """An idle consumer wakes for heartbeats and every five seconds, and for a message at once."""
    gate.open.set()
    wait = mock.Mock(side_effect=Session.wait)
    with mock.patch.object(Session, "wait", lambda *args: wait(*args)):
        running = run_consumer(gate, queue, amqp_url=broker.url(heartbeat=heartbeat))
        before = wait.call_count
        time.sleep(3)
        assert wait.call_count - before <= turns
        broker.publish(queue, [{"n": 1}])
        assert gate.entered.wait(0.5)
    assert running.consumer.stats.reconnections == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_consume_limit(broker, queue, run_consumer, workers):
    """After so many messages the consumer ends by itself, and the others are in the queue."""
    seen = []
    broker.publish(queue, numbered(10))
    running = run_consumer(
        lambda message: seen.append(message.body["n"]),
        queue,
        workers=workers,
        limit=4,
        wait=False,
    )
    running.result()
    assert sorted(seen) == [0, 1, 2, 3]
    assert running.consumer.exit_code == 0
    assert [int(message.body[6:-1]) for message in broker.drain(queue)] == [4, 5, 6, 7, 8, 9]


def _exit(code):
    os._exit(code)


def _return(code):
    return None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("leave", "status"), [(_exit, 7), (_return, 1)])
def test_consume_forking_callback(broker, queue, run_consumer, leave, status):
    """A child forked in a callback ends there, and its parent keeps the connection."""
    statuses = []

    def callback(message):
        child = os.fork()
        if not child:
            return leave(7)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    running = run_consumer(callback, queue)
    broker.publish(queue, numbered(2))
    wait_until(lambda: running.consumer.stats.acknowledged == 2)
    running.stop()
    assert statuses == [status, status]
    assert running.consumer.stats.reconnections == 0
    assert broker.ready(queue) == 0
