"""A broker in memory, behind the same interface as the real one: the test says what it does.

`MemoryBroker.open_session` stands in for `fmconsume.broker.session.open_session`.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Callable

from fmconsume.broker.addresses import Address
from fmconsume.broker.errors import SessionLost
from fmconsume.broker.topology import Topology
from fmconsume.delivery import Delivery, Frame
from fmconsume.identity import Identity

from .fakes import get_soon, make_delivery


class MemoryBroker:
    """Opens sessions, and hands each to the test."""

    def __init__(self) -> None:
        #: Each session, before it connects.
        self.opened: SimpleQueue[MemorySession] = SimpleQueue()
        self.sessions: list[MemorySession] = []
        #: Changes each session before it connects.
        self.prepare: Callable[[MemorySession], None] = lambda session: None

    def open_session(
        self,
        address: Address,
        topology: Topology,
        deliver: Callable[[Delivery], None],
        number: int = 1,
        retry_codes: Container[int] = (),
        identity: Identity | None = None,
    ) -> MemorySession:
        """Open a session, as the test wants."""
        session = MemorySession(address, deliver, number, retry_codes)
        self.sessions.append(session)
        self.prepare(session)
        self.opened.put(session)
        session.on_connect()
        try:
            session.on_declare()
        except BaseException:
            session.discard()
            raise
        return session


class MemorySession:
    """A session whose other end is the test."""

    name = "fruit in memory"

    def __init__(
        self,
        address: Address,
        deliver: Callable[[Delivery], None],
        number: int,
        retry_codes: Container[int],
    ) -> None:
        self.number = number
        self.address = address
        self.queues = ["fruit"]
        self.blocked = ""
        self.deliver = deliver
        self.retry_codes = retry_codes
        #: Makes connecting block, or fail; set by the test before it starts.
        self.on_connect: Callable[[], None] = lambda: None
        self.on_declare: Callable[[], None] = lambda: None
        #: Actions to run inside `wait`.
        self.events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        #: What the supervisor did, in order; frames one by one.
        self.calls: SimpleQueue[Any] = SimpleQueue()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.ready = 0
        self.closed = 0
        self.is_lost = False
        self.is_in_a_hurry = False
        #: What the broker says of a queue whose consumer it has cancelled.
        self.cancel_reason: Exception | None = None
        self.tag = 0
        self.channels = itertools.count(1)

    # -- for the supervisor ------------------------------------------------

    def consume(self, prefetch_count: int | None = None) -> None:
        self.prefetch_count = prefetch_count

    def open_channel(self) -> int:
        return next(self.channels)

    def consume_again(self, queues: list[str], prefetch_count: int) -> None:
        self.calls.put(f"consume again {prefetch_count}")

    def close_channel(self, number: int) -> None:
        self.calls.put(f"close channel {number}")

    def start_ticking(self, seconds: float) -> None:
        self.tick_seconds = seconds

    def wait(self, seconds: float | None = None) -> None:
        with suppress(Empty):
            self.events.get(timeout=self.tick_seconds if seconds is None else seconds)()
            while True:
                self.events.get_nowait()()
        self.check()

    def wake(self) -> None:
        self.events.put(lambda: None)

    def hurry(self) -> None:
        self.is_in_a_hurry = True

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append((seconds, action))

    @property
    def is_consuming(self) -> bool:
        return self.cancel_reason is None

    def raise_cancellation(self) -> None:
        assert self.cancel_reason is not None
        raise self.cancel_reason

    def settle(self, frames: Iterable[Frame]) -> None:
        self.check()
        for frame in frames:
            self.calls.put(frame)

    def refuse_streams(self) -> None:
        self.check()

    def depths(self) -> dict[str, int]:
        return {"fruit": self.ready}

    def cancel(self) -> None:
        self.check()
        self.calls.put("cancel")

    def leave(self) -> None:
        self.calls.put("leave")

    def close(self) -> bool:
        self.closed += 1
        self.calls.put("close")
        return True

    def discard(self) -> None:
        self.closed += 1
        self.calls.put("discard")

    # -- for the test ------------------------------------------------------

    def check(self) -> None:
        """Raise what the real session raises once it is lost."""
        if self.is_lost:
            raise SessionLost("the line is cut")

    def deliver_soon(self, *names: str | None, redelivered: bool = False) -> None:
        """Deliver messages with these ids, all at once."""
        deliveries = []
        for name in names:
            self.tag += 1
            deliveries.append(
                make_delivery(self.number, self.tag, message_id=name, redelivered=redelivered)
            )

        def deliver() -> None:
            for delivery in deliveries:
                self.deliver(delivery)

        self.events.put(deliver)

    def lose_soon(self) -> None:
        """Cut the line."""

        def lose() -> None:
            self.is_lost = True

        self.events.put(lose)

    def fire(self, index: int = 0) -> None:
        """Let a timer go off."""
        self.events.put(self.timers[index][1])

    def expect(self, *expected: Any) -> None:
        """Fail unless this is what the supervisor does next."""
        for each in expected:
            assert get_soon(self.calls) == each
