"""A rehearsal runs a callback as a consumer would, with no broker behind it.

One thread owns a rehearsal, and the callback runs on it.
"""

from __future__ import annotations

from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any, Callable

from .broker.wire import published
from .callbacks import prepare
from .delivery import Delivery, Outcome
from .engine.coroutines import CoroutineRunner
from .engine.workers import ThreadWorker
from .message import Message, decode

__all__ = ["Rehearsal", "make_delivery"]

#: Seconds that what a coroutine left behind gets to end.
_DEADLINE = 5.0


class Rehearsal:
    """A worker that is run by hand.

    Args:
        callback: As for a Consumer.
        body_mode: As for `decode`.
    """

    def __init__(self, callback: Callable[..., Any], body_mode: str = "object") -> None:
        self._coroutines = CoroutineRunner()
        self._inbox: SimpleQueue[Delivery | None] = SimpleQueue()
        self._outcomes: list[Outcome] = []
        self._worker = ThreadWorker(
            1,
            prepare(callback, self._coroutines),
            partial(decode, body_mode=body_mode),
            self._outcomes.append,
            self._inbox,
            self._coroutines.wait_for,
        )

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._coroutines.close(_DEADLINE)

    def run(self, delivery: Delivery) -> Outcome:
        """Decode a delivery and call the callback with it.

        Raises:
            KeyboardInterrupt: And whatever else a callback may not stop.
        """
        self._inbox.put(delivery)
        self._inbox.put(None)
        self._worker.run()
        outcome = self._outcomes.pop()
        if outcome.error is not None:
            self._inbox.get()  # The worker ended before it came to the None.
            if not isinstance(outcome.error, (Exception, SystemExit)):
                raise outcome.error
        return outcome


def make_delivery(message: Message, tag: int) -> Delivery:
    """Make what the broker would deliver; a body of bytes stays as it is."""
    body = message.body if isinstance(message.body, bytes) else message._encoded_body
    return Delivery(
        1,
        tag,
        message.queue or "",
        message.topic,
        message.redelivered,
        message.properties,
        body,
        message.properties.message_id,
        monotonic(),
        published(message.properties),
    )
