"""Decides what an exception of a callback leads to, as [failures] says.

Pure: any thread may call, and workers do.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from ..delivery import DROP, FAIL, NACK, Delivery, Verdict
from ..exceptions import Drop, Nack

__all__ = ["HALT", "FailurePolicy", "Keep"]


class Keep(Protocol):
    """Keeps a message in a file, and gives its path; raises OSError where it cannot."""

    def __call__(
        self, delivery: Delivery, error: BaseException | str, *, is_set_aside: bool
    ) -> Path:
        """Keep a message, with the exception that the callback raised, or a reason."""


class FailurePolicy(NamedTuple):
    """What an exception leads to.

    Attributes:
        on_exception: FAIL ends the consumer, NACK and DROP go on.
        nack_on: Exceptions that count as Nack.
        drop_on: Exceptions that count as Drop.
        max_attempts: Runs of one message that may end in a Nack or an exception; 0 is no limit.
    """

    on_exception: Verdict = FAIL
    nack_on: tuple[type[BaseException], ...] = ()
    drop_on: tuple[type[BaseException], ...] = ()
    max_attempts: int = 0

    def is_expected(self, exc: BaseException) -> bool:
        """Tell whether the exception says what to do: it is a Nack, a Drop, or counts as one."""
        return isinstance(exc, (Nack, Drop, *self.nack_on, *self.drop_on))

    def judge(self, exc: BaseException) -> Verdict:
        """Give the verdict for an exception that is no HaltConsumer."""
        if isinstance(exc, (Nack, *self.nack_on)):
            return NACK
        if isinstance(exc, (Drop, *self.drop_on)):
            return DROP
        # A callback that calls sys.exit() wants an end.
        return self.on_exception if isinstance(exc, Exception) else FAIL

    def is_last(self, attempt: int) -> bool:
        """Tell whether a message gets no further attempt after this one."""
        return 0 < self.max_attempts <= attempt

    def is_spent(self, returns: int) -> bool:
        """Tell whether a message has had all its attempts, which ended in so many returns."""
        return 0 < self.max_attempts <= returns

    def describe(self, attempt: int) -> str:
        """Say which attempt it was; nothing for the first of any number."""
        if attempt <= self.max_attempts:
            return f", attempt {attempt} of {self.max_attempts}"
        return f", attempt {attempt}" if attempt > 1 else ""


#: As fedora-messaging does it.
HALT = FailurePolicy()
