"""Asks the broker for more messages than the prefetch that is in hand.

RabbitMQ counts a prefetch for each consumer: whoever consumes again gets a whole prefetch anew,
while the old deliveries stay outstanding. Three things need that:

- Messages that are held back before they return to their queue must not use up the prefetch, or a
  few bad messages would stop all good ones.
- A held message at the head keeps the acknowledgements behind it from sharing a frame, which takes
  half of the speed. Where that has happened, a new grant gets a channel of its own, if there is
  another one to be had.
- A session begins with as many messages as there are workers, and gets twice as many each time
  that a callback has come to its end in its first attempt, until it has the whole prefetch, and
  never more than a limit lets it run. Before 4.3 RabbitMQ counts every return of a message to a
  quorum queue, also of one that was only prefetched: a message that kills its consumer, or a
  consumer that is stopped again and again, would lose its neighbours.

It consumes again from a queue only while the consumer there has no room: pika rejects what arrives
between a basic.cancel and its answer. For a queue with a single active consumer it never does, as
another one would take over.

The supervisor's thread owns it.
"""

from __future__ import annotations

import math
from typing import Callable

from ..broker.session import Session
from ..broker.topology import Topology
from .account import DeliveryAccount
from .grants import Grant

__all__ = ["MOST_HELD", "Prefetch"]

#: Messages that are held at most, beside a prefetch.
MOST_HELD = 1000
#: After a grant of so many messages the next one is the whole prefetch.
_ALMOST_WHOLE = 64
#: Channels at most, beside the one for the consumers to come.
_MOST_CHANNELS = 100


class Prefetch:
    """How many messages the broker may send ahead.

    Args:
        workers: Callbacks that run at the same time.
        room: Gives how many more messages may be handed out than are here.
    """

    def __init__(
        self,
        account: DeliveryAccount,
        topology: Topology,
        workers: int,
        room: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._account = account
        self._topology = topology
        self._room = room
        self.is_fixed = topology.has_single_active_consumer
        whole = topology.prefetch_count or math.inf
        #: Messages in the first grant of a session, and in those that it ends with.
        self._first, self._whole = (whole if self.is_fixed else min(workers, whole)), whole
        #: Messages in the first grant of the next session.
        self._next = self._first

    def prepare(self) -> int:
        """Decide what the next session begins with; give it as for basic.qos: 0 is no limit."""
        # What still runs since an earlier session comes again.
        room = self._room() + self._account.in_hand
        self._next = min(self._first, max(1, room))
        return _as_qos(self._next)

    @property
    def is_used_up(self) -> bool:
        """Whether the broker sends nothing from a queue, as everything granted is held back."""
        return any(grant.held >= grant.size for grant in self._account.grants.latest.values())

    def begin(self, session: Session) -> None:
        """Begin with a new session."""
        self._account.begin(session.number, session.queues, self._next)

    def ask(self, session: Session) -> None:
        """Consume again where that is due: before anything is settled, so that nothing arrives.

        Raises:
            SessionLost, BadDeclaration, PermissionException: From the session.
        """
        grants = self._account.grants
        if not self.is_fixed:
            latest = grants.latest.items()
            due = [queue for queue, grant in latest if grant.is_used_up and self._is_due(grant)]
            if due:
                self._consume_again(session, due)
        if grants.channels > 1:
            for number in grants.close_channels():
                session.close_channel(number)

    def _consume_again(self, session: Session, queues: list[str]) -> None:
        grants = self._account.grants
        is_parted = any(grants.latest[queue].parted for queue in queues)
        if is_parted and not grants.is_clear and self._may_open_channel:
            number = session.open_channel()
            if number is not None:
                grants.open_channel(number)
        sizes: dict[float, list[str]] = {}
        for queue in queues:
            sizes.setdefault(self._grow(grants.latest[queue]), []).append(queue)
        for size, group in sizes.items():
            for queue in group:
                grants.renew(queue, size)
            session.consume_again(group, _as_qos(size))

    def _grow(self, grant: Grant) -> float:
        """Give the size of the grant after this one."""
        size = self._whole if grant.size >= _ALMOST_WHOLE else min(2 * grant.size, self._whole)
        return min(size, self._room())

    def _is_due(self, grant: Grant) -> bool:
        if self._room() < 1:
            return False
        if grant.size < self._whole and grant.has_run:
            return True
        if self._account.held >= MOST_HELD + grant.size:
            return False
        grants = self._account.grants
        is_parted = grant.parted >= grant.size and (grants.is_clear or self._may_open_channel)
        return is_parted or 2 * grant.held >= grant.size

    @property
    def _may_open_channel(self) -> bool:
        return self._account.grants.channels <= _MOST_CHANNELS


def _as_qos(size: float) -> int:
    """Give a size as basic.qos takes it: 0 is no limit."""
    return 0 if math.isinf(size) else int(size)
