"""Makes workers for coroutine functions: they run each message as a task on the private loop.

The loop's thread owns them. A thread for each worker, which hands messages to the loop, would cost
more than all the rest.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Optional

from ..delivery import FAIL, Delivery, Outcome
from ..stopping import StopEvent
from .coroutines import CoroutineRunner
from .processor import Processor
from .stay import Stay
from .workers import Pool, Ports, Post, Worker

if TYPE_CHECKING:
    import asyncio

__all__ = ["TaskWorker", "make_tasks"]


class _Inbox(SimpleQueue[Optional[Delivery]]):
    """An inbox for workers on a loop: `put` makes the loop hand out the deliveries. Thread: any.

    Only the loop's thread calls `serve`.
    """

    def __init__(self, coroutines: CoroutineRunner, post: Post) -> None:
        self._coroutines = coroutines
        self._post = post
        #: A call of `_hand_out` is under way. Set by the thread that puts, cleared by the loop's
        #: before it looks into the inbox, so that no delivery is left there.
        self._is_called = False
        #: Workers that wait for a delivery; the loop's thread owns it.
        self._idle: deque[TaskWorker] = deque()

    def put(self, item: Delivery | None, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        if not self._is_called:
            self._is_called = True
            try:
                self._coroutines.loop.call_soon_threadsafe(self._hand_out)
            except RuntimeError:
                self._fail()

    def serve(self, worker: TaskWorker) -> None:
        """Give a worker its next delivery, now or once there is one."""
        self._idle.append(worker)
        self._hand_out()

    def _hand_out(self) -> None:
        self._is_called = False
        with suppress(Empty):
            while self._idle:
                item = self.get_nowait()
                self._idle.popleft().work_on(item)

    def _fail(self) -> None:
        """End the consumer with an error, since the loop has ended and no worker can run."""
        error = RuntimeError("asyncio's loop has ended; a background task called sys.exit()?")
        with suppress(Empty):
            delivery = self.get_nowait()
            if delivery is not None:
                self._post(Outcome(delivery=delivery, verdict=FAIL, error=error))


class TaskWorker(Worker):
    """Works on one delivery at a time, each in a task of its own.

    Args:
        number: As for every worker, like processor and ports.
        serve: Gives a worker its next delivery, now or once there is one.
    """

    def __init__(
        self,
        number: int,
        processor: Processor,
        ports: Ports,
        serve: Callable[[TaskWorker], None],
    ) -> None:
        super().__init__(number, processor, ports)
        self._serve = serve
        self._coroutines = processor.coroutines
        #: Every task starts with a copy of it, so that none inherits the variables of another.
        self._context = contextvars.copy_context()
        self._context.run(ports.stop.adopt)
        #: The running task. Kept here, because the loop has only a weak reference to it.
        self._task: Any = None
        #: The task that enters and leaves the callback, if this worker does; kept for the same.
        self._host: Any = None
        #: Set by the loop's thread when the worker ends; any thread may wait for it.
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to work on deliveries. Thread: any, once."""
        self._coroutines.start()
        self._loop = self._coroutines.loop
        self._loop.call_soon_threadsafe(self._begin)

    def is_alive(self) -> bool:
        """Tell whether it still works on deliveries. Thread: any."""
        return not (self._ended.is_set() or self._coroutines.loop.is_closed())

    def join(self, timeout: float) -> None:
        """Wait for its end, `timeout` seconds at most. Thread: any other."""
        if self.is_alive():
            self._ended.wait(timeout)

    def work_on(self, delivery: Delivery | None) -> None:
        """Work on a delivery; None is the end. Thread: the loop's."""
        if delivery is None:
            self._ended.set()
        else:
            self.current = (delivery, monotonic())
            running = self._processor.process_on_loop(delivery)
            self._task = self._context.run(self._loop.create_task, running)
            # A callback, not code at the end of the task: a task that is cancelled before it begins
            # runs no code.
            self._task.add_done_callback(partial(self._on_done, delivery))

    def _begin(self) -> None:
        self._arrive()
        if self._stay is None:
            self._serve(self)
        else:
            living = self._stay.spend_on_loop(partial(self._serve, self))
            self._host = self._context.run(self._loop.create_task, living)

    def _on_done(self, delivery: Delivery, task: asyncio.Task[Outcome]) -> None:
        try:
            outcome = task.result()
        except BaseException as exc:  # It was cancelled, perhaps before its first step.
            outcome = self._processor.give_up(delivery, exc)
        self._report(outcome)
        if self._is_ended_by(outcome):
            self._ended.set()
        else:
            self._serve(self)


def make_tasks(processor: Processor, count: int, post: Post, ends_on_error: bool = True) -> Pool:
    """Make `count` workers that share one loop, for coroutine functions."""
    inbox = _Inbox(processor.coroutines, post)
    stay = Stay(processor.manager, processor.coroutines, is_on_loop=True)
    ports = Ports(inbox, post, stay, StopEvent(), ends_on_error)
    workers = [TaskWorker(n, processor.copy(n), ports, inbox.serve) for n in range(1, count + 1)]
    return Pool(inbox, workers, stay, ports.stop)
