"""Messages that were set aside, requeued from their files to a real broker, as they came."""

from __future__ import annotations

import json
import struct
import uuid

import pytest

from fmconsume.broker.wire import Properties, encode_published, install
from fmconsume.delivery import Delivery
from fmconsume.kept import KeptMessages, parse_kept
from tests.waiting import PATIENCE, wait_until

from .broker import Depth, free_port
from .running import RawProperties, write_config


def _table(*entries):
    """Encode a table of names and encoded values."""
    table = b"".join(bytes([len(name)]) + name + value for name, value in entries)
    return struct.pack(">I", len(table)) + table


_ID = b"\x05apple"
_NESTED = b""
for _ in range(300):
    _NESTED = b"A" + struct.pack(">I", len(_NESTED)) + _NESTED

#: Properties as they are on the wire. Headers are sorted, since RabbitMQ 4 sorts them.
_ODD = {
    "none": b"\x00\x00",
    "id": b"\x00\x80" + _ID,
    "milliseconds": b"\x20\x80"
    + _table((b"n", b"V"), (b"t", b"T" + struct.pack(">Q", 1_772_000_000_000)))
    + _ID,
    "numbers": b"\x20\x80"
    + _table(
        (b"D", b"D\x02\x00\x00\x00\x96"),
        (b"b", b"b\xff"),
        (b"d", b"d" + struct.pack(">d", 0.1)),
        (b"f", b"f" + struct.pack(">f", 1.5)),
        (b"l", b"l" + b"\xff" * 8),
        (b"s", b"s\xff\xfe"),
    )
    + _ID,
    "no UTF-8": b"\x20\x80" + _table((b"\xe4", b"S\x00\x00\x00\x01\xe4")) + b"\x02\xe4\xff",
    "nested": b"\x20\x80" + _table((b"a", b"F" + _table((b"b", b"A\x00\x00\x00\x02VV")))) + _ID,
    "everything": b"\xff\xfc"
    + b"\x05a/b;c\x04gzip"
    + _table((b"color", b"S\x00\x00\x00\x03red"), (b"x-stream", b"A\x00\x00\x00\x00"))
    + b"\x02\x07\x01c\x01r\x0b99999999999"
    + _ID
    + struct.pack(">Q", 2**63 - 1)
    + b"\x04type\x05guest\x03app\x01k",
    "unreadable": b"\x20\x80" + _table((b"a", _NESTED)) + _ID,
}


@pytest.fixture
def set_aside(broker, queue, tmp_path):
    """Take so many messages of the queue, keep each and reject it; gives what was there."""

    def set_aside(count):
        install()
        kept = KeptMessages(str(tmp_path / "kept"), 99)
        with broker.channel() as channel:
            seen = []
            channel.basic_consume(queue, lambda *message: seen.append(message))
            wait_until(lambda: channel.connection.process_data_events(0.1) or len(seen) == count)
            for _, method, properties, body in seen:
                kept.keep(_deliver(queue, method, properties, body), "odd", is_set_aside=True)
                channel.basic_reject(method.delivery_tag, requeue=False)
        return [(_encode(properties), body) for _, _, properties, body in seen]

    return set_aside


def _deliver(queue, method, properties, body):
    """Make a delivery as the session does."""
    return Delivery(
        *(1, method.delivery_tag, queue, method.routing_key, method.redelivered, properties),
        *(body, properties.message_id, 0.0, (method.exchange, *properties.published)),
    )


def _encode(properties):
    """Give the bytes of properties that were received."""
    return properties.raw or encode_published(properties.published)


def _received(broker, queue):
    """Take what is in the queue: properties as they are on the wire, and bodies."""
    return [(_encode(each.properties), each.body) for each in broker.drain(queue)]


def _publish(broker, queue, raw, body):
    with broker.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, RawProperties(raw))


@pytest.fixture
def config(broker, tmp_path):
    """A configuration of the broker, and of the folder."""
    failures = {"keep_in": str(tmp_path / "kept")}
    return write_config(tmp_path / "config.toml", broker.url(), failures=failures)


@pytest.mark.parametrize(
    "body",
    [b"", b'{"n": 1}', "\u00e4".encode(), b"\xff\x00\n", b"x" * 300_000],
    ids=["empty", "JSON", "UTF-8", "bytes", "large"],
)
def test_requeue_exact(broker, queue, set_aside, config, run_command, tmp_path, body):
    """Properties and bodies are the same to the byte afterwards, whatever they are."""
    for raw in _ODD.values():
        _publish(broker, queue, raw, body)
    before = set_aside(len(_ODD))
    assert [raw for raw, _ in before] == list(_ODD.values())
    assert broker.depth(queue) == Depth(0, 0)
    command = run_command("--config", config, "--requeue", tmp_path / "kept")
    assert command.wait(PATIENCE) == 0, command.printed() + command.logged()
    assert sorted(_received(broker, queue)) == sorted(before)
    assert list((tmp_path / "kept").iterdir()) == []
    assert command.printed().endswith(f"{len(_ODD)} files: {len(_ODD)} requeued\n")


