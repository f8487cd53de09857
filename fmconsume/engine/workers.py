"""Workers run the user's callback and report outcomes; they never touch the connection.

Each worker is a thread. It takes deliveries from the inbox, and everything it
learns leaves it through `post`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable

from ..exceptions import Drop, HaltConsumer, Nack, ValidationError
from .coroutines import format_stack
from .delivery import Delivery, Outcome, Verdict

if TYPE_CHECKING:
    from ..message import Message

__all__ = ["Worker"]

_log = logging.getLogger(__name__)


class Worker(threading.Thread):
    """One of the pool's threads; a daemon, because a hung callback must not keep the process.

    Args:
        number: From 1.
        callback: Takes a Message; what it returns is awaited when it can be.
        decode: Makes a Message of a Delivery, or raises ValidationError.
        inbox: Deliveries to work on; None ends one worker.
        post: Takes each Outcome.
    """

    def __init__(
        self,
        number: int,
        callback: Callable[[Message], Any],
        decode: Callable[[Delivery], Message],
        inbox: SimpleQueue[Delivery | None],
        post: Callable[[Outcome], None],
        wait_for: Callable[[Any], Any],
    ) -> None:
        super().__init__(name=f"fmconsume-worker-{number}", daemon=True)
        self._callback = callback
        self._decode = decode
        self._inbox = inbox
        self._post = post
        self._wait_for = wait_for
        #: Takes each delivery on which the callback failed; set before the start.
        self.keep: Callable[[Delivery, BaseException], None] | None = None
        self._pid = os.getpid()
        #: What runs now and since when (monotonic seconds). Set here, read by any thread.
        self.current: tuple[Delivery, float] | None = None
        #: What the callback returned, while that is awaited. Set here, read by any thread.
        self._awaited: Any = None

    def run(self) -> None:
        """Work until the inbox says None, or an outcome ends the consumer."""
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
                outcome = Outcome(delivery, Verdict.NACK, exc)
            self.current = self._awaited = None
            self._end_forked_child()
            self._post(outcome)

    def describe(self) -> str:
        """Say what runs and where it is now, line by line. Thread: any."""
        current = self.current
        frame = sys._current_frames().get(self.ident or 0)
        if current is None or frame is None:
            return f"{self.name} is idle"
        stack = format_stack(self._awaited) or "".join(traceback.format_stack(frame))
        return (
            f"{self.name} works on {current[0].name} for {monotonic() - current[1]:.0f} s:\n{stack}"
        )

    def _process(self, delivery: Delivery) -> Outcome:
        try:
            message = self._decode(delivery)
        except ValidationError as exc:
            _log.warning("%s rejected: %s", delivery.name, exc.summary)
            return Outcome(delivery, Verdict.REJECT)
        except BaseException as exc:
            _log.error("%s could not be decoded, put back: %r", delivery.name, exc)
            return Outcome(delivery, Verdict.NACK, exc)
        started = monotonic()
        verdict, error = self._call(delivery, message)
        return Outcome(delivery, verdict, error, monotonic() - started)

    def _call(self, delivery: Delivery, message: Message) -> tuple[Verdict, BaseException | None]:
        try:
            result = self._callback(message)
            if result is not None and hasattr(result, "__await__"):
                self._awaited = result
                self._wait_for(result)
        except Nack:
            _log.info("%s returned to its queue by the callback", delivery.name)
            return Verdict.NACK, None
        except Drop:
            _log.warning("%s dropped by the callback", delivery.name)
            return Verdict.DROP, None
        except HaltConsumer as exc:
            _log.info("%s halted the consumer: %s", delivery.name, exc)
            return (Verdict.NACK if exc.requeue else Verdict.ACK), exc
        except BaseException as exc:
            # SystemExit too: a callback that calls sys.exit() did not finish its message.
            _log.error("the callback failed on %s, put back", delivery.name, exc_info=exc)
            self._keep(delivery, exc)
            return Verdict.NACK, exc
        return Verdict.ACK, None

    def _keep(self, delivery: Delivery, error: BaseException) -> None:
        if self.keep is not None:
            try:
                self.keep(delivery, error)
            except Exception as exc:
                _log.error("%s could not be kept: %r", delivery.name, exc)

    def _end_forked_child(self) -> None:
        """End a child that was forked in the callback; the connection is the parent's alone."""
        if os.getpid() != self._pid:
            _log.error("a process forked by the callback returned from it; it ends here")
            os._exit(1)
