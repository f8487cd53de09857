"""The memory of what became of recent messages, so that a redelivery does not run twice.

Pure: no pika, no threads, no clock. The supervisor owns it.

A message is known by its identity: a number for everything that was published, so that two
messages that were published alike have the same one and cannot be told apart.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from ..delivery import Delivery, Verdict

__all__ = ["Memory", "delivery_count", "identity"]

#: Headers in which a quorum queue counts deliveries of a message.
#: Source: RabbitMQ's documentation of quorum queues; x-acquired-count since 4.3.
_COUNTERS = ("x-acquired-count", "x-delivery-count")


def identity(delivery: Delivery) -> int:
    """Give a number that stands for everything published with a message; 0 without a message id.

    That is queue, exchange, routing key, body, all properties and all headers but the broker's
    delivery counters. What went through a dead-letter exchange has other headers, so that it is
    another message.
    Each process hashes differently, so that nobody can make up two messages with the same number.
    """
    if not delivery.message_id:
        return 0
    return hash((delivery.queue, delivery.routing_key, delivery.body, *delivery.published)) or 1


def delivery_count(delivery: Delivery) -> int:
    """Give how often a quorum queue says that it delivered the message before.

    In any other queue these headers are the publisher's.
    """
    headers = delivery.properties.headers or {}
    # Its count comes with a redelivery only. pika gives long integers in a class of their own.
    counts = [headers.get(name) for name in _COUNTERS] if delivery.redelivered else []
    return max((n for n in counts if isinstance(n, int) and type(n) is not bool), default=0)


class _Past(NamedTuple):
    """What became of the one message of its identity, and the last session that settled it."""

    verdict: Verdict
    session: int


class Memory:
    """Verdicts of the last finished messages, and how often others were returned.

    A redelivery is settled unseen only where one message of its identity is known, which is
    finished. Where there were several, nobody can tell a finished one, whose acknowledgement was
    lost, from one that was on its way when the session was lost: they all run.

    Args:
        size: How many messages of each kind are remembered; 0 turns it off.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        #: Identities of which one message is known, which is finished.
        self._finished: dict[int, _Past] = {}
        #: Identities of which there were several messages, each with its number in `_order`.
        self._several: dict[int, int] = {}
        #: Both in the order in which they came, oldest first.
        self._order: deque[int] = deque()
        #: One for all messages that a session acknowledges.
        self._usual = _Past(Verdict.ACK, 0)
        #: Identities of messages that went back to the broker unfinished, the last one at the end.
        self._owed: OrderedDict[int, None] = OrderedDict()
        #: How often each message was returned, the one returned last at the end.
        self._returns: OrderedDict[int, int] = OrderedDict()

    def finish(self, key: int, verdict: Verdict, session: int) -> None:
        """Remember a message that must not run again if a later session gets it."""
        if not (self._size and key):
            return
        if self._returns:
            self._returns.pop(key, None)
        if key in self._finished or key in self._several or key in self._owed:
            self._see_several(key)
            self._several[key] += 1
        else:
            self._finished[key] = self._new(verdict, session)
        self._append(key)

    def _new(self, verdict: Verdict, session: int) -> _Past:
        usual = self._usual
        if usual.session != session or usual.verdict is not verdict:
            usual = self._usual = _Past(verdict, session)
        return usual

    def _append(self, key: int) -> None:
        self._order.append(key)
        if len(self._order) > self._size:
            oldest = self._order.popleft()
            if self._finished.pop(oldest, None) is None:
                self._several[oldest] -= 1
                if not self._several[oldest]:
                    del self._several[oldest]

    def owe(self, key: int) -> None:
        """Remember that the broker has a message unfinished."""
        if self._size and key:
            self.meet(key)
            self._owed[key] = None
            self._owed.move_to_end(key)
            if len(self._owed) > self._size:
                self._see_several(self._owed.popitem(last=False)[0])

    def meet(self, key: int) -> None:
        """Take note of a message that is unfinished now; if another is known, there are several."""
        if key in self._finished or key in self._owed:
            self._see_several(key)

    def _see_several(self, key: int) -> None:
        if self._finished.pop(key, None) is not None:
            self._several[key] = 1
        elif key not in self._several:
            self._several[key] = 1
            self._append(key)

    def recall(self, key: int, session: int) -> Verdict | None:
        """Give the verdict that settles a redelivery, None when it has to run.

        A session settles what an earlier one finished. What it has settled itself cannot come
        again to it, so that there are several.
        """
        self._owed.pop(key, None)
        past = self._finished.get(key)
        if past is None:
            return None
        if past.session == session:
            self._see_several(key)
            return None
        self._finished[key] = self._new(past.verdict, session)
        return past.verdict

    def count_return(self, key: int) -> int:
        """Count a message's return to its queue; give the number of earlier ones."""
        if not (self._size and key):
            return 0
        earlier = self._returns.pop(key, 0)
        self._returns[key] = earlier + 1
        if len(self._returns) > self._size:
            self._returns.popitem(last=False)
        return earlier
