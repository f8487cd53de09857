"""Tests of messages as lines of JSON: written, and read again."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume import schema
from fmconsume.exceptions import ValidationError
from fmconsume.jsonlines import (
    SERIALIZED_MESSAGE_SCHEMA,
    dump_record,
    dumps,
    load_delivery,
    load_line,
    load_message,
    loads,
)
from fmconsume.message import INFO, WARNING, Message, decode

from .messages import FEDORA_HEADERS, UPDATE, Install, deliver, named

pytestmark = pytest.mark.usefixtures("conf", "fresh_registry")


def test_dumps() -> None:
    """A message becomes a line of JSON in fedora-messaging's format, keys in order."""
    message = decode(deliver('{"b": "ž", "a": 1}'.encode(), priority=2))
    assert dumps(message) == (
        '{"body": {"a": 1, "b": "ž"}, "headers": {"fedora_messaging_schema": "base.message", '
        '"fedora_messaging_severity": 30, "sent-at": "2024-06-10T06:13:20+00:00"}, '
        '"id": "m-1", "priority": 2, "queue": "a queue", "topic": "a.topic"}\n'
    )


def test_dumps_several() -> None:
    """Several messages are several lines."""
    messages = [Message({"n": n}, topic="t") for n in range(3)]
    text = dumps(messages)
    assert text.count("\n") == 3
    assert text.endswith("\n")
    assert loads(text) == messages


@pytest.mark.parametrize("value", [["x"], [None], {"a": 1}, "text"])
def test_dumps_something_else(value: Any) -> None:
    """What is no message is named, not tried."""
    with pytest.raises(ValidationError, match=r"^found a (str|NoneType), expected a Message$"):
        dumps(value)


def test_dumps_odd_headers() -> None:
    """Header values that JSON does not have become strings."""
    headers = {
        "time": datetime.datetime(2024, 6, 10, tzinfo=datetime.timezone.utc),
        "decimal": Decimal("1.5"),
        "bytes": b"\xffa",
        "table": {"list": [Decimal(2), None, True]},
        b"\xff": 1,
    }
    (message,) = loads(dumps(decode(deliver(headers={**FEDORA_HEADERS, **headers}))))
    assert {key: message.headers[key] for key in ("time", "decimal", "bytes", "table")} == {
        "time": "2024-06-10T00:00:00+00:00",
        "decimal": "1.5",
        "bytes": r"\xffa",
        "table": {"list": ["2", None, True]},
    }
    assert message.headers[r"\xff"] == 1


@pytest.mark.parametrize("body", [[], {("a", "b"): 1}, {1: 1, "a": 1}])
def test_dumps_invalid(body: Any) -> None:
    """A message that is invalid or not JSON is not written."""
    with pytest.raises(ValidationError):
        dumps([Message(), Message(body)])


def test_dumps_cycle() -> None:
    """A body that holds itself is not written."""
    body: dict[str, Any] = {}
    body["body"] = body
    with pytest.raises(ValidationError, match="not JSON"):
        dumps(Message(body))


def test_loads(install: Install) -> None:
    """A line becomes the message that it was, of its class, with all that is known of it."""
    install(UPDATE, "update.v1 = {}:Update")
    headers = named("update.v1", other="x")
    message = decode(deliver(b'{"id": 3}', headers, message_id="m-2", priority=7))
    (loaded,) = loads(dumps(message))
    assert loaded.summary == "Update 3"
    assert loaded.headers == {
        **headers,
        "fedora_messaging_schema_package": "update_messages",
        "priority": 7,
    }
    assert (loaded.id, loaded.queue, loaded.priority) == ("m-2", "a queue", 7)
    assert (loaded.topic, loaded.severity) == ("a.topic", WARNING)


def test_loads_unknown_schema() -> None:
    """A message of a missing class keeps the schema that it had."""
    (loaded,) = loads(dumps(decode(deliver(headers=named("missing.v1")))))
    assert loaded.headers["fedora_messaging_schema"] == "missing.v1"


