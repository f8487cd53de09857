"""The mailbox by which other threads reach the supervisor, and the protocol that wakes it.

Workers post outcomes, and any thread may post an action, which the supervisor runs. The
supervisor sleeps in one of three places, and whoever posts ends that sleep:

- in `wait`, where the item itself ends it;
- in `linger`, where it waits for the workers to empty their inbox: the worker that posts and
  finds the inbox empty ends it, so that one frame can settle what all of them did;
- in its wait for the network: the first who posts calls `wake`, and the others need not.

Nothing is missed, because each side first says what it does and then looks:

- The supervisor calls `linger`, then `collect`, then waits for the network again, in this order.
  `collect` first says that nobody has woken it, then looks. An item that was posted before is
  collected; whoever posts later finds that nobody has woken it, and calls `wake`.
- `linger` says that it has been woken, as `collect` follows anyway. It says that it lingers before
  it looks at the inbox. A worker takes from the inbox, posts, and then looks whether the supervisor
  lingers, and at the inbox. So at least one of the two sees that the inbox is empty.
- A network belongs to one session, and so does the note that it was woken. Whoever wakes the last
  session late leaves no note at the next one.

Any thread may call `post`. All else is for the supervisor's thread.
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
    """Where the supervisor waits for the network."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        #: A wake is on its way. Set by any thread, cleared by the supervisor before it looks.
        self.is_woken = False


class Mailbox:
    """Outcomes and actions for the supervisor."""

    def __init__(self) -> None:
        #: Filled by any thread.
        self._items: SimpleQueue[Item] = SimpleQueue()
        #: None while the supervisor does not wait for the network. Set by it, read by any thread.
        self._network: _Network | None = None
        #: The inbox whose emptying the supervisor waits for. Set by it; set to None by it, or by
        #: whoever ends the wait.
        self._lingers_for: SimpleQueue[Any] | None = None
        #: Filled by whoever ends the wait.
        self._emptied: SimpleQueue[None] = SimpleQueue()

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
            wake: Any thread calls it, once between two calls of `collect`.
        """
        self._network = _Network(wake)

    def detach(self) -> None:
        """Say that there is no network any more."""
        self._network = None

    def linger(self, inbox: SimpleQueue[Any]) -> None:
        """Let the workers empty their inbox, for a millisecond at most."""
        if self._network is not None:
            self._network.is_woken = True
        while self._emptied.qsize():
            self._emptied.get()  # It came just after the last lingering was over.
        self._lingers_for = inbox
        if inbox.qsize():
            with suppress(Empty):
                self._emptied.get(timeout=_LINGER)
        self._lingers_for = None

    def collect(self) -> Iterator[Item]:
        """Give all that is there, oldest first, also what comes meanwhile."""
        if self._network is not None:
            self._network.is_woken = False
        while self._items.qsize():
            yield self._items.get()

    def wait(self, timeout: float) -> Item:
        """Wait so many seconds for an item.

        Raises:
            queue.Empty: None came.
        """
        return self._items.get(timeout=timeout)
