"""The memory of what became of recent messages, so that a redelivery does not run twice.

Pure: no pika, no threads, no clock. The supervisor owns it.

A message is known by its identity: a number for everything that was published, so that two
messages that were published alike have the same one. They are counted, never told apart.
"""

from __future__ import annotations

import marshal
from collections import OrderedDict, deque
from typing import Any, NamedTuple

from .delivery import Delivery, Verdict

__all__ = ["Memory", "delivery_count", "identity"]

#: Headers in which a quorum queue counts deliveries of a message.
#: Source: RabbitMQ's documentation of quorum queues; x-acquired-count since 4.3.
_COUNTERS = frozenset(("x-acquired-count", "x-delivery-count"))
#: Of the formats of marshal the last one in which equal values always give equal bytes.
_MARSHAL_VERSION = 2


def identity(delivery: Delivery) -> int:
    """Give a number that stands for everything published with a message; 0 without a message id.

    That is queue, routing key, body, all properties and all headers but the broker's delivery
    counters. What went through a dead-letter exchange has other headers, so it is another message.
    Each process hashes differently, so that nobody can make up two messages with the same number.
    To be called before the callback may change the properties.
    """
    if not delivery.message_id:
        return 0
    fields = vars(delivery.properties)
    headers = fields["headers"]
    if headers is not None and not (headers and _COUNTERS.isdisjoint(headers)):
        headers = {name: value for name, value in headers.items() if name not in _COUNTERS}
        # None for an empty table, as before the broker added its counts to no headers at all.
        fields = {**fields, "headers": headers or None}
    published = _to_bytes(list(fields.values()))
    return hash((delivery.queue, delivery.routing_key, delivery.body, published)) or 1


def _to_bytes(values: Any) -> bytes:
    try:
        return marshal.dumps(values, _MARSHAL_VERSION)
    except ValueError:  # A time or a decimal number among them; this takes twice as long.
        return repr(values).encode(errors="surrogatepass")


def delivery_count(delivery: Delivery) -> int:
    """Give how often a quorum queue says that it delivered the message before.

    In any other queue these headers are the publisher's.
    """
    headers = delivery.properties.headers or {}
    # Its count comes with a redelivery only. pika gives long integers in a class of their own.
    counts = [headers.get(name) for name in _COUNTERS] if delivery.redelivered else []
    return max((n for n in counts if isinstance(n, int) and type(n) is not bool), default=0)


class _Past(NamedTuple):
    """How often messages of one identity were finished.

    Attributes:
        session: The last in which one was.
        here: Those of that session.
        before: Those of earlier sessions.
    """

    verdict: Verdict
    session: int
    here: int
    before: int

    def add(self, verdict: Verdict, session: int) -> _Past:
        """Count one more; its session may be an earlier one."""
        if session < self.session:
            return self._replace(before=self.before + 1)
        if session == self.session:
            return self._replace(verdict=verdict, here=self.here + 1)
        return _Past(verdict, session, 1, self.here + self.before)

    def drop(self) -> _Past | None:
        """Count the oldest one no more."""
        if self.before:
            return self._replace(before=self.before - 1)
        return self._replace(here=self.here - 1) if self.here > 1 else None

    def unsettled(self, session: int) -> int:
        """Give how many of them the broker may deliver again to this session."""
        return self.before + (0 if session == self.session else self.here)


class Memory:
    """Verdicts of the last finished messages, and how often others were returned.

    Args:
        size: How many messages of each kind are remembered; 0 turns it off.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._finished: dict[int, _Past] = {}
        #: The identities of what is counted in `_finished`, oldest first.
        self._order: deque[int] = deque()
        #: What most messages of a session have: one for all of them.
        self._usual = _Past(Verdict.ACK, 0, 1, 0)
        #: How many of an identity the broker has unfinished, the one that came last at the end.
        self._owed: OrderedDict[int, int] = OrderedDict()
        #: How often each message was returned, the one returned last at the end.
        self._returns: OrderedDict[int, int] = OrderedDict()

    def finish(self, key: int, verdict: Verdict, session: int) -> None:
        """Remember a message that must not run again if a later session gets it."""
        if not (self._size and key):
            return
        if self._returns:
            self._returns.pop(key, None)
        past = self._finished.get(key)
        self._finished[key] = past.add(verdict, session) if past else self._new(verdict, session)
        self._order.append(key)
        if len(self._order) > self._size:
            self._forget_one(self._order.popleft())

    def _new(self, verdict: Verdict, session: int) -> _Past:
        usual = self._usual
        if usual.session != session or usual.verdict is not verdict:
            usual = self._usual = _Past(verdict, session, 1, 0)
        return usual

    def _forget_one(self, key: int) -> None:
        past = self._finished.pop(key, None)
        left = past.drop() if past else None
        if left is not None:
            self._finished[key] = left

    def owe(self, key: int) -> None:
        """Remember that the broker has a message unfinished: the next redelivery has to run."""
        if self._size and key:
            self._owed[key] = self._owed.pop(key, 0) + 1
            if len(self._owed) > self._size:
                forgotten, _ = self._owed.popitem(last=False)
                # Its redelivery has to run, even where equal ones are finished.
                self._finished.pop(forgotten, None)

    def recall(self, key: int, session: int) -> Verdict | None:
        """Give the verdict that settles a redelivery, None when it has to run.

        As many run as are unfinished at the broker. Beyond that, each message that an earlier
        session finished settles one.
        """
        past = self._finished.get(key)
        if past is None or not past.unsettled(session):
            return None
        # From here on this session has settled it.
        here = past.here if session == past.session else 0
        before = past.unsettled(session) - 1
        self._finished[key] = _Past(past.verdict, session, here + 1, before)
        return past.verdict

    def claim(self, key: int) -> bool:
        """Tell whether a redelivery is one that the broker had unfinished, and count it off."""
        owed = self._owed.pop(key, 0)
        if owed > 1:
            self._owed[key] = owed - 1
        return owed > 0

    def count_return(self, key: int) -> int:
        """Count a message's return to its queue; give the number of earlier ones."""
        if not (self._size and key):
            return 0
        earlier = self._returns.pop(key, 0)
        self._returns[key] = earlier + 1
        if len(self._returns) > self._size:
            self._returns.popitem(last=False)
        return earlier
