"""Waits for the end of a consumer, and passes stops, signals and deadlines to its supervisor.

The thread that runs the consumer waits; any thread and any signal handler may put an event.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any

from .engine.states import End, Observer, Phase, State
from .engine.supervisor import Supervisor
from .exceptions import ExitCode, StopTimeout
from .wakeup import WakeupQueue

__all__ = ["STOP", "StopTeller", "Watch"]

#: The event that asks to stop; signals come as their numbers.
STOP = "stop"
#: The supervisor has begun to stop, whatever the reason.
_STOPPING = "stopping"
#: stop_timeout is over.
_TOO_LATE = "too late"

#: Seconds that the supervisor gets to report its end, once it need not wait for callbacks.
_DEADLINE = 5.0
#: The same signal within so many seconds is one.
_ECHO = 0.3
#: Seconds between two checks that the supervisor is alive; normally it reports its end itself.
_LOOK = 60.0


class StopTeller(Observer):
    """Puts an event once the supervisor begins to stop."""

    def __init__(self, events: WakeupQueue) -> None:
        self._events = events

    def on_state(self, state: State) -> None:
        """Note a change of state."""
        if state.name is Phase.STOPPING:
            self._events.put(_STOPPING)


class Watch:
    """Waits for the End that a supervisor reports; the thread that runs the consumer owns it.

    Args:
        events: Signal numbers, `STOP`, what a StopTeller puts, and the End.
        supervisor: Has been started.
        stop_timeout: Seconds after which a stop does not wait for callbacks; None is for ever.
    """

    def __init__(
        self, events: WakeupQueue, supervisor: Supervisor, stop_timeout: float | None
    ) -> None:
        self._events = events
        self._supervisor = supervisor
        self._stop_timeout = stop_timeout
        #: The last signal, and when it came, monotonic seconds.
        self._last = 0, 0.0
        #: When running callbacks are abandoned, monotonic seconds; None while nothing stops.
        self._too_late: float | None = None
        #: The End after an abandonment, should the supervisor not report it; None before.
        self._forced: End | None = None

    def wait(self) -> End:
        """Pass stops and signals to the supervisor until it reports the End, or dies without."""
        signals = 0
        while True:
            event = self._next_event()
            if isinstance(event, End):
                return event
            if event is _TOO_LATE:
                self._give_up()
            elif isinstance(event, int) and self._is_echo(event):
                continue
            elif isinstance(event, int) and signals:
                name = signal.Signals(event).name
                self._abandon(End(KeyboardInterrupt(name), 128 + event))
            else:
                self._note_stop()
                if event is not _STOPPING:
                    self._supervisor.stop()
            signals += isinstance(event, int)

    def _is_echo(self, number: int) -> bool:
        """Tell whether a signal is the last one once more; note it if it is another one.

        Who stops a process and then its group, as timeout(1) does, means one stop.
        """
        last, moment = self._last
        is_echo = number == last and monotonic() - moment < _ECHO
        if not is_echo:
            self._last = number, monotonic()
        return is_echo

    def _note_stop(self) -> None:
        if self._too_late is None and self._stop_timeout is not None:
            self._too_late = monotonic() + self._stop_timeout

    def _give_up(self) -> None:
        if self._forced is None:
            error = StopTimeout(
                f"the stop has taken {self._stop_timeout:g} s (stop_timeout), and waits no longer: "
                "RabbitMQ will redeliver what is not acknowledged"
            )
            self._abandon(End(error, ExitCode.STOP_TIMEOUT))

    def _abandon(self, end: End) -> None:
        self._forced = end
        self._supervisor.abandon(end)

    def _next_event(self) -> Any:
        """Wait for an event; the supervisor's silence can be one, and the deadline is one."""
        while True:
            with suppress(Empty):
                return self._events.get(self._patience)
            if self._forced is not None:
                return self._forced
            if self._too_late is not None and monotonic() >= self._too_late:
                return _TOO_LATE
            if not self._supervisor.is_alive():
                # It may have reported and ended after the wait was over.
                with suppress(Empty):
                    return self._last_word()
                return End(RuntimeError("the supervisor is gone"), ExitCode.UNEXPECTED)

    @property
    def _patience(self) -> float:
        """Seconds to wait for the next event."""
        if self._forced is not None:
            # A supervisor that hangs on a dead line must not keep a forced stop waiting.
            return _DEADLINE
        if self._too_late is None:
            return _LOOK
        return max(0.0, min(_LOOK, self._too_late - monotonic()))

    def _last_word(self) -> End:
        """Return the End that is among the events; raise queue.Empty if there is none."""
        while True:
            event = self._events.get(0)
            if isinstance(event, End):
                return event
