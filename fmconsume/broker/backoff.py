"""Computes delays: before the next connection, and before a Nack is sent.

Pure: no clock and no thread. One thread owns each instance: the supervisor or the publisher.
"""

from __future__ import annotations

import random
from typing import Callable

__all__ = ["Backoff", "nack_delay"]


class Backoff:
    """Delays with full jitter: uniform between 0 and a ceiling that doubles.

    Args:
        initial: First ceiling, seconds.
        maximum: Last ceiling, seconds.
    """

    def __init__(
        self,
        initial: float = 1.0,
        maximum: float = 60.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._initial = initial
        self._maximum = maximum
        self._uniform = uniform
        self._ceiling = initial

    def next(self) -> float:
        """Give the next delay in seconds and raise the ceiling."""
        delay = self._uniform(0.0, self._ceiling)
        self._ceiling = min(self._ceiling * 2, self._maximum)
        return delay

    def reset(self) -> None:
        """Start again from the first ceiling."""
        self._ceiling = self._initial


def nack_delay(initial: float, maximum: float, earlier: int) -> float:
    """Give the seconds to hold a Nack back.

    Args:
        initial: Delay of a message's first Nack, seconds; 0 delays no Nack.
        maximum: Longest delay, seconds.
        earlier: How often the same message was returned before.
    """
    # 2**64 seconds are beyond any maximum; the bound keeps the float finite.
    return min(initial * 2.0 ** min(earlier, 64), maximum) if initial else 0.0
