"""Makes workers, which run messages and report the outcomes; they never touch the connection.

Each worker gets deliveries from an inbox, and passes each outcome to `post`. The workers here are
threads; those for coroutine functions are in tasks.py. Any thread may call `make_threads`; the
methods name their threads.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from queue import SimpleQueue
from time import monotonic
from typing import Callable, NamedTuple

from ..delivery import Delivery, Outcome
from ..log import get_logger
from ..stopping import StopEvent
from .coroutines import format_stack
from .processor import Processor
from .stay import Stay, Step

__all__ = ["Pool", "Ports", "Post", "ThreadWorker", "Worker", "make_threads"]

_log = get_logger(__name__)

#: Receives each outcome, on the thread of the worker that made it.
Post = Callable[[Outcome], None]

#: Forks between the process that imported this and the one that runs now. Counted, so that no
#: worker has to ask the kernel for its process id after each message. (A fork that no Python code
#: made is not counted.)
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Ports(NamedTuple):
    """How deliveries reach the workers of a pool, and how outcomes leave them.

    Attributes:
        inbox: Deliveries to work on; each None ends one worker.
        post: As `Post`.
        stay: Entered and left by the first worker.
        stop: Tells callbacks that the consumer is stopping.
        ends_on_error: An outcome with an error ends its worker, so that nothing runs after it.
    """

    inbox: SimpleQueue[Delivery | None]
    post: Post
    stay: Stay
    stop: StopEvent
    ends_on_error: bool = True


class Worker(ABC):
    """Works on one delivery at a time.

    Args:
        number: From 1.
        processor: This worker's own.
        ports: Shared by all workers of the pool.
    """

    def __init__(self, number: int, processor: Processor, ports: Ports) -> None:
        self.number = number
        self.name = f"fmconsume-worker-{number}"
        self._processor = processor
        self._ports = ports
        #: What this worker enters before it works, and leaves afterwards.
        self._stay = ports.stay if number == 1 and processor.manager is not None else None
        #: The value of `_forks` when the worker began; another value later means a forked child.
        self._forks_before = 0
        #: The delivery in work, and when it began (monotonic seconds). Set by the worker's thread,
        #: read by any.
        self.current: tuple[Delivery, float] | None = None
        #: Identifier of the worker's thread. Set by that thread, read by any.
        self._ident: int | None = None

    @abstractmethod
    def start(self) -> None:
        """Begin to work on deliveries. Thread: any, once."""

    @abstractmethod
    def is_alive(self) -> bool:
        """Tell whether it still works on deliveries. Thread: any."""

    @abstractmethod
    def join(self, timeout: float) -> None:
        """Wait for its end, `timeout` seconds at most. Thread: any other."""

    @property
    def is_busy(self) -> bool:
        """Whether the user's code runs, so that nobody knows when it ends. Thread: any."""
        return self.current is not None or self.step is not None

    @property
    def step(self) -> Step | None:
        """As `Stay.current`, if this worker enters and leaves the callback. Thread: any."""
        return self._stay.current if self._stay is not None else None

    def _arrive(self) -> None:
        """Note the thread and the process of this worker. Thread: the worker's."""
        self._ident = threading.get_ident()
        self._forks_before = _forks

    def describe(self) -> str:
        """Give the delivery in work and the stack of its callback as text. Thread: any."""
        current, step = self.current, self.step
        frame = sys._current_frames().get(self._ident or 0)
        if frame is None or not (current or step):
            return f"{self.name} is idle"
        awaited = step.awaited if step else self._processor.awaited
        stack = format_stack(awaited) or "".join(traceback.format_stack(frame))
        if step:
            what, began = f"{step.name} the callback", step.began
        elif current:
            what, began = f"works on {current[0].name}", current[1]
        return f"{self.name} {what} for {monotonic() - began:.0f} s:\n{stack}"

    def _report(self, outcome: Outcome) -> None:
        self.current = None
        if _forks != self._forks_before:
            self._end_forked_child()
        self._ports.post(outcome)

    def _end_forked_child(self) -> None:
        """End a child that was forked in the callback; only the parent may use the connection."""
        _log.error("a process forked by the callback returned from it; it ends here")
        os._exit(1)

    def _is_ended_by(self, outcome: Outcome) -> bool:
        return outcome.error is not None and self._ports.ends_on_error


class Pool(NamedTuple):
    """Workers, and what they share.

    Attributes:
        inbox: Deliveries to work on; each None ends one worker.
        stay: Enters the callback and leaves it.
        stop: Tells callbacks that the consumer is stopping.
    """

    inbox: SimpleQueue[Delivery | None]
    workers: Sequence[Worker]
    stay: Stay
    stop: StopEvent

    def start(self) -> None:
        """Start every worker. Thread: any, once."""
        for worker in self.workers:
            worker.start()

    def end(self, may_leave: bool = True) -> None:
        """Tell every worker to end after the deliveries that are in the inbox now. Thread: any.

        Args:
            may_leave: No callback runs any more, so that a context manager can be left.
        """
        for _ in self.workers:
            self.inbox.put(None)
        self.stay.end(may_leave)


class ThreadWorker(Worker):
    """A thread; a daemon, because a hung callback must not keep the process."""

    def __init__(self, number: int, processor: Processor, ports: Ports) -> None:
        super().__init__(number, processor, ports)
        self._thread = threading.Thread(target=self.run, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread. Thread: any, once."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Tell whether the thread runs. Thread: any."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, `timeout` seconds at most. Thread: any other."""
        self._thread.join(timeout)

    def run(self) -> None:
        """Work, within the callback's own context if it has one and this worker keeps it."""
        self._arrive()
        self._ports.stop.adopt()
        if self._stay is None:
            self._work()
        else:
            self._stay.spend(self._work)

    def _work(self) -> None:
        """Work until the inbox gives None, or an outcome ends the worker."""
        is_over = False
        while not is_over:
            delivery = self._ports.inbox.get()
            if delivery is None:
                break
            self.current = (delivery, monotonic())
            outcome = self._processor.process(delivery)
            self._report(outcome)
            is_over = self._is_ended_by(outcome)


def make_threads(processor: Processor, count: int, post: Post, ends_on_error: bool = True) -> Pool:
    """Make `count` workers that are threads, for callbacks of any kind."""
    stay = Stay(processor.manager, processor.coroutines, is_on_loop=False)
    ports = Ports(SimpleQueue(), post, stay, StopEvent(), ends_on_error)
    workers = [ThreadWorker(n, processor.copy(n), ports) for n in range(1, count + 1)]
    return Pool(ports.inbox, workers, stay, ports.stop)
