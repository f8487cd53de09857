"""Remembers counts, rates, states and log entries for the monitoring server.

The supervisor's thread records, and the thread that logs adds log entries. Any thread may read
without a lock: a collection that readers iterate over is replaced whole, or keeps its size.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from time import monotonic, time
from typing import Callable, NamedTuple

from ..delivery import FAIL, NACK, SET_ASIDE, Outcome, Verdict
from ..engine.states import Observer, Phase, Snapshot, State, Stats
from ..text import printable
from .journal import PlainFormatter

__all__ = ["BOUNDS", "STEP", "STEPS", "Entry", "History", "Recent", "Slow", "Tally", "label"]

#: Upper bounds of the histogram of callback durations, seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
#: The rate is counted in steps of STEP seconds, and the last STEPS of them are remembered.
STEP, STEPS = 5, 120
#: Seconds without a sign of life after which the supervisor is taken for dead. It gives one every
#: five, and nothing that it does takes longer than thirty.
_SILENCE = 60.0
#: RabbitMQ begins the queue names that it chooses with this; no client may declare such a name.
_SERVER_NAMED = "amq.gen-"
#: The verdicts on a run that ended in a Nack or in an exception.
_FAILURES = (NACK, SET_ASIDE, FAIL)
#: How many slow callbacks, and how many log entries, are remembered.
_SLOW, _ENTRIES = 8, 20
#: Characters to which a log entry is cut.
_ENTRY_LENGTH = 4000


class Slow(NamedTuple):
    """One of the callbacks that took longest; `ended` is in seconds since the epoch."""

    seconds: float
    ended: float
    outcome: str
    message_id: str
    queue: str
    topic: str


class Entry(NamedTuple):
    """A log record as a person reads it; `created` is in seconds since the epoch."""

    created: float
    level: str
    text: str


class Tally:
    """Counts of the outcomes of one queue."""

    def __init__(self) -> None:
        self.verdicts = dict.fromkeys(Verdict, 0)
        #: Runs that ended in a Nack or in an exception.
        self.failed_attempts = 0
        #: Callbacks by duration: a count for each of BOUNDS, and one for longer callbacks.
        self.buckets = [0] * (len(BOUNDS) + 1)
        #: How long all callbacks ran together, seconds.
        self.seconds = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.verdicts[outcome.verdict] += 1
        if outcome.seconds:  # Zero: the callback was not called.
            self.buckets[bisect_left(BOUNDS, outcome.seconds)] += 1
            self.seconds += outcome.seconds
            self.failed_attempts += outcome.verdict in _FAILURES


class History(Observer):
    """Remembers counts, rates and states.

    Args:
        stats: Returns the present counts.
    """

    depth_interval = 15.0

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self.stats = stats
        self.started = monotonic()
        self.state = State(Phase.CONNECTING, "connecting")
        #: When the phase changed, monotonic seconds.
        self.since = self.started
        #: When the supervisor last gave a sign of life, monotonic seconds.
        self.seen = self.started
        self.snapshot = Snapshot(state=self.state, stats=Stats())
        #: The last broker that was connected.
        self.broker = ""
        #: When the last delivery was noticed, monotonic seconds; None before the first.
        self.delivered: float | None = None
        #: Ready messages, by queue; empty without a session.
        self.depths: dict[str, int] = {}
        #: Outcomes by queue.
        self.tallies: dict[str, Tally] = {}
        #: Outcomes by the number of the step in which they came. It grows in place: readers ask
        #: for one step at a time.
        self.rate: dict[int, int] = {}
        #: The slowest callbacks, slowest first.
        self.slowest: list[Slow] = []

    @property
    def silence(self) -> str:
        """How long a dead or stuck supervisor has been silent, as text; else "". Thread: any."""
        seconds = monotonic() - self.seen
        if seconds <= _SILENCE:
            return ""
        return f"no sign of life from the supervisor for {seconds:.0f} s"

    @property
    def is_consuming(self) -> bool:
        """Whether the broker delivers messages and the supervisor handles them. Thread: any."""
        return self.state.is_consuming and not self.silence

    def on_state(self, state: State) -> None:
        """Note a change of state."""
        self.seen = monotonic()
        if state.name is not self.state.name:
            self.since = monotonic()
        self.state = state

    def on_outcome(self, outcome: Outcome) -> None:
        """Count an outcome."""
        queue = label(outcome.delivery.queue)
        if queue not in self.tallies:
            self.tallies = {**self.tallies, queue: Tally()}
        self.tallies[queue].add(outcome)
        step = int(monotonic() / STEP)
        self.rate[step] = self.rate.get(step, 0) + 1
        if len(self.slowest) < _SLOW or outcome.seconds > self.slowest[-1].seconds:
            self._note_slow(outcome)

    def on_tick(self, snapshot: Snapshot) -> None:
        """Note the snapshot, and forget the rates of old steps."""
        self.seen = monotonic()
        if snapshot.stats.received != self.snapshot.stats.received:
            self.delivered = self.seen
        if not snapshot.broker:
            self.depths = {}
        self.broker = snapshot.broker or self.broker
        self.snapshot = snapshot
        oldest = int(monotonic() / STEP) - STEPS
        self.rate = {step: count for step, count in self.rate.items() if step >= oldest}

    def on_depths(self, depths: dict[str, int]) -> None:
        """Note how many messages are ready."""
        found: Counter[str] = Counter()
        for queue, depth in depths.items():
            found[label(queue)] += depth
        self.depths = dict(found)

    def _note_slow(self, outcome: Outcome) -> None:
        delivery = outcome.delivery
        names = (delivery.message_id, delivery.queue, delivery.routing_key)
        slow = Slow(outcome.seconds, time(), outcome.verdict.value, *map(printable, names))
        self.slowest = sorted([*self.slowest, slow], reverse=True)[:_SLOW]


def label(queue: str) -> str:
    """Return the name of a queue; one name for all whose own name changes with each session."""
    return "(server-named)" if queue.startswith(_SERVER_NAMED) else queue


class Recent(logging.Handler):
    """Remembers the last warnings and errors of the whole program, within a `with` block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(PlainFormatter())
        #: The last entries, oldest first; replaced whole by the thread that logs.
        self.entries: tuple[Entry, ...] = ()
        #: Each logger to which this handler, or Python's last resort, was added.
        self._added: list[tuple[logging.Logger, logging.Handler]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        entry = Entry(record.created, record.levelname, self.format(record)[:_ENTRY_LENGTH])
        self.entries = (*self.entries[1 - _ENTRIES :], entry)

    def __enter__(self) -> Recent:
        root, ours = logging.getLogger(), logging.getLogger("fmconsume")
        if logging.lastResort and not ours.hasHandlers():
            # Python uses it only while there is no handler, and this handler writes nothing.
            self._added.append((root, logging.lastResort))
        self._added += [(root, self)] if ours.propagate else [(root, self), (ours, self)]
        for logger, handler in self._added:
            logger.addHandler(handler)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for logger, handler in self._added:
            logger.removeHandler(handler)
