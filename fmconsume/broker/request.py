"""Holds one message to publish, after a check that AMQP can carry it.

Any thread may make a request; the thread that owns the connection puts the answer into it.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pika
from pika.frame import Header, Method
from pika.spec import Basic

from ..exceptions import ValidationError
from ..text import brief
from .wire import Properties, writable

__all__ = ["Request"]

#: Range of integers in AMQP headers. pika 1.3 sends larger ones, which others read as negative.
_LEAST, _MOST = -(2**63), 2**63 - 1
_TYPES = (
    "headers hold strings, bytes, booleans, integers of 64 bits, finite floats, decimals of 32 "
    "bits, dates, None, and lists and tables of these"
)


@dataclass(eq=False)
class Request:
    """One message to publish.

    Attributes:
        deadline: Monotonic seconds; it is not sent later.
        mandatory: It is an error, PublishReturned, if no queue takes it.
        answer: Gets None once the broker has confirmed it, or the exception to raise.
        header_bytes: Size of the frame that holds its properties and headers, which AMQP
            cannot divide.

    Raises:
        ValidationError: It cannot be encoded; names the header, if a header is the cause.
    """

    exchange: str
    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    deadline: float
    mandatory: bool = False
    answer: SimpleQueue[Exception | None] = field(default_factory=SimpleQueue)
    header_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.properties = writable(self.properties)
        try:
            Method(1, Basic.Publish(exchange=self.exchange, routing_key=self.routing_key)).marshal()
            self.header_bytes = len(Header(1, len(self.body), self.properties).marshal())
            _check_numbers(self.properties.headers)
        except Exception as exc:  # Among others struct.error, AssertionError and pika's own.
            reason = _find_header(self.properties.headers) or repr(exc)
            raise ValidationError(brief(f"the message cannot be encoded: {reason}")) from exc


def _find_header(headers: Any) -> str:
    """Describe the header that cannot be encoded; "" if none is the cause."""
    for name, value in headers.items() if isinstance(headers, dict) else ():
        try:
            Properties(headers={name: value}).encode()
            _check_numbers(value)
        except Exception:
            return f"header {reprlib.repr(name)} holds {reprlib.repr(value)}; {_TYPES}"
    return ""


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_numbers(item)
    elif isinstance(value, int) and not _LEAST <= value <= _MOST:
        raise ValueError(f"{value} has more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} ends the connection: RabbitMQ has no such number")