def test_loads_least() -> None:
    """A topic and a body are enough; empty lines do not count."""
    (message,) = loads('\n{"topic": "t", "body": {"a": 1}}\r\n\n')
    assert (message.topic, message.body, message.severity) == ("t", {"a": 1}, INFO)
    assert message.id
    message.validate()


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0b", "\x1c", "\n", "\ud800"])
def test_loads_line_separators(character: str) -> None:
    """Only a newline ends a line, whatever else Unicode takes for one."""
    message = Message({"a": character})
    assert loads(dumps(message)) == [message]


@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=5
    )
)
def test_loads_reverses_dumps(body: dict[str, Any]) -> None:
    """What was written is read again."""
    message = Message(body, topic="t")
    assert loads(dumps([message, message])) == [message, message]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 3: JSONDecodeError: "),
        ("[" * 100_000, "line 3: RecursionError: "),
        ("[]", "line 3: found a list, expected an object"),
        ('{"topic": "t"}', "line 3: body is missing"),
        ('{"body": {}}', "line 3: topic is missing"),
        ('{"topic": 5, "body": {}}', "line 3: topic is 5, expected string"),
        ('{"topic": "t", "body": []}', "line 3: body is [], expected object"),
        ('{"topic": "t", "body": {}, "id": 5}', "line 3: id is 5, expected string or null"),
        ('{"topic": "t", "body": {}, "queue": 5}', "line 3: queue is 5"),
        ('{"topic": "t", "body": {}, "priority": "x"}', "line 3: priority is 'x'"),
        ('{"topic": "t", "body": {}, "headers": null}', "line 3: headers is None"),
        (
            '{"topic": "t", "body": {}, "headers": {"fedora_messaging_severity": 5}}',
            "line 3: fedora_messaging_severity is 5, expected 10, 20, 30 or 40",
        ),
        (json.dumps({"topic": "x" * 10**6, "body": "x" * 10**6}), "line 3: body is 'xxx"),
    ],
    ids=lambda text: text[:60],
)
def test_loads_broken_line(line: str, reason: str) -> None:
    """The error names the line and the reason, shortly."""
    with pytest.raises(ValidationError) as raised:
        loads(f'{{"topic": "t", "body": {{}}}}\n\n{line}\n')
    assert str(raised.value).startswith(reason)
    assert len(str(raised.value)) <= 300


def test_load_line_failing_constructor(install: Install) -> None:
    """A class that cannot hold a line's body makes the line invalid."""
    install(UPDATE + "    def __init__(self, **kwargs): raise KeyError(5)\n", "named = {}:Named")
    line = json.dumps({"topic": "t", "body": {}, "headers": named("named")})
    with pytest.raises(ValidationError, match="line 9: KeyError: 5"):
        load_line(line, 9)


def test_load_message() -> None:
    """A dict of the published schema's form becomes a message."""
    fields = {"topic": "t", "body": {"a": 1}, "id": "x", "queue": None, "priority": None}
    assert set(fields) | {"headers"} == set(SERIALIZED_MESSAGE_SCHEMA["properties"])
    schema.check(Message, "body", SERIALIZED_MESSAGE_SCHEMA, fields)
    message = load_message(fields)
    assert (message.id, message.queue, message.priority) == ("x", None, 0)


@pytest.mark.parametrize(
    ("body", "delivered"),
    [({"a": "ž"}, b'{"a": "\\u017e"}'), ([1, None], b"[1, null]"), (b"\xff\n", b"\xff\n")],
)
def test_load_delivery(body: Any, delivered: bytes) -> None:
    """A record becomes a delivery again, with all that is known of the message, valid or not."""
    message = decode(deliver(headers=named(5), message_id="m-2", priority=7), "bytes")
    message.body = body
    record = dump_record(message)
    assert record.isascii()
    delivery = load_delivery(record, 3)
    assert (delivery.tag, delivery.queue, delivery.routing_key) == (3, "a queue", "a.topic")
    assert (delivery.message_id, delivery.properties.priority) == ("m-2", 7)
    assert (delivery.properties.headers, delivery.body) == (named(5), delivered)


def test_load_delivery_of_dumps() -> None:
    """A line of dumps() is a record, too."""
    message = Message({"a": 1}, topic="t")
    assert decode(load_delivery(dumps(message).encode(), 1)) == message
