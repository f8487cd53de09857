"""The memory of what became of recent messages, so that a redelivery does not run twice.

Pure: no pika, no threads, no clock. The supervisor owns it.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from .delivery import Delivery, Verdict

__all__ = ["Memory", "identity"]

#: So many hold what has to be remembered, beside the one that grows.
_GENERATIONS = 8


def identity(delivery: Delivery) -> int:
    """Tell a message from every other: queue, message id, routing key and body.

    A hash of 64 bits stands for them, which would cost too much to keep. Each process
    hashes differently, so that nobody can make up two messages with the same one.
    """
    return hash((delivery.queue, delivery.message_id, delivery.routing_key, delivery.body))


class Memory:
    """Verdicts of the last finished messages, and how often others were returned.

    Args:
        size: How many messages of each kind are remembered, of the finished ones somewhat
            more; 0 turns it off.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        #: Verdicts in generations, oldest first. The oldest goes as a whole, which makes room
        #: at a fraction of what it takes to find and remove the oldest entry each time.
        self._finished: deque[dict[int, Verdict]] = deque([{}], _GENERATIONS + 1)
        #: How often each message was returned, the one returned last at the end.
        self._returns: OrderedDict[int, int] = OrderedDict()

    def finish(self, delivery: Delivery, verdict: Verdict) -> None:
        """Remember a message that must not run again; one without a message id is not known."""
        if self._size and delivery.message_id:
            key = identity(delivery)
            self._returns.pop(key, None)
            newest = self._finished[-1]
            if len(newest) * _GENERATIONS >= self._size:
                newest = {}
                self._finished.append(newest)
            newest[key] = verdict

    def forget(self, delivery: Delivery) -> None:
        """Forget that the message is finished."""
        key = identity(delivery)
        for generation in self._finished:
            generation.pop(key, None)

    def recall(self, delivery: Delivery) -> Verdict | None:
        """Give the verdict of a finished message, None when it has to run."""
        key = identity(delivery)
        return next((each[key] for each in reversed(self._finished) if key in each), None)

    def count_nack(self, delivery: Delivery) -> int:
        """Count a message's return to its queue; give the number of earlier ones.

        Source: RabbitMQ's quorum queues count redeliveries in x-delivery-count,
        since 4.3 acquisitions in x-acquired-count.
        """
        self.forget(delivery)
        earlier = self._count_return(identity(delivery))
        headers = delivery.properties.headers or {}
        counts = (headers.get(name) for name in ("x-acquired-count", "x-delivery-count"))
        return next((count for count in counts if type(count) is int), earlier)

    def _count_return(self, key: int) -> int:
        earlier = self._returns.pop(key, 0)
        self._returns[key] = earlier + 1
        if len(self._returns) > self._size:
            self._returns.popitem(last=False)
        return earlier
