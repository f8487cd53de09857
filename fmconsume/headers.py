"""The headers of a message: their names, the severities, the rules for them, and their values.

Any thread may call.
"""

from __future__ import annotations

import datetime
from typing import Any

from .exceptions import ValidationError
from .text import brief

__all__ = [
    "COPIES",
    "DEBUG",
    "DELIVERY_COUNTERS",
    "ERROR",
    "HEADERS_SCHEMA",
    "INFO",
    "PACKAGE",
    "SCHEMA",
    "SENT_AT",
    "SEVERITIES",
    "SEVERITY",
    "WARNING",
    "check_headers",
    "simplify",
    "to_text",
]

#: For those who look for the details.
DEBUG = 10
#: An everyday event; the default.
INFO = 20
#: The people concerned should look at it.
WARNING = 30
#: Somebody has to act on it.
ERROR = 40
SEVERITIES = (DEBUG, INFO, WARNING, ERROR)

#: Schema name of the message's class.
SCHEMA = "fedora_messaging_schema"
#: Package that defines the class.
PACKAGE = "fedora_messaging_schema_package"
SEVERITY = "fedora_messaging_severity"
#: Date and time in ISO 8601.
SENT_AT = "sent-at"
#: How often consumers that had received the message published it again.
COPIES = "x-fmconsume-copies"

#: Headers in which a quorum queue counts the deliveries of a message; in any other queue they are
#: the publisher's. Source: RabbitMQ's documentation of quorum queues; x-acquired-count since 4.3.
DELIVERY_COUNTERS = ("x-acquired-count", "x-delivery-count")

#: JSON Schema of the headers of any message.
HEADERS_SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "description": "The headers of any message",
    "type": "object",
    "properties": {
        SEVERITY: {"type": "number", "enum": list(SEVERITIES)},
        SCHEMA: {"type": "string"},
        PACKAGE: {"type": "string"},
        SENT_AT: {"type": "string"},
    },
}


def check_headers(headers: Any) -> None:
    """Check headers by the rules of HEADERS_SCHEMA.

    Raises:
        ValidationError: They are no table, or one of them has a wrong value; names it.
    """
    # By hand: this runs for every message, and JSON Schema needs the extra.
    if not isinstance(headers, dict):
        raise ValidationError(f"headers are a {type(headers).__name__}, expected a table")
    if headers.get(SEVERITY, INFO) not in SEVERITIES:
        found = headers[SEVERITY]
        raise ValidationError(brief(f"{SEVERITY} is {found!r}, expected 10, 20, 30 or 40"))
    for name in (SCHEMA, PACKAGE, SENT_AT):
        if not isinstance(headers.get(name, ""), str):
            raise ValidationError(brief(f"{name} is {headers[name]!r}, expected a string"))


def simplify(value: Any) -> Any:
    """Turn a value of a type that AMQP has into one of the types that JSON has.

    Tables and lists are copied. Dates, decimals and bytes become strings.

    Raises:
        RecursionError: The value is nested too deep, or contains itself.
    """
    if isinstance(value, dict):
        return {to_text(key): simplify(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [simplify(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.isoformat() if isinstance(value, datetime.datetime) else to_text(value)


def to_text(value: Any) -> Any:
    """Turn a value into a string; None stays None.

    pika leaves a string as bytes if it is not UTF-8. Its odd bytes become escapes.
    """
    if value is None or isinstance(value, str):
        return value
    is_raw = isinstance(value, (bytes, bytearray))
    return value.decode("utf-8", "backslashreplace") if is_raw else str(value)
