"""Headers that Python or pika cannot represent disturb nobody, and most arrive as they are."""

from __future__ import annotations

import struct

import pytest

from tests.waiting import wait_until

from .broker import Depth
from .running import nested_array, odd_properties


def _publish(broker, queue, value):
    """Publish a message with an id, and one header "odd" that holds an encoded value."""
    with broker.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("", queue, b'{"n": 0}', odd_properties(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"T" + struct.pack(">Q", 1_772_000_000_000), 1_772_000_000_000),
        (b"T" + struct.pack(">q", -1), -1),
        (b"d" + struct.pack(">d", 1.5), 1.5),
        (b"S\x00\x00\x00\x01\xe4", b"\xe4"),
        (b"A\x00\x00\x00\x02VV", [None, None]),
    ],
    ids=["milliseconds", "before 1970", "double", "no UTF-8", "void"],
)
def test_odd_header(broker, queue, run_consumer, value, expected):
    """A message with an odd header runs with its raw value, and so do the good ones beside it."""
    seen = []
    broker.publish(queue, [{"n": 1}])
    _publish(broker, queue, value)
    broker.publish(queue, [{"n": 2}, {"n": 3}])
    running = run_consumer(lambda message: seen.append(message), queue, body="json")
    wait_until(lambda: len(seen) == 4)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert [message.body["n"] for message in seen] == [1, 0, 2, 3]
    assert seen[1]._headers["odd"] == expected
    assert running.consumer.stats.reconnections == 0
    assert seen[1].id == "apple"


def test_unreadable_headers(broker, queue, run_consumer, caplog):
    """A message whose headers cannot be read is rejected with a line that names it; others run.

    RabbitMQ takes an array that is nested too deep for us.
    """
    seen = []
    _publish(broker, queue, nested_array())
    broker.publish(queue, [{"n": 2}])
    running = run_consumer(seen.append, queue)
    wait_until(lambda: len(seen) == 1)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert running.consumer.stats.rejected == 1
    (line,) = [line for line in caplog.messages if "does not decode: " in line]
    assert "nested more than 100 deep" in line
    assert f"routing key '{queue}', 8 bytes" in line
