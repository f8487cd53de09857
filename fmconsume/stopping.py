"""Tells a callback that its consumer is stopping, so that it need not wait for its own retries.

Any thread may call. The supervisor sets the event of its consumer once the end has come.
"""

from __future__ import annotations

from contextvars import ContextVar
from threading import TIMEOUT_MAX, Event

__all__ = ["StopEvent", "is_stopping", "wait_for_stop"]


class StopEvent(Event):
    """Set once a consumer begins to stop, whatever ends it."""

    def __init__(self) -> None:
        global _latest
        super().__init__()
        _latest = self

    def adopt(self) -> None:
        """Make this event count in the present context, a worker's."""
        _own.set(self)


#: The event of the consumer whose worker runs in this context.
_own: ContextVar[StopEvent] = ContextVar("fmconsume_stop_event")
#: The event of the consumer that was made last; counts in threads that a callback has started.
_latest: Event = Event()


def is_stopping() -> bool:
    """Tell whether the consumer of this callback is stopping: it gets no other message then.

    Outside of a callback it is the consumer that was made last; without any it is False.
    Thread: any.
    """
    return _find().is_set()


def wait_for_stop(timeout: float | None = None) -> bool:
    """Sleep, but not longer than until the consumer of this callback begins to stop.

    A coroutine awaits it on another thread: `await asyncio.to_thread(wait_for_stop, 5)`.
    Thread: any, as for `is_stopping`.

    Args:
        timeout: Seconds to sleep; None sleeps until the stop.

    Returns:
        Whether it is stopping.
    """
    return _find().wait(None if timeout is None else min(timeout, TIMEOUT_MAX))


def _find() -> Event:
    return _own.get(_latest)
