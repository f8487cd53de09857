"""Asks the broker for more messages than the prefetch that is in hand.

RabbitMQ counts a prefetch for each consumer: whoever consumes again gets a whole prefetch anew,
while the old deliveries stay outstanding. Three things need that:

- Messages that are held back before they return to their queue must not use up the prefetch, or a
  few bad messages would stop all good ones.
- A held message at the head keeps the acknowledgements behind it from sharing a frame, which takes
  half of the speed. A new grant has a channel of its own, with nothing held before its head; only
  where there is no other channel to be had, it shares the one of the grant before.
- A session begins with as many messages as there are workers, and gets the whole prefetch once a
  callback has come to its end. RabbitMQ 4 counts every return of a message to a quorum queue, also
  of one that was only prefetched: a message that kills its consumer would take its neighbours
  with it.

It consumes again only while the old consumer has no room: pika rejects what arrives between a
basic.cancel and its answer. For a queue with a single active consumer it never does, as another one
would take over.

The supervisor's thread owns it.
"""

from __future__ import annotations

import math

from ..broker.session import Session
from ..broker.topology import Topology
from .account import DeliveryAccount

__all__ = ["MOST_HELD", "Prefetch"]

#: Messages that are held at most, beside a prefetch.
MOST_HELD = 1000
#: Channels at most on which something of an earlier grant is outstanding.
_MOST_CHANNELS = 100


class Prefetch:
    """How many messages the broker may send ahead.

    Args:
        workers: Callbacks that run at the same time.
    """

    def __init__(self, account: DeliveryAccount, topology: Topology, workers: int) -> None:
        self._account = account
        self._topology = topology
        self.is_fixed = topology.has_single_active_consumer
        whole = topology.prefetch_count or math.inf
        #: Messages in a session's first grant, and in each one after it.
        self._first, self._whole = (whole if self.is_fixed else min(workers, whole)), whole
        self._granted = self._first
        #: A callback has come to its end in this session.
        self._has_run = False

    @property
    def first(self) -> int:
        """What a session begins with, as for basic.qos; 0 is no limit."""
        return 0 if math.isinf(self._first) else int(self._first)

    @property
    def is_used_up(self) -> bool:
        """Whether the broker sends nothing, because everything granted is held back."""
        return self._account.grants.fresh_held >= self._granted

    def begin(self) -> None:
        """Begin with a new session."""
        self._granted, self._has_run = self._first, False

    def note_run(self) -> None:
        """Note that a callback has come to its end."""
        self._has_run = True

    def ask(self, session: Session) -> None:
        """Consume again if that is due: before anything is settled, so that nothing arrives.

        Raises:
            SessionLost, BadDeclaration, PermissionException: From the session.
        """
        if not self.is_fixed and self._account.grants.fresh >= self._granted and self._is_due:
            self._granted = self._whole
            has_channel = self._may_open_channel and session.open_channel()
            self._account.grants.begin(is_on_new_channel=has_channel)
            session.consume_again(self._topology.prefetch_count)
        if self._account.grants.old_channels:
            for last_tag in self._account.grants.end():
                session.close_channel(last_tag)

    @property
    def _is_due(self) -> bool:
        if self._granted < self._whole and self._has_run:
            return True
        account = self._account
        if account.held >= MOST_HELD + self._granted:
            return False
        is_parted = account.grants.parted >= self._granted and self._may_open_channel
        return is_parted or 2 * account.grants.fresh_held >= self._granted

    @property
    def _may_open_channel(self) -> bool:
        return self._account.grants.old_channels < _MOST_CHANNELS
