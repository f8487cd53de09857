"""Workers run the user's callback and report outcomes; they never touch the connection.

Each takes deliveries from an inbox, and everything it learns leaves it through `post`.
The ones here are threads; those for coroutine functions are in tasks.py.
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
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from ..delivery import ACK, DROP, FAIL, NACK, REJECT, Delivery, Outcome
from ..exceptions import Drop, HaltConsumer, Nack, ValidationError
from ..log import get_logger
from ..text import brief, describe
from .coroutines import format_stack, refuse_generator

if TYPE_CHECKING:
    from ..message import Message

__all__ = ["Pool", "ThreadWorker", "Worker", "hire_threads"]

_log = get_logger(__name__)

#: Forks between the process that imported this and the one that runs now. Counted, so that no
#: worker has to ask the kernel for its process after each message. (A fork that no Python code
#: made is not seen.)
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Worker(ABC):
    """Works on one delivery at a time.

    Args:
        number: From 1.
        callback: Takes a Message.
        decode: Makes a Message of a Delivery, or raises ValidationError.
        post: Takes each Outcome.
    """

    def __init__(
        self,
        number: int,
        callback: Callable[[Message], Any],
        decode: Callable[[Delivery], Message],
        post: Callable[[Outcome], None],
    ) -> None:
        self.name = f"fmconsume-worker-{number}"
        self._callback = callback
        self._decode = decode
        self._post = post
        #: Takes each delivery on which the callback failed; set before the start.
        self.keep: Callable[[Delivery, BaseException], None] | None = None
        #: What `_forks` was when it began to work.
        self._forks_before = 0
        #: What runs now and since when (monotonic seconds). Set here, read by any thread.
        self.current: tuple[Delivery, float] | None = None
        #: What the callback returned, while that is awaited. Set here, read by any thread.
        self._awaited: Any = None
        #: Of the thread that it works on. Set here, read by any thread.
        self._ident: int | None = None

    @abstractmethod
    def start(self) -> None:
        """Begin to take deliveries. Thread: any, once."""

    @abstractmethod
    def is_alive(self) -> bool:
        """Tell whether it still takes deliveries. Thread: any."""

    @abstractmethod
    def join(self, timeout: float) -> None:
        """Wait so many seconds for its end. Thread: any other."""

    def _enter(self) -> None:
        """Take note of where it works. Thread: the one that it works on."""
        self._ident = threading.get_ident()
        self._forks_before = _forks

    def describe(self) -> str:
        """Say what runs and where it is now, line by line. Thread: any."""
        current = self.current
        frame = sys._current_frames().get(self._ident or 0)
        if current is None or frame is None:
            return f"{self.name} is idle"
        stack = format_stack(self._awaited) or "".join(traceback.format_stack(frame))
        return (
            f"{self.name} works on {current[0].name} for {monotonic() - current[1]:.0f} s:\n{stack}"
        )

    def _read(self, delivery: Delivery) -> Message | Outcome:
        """Make a message of a delivery, or say what becomes of it without one."""
        try:
            return self._decode(delivery)
        except ValidationError as exc:
            _log.warning("%s rejected: %s", delivery.name, exc.summary)
            return Outcome(delivery, REJECT)
        except BaseException as exc:
            _log.error("%s could not be decoded, put back: %s", delivery.name, describe(exc))
            return Outcome(delivery, FAIL, exc)

    def _judge(self, delivery: Delivery, exc: BaseException, started: float) -> Outcome:
        """Tell what an exception of the callback's means."""
        verdict = NACK
        error: BaseException | None = None
        if isinstance(exc, Nack):
            _log.info("%s returned to its queue by the callback", delivery.name)
        elif isinstance(exc, Drop):
            _log.warning("%s dropped by the callback", delivery.name)
            verdict = DROP
        elif isinstance(exc, HaltConsumer):
            _log.info("%s halted the consumer: %s", delivery.name, brief(str(exc)))
            verdict, error = (NACK if exc.requeue else ACK), exc
        else:
            # SystemExit too: a callback that calls sys.exit() did not finish its message.
            _log.error("the callback failed on %s, put back", delivery.name, exc_info=exc)
            self._keep(delivery, exc)
            verdict, error = FAIL, exc
        return Outcome(delivery, verdict, error, monotonic() - started)

    def _keep(self, delivery: Delivery, error: BaseException) -> None:
        if self.keep is not None:
            try:
                self.keep(delivery, error)
            except Exception as exc:
                _log.error("%s could not be kept: %s", delivery.name, describe(exc))

    def _report(self, outcome: Outcome) -> None:
        self.current = self._awaited = None
        if _forks != self._forks_before:
            self._end_forked_child()
        self._post(outcome)

    def _end_forked_child(self) -> None:
        """End a child that was forked in the callback; the connection is the parent's alone."""
        _log.error("a process forked by the callback returned from it; it ends here")
        os._exit(1)


class Pool(NamedTuple):
    """Workers, and the inbox that they share.

    Attributes:
        inbox: Deliveries to work on; each None ends one worker.
    """

    inbox: SimpleQueue[Delivery | None]
    workers: Sequence[Worker]


class ThreadWorker(Worker):
    """A thread; a daemon, because a hung callback must not keep the process.

    Args:
        number: As for every worker, like callback, decode and post.
        inbox: Deliveries to work on; None ends one worker.
        wait_for: Awaits what the callback returns, when that can be awaited.
    """

    def __init__(
        self,
        number: int,
        callback: Callable[[Message], Any],
        decode: Callable[[Delivery], Message],
        post: Callable[[Outcome], None],
        inbox: SimpleQueue[Delivery | None],
        wait_for: Callable[[Any], Any],
    ) -> None:
        super().__init__(number, callback, decode, post)
        self._inbox = inbox
        self._wait_for = wait_for
        self._thread = threading.Thread(target=self.run, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread. Thread: any, once."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Tell whether the thread runs. Thread: any."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait so many seconds for the thread's end. Thread: any other."""
        self._thread.join(timeout)

    def run(self) -> None:
        """Work until the inbox says None, or an outcome ends the consumer."""
        self._enter()
        outcome = None
        while outcome is None or outcome.error is None:
            delivery = self._inbox.get()
            if delivery is None:
                break
            self.current = (delivery, monotonic())
            try:
                outcome = self._process(delivery)
            except BaseException as exc:
                # A log handler of the user's, say: a worker must not die without a word.
                outcome = Outcome(delivery, FAIL, exc)
            self._report(outcome)

    def _process(self, delivery: Delivery) -> Outcome:
        message = self._read(delivery)
        if isinstance(message, Outcome):
            return message
        started = monotonic()
        try:
            result = self._callback(message)
            if result is not None:
                if hasattr(result, "__await__"):
                    self._awaited = result
                    self._wait_for(result)
                else:
                    refuse_generator(result)
        except BaseException as exc:
            return self._judge(delivery, exc, started)
        return Outcome(delivery, ACK, None, monotonic() - started)


def hire_threads(
    wait_for: Callable[[Any], Any],
    count: int,
    callback: Callable[[Message], Any],
    decode: Callable[[Delivery], Message],
    post: Callable[[Outcome], None],
) -> Pool:
    """Make so many workers that are threads, for callbacks of any kind."""
    inbox: SimpleQueue[Delivery | None] = SimpleQueue()
    workers = [
        ThreadWorker(number, callback, decode, post, inbox, wait_for)
        for number in range(1, count + 1)
    ]
    return Pool(inbox, workers)