def test_requeue_dead_lettered(broker, new_queue, config, run_command, tmp_path):
    """The history of a dead-lettered message stays, the counts of a quorum queue do not."""
    goal = new_queue(x_queue_type="quorum")
    source = new_queue(x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key=goal)
    broker.publish(source, [{"n": 1}], priority=3)
    wait_until(lambda: broker.ready(goal))
    install()
    kept = KeptMessages(str(tmp_path / "kept"), 99)
    with broker.channel() as channel:
        method, *_ = channel.basic_get(goal)
        channel.basic_reject(method.delivery_tag)
        wait_until(lambda: broker.ready(goal))
        method, properties, body = channel.basic_get(goal)
        assert properties.headers["x-delivery-count"] >= 1
        path = kept.keep(_deliver(goal, method, properties, body), "odd", is_set_aside=True)
        channel.basic_reject(method.delivery_tag, requeue=False)
    raw = parse_kept(path.read_bytes()).raw_properties
    command = run_command("--config", config, "--requeue", path)
    assert command.wait(PATIENCE) == 0, command.printed()
    (received,) = broker.drain(goal)
    assert received.properties.headers["x-death"][0]["queue"] == source
    assert not received.properties.headers.get("x-delivery-count")
    assert received.properties.priority == 3
    table = Properties().decode(raw).headers
    assert {**received.properties.headers, "x-delivery-count": 0} == {
        **table,
        "x-delivery-count": 0,
    }


def test_requeue_missing_queue(broker, queue, set_aside, config, run_command, tmp_path):
    """A message whose queue is gone stays, with all odd headers, and is told of."""
    for raw in _ODD.values():
        _publish(broker, queue, raw, b"{}")
    set_aside(len(_ODD))
    broker.delete(queue)
    command = run_command("--config", config, "--requeue", tmp_path / "kept")
    assert command.wait(PATIENCE) == 1
    assert command.printed().count(f"left: queue '{queue}': no queue takes it: NO_ROUTE") == len(
        _ODD
    )
    assert len(list((tmp_path / "kept").iterdir())) == len(_ODD)


def test_requeue_dry(broker, queue, set_aside, tmp_path, run_command):
    """A dry run needs no broker, and changes nothing."""
    broker.publish(queue, [{"n": 1}, {"n": 2}])
    set_aside(2)
    config = write_config(tmp_path / "offline.toml", f"amqp://127.0.0.1:{free_port()}")
    before = sorted((tmp_path / "kept").iterdir())
    command = run_command("--config", config, "--requeue", tmp_path / "kept", "--check")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed().endswith("2 files: 2 would be requeued\n")
    assert sorted((tmp_path / "kept").iterdir()) == before
    assert broker.depth(queue) == Depth(0, 0)


def test_requeue_forbidden(broker, queue, set_aside, tmp_path, run_command):
    """A broker that refuses the user is told of; the files stay."""
    broker.publish(queue, [{"n": 1}, {"n": 2}])
    set_aside(2)
    user = f"user-{uuid.uuid4().hex[:8]}"
    broker.ctl("add_user", user, "Sesame-17-open")
    broker.ctl("set_permissions", user, "", "", "")
    try:
        url = broker.url(user=user, password="Sesame-17-open")
        config = write_config(tmp_path / "user.toml", url)
        command = run_command("--config", config, "--requeue", tmp_path / "kept")
        assert command.wait(PATIENCE) == 1
        assert command.printed().count("ACCESS_REFUSED") == 2, command.printed()
        wrong = write_config(tmp_path / "wrong.toml", broker.url(user=user, password="wrong"))
        command = run_command("--config", wrong, "--requeue", tmp_path / "kept")
        assert command.wait(PATIENCE) == 1
        assert "2 files: 2 left" in command.printed()
        assert "wrong" not in command.printed()
    finally:
        broker.ctl("delete_user", user)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_failed_lists_what_is_kept(broker, queue, set_aside, config, run_command):
    """--failed finds what was kept without being told where."""
    broker.publish(queue, [{"n": 1}])
    set_aside(1)
    command = run_command("--config", config, "--failed")
    assert command.wait(PATIENCE) == 0, command.logged()
    title, line = command.printed().splitlines()
    assert title.startswith("last failed (UTC)")
    assert f"{queue}  {queue}  1         set aside  " in line
    assert line.endswith("  odd")


def test_kept_before_is_skipped(broker, queue, config, run_command, tmp_path):
    """A message on which the callback failed is in its queue, and is not published again."""
    (tmp_path / "failing.py").write_text("def fail(message):\n    raise KeyError('pear')\n")
    broker.publish(queue, [{"n": 1}])
    failing = write_config(
        tmp_path / "failing.toml",
        broker.url(),
        queue,
        failures={"keep_in": str(tmp_path / "kept")},
    )
    command = run_command("--config", failing, "--callback", "failing:fail", cwd=tmp_path)
    assert command.wait(PATIENCE) == 13, command.logged()
    (file,) = (tmp_path / "kept").iterdir()
    assert json.loads(file.read_text())["exchange"] == ""
    command = run_command("--config", config, "--requeue", tmp_path / "kept")
    assert command.wait(PATIENCE) == 0, command.printed()
    assert command.printed().endswith("1 files: 1 skipped\n")
    assert broker.depth(queue) == Depth(1, 0)
