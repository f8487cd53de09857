"""Notes whether an alarm makes the broker block publishers; for consuming and publishing.

pika calls it on the thread that owns the connection; any thread may read `reason`.
"""

from __future__ import annotations

from typing import Any, Callable

__all__ = ["Alarm"]


class Alarm:
    """The alarm of one connection.

    Source: RabbitMQ's extension connection.blocked; a node that is short of memory or disk space
    sends it.

    Args:
        connection: pika's connection, blocking or not.
        on_end: Called when the broker accepts messages again.
    """

    def __init__(self, connection: Any, on_end: Callable[[], None] | None = None) -> None:
        #: The broker's reason for the alarm; "" while it blocks nobody.
        self.reason = ""
        self._on_end = on_end
        connection.add_on_connection_blocked_callback(self._begin)
        connection.add_on_connection_unblocked_callback(self._end)

    def _begin(self, connection: Any, frame: Any) -> None:
        self.reason = frame.method.reason or "no reason given"

    def _end(self, connection: Any, frame: Any) -> None:
        self.reason = ""
        if self._on_end is not None:
            self._on_end()
