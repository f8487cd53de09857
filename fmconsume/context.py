"""Tells which message a callback, its tasks and their log lines belong to; any thread may call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .delivery import Delivery
from .text import printable

__all__ = ["MessageFilter", "about", "current", "message_fields"]

#: The delivery that runs in this context, and the number of its worker. A processor sets it.
current: ContextVar[tuple[Delivery, int] | None] = ContextVar("fmconsume_message", default=None)

_NAMES = ("message_id", "queue", "topic", "attempt", "worker")


@contextmanager
def about(delivery: Delivery, worker: int) -> Iterator[None]:
    """Let log lines in a `with` block belong to a message that runs on another thread."""
    token = current.set((delivery, worker))
    try:
        yield
    finally:
        current.reset(token)


def message_fields() -> dict[str, Any]:
    """Return what a log should tell of the message that runs here.

    Control characters in the texts, which others have chosen, are escaped.

    Returns:
        message_id (None if it has none), queue, topic, attempt and worker, a number from 1 on;
        nothing where no message runs.
    """
    running = current.get()
    if running is None:
        return {}
    delivery, worker = running
    message_id = delivery.message_id
    return {
        "message_id": None if message_id is None else printable(message_id),
        "queue": printable(delivery.queue),
        "topic": printable(delivery.routing_key),
        "attempt": delivery.attempt,
        "worker": worker,
    }


class MessageFilter(logging.Filter):
    """Gives each log record the attributes that `message_fields` has; "-" where no message runs.

    It belongs to a handler. Attributes that a record has already stay.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes, and let the record pass."""
        vars(record).update({**dict.fromkeys(_NAMES, "-"), **message_fields(), **vars(record)})
        return True
