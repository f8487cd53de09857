"""Remembers counts, rates and states for the monitoring server.

The supervisor's thread records. Any thread may read without a lock: a collection that readers
iterate over is replaced whole, or keeps its size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from time import monotonic, time
from typing import Callable, NamedTuple

from ..delivery import FAIL, NACK, SET_ASIDE, Delivery, Outcome, Verdict
from ..engine.states import Observer, Phase, Run, Snapshot, State, Stats
from ..identity import Identity
from ..text import printable
from .troubles import Troubles

__all__ = ["AGES", "BOUNDS", "STEP", "STEPS", "Histogram", "History", "Slow", "Tally", "label"]

#: Upper bounds of the histogram of the ages of messages, seconds; their publishers give whole ones.
AGES = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400, 604800)
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
#: How many slow callbacks are remembered.
_SLOW = 8
#: The trend of a queue is that of its last depths, as many as come in a minute.
_DEPTHS = 5


class Slow(NamedTuple):
    """One of the callbacks that took longest; `ended` is in seconds since the epoch."""

    seconds: float
    ended: float
    outcome: str
    message_id: str
    queue: str
    topic: str


class Histogram:
    """Counts seconds by their size.

    Attributes:
        bounds: The upper bound of each bucket but the last, seconds.
        buckets: A count for each bound, and one for all beyond.
        seconds: The sum.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds


class Tally:
    """Counts of the outcomes of one queue."""

    def __init__(self) -> None:
        self.verdicts = dict.fromkeys(Verdict, 0)
        #: Runs that ended in a Nack or in an exception.
        self.failed_attempts = 0
        #: How long callbacks ran.
        self.durations = Histogram(BOUNDS)
        #: How old messages were when their callbacks began, of those that say when they were
        #: published.
        self.ages = Histogram(AGES)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.verdicts[outcome.verdict] += 1
        if outcome.seconds:  # Zero: the callback was not called.
            self.durations.add(outcome.seconds)
            self.failed_attempts += outcome.verdict in _FAILURES
            published = _published(outcome.delivery)
            if published is not None:
                # By this clock or that of the publisher, it may be of the future.
                self.ages.add(max(0.0, time() - outcome.seconds - published))


class History(Observer):
    """Remembers counts, rates and states.

    Args:
        stats: Returns the present counts.
        runs: Returns what the workers work on, the longest first.
        queues: The names of the queues; "" is one that the broker names.
        identity: Who consumes; None is not known.
    """

    depth_interval = 60.0 / (_DEPTHS - 1)

    def __init__(
        self,
        stats: Callable[[], Stats],
        runs: Callable[[], Sequence[Run]] = tuple,
        queues: Iterable[str] = (),
        identity: Identity | None = None,
    ) -> None:
        self.stats = stats
        self.runs = runs
        self.identity = identity
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
        #: The last looks at the ready messages by queue, oldest first, each with its moment
        #: (monotonic seconds); empty without a session.
        self.looks: tuple[tuple[float, dict[str, int]], ...] = ()
        #: Outcomes by queue.
        self.tallies = {label(queue): Tally() for queue in queues}
        #: What was, or is, in the way of messages.
        self.troubles = Troubles()
        #: Outcomes by the number of the step in which they came. It grows in place: readers ask
        #: for one step at a time.
        self.rate: dict[int, int] = {}
        #: When a message was last set aside, seconds since the epoch; 0 is never.
        self.set_aside = 0.0
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

    @property
    def depths(self) -> dict[str, int]:
        """Ready messages, by queue; empty without a session. Thread: any."""
        return self.looks[-1][1] if self.looks else {}

    def trend(self, queue: str) -> float | None:
        """Return by how many messages a minute a queue grows; None is not known. Thread: any."""
        known = [(moment, depths[queue]) for moment, depths in self.looks if queue in depths]
        if not known or known[0][0] == known[-1][0]:
            return None
        (began, first), (ended, last) = known[0], known[-1]
        return (last - first) * 60 / (ended - began)

    def on_state(self, state: State) -> None:
        """Note a change of state."""
        self.seen = monotonic()
        if state.name is not self.state.name:
            self.since = monotonic()
        self.state = state
        self.troubles.on_state(state)

    def on_outcome(self, outcome: Outcome) -> None:
        """Count an outcome."""
        queue = label(outcome.delivery.queue)
        if queue not in self.tallies:
            self.tallies = {**self.tallies, queue: Tally()}
        self.tallies[queue].add(outcome)
        if outcome.verdict is SET_ASIDE:
            self.set_aside = time()
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
            self.looks = ()
        self.broker = snapshot.broker or self.broker
        self.snapshot = snapshot
        oldest = int(monotonic() / STEP) - STEPS
        self.rate = {step: count for step, count in self.rate.items() if step >= oldest}

    def on_depths(self, depths: dict[str, int]) -> None:
        """Note how many messages are ready."""
        found: Counter[str] = Counter()
        for queue, depth in depths.items():
            found[label(queue)] += depth
        self.looks = (*self.looks[1 - _DEPTHS :], (monotonic(), dict(found)))

    def _note_slow(self, outcome: Outcome) -> None:
        delivery = outcome.delivery
        names = (delivery.message_id, delivery.queue, delivery.routing_key)
        slow = Slow(outcome.seconds, time(), outcome.verdict.value, *map(printable, names))
        self.slowest = sorted([*self.slowest, slow], reverse=True)[:_SLOW]


def label(queue: str) -> str:
    """Return the name of a queue; one name for all whose own name changes with each session."""
    return "(server-named)" if queue.startswith(_SERVER_NAMED) or not queue else queue


def _published(delivery: Delivery) -> float | None:
    """Return when a message was published, seconds since the epoch; None where it does not say."""
    moment = delivery.properties.timestamp
    # The callback may have put anything there; and 0 is what some publishers write for nothing.
    return moment if type(moment) is int and moment > 0 else None
