"""Holds deliveries until a worker begins with them, and hands them out together.

The supervisor owns the intake; the workers only use the inbox.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue

from ..delivery import Delivery

__all__ = ["Intake"]


class Intake:
    """Deliveries that no worker has begun.

    Handed out one by one, each delivery would wake a worker that cannot run while the supervisor
    still reads. So the supervisor adds all deliveries that have come, then hands them out.

    Args:
        inbox: The workers get their deliveries from it.
        limit: Deliveries to hand out at most; None is no limit.
    """

    def __init__(self, inbox: SimpleQueue[Delivery | None], limit: int | None) -> None:
        self.inbox = inbox
        #: Deliveries not handed out: they have just come, or are beyond the limit.
        self._waiting: deque[Delivery] = deque()
        #: How many more may be handed out.
        self._budget = math.inf if limit is None else limit

    def __len__(self) -> int:
        return self.inbox.qsize() + len(self._waiting)

    def add(self, delivery: Delivery) -> None:
        """Keep a delivery until the next `hand_out`."""
        self._waiting.append(delivery)

    def hand_out(self) -> None:
        """Put the waiting deliveries into the inbox, within the limit."""
        while self._waiting and self._budget:
            self._budget -= 1
            self.inbox.put(self._waiting.popleft())

    def take_back(self) -> list[Delivery]:
        """Remove and give the deliveries that no worker has begun, oldest first.

        They do not count towards the limit any more.
        """
        unstarted: list[Delivery] = []
        with suppress(Empty):
            while True:
                delivery = self.inbox.get_nowait()
                assert delivery is not None
                unstarted.append(delivery)
        self._budget += len(unstarted)
        unstarted += self._waiting
        self._waiting.clear()
        return unstarted
