"""Holds the state, the counts and the end that the engine reports.

Only the supervisor writes them; any thread may read. It replaces a State whole, and changes each
count of Stats on its own.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

from ..delivery import ACK, DROP, NACK, REJECT, SET_ASIDE, Delivery, Outcome, Verdict

__all__ = ["End", "Observer", "Phase", "Run", "Snapshot", "State", "Stats"]


class Phase(str, enum.Enum):
    """The supervisor's present activity; the value is its name for people and monitors."""

    CONNECTING = "connecting"
    WAITING = "waiting"
    CONSUMING = "consuming"
    #: The broker blocks publishers.
    BLOCKED = "blocked"
    #: A message has been in hand for more than a minute.
    BUSY = "busy"
    PREFETCH_FULL = "prefetch full"
    #: A callback is past `callback_timeout`, and a worker is left.
    PARTLY_STUCK = "partly stuck"
    #: Every worker is in a callback past `callback_timeout`.
    STUCK = "stuck"
    STOPPING = "stopping"
    STOPPED = "stopped"

    def __str__(self) -> str:
        return self.value

    @property
    def is_consuming(self) -> bool:
        """Whether the broker delivers messages, and a worker is left to run them."""
        return self in _CONSUMING

    @property
    def is_ending(self) -> bool:
        """Whether the consumer stops, or has stopped."""
        return self in (Phase.STOPPING, Phase.STOPPED)

    @property
    def needs_attention(self) -> bool:
        """Whether somebody may have to act."""
        return self in _TROUBLE


_DELAYED = {Phase.BLOCKED, Phase.BUSY, Phase.PREFETCH_FULL, Phase.PARTLY_STUCK}
_CONSUMING = {Phase.CONSUMING, *_DELAYED}
_TROUBLE = {Phase.WAITING, Phase.STUCK, *_DELAYED}


class State(NamedTuple):
    """Why messages flow, or why they do not.

    Attributes:
        name: The supervisor's phase, a string: "connecting", "waiting", "consuming" and so on.
        text: One line for a person.
    """

    name: Phase
    text: str

    @property
    def is_consuming(self) -> bool:
        """Whether the broker delivers messages, and a worker is left to run them."""
        return self.name.is_consuming


class End(NamedTuple):
    """How consuming ended.

    Attributes:
        error: The exception that `consume` raises; None when it returns.
        exit_code: Exit status of the command.
    """

    error: BaseException | None
    exit_code: int


@dataclasses.dataclass
class Stats:
    """Counts of deliveries since the consumer started.

    Attributes:
        received: All of them.
        acknowledged: The callback returned, or raised HaltConsumer without requeue.
        requeued: The callback raised Nack, or HaltConsumer with requeue, or had not begun when
            the consumer stopped.
        dropped: The callback raised Drop.
        rejected: The body did not decode, or failed its schema.
        set_aside: The callback failed as often as `failures.max_attempts` allows.
        failed: The callback, or decoding, raised something else.
        deduplicated: Redeliveries of a message that had run already or still ran, and did not
            run again.
        abandoned: Callbacks still running when a second signal came, or after `stop_timeout`.
        reconnections: Sessions after the first.
    """

    received: int = 0
    acknowledged: int = 0
    requeued: int = 0
    dropped: int = 0
    rejected: int = 0
    set_aside: int = 0
    failed: int = 0
    deduplicated: int = 0
    abandoned: int = 0
    reconnections: int = 0

    def count(self, verdict: Verdict, number: int = 1) -> None:
        """Count deliveries with the same verdict."""
        # Not setattr by the verdict's value: this is faster, it runs for every message, and a type
        # checker finds a misspelt name.
        if verdict is ACK:
            self.acknowledged += number
        elif verdict is NACK:
            self.requeued += number
        elif verdict is DROP:
            self.dropped += number
        elif verdict is REJECT:
            self.rejected += number
        elif verdict is SET_ASIDE:
            self.set_aside += number
        else:
            self.failed += number

    def __str__(self) -> str:
        counts = {name.replace("_", " "): count for name, count in vars(self).items() if count}
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing received"


class Run(NamedTuple):
    """A message that a worker works on.

    Attributes:
        worker: The name of the worker.
        began: When it began, monotonic seconds.
        is_overdue: It is past `callback_timeout`.
    """

    worker: str
    delivery: Delivery
    began: float
    is_overdue: bool = False

    def describe(self, now: float) -> str:
        """Say what runs where, and for how long."""
        return f"{self.delivery.name} runs for {now - self.began:.0f} s on {self.worker}"


class Snapshot(NamedTuple):
    """The engine at one moment.

    Attributes:
        prefetched: Deliveries that wait for a worker.
        held: Nacks held back.
        oldest_held: Seconds since the oldest of them came; 0 without any.
        notes: Where what outlives the process is, and how much; "" where nothing does.
        overdue: Callbacks past `callback_timeout`.
        dead_workers: Workers that ended although consuming goes on.
        broker: User, host, port and virtual host of the connection; "" without one.
        workers: How many there are.
        longest: What runs longest, where, and for how long; "" while nothing runs for a second.
    """

    state: State
    stats: Stats
    prefetched: int = 0
    held: int = 0
    overdue: int = 0
    dead_workers: int = 0
    broker: str = ""
    oldest_held: float = 0.0
    notes: str = ""
    workers: int = 0
    longest: str = ""


class Observer:
    """Follows the engine; a service overrides the methods that it needs.

    Every method runs on the supervisor's thread, so that none may block.
    """

    #: Seconds between two ticks at most.
    interval = 5.0

    def on_state(self, state: State) -> None:
        """Note a change of state."""

    def on_outcome(self, outcome: Outcome) -> None:
        """Note the outcome of a delivery."""

    def on_tick(self, snapshot: Snapshot) -> None:
        """Look at the engine.

        Called at least once in `interval`, and when a callback passes `callback_timeout` or ends
        after it; else at most once a second, or twice in the shortest `interval` of any observer
        if that is more often.
        """

    def on_depths(self, depths: dict[str, int]) -> None:
        """Note how many messages are ready in each queue; called where `depth_interval` is set."""

    #: Seconds between two looks at the queues' depths; 0 is never.
    depth_interval = 0.0
