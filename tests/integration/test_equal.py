"""Messages that are equal to the letter: each is run, or was; none is taken for its like."""

from __future__ import annotations

import threading
import time

import pytest

from fmconsume.exceptions import Nack
from tests.waiting import PATIENCE, wait_until

from .broker import Depth
from .running import failures, warm_up

_PREFETCH = 10
_EQUAL = {"message_id": "the-same", "headers": {"color": "red"}, "timestamp": 1}


def _publish(broker, queue, count=1):
    broker.publish(queue, [{"n": 0}] * count, **_EQUAL)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("arguments", [{}, {"x_queue_type": "quorum"}], ids=["classic", "quorum"])
def test_equal_connection_cut(broker, proxy, new_queue, run_consumer, workers, arguments):
    """With the connection cut while equal messages run, none is taken for another.

    Only those whose acknowledgement may have been lost, at most the prefetch, may run again.
    """
    queue, count, runs = new_queue(**arguments), 40, []

    def callback(message):
        runs.append(message)
        if len(runs) in (5, 15, 25):
            # Not at once, so that others are prefetched and some are acknowledged.
            time.sleep(0.05)
            proxy.cut()
            time.sleep(0.05)

    _publish(broker, queue, count)
    queues = {
        queue: {"durable": True, "arguments": {"x-queue-type": "quorum"} if arguments else {}}
    }
    running = run_consumer(callback, queues, workers=workers, amqp_url=proxy.url())
    wait_until(lambda: len(runs) >= count)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert count <= len(runs) <= count + 3 * _PREFETCH
    assert running.consumer.stats.reconnections >= 1


def test_redelivery_with_headers_in_any_order(broker, proxy, new_queue, run_consumer, gate):
    """A quorum queue may sort the headers of what it delivers again; it is the same message."""
    queue = new_queue(x_queue_type="quorum")
    broker.publish(queue, [{"n": 0}], headers={"b": 1, "a": {"d": 1, "c": 2}})
    queues = {queue: {"durable": True, "arguments": {"x-queue-type": "quorum"}}}
    running = run_consumer(gate, queues, workers=2, amqp_url=proxy.url())
    assert gate.entered.wait(PATIENCE)
    proxy.cut()
    wait_until(lambda: running.consumer.stats.deduplicated == 1)
    gate.open.set()
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert gate.seen == [0]


def test_equal_returned_by_another(broker, queue, run_consumer):
    """A copy of a finished message that another consumer held and returned runs."""
    runs = []
    _publish(broker, queue)
    with broker.channel() as channel:
        # The other one has its copy before the consumer starts, and gives it back later.
        method, _, _ = channel.basic_get(queue)
        _publish(broker, queue)
        running = run_consumer(runs.append, queue)
        wait_until(lambda: running.consumer.stats.acknowledged == 1)
        channel.basic_nack(method.delivery_tag, requeue=True)
        wait_until(lambda: len(runs) == 2)
    running.stop()
    assert runs[1].redelivered
    assert broker.depth(queue) == Depth(0, 0)


def test_equal_prefetched_by_an_instance_that_stops(broker, queue, run_consumer, gate):
    """A copy that waited unseen in another instance runs when that one is stopped."""
    other = run_consumer(gate, queue, qos={"prefetch_count": 2, "prefetch_size": 0})
    before = warm_up(broker, queue, other)
    _publish(broker, queue, 2)
    wait_until(lambda: other.consumer.stats.received == before + 2)
    runs = []
    running = run_consumer(runs.append, queue)
    _publish(broker, queue)
    wait_until(lambda: len(runs) == 1)
    other.consumer.stop()
    wait_until(lambda: len(runs) == 2)
    gate.open.set()
    other.result()
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert len(gate.seen) == 1


def test_equal_comes_back_through_a_dead_letter_queue(broker, proxy, new_queue, run_consumer):
    """A message that was dropped and comes back dead-lettered runs, after a lost connection too."""
    queue = new_queue()
    parking = new_queue(x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key=queue)
    go_on = threading.Event()
    runs = []

    def callback(message):
        runs.append(message.body["n"])
        assert message.body["n"] == 0 or go_on.wait(PATIENCE)

    _publish(broker, queue)
    one = {"prefetch_count": 1, "prefetch_size": 0}
    running = run_consumer(callback, queue, amqp_url=proxy.url(), qos=one)
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    proxy.cut()
    running.wait_until_consuming(reconnections=1)
    broker.publish(queue, [{"n": 1}])
    wait_until(lambda: runs == [0, 1])
    _publish(broker, parking)  # As it was, and by somebody who marks nothing.
    with broker.channel() as channel:
        wait_until(lambda: broker.ready(queue) == 1)
        method, _, _ = channel.basic_get(queue)
        channel.basic_nack(method.delivery_tag, requeue=True)
    go_on.set()
    wait_until(lambda: runs == [0, 1, 0])
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()


def test_equal_one_returned_one_finished(broker, proxy, queue, run_consumer):
    """Of two equal messages, one finished and one returned, the returned one runs again."""
    runs = []

    def callback(message):
        runs.append(message)
        if len(runs) == 2:
            raise Nack
        if len(runs) == 3:
            assert message.redelivered

    _publish(broker, queue, 2)
    running = run_consumer(
        callback,
        queue,
        amqp_url=proxy.url(),
        failures=failures(delay={"initial": 60.0, "max": 60.0}),
    )
    wait_until(lambda: running.consumer.stats.requeued == 1)
    proxy.cut()
    wait_until(lambda: len(runs) == 3)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert len(runs) == 3
