"""Passes items from other threads to the supervisor, and wakes it.

Workers post outcomes, and any thread may post an action, which the supervisor runs. The
supervisor sleeps in one of three places, and a thread that posts ends that sleep:

- in `wait`, where the item itself ends it;
- in `linger`, where it lets the workers empty their inbox: the worker that posts and finds the
  inbox empty ends it, so that one frame can settle the deliveries of all workers;
- in its wait for the network: the first thread that posts calls `wake`, and the others need not.

No item is missed, because each side writes first and reads afterwards:

- Between `linger` and its next sleep at the network the supervisor calls `collect` (a look at the
  network that does not sleep may come between). `collect` first notes that nobody has woken it
  and then looks. An item that was posted before is collected; whoever posts later finds that
  nobody has woken it, and calls `wake`.
- `linger` sets `is_woken`, since `collect` follows anyway. It sets `_lingers_for`, then looks at
  the inbox and at the items. A worker gets a delivery from the inbox, later posts, and then looks
  at `_lingers_for` and at the inbox. So at least one of the two sees that the inbox is empty and
  the outcome is there. An empty inbox alone says nothing: from Python 3.13 on, a delivery that is
  put where a worker waits is never counted in the inbox.
- Each session has a `_Network` of its own, and `is_woken` with it. A thread that wakes an old
  session late does not set `is_woken` for the next one.

Any thread may call `post` and read `is_lingering`. Only the supervisor's thread calls the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Callable, Union

from ..delivery import Outcome

__all__ = ["Item", "Mailbox"]

#: An outcome, or an action for the supervisor to run.
Item = Union[Outcome, Callable[[], None]]

#: Longest wait, in seconds, for the workers to empty the inbox.
_LINGER = 0.001


class _Network:
    """The supervisor's wait for the network, during one session."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        #: A wake is on its way, or need not come. Set by any thread, cleared by the supervisor
        #: before it reads the items.
        self.is_woken = False


class Mailbox:
    """Outcomes and actions for the supervisor."""

    def __init__(self) -> None:
        #: Filled by any thread.
        self._items: SimpleQueue[Item] = SimpleQueue()
        #: None while there is no session. Set by the supervisor, read by any thread.
        self._network: _Network | None = None
        #: The inbox that the supervisor waits for, until the workers have emptied it; None while it
        #: does not. Set by the supervisor; set to None by it, or by the thread that ends the wait.
        self._lingers_for: SimpleQueue[Any] | None = None
        #: Filled by the thread that ends the wait.
        self._emptied: SimpleQueue[None] = SimpleQueue()
        #: Deliveries that the workers were given since the last `collect`.
        self._given = 0

    @property
    def is_lingering(self) -> bool:
        """Whether the supervisor waits for the workers to empty their inbox. Thread: any."""
        return self._lingers_for is not None

    def post(self, item: Item) -> None:
        """Leave an item, and wake the supervisor. Thread: any."""
        self._items.put(item)
        inbox = self._lingers_for
        if inbox is None:
            network = self._network
            if network is not None and not network.is_woken:
                network.is_woken = True
                network.wake()
        elif not inbox.qsize():
            self._lingers_for = None
            self._emptied.put(None)

    def attach(self, wake: Callable[[], None]) -> None:
        """Say how to end the supervisor's wait for the network from now on.

        Args:
            wake: Called by any thread; between two calls of `collect` usually once, rarely by
                two threads at the same time.
        """
        self._network = _Network(wake)

    def detach(self) -> None:
        """Say that there is no network any more."""
        self._network = None

    def linger(self, inbox: SimpleQueue[Any], given: int) -> None:
        """Let the workers empty their inbox, for a millisecond at most.

        Args:
            given: Deliveries that were put into the inbox since the last `linger`.
        """
        if self._network is not None:
            self._network.is_woken = True
        while self._emptied.qsize():
            self._emptied.get()  # A worker put it just after the last `linger` was over.
        self._given += given
        self._lingers_for = inbox
        if inbox.qsize() or (given and self._items.qsize() < self._given):
            with suppress(Empty):
                self._emptied.get(timeout=_LINGER)
        self._lingers_for = None

    def collect(self) -> Iterator[Item]:
        """Give all items, oldest first, also those that are posted meanwhile."""
        if self._network is not None:
            self._network.is_woken = False
        self._given = 0
        return self._drain()

    def _drain(self) -> Iterator[Item]:
        while self._items.qsize():
            yield self._items.get()

    def wait(self, timeout: float) -> Item:
        """Wait for an item.

        Args:
            timeout: Seconds.

        Raises:
            queue.Empty: None came in time.
        """
        return self._items.get(timeout=timeout)
