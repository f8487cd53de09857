"""Remembers what was in the way of messages, from when and until when, for the monitoring server.

The supervisor's thread records; any thread may read without a lock.
"""

from __future__ import annotations

from time import time
from typing import NamedTuple

from ..engine.states import Phase, State

__all__ = ["Trouble", "Troubles"]

#: How many are remembered.
_MOST = 12


class Trouble(NamedTuple):
    """A time in which somebody might have had to act.

    Attributes:
        text: What the state said last.
        began: Seconds since the epoch, like ended; that is None while it lasts.
    """

    phase: Phase
    text: str
    began: float
    ended: float | None = None


class Troubles:
    """The troubles of a consumer."""

    def __init__(self) -> None:
        #: Oldest first; replaced whole.
        self.all: tuple[Trouble, ...] = ()

    @property
    def present(self) -> Trouble | None:
        """The trouble that lasts; None while there is none. Thread: any."""
        last = self.all[-1] if self.all else None
        return last if last and last.ended is None else None

    def on_state(self, state: State) -> None:
        """Note a state; it begins a trouble, goes on with the present one, or ends it."""
        present, phase = self.present, state.name
        if present and phase is present.phase:
            self.all = (*self.all[:-1], present._replace(text=state.text))
        elif phase is not Phase.CONNECTING:  # That is an attempt to end one.
            ended = [present._replace(ended=time())] if present else []
            begun = [Trouble(phase, state.text, time())] if phase.needs_attention else []
            before = self.all[:-1] if present else self.all
            self.all = (*before, *ended, *begun)[-_MOST:]
