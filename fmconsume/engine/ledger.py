"""Keeps the outstanding delivery tags of one channel, and settles them in few frames.

Pure: no pika, no threads, no clock. The supervisor owns the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from ..delivery import ACK, Frame, Verdict

__all__ = ["Ledger"]


class Ledger:
    """The outstanding delivery tags of one channel, oldest first."""

    def __init__(self) -> None:
        #: Tags not settled yet.
        self._open: set[int] = set()
        #: The same tags in order of delivery; a settled one is removed when it is the oldest here.
        self._order: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, tag: object) -> bool:
        return tag in self._open

    def deliver(self, tag: int) -> None:
        """Add the tag of a delivery; tags arrive in ascending order."""
        self._open.add(tag)
        self._order.append(tag)

    def settle(self, verdicts: Mapping[int, Verdict]) -> list[Frame]:
        """Give the frames that settle these tags, to be sent in this order.

        The longest run of acknowledged tags that begins with the oldest outstanding
        one becomes a single frame. The frames for other tags go first, so that a tag with
        another verdict does not interrupt the run. They go in the order of the tags, as a quorum
        queue delivers first what was returned first.

        Args:
            verdicts: The verdict on each of these outstanding tags.

        Raises:
            ValueError: A tag is not outstanding (never delivered, or settled already).
        """
        if not verdicts.keys() <= self._open:
            raise ValueError(f"not outstanding: {sorted(verdicts.keys() - self._open)}")
        self._open.difference_update(verdicts)
        head, run, last = 0, 0, 0
        # Local names are faster, and this runs for every message.
        order, outstanding = self._order, self._open
        while order and order[0] not in outstanding:
            head = order.popleft()
            if verdicts.get(head) is ACK:
                run, last = run + 1, head
        frames = []
        if run < len(verdicts):
            frames = [
                Frame(tag, verdict, False)
                for tag, verdict in sorted(verdicts.items())
                if verdict is not ACK or tag > head
            ]
        if run:
            frames.append(Frame(last, ACK, run > 1))
        return frames
