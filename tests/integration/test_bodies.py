"""Bodies that are not Fedora's, from any RabbitMQ queue."""

from __future__ import annotations

import pytest

from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("mode", "body", "expected"),
    [
        ("json", "[1, 2]", [1, 2]),
        ("json", '"pear"', "pear"),
        ("json", "null", None),
        ("bytes", b"\x00\xff not JSON", b"\x00\xff not JSON"),
        ("bytes", b"", b""),
    ],
)
def test_body_mode(broker, queue, run_consumer, caplog, mode, body, expected):
    """Any JSON, or any bytes, reach the callback, and missing Fedora headers are no warning."""
    seen = []
    run_consumer(lambda message: seen.append(message.body), queue, body=mode)
    broker.publish(queue, [body])
    assert wait_until(lambda: seen) == [expected]
    wait_until(lambda: broker.depth(queue) == (0, 0))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
