"""Keeps the outstanding delivery tags of a session, by the grants in which they came.

A grant is a prefetch that the broker gave to consumers. prefetch.py asks for another one. Each has
a ledger, as each has a channel; one that shares the channel of the grant before shares its ledger.

Pure: no pika, no threads, no clock. The account owns it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..delivery import Frame, Verdict
from .ledger import Ledger

__all__ = ["Grants"]


class Grants:
    """The grants of one session; "fresh" is what came in the latest one."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        #: The ledgers of earlier channels, in which something is outstanding, by their last tag.
        self._old_ledgers: dict[int, Ledger] = {}
        #: The tag that came last, and the last one before the latest grant.
        self._last = self._mark = 0
        #: Outstanding deliveries of earlier grants in the latest ledger.
        self._stale = 0
        #: Fresh deliveries that are held back.
        self.fresh_held = 0
        #: Fresh acknowledgements that took a frame each, because of a held verdict.
        self.parted = 0

    def __len__(self) -> int:
        """Give how many deliveries the broker waits to see settled."""
        return len(self._ledger) + sum(map(len, self._old_ledgers.values()))

    @property
    def fresh(self) -> int:
        """How many of them are fresh."""
        return len(self._ledger) - self._stale

    @property
    def old_channels(self) -> int:
        """How many earlier channels there are on which something is, or was, outstanding."""
        return len(self._old_ledgers)

    def begin(self, *, is_on_new_channel: bool) -> None:
        """Note that what comes from now on belongs to another grant: the session consumes again."""
        if is_on_new_channel:
            self._old_ledgers[self._last] = self._ledger
            self._ledger = Ledger()
        self._mark, self._stale = self._last, len(self._ledger)
        self.fresh_held = self.parted = 0

    def end(self) -> list[int]:
        """Forget the earlier channels of which all is settled; give the last tag of each."""
        ended = [last for last, ledger in self._old_ledgers.items() if not len(ledger)]
        for last in ended:
            del self._old_ledgers[last]
        return ended

    def deliver(self, tag: int) -> None:
        """Add the tag of a delivery; tags arrive in ascending order."""
        self._ledger.deliver(tag)
        self._last = tag

    def hold(self, tag: int) -> None:
        """Note that a verdict is held back."""
        self.fresh_held += tag > self._mark

    def release(self, tag: int) -> None:
        """Note that a verdict is held back no more."""
        self.fresh_held -= tag > self._mark

    def settle(self, verdicts: dict[int, Verdict]) -> list[Frame]:
        """Give the frames that settle these tags, as a ledger does; take the verdicts out."""
        frames = self._settle_old(verdicts) if self._old_ledgers else []
        if verdicts:
            if self._stale:
                self._stale -= sum(tag <= self._mark for tag in verdicts)
            fresh = self._ledger.settle(verdicts)
            if self.fresh_held:
                self.parted += len(fresh)
            frames += fresh
        return frames

    def _settle_old(self, verdicts: dict[int, Verdict]) -> list[Frame]:
        frames: list[Frame] = []
        for ledger in self._old_ledgers.values():
            tags: Iterable[int] = [tag for tag in verdicts if tag in ledger]
            if tags:
                frames += ledger.settle({tag: verdicts.pop(tag) for tag in tags})
        return frames
