"""What the engine tells others of itself: its state, its counts, and how it ended.

The supervisor writes them and replaces them whole, so that any thread may read.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ..delivery import Outcome

__all__ = ["End", "Observer", "Snapshot", "State", "Stats"]


class State(NamedTuple):
    """Why messages flow, or why they do not.

    Attributes:
        name: "connecting", "waiting", "consuming", "blocked", "busy",
            "prefetch full", "stopping" or "stopped".
        text: One line for a person.
    """

    name: str
    text: str

    @property
    def is_consuming(self) -> bool:
        """Whether messages are taken from the broker as they come."""
        return self.name in ("consuming", "blocked", "busy", "prefetch full")


class End(NamedTuple):
    """How consuming ended.

    Attributes:
        error: What `consume` raises; None when it returns.
        exit_code: Exit status of the command.
    """

    error: BaseException | None
    exit_code: int


@dataclasses.dataclass
class Stats:
    """Counts of deliveries since the consumer started.

    Attributes:
        received: All of them.
        acknowledged: The callback returned, or halted the consumer.
        requeued: The callback raised Nack, or never saw it before a stop.
        dropped: The callback raised Drop.
        rejected: The body did not decode, or failed its schema.
        failed: The callback raised something else.
        saved: Redeliveries of a message that ran already and did not run again.
        abandoned: Callbacks still running when a second signal came.
        reconnections: Sessions after the first.
    """

    received: int = 0
    acknowledged: int = 0
    requeued: int = 0
    dropped: int = 0
    rejected: int = 0
    failed: int = 0
    saved: int = 0
    abandoned: int = 0
    reconnections: int = 0

    def __str__(self) -> str:
        counts = [f"{name} {count}" for name, count in dataclasses.asdict(self).items() if count]
        return ", ".join(counts) or "nothing received"


class Snapshot(NamedTuple):
    """The engine at one moment.

    Attributes:
        running: Callbacks running now.
        prefetched: Deliveries that wait for a worker.
        held: Nacks held back.
        overdue: Callbacks past `callback_timeout`.
        dead_workers: Workers that ended although consuming goes on.
        broker: User, host, port and virtual host of the connection; "" without one.
    """

    state: State
    stats: Stats
    running: int
    prefetched: int
    held: int
    overdue: int
    dead_workers: int
    broker: str


class Observer:
    """What a service overrides to follow the engine.

    Every method runs on the supervisor's thread, which must not wait for it.
    """

    #: Seconds between two ticks at most.
    interval = 5.0

    def on_state(self, state: State) -> None:
        """Take a change of state."""

    def on_outcome(self, outcome: Outcome) -> None:
        """Take what became of a delivery."""

    def on_tick(self, snapshot: Snapshot) -> None:
        """Take a look at least once in `interval`; once a second, or twice in it, at most."""

    def on_depths(self, depths: dict[str, int]) -> None:
        """Take the number of ready messages by queue; sent when `depth_interval` is set."""

    #: Seconds between two looks at the queues' depths; 0 is never.
    depth_interval = 0.0
