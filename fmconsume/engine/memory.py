"""Remembers the verdicts on recent messages, so that none runs again if it is delivered again.

Pure: no pika, no threads, no clock. The supervisor owns it.

A message is known by its identity: its fingerprint, a number for everything that was published with
it, or 0 where it has no message id. Two
messages that were published alike have the same identity, and nobody can tell them apart.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush
from typing import NamedTuple

from ..delivery import Delivery, Verdict
from ..headers import DELIVERY_COUNTERS
from ..state.notes import Mark

__all__ = ["RecentVerdicts", "delivery_count", "fingerprint"]


def fingerprint(delivery: Delivery) -> int:
    """Give a number that stands for everything published with a message.

    That is queue, exchange, routing key, body, all properties and all headers but the broker's
    delivery counters. A message that went through a dead-letter exchange has other headers, so
    that it is another message.
    Each process hashes differently, so that nobody can make up two messages with the same number.
    """
    return hash((delivery.queue, delivery.routing_key, delivery.body, *delivery.published)) or 1


def delivery_count(delivery: Delivery) -> int:
    """Give how often a quorum queue says that it delivered the message before.

    In any other queue these headers are the publisher's.
    """
    headers = delivery.properties.headers or {}
    # A quorum queue counts only redeliveries: in a first delivery a publisher has set the header.
    # isinstance, since pika gives long integers in a class of their own.
    counts = [headers.get(name) for name in DELIVERY_COUNTERS] if delivery.redelivered else []
    return max((n for n in counts if isinstance(n, int) and type(n) is not bool), default=0)


#: Messages whose returns are counted at most.
_COUNTED = 20_000
#: The session of a message that another process finished.
_ELSEWHERE = 0
#: Of equal messages, returns of this many are counted.
_COUNTED_EQUAL = 1000


class _Finished(NamedTuple):
    """The verdict on the only message of an identity, and the last session that settled it."""

    verdict: Verdict
    session: int


class RecentVerdicts:
    """Verdicts on the last finished messages, and how often other messages were returned.

    `recall` gives a verdict only where exactly one message of the identity is known, and that one
    is finished. Where there were several, nobody can tell a finished one, whose acknowledgement
    was lost, from one that was on its way when the session was lost: they all run.

    Args:
        size: Messages at most in each record: finished, returned, and counts of returns. 0 turns
            the memory off.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        #: By identity, the only known message, which is finished.
        self._finished: dict[int, _Finished] = {}
        #: Identities of several messages, each with the number of times that it is in `_order`.
        self._several: dict[int, int] = {}
        #: The identities in `_finished` and `_several`, in the order in which they came.
        self._order: deque[int] = deque()
        #: The last object made for `_finished`; messages of one verdict and session share it.
        self._usual = _Finished(Verdict.ACK, 0)
        #: Identities of messages that went back to the broker unfinished, the latest at the end.
        self._back_in_queue: OrderedDict[int, None] = OrderedDict()
        #: How often each returned message was returned, and how many processes died of it, by
        #: fingerprint: a heap, since equal ones have counts each. The one returned last is at the
        #: end.
        self._return_counts: OrderedDict[int, list[tuple[int, int]]] = OrderedDict()

    def note_finished(self, key: int, verdict: Verdict, session: int) -> None:
        """Remember a message that must not run again if a later session gets it."""
        if not (self._size and key):
            return
        if key in self._finished or key in self._several or key in self._back_in_queue:
            self._note_several(key)
            self._several[key] += 1
        else:
            self._finished[key] = self._share(verdict, session)
        self._append(key)

    def note_returned(self, key: int) -> None:
        """Remember that a message went back to the broker unfinished."""
        if self._size and key:
            self.note_unfinished(key)
            self._back_in_queue[key] = None
            self._back_in_queue.move_to_end(key)
            if len(self._back_in_queue) > self._size:
                self._note_several(self._back_in_queue.popitem(last=False)[0])

    def note_unfinished(self, key: int) -> None:
        """Note an unfinished message: if another one of its identity is known, they are several."""
        if key in self._finished or key in self._back_in_queue:
            self._note_several(key)

    def recall(self, key: int, session: int) -> Verdict | None:
        """Give the verdict that settles a redelivery, None when it has to run.

        The verdict must be of an earlier session. A message that this session has settled cannot
        come to it again: then the redelivery is another message of the identity.
        """
        self._back_in_queue.pop(key, None)
        finished = self._finished.get(key)
        if finished is None:
            return None
        if finished.session == session:
            self._note_several(key)
            return None
        self._finished[key] = self._share(finished.verdict, session)
        return finished.verdict

    def note_mark(self, mark: Mark) -> None:
        """Note what another process did with a message, or an earlier one."""
        key = mark.number if mark.has_id else 0
        if mark.is_settled:
            if key in self._finished:
                self._note_several(key)  # What comes again is another one.
            return
        if not mark.is_new:
            self._back_in_queue.pop(key, None)
            self.take_returns(mark.number)
        if mark.verdict is not None:
            self.note_finished(key, mark.verdict, _ELSEWHERE)
            return
        self.note_returned(key)
        if mark.returns:
            self.note_returns(mark.number, mark.returns, mark.deaths)

    def note_returns(self, number: int, count: int, deaths: int) -> None:
        """Note how often a message was returned, now that it goes back to its queue.

        Args:
            number: The fingerprint.
            count: How often; a death counts too.
            deaths: How many processes have died while it ran.
        """
        counts = self._return_counts.setdefault(number, [])
        self._return_counts.move_to_end(number)
        if len(counts) < _COUNTED_EQUAL:
            heappush(counts, (count, deaths))
        if len(self._return_counts) > _COUNTED:
            self._return_counts.popitem(last=False)

    def take_returns(self, number: int) -> tuple[int, int]:
        """Give how often a redelivered message was returned, and of these how often by a death.

        Both are forgotten until the next return. Of equal messages none can be told from the
        others. Then it is the smallest number: each comes once, and none counts as returned more
        often than it was.
        """
        counts = self._return_counts.get(number)
        if counts is None:
            return 0, 0
        found = heappop(counts)
        if not counts:
            del self._return_counts[number]
        return found

    def _share(self, verdict: Verdict, session: int) -> _Finished:
        """Give one object for all messages in a row that have the same verdict and session."""
        usual = self._usual
        if usual.session != session or usual.verdict is not verdict:
            usual = self._usual = _Finished(verdict, session)
        return usual

    def _note_several(self, key: int) -> None:
        if self._finished.pop(key, None) is not None:
            self._several[key] = 1
        elif key not in self._several:
            self._several[key] = 1
            self._append(key)

    def _append(self, key: int) -> None:
        self._order.append(key)
        if len(self._order) > self._size:
            oldest = self._order.popleft()
            if self._finished.pop(oldest, None) is None:
                self._several[oldest] -= 1
                if not self._several[oldest]:
                    del self._several[oldest]
