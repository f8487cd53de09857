"""The memory of what became of recent messages, so that a redelivery does not run twice.

Pure: no pika, no threads, no clock. The supervisor owns it.
"""

from __future__ import annotations

from itertools import islice

from .delivery import Delivery, Verdict

__all__ = ["Memory", "identity"]


def identity(delivery: Delivery) -> int:
    """Tell a message from every other: queue, message id, routing key and body.

    A hash of 64 bits stands for them, which would cost too much to keep. Each process
    hashes differently, so that nobody can make up two messages with the same one.
    """
    return hash((delivery.queue, delivery.message_id, delivery.routing_key, delivery.body))


class Memory:
    """Verdicts of the last finished messages, and how often each was returned.

    Args:
        size: How many messages are remembered at least; 0 turns it off.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        #: A verdict for a finished message, a count of Nacks for a returned one; oldest first.
        self._entries: dict[int, Verdict | int] = {}
        #: How many of the oldest go at once: a dict looks for its first entry among those
        #: that were deleted before it.
        self._slack = size // 8

    def __len__(self) -> int:
        return len(self._entries)

    def finish(self, delivery: Delivery, verdict: Verdict) -> None:
        """Remember a message that must not run again; one without a message id is not known."""
        if self._size and delivery.message_id:
            self._keep(identity(delivery), verdict)

    def forget(self, delivery: Delivery) -> None:
        """Forget what became of the message."""
        self._entries.pop(identity(delivery), None)

    def recall(self, delivery: Delivery) -> Verdict | None:
        """Give the verdict of a finished message, None when it has to run."""
        entry = self._entries.get(identity(delivery))
        return entry if isinstance(entry, Verdict) else None

    def count_nack(self, delivery: Delivery) -> int:
        """Count a message's return to its queue; give the number of earlier ones.

        Source: RabbitMQ's quorum queues count redeliveries in x-delivery-count,
        since 4.3 acquisitions in x-acquired-count.
        """
        key = identity(delivery)
        entry = self._entries.get(key)
        earlier = entry if isinstance(entry, int) else 0
        if self._size:
            self._keep(key, earlier + 1)
        headers = delivery.properties.headers or {}
        counts = (headers.get(name) for name in ("x-acquired-count", "x-delivery-count"))
        return next((count for count in counts if type(count) is int), earlier)

    def _keep(self, key: int, entry: Verdict | int) -> None:
        self._entries.pop(key, None)  # What is kept again becomes the youngest.
        self._entries[key] = entry
        if len(self._entries) > self._size + self._slack:
            for oldest in list(islice(self._entries, self._slack + 1)):
                del self._entries[oldest]
