"""Tests of what AMQP can carry, and of what is told about the rest."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from pika import BasicProperties
from pika.compat import long

from fmconsume.broker.request import Request
from fmconsume.exceptions import ValidationError


def make(headers: Any = None, exchange: str = "e", topic: str = "t", **properties: Any) -> Request:
    """Make a request with nothing special."""
    return Request(exchange, topic, b"{}", BasicProperties(headers=headers, **properties), 0)


def nest(depth: int) -> Any:
    """Make a list in a list."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_header_bytes() -> None:
    """The size is that of the frame: 22 bytes around them, and the headers as they are sent."""
    empty = make({}).header_bytes
    assert make({"name": "v" * 1000}).header_bytes == empty + 1 + 4 + 5 + 1000


@pytest.mark.parametrize(
    "value",
    [
        *["text", b"bytes", True, None, 2**63 - 1, -(2**63), Decimal("2.5"), [1, [2]]],
        *[2.5, -1e300, {"a": {"b": 1.5}}, [0.1], datetime(2020, 1, 2, tzinfo=timezone.utc)],
    ],
)
def test_request_header(value: Any) -> None:
    """What AMQP has is taken."""
    assert make({"h": value}).header_bytes


@pytest.mark.parametrize(
    "value",
    [
        *[
            float("nan"),
            float("inf"),
            [float("-inf")],
            2**63,
            2**64 - 1,
            -(2**63) - 1,
            object(),
            {1},
            (1,),
        ],
        *[Decimal("NaN"), Decimal("Infinity"), Decimal("1e20"), Decimal("1e-300"), "\ud800"],
        *[{"deep": [{"deeper": 2**63}]}, {5: "key"}, {"k" * 256: 1}, nest(100_000)],
        datetime(1969, 1, 1, tzinfo=timezone.utc),
    ],
    ids=lambda value: type(value).__name__,
)
def test_request_impossible_header(value: Any) -> None:
    """What AMQP or pika has no place for is refused, and the line names the header."""
    with pytest.raises(ValidationError, match="cannot be encoded: header 'odd' holds ") as caught:
        make({"good": 1, "odd": value})
    assert "strings, bytes, booleans" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"exchange": "e" * 256},
        {"topic": "t" * 256},
        {"topic": "\ud800"},
        {"message_id": "i" * 256},
        {"priority": 256},
        {"priority": -1},
        {"timestamp": -1},
        {"headers": {"n" * 256: 1}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_request_impossible(wrong: dict[str, Any]) -> None:
    """Names that are too long and numbers out of range are refused."""
    with pytest.raises(ValidationError, match="cannot be encoded"):
        make(**wrong)


@pytest.mark.parametrize("value", [long(5), [long(2**63 - 1)], {"a": long(-(2**63))}])
def test_request_long(value: Any) -> None:
    """A long integer as pika reads it is taken, and at once: no range is walked through for it."""
    assert make({"h": value}).header_bytes
