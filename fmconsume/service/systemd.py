"""Tells systemd the state of the consumer, by sd_notify(3); the supervisor's thread calls it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic

from ..engine.states import Observer, Phase, Snapshot, State

__all__ = ["Notifier"]

#: Shortest time between two status lines in the same phase, seconds.
_PAUSE = 3.0
#: What runs longest is in the text of these, as it is why nothing flows.
_NAMES_A_RUN = (Phase.STUCK, Phase.PARTLY_STUCK)
#: Asks systemd to wait for another minute, whatever TimeoutStartSec says. Each tick asks again, and
#: the supervisor always ticks within a minute.
_EXTEND = "EXTEND_TIMEOUT_USEC=60000000"


class Notifier(Observer):
    """Reports readiness, status and signs of life to the service manager.

    A manager that does not listen, or that is not there, is no error.

    Args:
        environment: Holds NOTIFY_SOCKET, and WATCHDOG_USEC where systemd wants signs of life.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = os.fsencode(environment["NOTIFY_SOCKET"])
        # An abstract socket is written with "@" for its first byte, which is zero.
        self._address = b"\0" + address[1:] if address.startswith(b"@") else address
        watchdog = _watchdog_seconds(environment)
        self._is_watched = watchdog > 0
        if self._is_watched:
            self.interval = min(Observer.interval, watchdog / 2)
        #: The milestones that systemd was told, each only once; "" stands for none.
        self._announced = {""}
        #: The status line that systemd shows, and when it may change next, monotonic seconds.
        self._status = ""
        self._next_status = 0.0
        #: The phase that systemd was told.
        self._phase: Phase | None = None
        #: What has run longest, and the counts, at the last tick: the end of the status line.
        self._longest = self._counts = ""

    def on_state(self, state: State) -> None:
        """Report once that the consumer is ready or stops, each phase, and what changes in it."""
        if state.name is not self._phase:
            self._longest = ""  # It may have ended; the next tick tells.
        self._tell(state)

    def _tell(self, state: State) -> None:
        news = {_milestone(state)} - self._announced
        status = self._compose(state)
        is_due = status != self._status and monotonic() >= self._next_status
        if (news or is_due or state.name is not self._phase) and self._send(*news, status):
            self._announced |= news
            self._phase = state.name
            self._status, self._next_status = status, monotonic() + _PAUSE

    def on_tick(self, snapshot: Snapshot) -> None:
        """Report what runs and the counts, and ask for more time while the consumer starts.

        It gives a sign of life unless a callback is overdue or a worker is dead.
        """
        self._longest, self._counts = snapshot.longest, str(snapshot.stats)
        self._tell(snapshot.state)
        # To systemd the start goes on until a READY=1 has reached it.
        is_starting = "READY=1" not in self._announced
        if is_starting and _milestone(snapshot.state) != "STOPPING=1":
            self._send(_EXTEND)
        if self._is_watched and not (snapshot.overdue or snapshot.dead_workers):
            self._send("WATCHDOG=1")

    def _compose(self, state: State) -> str:
        text = state.text
        if state.name is not Phase.STOPPED:
            longest = "" if state.name in _NAMES_A_RUN else self._longest
            text = "; ".join(filter(None, (text, longest, self._counts)))
        # Others choose parts of the text, and a line break in it would begin another assignment.
        return "STATUS=" + "".join(char if char.isprintable() else " " for char in text)

    def _send(self, *lines: str) -> bool:
        """Send a datagram if that works at once, and tell whether it did."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # The supervisor must not wait for a manager that does not read.
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
            return True
        return False


def _milestone(state: State) -> str:
    if state.is_consuming:
        return "READY=1"
    return "STOPPING=1" if state.name.is_ending else ""


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Return the seconds within which systemd wants a sign of life of this process; 0 is never."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and len(text) < 20 else 0.0
