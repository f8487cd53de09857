"""Workers for coroutine functions: each message is a task on the private loop.

The loop's thread owns them. Handing each message to it from a thread of its own would
cost more than all the rest.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Optional

from ..delivery import FAIL, NACK, Delivery, Outcome
from .coroutines import CoroutineRunner
from .processor import Processor
from .workers import Pool, Post, Worker

if TYPE_CHECKING:
    import asyncio

__all__ = ["TaskWorker", "make_tasks"]


class _Inbox(SimpleQueue[Optional[Delivery]]):
    """An inbox for workers on a loop: what is put into it calls them. Thread: any.

    `serve` is for the loop's thread.
    """

    def __init__(self, coroutines: CoroutineRunner, post: Post) -> None:
        self._coroutines = coroutines
        self._post = post
        #: A call is under way; set by whoever puts, cleared by the loop before it looks.
        self._is_called = False
        #: Workers with nothing to do; the loop's.
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
        """Give a worker its next delivery, now or when there is one."""
        self._idle.append(worker)
        self._hand_out()

    def _hand_out(self) -> None:
        self._is_called = False
        with suppress(Empty):
            while self._idle:
                item = self.get_nowait()
                self._idle.popleft().work_on(item)

    def _fail(self) -> None:
        """End the consumer: no worker will ever come again."""
        error = RuntimeError("asyncio's loop has ended; a background task called sys.exit()?")
        with suppress(Empty):
            delivery = self.get_nowait()
            if delivery is not None:
                self._post(Outcome(delivery=delivery, verdict=FAIL, error=error))


class TaskWorker(Worker):
    """Works on one delivery at a time, each in a task of its own.

    Args:
        number: As for every worker, like processor, post and ends_on_error.
        inbox: Deliveries to work on; None ends one worker.
    """

    def __init__(
        self,
        number: int,
        processor: Processor,
        post: Post,
        inbox: _Inbox,
        ends_on_error: bool = True,
    ) -> None:
        super().__init__(number, processor, post, ends_on_error)
        self._inbox = inbox
        self._coroutines = processor.coroutines
        #: The same for every task, so that none inherits what the one before it has set.
        self._context = contextvars.copy_context()
        #: Kept here, because the loop does not remember a task that waits.
        self._task: Any = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to take deliveries. Thread: any, once."""
        self._coroutines.start()
        self._loop = self._coroutines.loop
        self._loop.call_soon_threadsafe(self._begin)

    def is_alive(self) -> bool:
        """Tell whether it still takes deliveries. Thread: any."""
        return not (self._ended.is_set() or self._coroutines.loop.is_closed())

    def join(self, timeout: float) -> None:
        """Wait so many seconds for its end. Thread: any other."""
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
            # Not at the end of the task itself: one that is cancelled at once never begins.
            self._task.add_done_callback(partial(self._on_done, delivery))

    def _begin(self) -> None:
        self._enter()
        self._inbox.serve(self)

    def _on_done(self, delivery: Delivery, task: asyncio.Task[Outcome]) -> None:
        try:
            outcome = task.result()
        except BaseException as exc:  # It was cancelled: a worker must not die without a word.
            verdict = NACK if self._coroutines.is_closing else FAIL
            outcome = Outcome(delivery=delivery, verdict=verdict, error=exc)
        self._report(outcome)
        if self._is_ended_by(outcome):
            self._ended.set()
        else:
            self._inbox.serve(self)


def make_tasks(processor: Processor, count: int, post: Post, ends_on_error: bool = True) -> Pool:
    """Make so many workers that share one loop, for coroutine functions."""
    inbox = _Inbox(processor.coroutines, post)
    workers = [
        TaskWorker(number, processor.copy(), post, inbox, ends_on_error)
        for number in range(1, count + 1)
    ]
    return Pool(inbox, workers)
