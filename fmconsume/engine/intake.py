"""Holds deliveries until a worker begins with them, and hands them out together.

The supervisor owns the intake; the workers only use the inbox.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable

from ..delivery import Delivery

__all__ = ["Intake"]


class Intake:
    """Deliveries that no worker has begun.

    Handed out one by one, each delivery would wake a worker that cannot run while the supervisor
    still reads. So the supervisor adds all deliveries that have come, then hands them out.

    Args:
        inbox: The workers get their deliveries from it.
        limit: Deliveries to hand out at most; None is no limit.
        in_hand: Gives how many deliveries wait or run, here or with the workers.
        note: Is told of deliveries before they are handed out.
    """

    def __init__(
        self,
        inbox: SimpleQueue[Delivery | None],
        limit: int | None,
        in_hand: Callable[[], int] = lambda: 0,
        note: Callable[[Iterable[Delivery]], None] | None = None,
    ) -> None:
        self.inbox = inbox
        self._in_hand = in_hand
        self._note = note
        #: Deliveries not handed out: they have just come, are beyond the limit, or must not run
        #: beside another one.
        self._waiting: deque[Delivery] = deque()
        #: How many more may be handed out.
        self._budget = math.inf if limit is None else limit
        #: The delivery that was handed out last has to run alone.
        self._has_suspect = False

    def __len__(self) -> int:
        return self.inbox.qsize() + len(self._waiting)

    def add(self, delivery: Delivery) -> None:
        """Keep a delivery until the next `hand_out`."""
        self._waiting.append(delivery)

    @property
    def room(self) -> float:
        """How many more may be handed out than wait; infinity is no limit."""
        return self._budget - len(self._waiting)

    @property
    def is_held_up(self) -> bool:
        """Whether deliveries wait because of one that ran when a process died: it runs alone."""
        return bool(self._waiting) and (self._has_suspect or self._waiting[0].deaths > 0)

    @property
    def is_alone(self) -> bool:
        """Whether nothing is with the workers."""
        return self._in_hand() <= len(self._waiting)

    def hand_out(self, *, may_be_suspect: bool = False) -> int:
        """Put the waiting deliveries into the inbox, within the limit; give how many.

        Args:
            may_be_suspect: One that ran when a process died may go, as nothing else runs. The next
                death is its own then.
        """
        if self._has_suspect and not self.is_alone:
            return 0
        self._has_suspect = False
        batch: list[Delivery] = []
        while self._waiting and self._budget and not self._has_suspect:
            if self._waiting[0].deaths:
                if batch or not may_be_suspect:
                    break
                self._has_suspect = True
            self._budget -= 1
            batch.append(self._waiting.popleft())
        if self._note is not None and batch:
            self._note(batch)
        for delivery in batch:
            self.inbox.put(delivery)
        return len(batch)

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
