"""Messages as lines of JSON, written and read.

`dumps` and `loads` use the format that fedora-messaging defines. `dump_record` and
`load_delivery` extend it for files that are replayed: bodies may be bytes, and messages
may be invalid. Any thread may call.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .delivery import Delivery
from .exceptions import ConfigurationException, ValidationError
from .headers import HEADERS_SCHEMA, PACKAGE, SEVERITY, check_headers, simplify
from .message_classes import base_class, choose_class
from .text import brief, describe

if TYPE_CHECKING:
    from .message import Message

__all__ = [
    "SERIALIZED_MESSAGE_SCHEMA",
    "dump_line",
    "dump_record",
    "dumps",
    "load_delivery",
    "load_line",
    "load_message",
    "loads",
    "only_json",
    "record_fields",
]

#: JSON Schema of a line of dumps(), for those who make such files by other means.
SERIALIZED_MESSAGE_SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "description": "One message in a file of JSON lines",
    "type": "object",
    "properties": {
        "topic": {"type": ["string"]},
        "headers": {"type": ["object"], "properties": HEADERS_SCHEMA["properties"]},
        "id": {"type": ["string", "null"]},
        "body": {"type": ["object"]},
        "queue": {"type": ["string", "null"]},
        "priority": {"type": ["integer", "null"]},
    },
    "required": ["topic", "body"],
}

_TYPES = {"string": str, "object": dict, "integer": int, "null": type(None)}


# -- Writing ---------------------------------------------------------------------------


def dumps(messages: Message | Iterable[Message]) -> str:
    """Turn messages into text, one JSON object a line.

    Raises:
        ValidationError: A message is invalid, or is not JSON.
    """
    several: Any = [messages] if isinstance(messages, base_class()) else messages
    lines = []
    for message in several:
        if not isinstance(message, base_class()):
            raise ValidationError(f"found a {type(message).__name__}, expected a Message")
        message.validate()
        lines.append(dump_line(message))
    return "".join(lines)


def dump_line(message: Message) -> str:
    """Turn a message into a line of JSON, valid or not.

    Values that JSON does not have (AMQP has dates, decimals and bytes) become strings.

    Raises:
        ValidationError: The body is not JSON.
    """
    return _dump(message, message.body)


def dump_record(message: Message) -> bytes:
    """Turn a message, valid or not, into a line of ASCII for load_delivery.

    Raises:
        ValidationError, RecursionError: As for `record_fields`.
    """
    return json.dumps(record_fields(message)).encode() + b"\n"


def record_fields(message: Message) -> dict[str, Any]:
    """Turn a message, valid or not, into the fields of a line for load_delivery.

    A body of bytes becomes base64. NaN and the infinities, which JSON does not have,
    become strings.

    Raises:
        ValidationError: The body is not JSON.
        RecursionError: The message is nested too deep.
    """
    body, more = message.body, {}
    if isinstance(body, bytes):
        body, more = base64.b64encode(body).decode(), {"body_encoding": "base64"}
    return {**json.loads(_dump(message, body), parse_constant=str), **more}


def _dump(message: Message, body: Any) -> str:
    fields = {
        "topic": message.topic,
        "headers": message._headers,
        "id": message.id,
        "queue": message.queue,
        "priority": message.priority,
    }
    with only_json():
        line = {**simplify(fields), "body": body}
        return json.dumps(line, ensure_ascii=False, sort_keys=True, default=simplify) + "\n"


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """Raise ValidationError where the code inside meets a value that is not JSON."""
    try:
        yield
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValidationError(brief(f"not JSON: {exc}")) from exc


# -- Reading ---------------------------------------------------------------------------


def loads(serialized_messages: str) -> list[Message]:
    """Turn the text of dumps() into messages again; empty lines do not count.

    Raises:
        ValidationError: A line is not a message; says which and why.
        ConfigurationException: The configuration cannot be loaded, which a message class needs.
    """
    # Not splitlines(), which also splits at characters that JSON may hold as they are.
    lines = enumerate(serialized_messages.split("\n"), 1)
    return [load_line(line, number) for number, line in lines if line.strip()]


def load_line(line: str | bytes, number: int) -> Message:
    """Turn a line of dumps() into a message again.

    Args:
        line: JSON text.
        number: What the error calls the line, from 1.

    Raises:
        ValidationError: The line is not a message; names the number.
        ConfigurationException: As for `loads`.
    """
    try:
        return load_message(json.loads(line))
    except ConfigurationException:
        raise
    except Exception as exc:
        reason = exc if isinstance(exc, ValidationError) else f"{type(exc).__name__}: {exc}"
        raise ValidationError(brief(f"line {number}: {reason}")) from exc


def load_delivery(line: bytes, number: int) -> Delivery:
    """Turn a line of dump_record() or dumps() into what the broker would deliver.

    `decode` checks the message; this does not.

    Args:
        line: JSON text.
        number: What the error calls the line, from 1; also the delivery tag.

    Raises:
        ValidationError: The line holds no message; names the number.
    """
    try:
        return _make_delivery(json.loads(line), number)
    except Exception as exc:
        raise ValidationError(f"line {number} holds no message: {describe(exc)}") from exc


def _make_delivery(fields: dict[str, Any], tag: int) -> Delivery:
    from pika import BasicProperties  # Slow to import, and only a replay needs it here.

    topic, body = fields["topic"], fields["body"]
    is_binary = fields.get("body_encoding") == "base64"
    properties = BasicProperties(
        content_encoding="utf-8",
        headers=fields.get("headers", {}),
        message_id=fields.get("id"),
        priority=fields.get("priority"),
    )
    return Delivery(
        session=1,
        tag=tag,
        queue=fields.get("queue") or "",
        routing_key=str(topic),
        redelivered=False,
        properties=properties,
        body=base64.b64decode(body, validate=True) if is_binary else json.dumps(body).encode(),
        message_id=properties.message_id,
        received=0.0,
    )


def load_message(message_dict: Mapping[str, Any]) -> Message:
    """Make a message from the value of one line of dumps().

    Raises:
        ValidationError: The value does not fit SERIALIZED_MESSAGE_SCHEMA.
    """
    _check_serialized(message_dict)
    headers, body = dict(message_dict.get("headers", {})), message_dict["body"]
    cls = choose_class(headers, body)
    topic, severity = message_dict["topic"], headers.get(SEVERITY)
    message = cls(body=body, topic=topic, headers=headers, severity=severity)
    # The headers that were sent replace those that the constructor made.
    message._headers.update(headers)
    if cls is base_class() and PACKAGE not in headers:
        message._headers.pop(PACKAGE, None)  # It may be of a class that is not installed.
    message.priority = message_dict.get("priority")
    message.queue = message_dict.get("queue")
    message.id = message_dict.get("id", message.id)
    return message


def _check_serialized(fields: Any) -> None:
    if not isinstance(fields, Mapping):
        raise ValidationError(f"found a {type(fields).__name__}, expected an object")
    for key in SERIALIZED_MESSAGE_SCHEMA["required"]:
        if key not in fields:
            raise ValidationError(f"{key} is missing")
    for key, rule in SERIALIZED_MESSAGE_SCHEMA["properties"].items():
        fits = tuple(_TYPES[name] for name in rule["type"])
        if key in fields and not isinstance(fields[key], fits):
            expected = " or ".join(rule["type"])
            raise ValidationError(brief(f"{key} is {fields[key]!r}, expected {expected}"))
    check_headers(fields.get("headers", {}))
