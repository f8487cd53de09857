"""Says since when nothing is consumed, and how often that was tried; the supervisor owns it."""

from __future__ import annotations

from time import time

from ..moments import clock

__all__ = ["Outage"]


class Outage:
    """The time until a session consumes; it begins with a loss, or with the first attempt."""

    def __init__(self) -> None:
        #: When it began, seconds since the epoch.
        self._began = 0.0
        #: A session was lost, or an attempt has failed.
        self._has_failed = False
        self._attempts = 0

    def begin_attempt(self) -> None:
        """Note an attempt to consume."""
        self._attempts += 1
        self._began = self._began or time()

    def describe_attempt(self) -> str:
        """Say what comes before the name of a broker; nothing in the first attempt of all."""
        if not self._has_failed:
            return ""
        return f"not consuming since {clock(self._began)}, attempt {self._attempts}: "

    def describe_wait(self, delay: float) -> str:
        """Note a loss or a failed attempt, and say when the next one is.

        Args:
            delay: Seconds until then.
        """
        self._has_failed = True
        self._began = self._began or time()
        tried = f" ({self._attempts} attempt{'s' * (self._attempts > 1)})" if self._attempts else ""
        return f"not consuming since {clock(self._began)}{tried}, next at {clock(time() + delay)}"
