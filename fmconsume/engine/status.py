"""Turns the supervisor's account, session and workers into a state, log lines and ticks.

The supervisor's thread calls it; any thread may read `state` and `runs`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from operator import attrgetter
from time import monotonic, time

from ..broker.session import Session
from ..context import about
from ..delivery import Delivery, Outcome
from ..log import get_logger
from ..moments import clock
from ..state.notes import Notes
from ..text import printable
from .account import DeliveryAccount
from .intake import Intake
from .prefetch import MOST_HELD, Prefetch
from .states import Observer, Phase, Run, Snapshot, State, Stats
from .workers import Worker

__all__ = ["Status"]

_log = get_logger(__name__)

#: Shortest time between two ticks, seconds, unless an observer's interval is below 2 s.
_TICK = 1.0
#: The state names a message that has been in hand for more than this, seconds.
_SLOW = 60.0
#: A snapshot names what runs longest once it has run for so many seconds.
_LONG = 1.0
#: Shortest time to the moment at which a callback may be past its time, seconds.
_SHORTEST_ALARM = 0.05
#: Characters of a state's text at most, since it may name many queues.
_LENGTH = 2000


class Status:
    """Keeps the state of the engine, and tells the log and the observers.

    Args:
        callback_timeout: Seconds; None is no limit.
        notes: What outlives the process; None is nothing.
    """

    def __init__(
        self,
        *,
        observers: Sequence[Observer],
        stats: Stats,
        account: DeliveryAccount,
        intake: Intake,
        workers: Sequence[Worker],
        prefetch: Prefetch,
        callback_timeout: float | None = None,
        notes: Notes | None = None,
    ) -> None:
        self._observers = observers
        self._stats = stats
        self._account = account
        self._workers = workers
        self._prefetch = prefetch
        self._callback_timeout = callback_timeout
        self._intake = intake
        self._notes = notes
        #: Replaced whole at each change. Set here, read by any thread.
        self.state = State(Phase.CONNECTING, "connecting")
        #: When to tick again and when to ask for depths again, monotonic seconds.
        self._next_tick = self._next_depths = 0.0
        #: Deliveries whose callback is past callback_timeout, and whose stack was logged; each with
        #: its worker.
        self._overdue: dict[Delivery, Worker] = {}
        #: Workers that enter or leave the callback past callback_timeout; their stack was logged.
        self._late: set[Worker] = set()
        #: The session that has been asked to wake the supervisor when the next callback may be past
        #: its time; None once it has. One that is over never will.
        self._alarmed: Session | None = None

    @property
    def interval(self) -> float:
        """Longest sleep of the supervisor that gives every observer its ticks, seconds."""
        return min((observer.interval for observer in self._observers), default=Observer.interval)

    @property
    def runs(self) -> list[Run]:
        """What the workers work on now, the longest first. Thread: any."""
        patience = math.inf if self._callback_timeout is None else self._callback_timeout
        current = [(worker.name, worker.current) for worker in self._workers]
        latest = monotonic() - patience
        runs = (Run(name, *each, each[1] <= latest) for name, each in current if each)
        return sorted(runs, key=attrgetter("began"))

    def enter(self, phase: Phase, text: str) -> None:
        """Change the state and tell the observers; log a new phase, and each address tried."""
        state = State(phase, printable(text, _LENGTH))
        if state == self.state:
            return
        if phase is not self.state.name or phase is Phase.CONNECTING:
            level = logging.WARNING if phase.needs_attention else logging.INFO
            _log.log(level, "%s", state.text)
        self.state = state
        for observer in self._observers:
            observer.on_state(self.state)

    def tell_outcome(self, outcome: Outcome) -> None:
        """Tell the observers of an outcome."""
        for observer in self._observers:
            observer.on_outcome(outcome)

    def tick(self, session: Session | None) -> None:
        """Update the state, log overdue callbacks and tell the observers, if a tick is due.

        Args:
            session: The one that consumes, None while none does.
        """
        now = monotonic()
        if now >= self._next_tick or self._has_ended_late:
            self._look(session, now)
        if self._callback_timeout is not None and session is not None:
            self._set_alarm(session, now, self._callback_timeout)

    def _look(self, session: Session | None, now: float) -> None:
        # Half, since the supervisor sleeps for an interval: a turn that comes a little early would
        # miss a tick that is due after a whole one.
        self._next_tick = now + min(_TICK, self.interval / 2)
        self._log_overdue(now)
        if session is not None:
            self.enter(*self._flow(session, now))
            self._tell_depths(session, now)
        for observer in self._observers:
            observer.on_tick(self._snapshot(session, now))

    def _flow(self, session: Session, now: float) -> State:
        """Give the state of a session that consumes: why messages flow, or why they do not."""
        oldest = self._account.oldest
        if self._overdue:
            return self._describe_stuck(now)
        if session.blocked:
            text = f"consuming; the broker blocks publishers: {session.blocked}"
            return State(Phase.BLOCKED, text)
        if oldest is not None and now - oldest.received > _SLOW:
            return State(Phase.BUSY, f"{oldest.name} is in hand for {now - oldest.received:.0f} s")
        if self._prefetch.is_used_up:
            return State(Phase.PREFETCH_FULL, self._describe_full(now))
        return State(Phase.CONSUMING, f"consuming from {session.name}{self._describe_held(now)}")

    def _describe_stuck(self, now: float) -> State:
        late, workers = len(self._overdue), self._workers
        is_left = any(worker.is_alive() for worker in set(workers) - {*self._overdue.values()})
        phase = Phase.PARTLY_STUCK if is_left else Phase.STUCK
        longest = next((run.describe(now) for run in self.runs if run.is_overdue), "they end now")
        text = f"{phase}, {late} of {len(workers)} workers past callback_timeout"
        return State(phase, f"{text} ({self._callback_timeout:g} s): {longest}")

    def _describe_full(self, now: float) -> str:
        why = f"{MOST_HELD:,} and more may not be held"
        if self._prefetch.is_fixed:
            why = "to ask for more would let another consumer take over, as only one is active"
        return f"all that was prefetched is held back, and {why}{self._describe_held(now)}"

    def _describe_held(self, now: float) -> str:
        """Say how many messages are held and when the next goes back; nothing without any."""
        held, due = self._account.held, self._account.next_due
        if not held:
            return ""
        until = clock(time() + due - now) if due else "the end"
        return f"; {held} messages are held back, the next until {until}"

    def _log_overdue(self, now: float) -> None:
        """Log once the stack of each callback that is past callback_timeout."""
        if self._callback_timeout is None:
            return
        late = {}
        for worker in self._workers:
            current = worker.current
            if current is not None and now - current[1] >= self._callback_timeout:
                late[current[0]] = worker
        for delivery, worker in late.items():
            if delivery not in self._overdue:
                with about(delivery, worker.number):
                    _log.error("past callback_timeout: %s", worker.describe())
        self._overdue = late
        steps = [(worker, worker.step) for worker in self._workers]
        slow = {each for each, step in steps if step and now - step.began >= self._callback_timeout}
        for worker in slow - self._late:
            _log.error("past callback_timeout: %s", worker.describe())
        self._late = slow

    @property
    def _has_ended_late(self) -> bool:
        """Whether a callback has ended that was past callback_timeout at the last look."""
        return bool(self._overdue) and any(
            worker.current is None or worker.current[0] is not delivery
            for delivery, worker in self._overdue.items()
        )

    def _set_alarm(self, session: Session, now: float, timeout: float) -> None:
        """Have the supervisor look when the first of the callbacks may be past its time.

        None that begins later is past its time earlier. While nothing is in hand there is no alarm,
        so that an idle consumer sleeps.
        """
        may_be_late = self._account.in_hand > len(self._overdue) < len(self._workers)
        if may_be_late and self._alarmed is not session:
            began = [run.began for run in self.runs if run.delivery not in self._overdue]
            seconds = timeout - (now - min(began, default=now))
            self._alarmed = session
            session.call_later(max(seconds, _SHORTEST_ALARM), self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarmed = None
        self._next_tick = 0.0

    def _tell_depths(self, session: Session, now: float) -> None:
        """Ask for the queues' depths and tell them, at the shortest `depth_interval` of any."""
        curious = [observer for observer in self._observers if observer.depth_interval]
        if curious and now >= self._next_depths:
            self._next_depths = now + min(observer.depth_interval for observer in curious)
            depths = session.depths()
            for observer in curious:
                observer.on_depths(depths)

    def _snapshot(self, session: Session | None, now: float) -> Snapshot:
        oldest, runs = self._account.oldest_held, self.runs
        is_long = runs and now - runs[0].began >= _LONG
        return Snapshot(
            state=self.state,
            stats=dataclasses.replace(self._stats),
            prefetched=len(self._intake),
            held=self._account.held,
            overdue=len(self._overdue) + len(self._late),
            dead_workers=sum(not worker.is_alive() for worker in self._workers),
            broker=session.address.name if session else "",
            oldest_held=now - oldest.received if oldest else 0.0,
            notes="" if self._notes is None else str(self._notes),
            workers=len(self._workers),
            longest=runs[0].describe(now) if is_long else "",
        )
