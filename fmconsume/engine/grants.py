"""Keeps the outstanding delivery tags of a session, by channel and by grant.

A grant is a prefetch that the broker gave to the consumer of one queue. prefetch.py asks for
another one, perhaps on another channel. Each channel has a ledger; the consumers of several queues
share it, so that one frame settles what came from all of them.

Pure: no pika, no threads, no clock. The account owns it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..delivery import CHANNEL, Frame, Verdict
from .ledger import Ledger

__all__ = ["Grant", "Grants"]


@dataclass(eq=False)
class Grant:
    """What the consumer of a queue may get ahead.

    Attributes:
        size: Messages; infinity is no limit.
        channel: The number of its channel.
        outstanding: How many of them the broker waits to see settled.
        held: How many of those are held back.
        parted: Frames that settled one alone, because something on the channel was held back.
        has_run: A callback has come to its end with one of them, in its first attempt.
    """

    size: float
    channel: int = 0
    outstanding: int = 0
    held: int = 0
    parted: int = 0
    has_run: bool = False

    @property
    def is_used_up(self) -> bool:
        """Whether the broker sends no more until something is settled."""
        return self.outstanding >= self.size


class Grants:
    """The grants of one session.

    Args:
        queues: What it consumes from.
        size: Messages that each consumer may get ahead at first.
    """

    def __init__(self, queues: Iterable[str] = (), size: float = math.inf) -> None:
        #: The latest grant of each queue.
        self.latest = {queue: Grant(size) for queue in queues}
        #: The grant of each outstanding tag.
        self._grants: dict[int, Grant] = {}
        #: By number, the channels that are open; the last one is for the consumers to come.
        self._ledgers = {0: Ledger()}
        #: How much is held back on each channel.
        self._held: Counter[int] = Counter()

    def __len__(self) -> int:
        """Give how many deliveries the broker waits to see settled."""
        return len(self._grants)

    # -- consuming again ---------------------------------------------------

    @property
    def channels(self) -> int:
        """How many channels are open."""
        return len(self._ledgers)

    @property
    def is_clear(self) -> bool:
        """Whether nothing is held back on the latest channel."""
        return not self._held[next(reversed(self._ledgers))]

    def open_channel(self, number: int) -> None:
        """Note that the consumers to come are on another channel."""
        self._ledgers[number] = Ledger()

    def renew(self, queue: str, size: float) -> None:
        """Note that what comes from this queue from now on belongs to another grant."""
        self.latest[queue] = Grant(size, next(reversed(self._ledgers)))

    def close_channels(self) -> list[int]:
        """Forget the channels that nobody needs; give their numbers."""
        *earlier, _ = self._ledgers
        needed = {grant.channel for grant in self.latest.values()}
        ended = [each for each in earlier if each not in needed and not self._ledgers[each]]
        for number in ended:
            del self._ledgers[number]
        return ended

    # -- deliveries --------------------------------------------------------

    def deliver(self, tag: int, queue: str) -> None:
        """Add the tag of a delivery; tags arrive in ascending order on each channel."""
        self._ledgers[tag // CHANNEL].deliver(tag)
        grant = self._grants[tag] = self.latest[queue]
        grant.outstanding += 1

    def note_run(self, tag: int) -> None:
        """Note that a callback has come to its end in its first attempt."""
        self._grants[tag].has_run = True

    def hold(self, tag: int) -> None:
        """Note that a verdict is held back."""
        self._grants[tag].held += 1
        self._held[tag // CHANNEL] += 1

    def release(self, tag: int) -> None:
        """Note that a verdict is held back no more."""
        self._grants[tag].held -= 1
        self._held[tag // CHANNEL] -= 1

    def settle(self, verdicts: dict[int, Verdict]) -> list[Frame]:
        """Give the frames that settle these tags, as a ledger does, channel by channel."""
        if not verdicts:
            return []
        frames: list[Frame] = []
        for number, part in self._by_channel(verdicts):
            settled = self._ledgers[number].settle(part)
            if self._held[number]:
                for frame in settled:
                    self._grants[frame.tag].parted += 1
            frames += settled
        for tag in verdicts:
            self._grants.pop(tag).outstanding -= 1
        return frames

    def _by_channel(self, verdicts: dict[int, Verdict]) -> Iterable[tuple[int, dict[int, Verdict]]]:
        if len(self._ledgers) == 1:
            return [(next(iter(self._ledgers)), verdicts)]
        parts: dict[int, dict[int, Verdict]] = {}
        for tag, verdict in verdicts.items():
            parts.setdefault(tag // CHANNEL, {})[tag] = verdict
        return parts.items()
