"""Runs one message: decodes it, calls the callback, and makes an outcome of the result.

Each worker has a processor of its own, and calls it on the worker's thread.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Callable

from .. import config
from ..callbacks import find_function, is_entered, prepare
from ..context import current
from ..delivery import (
    ACK,
    DROP,
    FAIL,
    NACK,
    REJECT,
    RETURNS,
    SET_ASIDE,
    Delivery,
    Outcome,
    Verdict,
)
from ..exceptions import AlreadyDone, Drop, HaltConsumer, Nack, UndecodableError, ValidationError
from ..log import get_logger
from ..message import Message, decode
from ..state.notes import Notes
from ..text import brief, describe, printable
from .coroutines import CoroutineRunner, refuse_generator
from .failures import HALT, FailurePolicy, Keep

__all__ = ["Processor", "make_processor"]

_log = get_logger(__name__)

#: What becomes of a message on which the callback failed.
_FATES = {NACK: "put back", FAIL: "put back", DROP: "dropped"}


class Processor:
    """Runs messages, one at a time.

    `process` never raises: every exception becomes an outcome.

    Args:
        callback: Gets each Message.
        decode: Makes a Message of a Delivery, or raises ValidationError.
        keep: Keeps each message that fails or is set aside; None keeps none.
        coroutines: Awaits an awaitable that the callback returns; None makes a new runner.
        policy: Says what an exception leads to.
        notes: Outlive the process; None is nothing.
        number: Of the worker, from 1; 0 is nobody's, whose messages are not noted.
        manager: The callback, if it is to be entered before the first message; else None.
    """

    def __init__(
        self,
        callback: Callable[[Message], Any],
        decode: Callable[[Delivery], Message],
        keep: Keep | None = None,
        coroutines: CoroutineRunner | None = None,
        policy: FailurePolicy = HALT,
        notes: Notes | None = None,
        number: int = 0,
        manager: Any = None,
    ) -> None:
        self.manager = manager
        self.coroutines = coroutines or CoroutineRunner()
        #: The awaitable that the callback returned, while it is awaited. Set by the worker, read by
        #: any thread.
        self.awaited: Awaitable[Any] | None = None
        self._callback = callback
        self._decode = decode
        self._keep = keep
        self._policy = policy
        self._notes = notes
        self._number = number
        self._desk = notes.make_desk(number - 1) if notes and number else None
        # Operators of fedora-messaging look for a line about each message.
        level = logging.INFO if config.is_fedora_messaging else logging.DEBUG
        #: The level at which each message is told; 0 where that level is off.
        self._level = level if _log.isEnabledFor(level) else 0

    def copy(self, number: int) -> Processor:
        """Make an equal processor for a worker. Thread: any."""
        parts = self._callback, self._decode, self._keep, self.coroutines, self._policy
        return Processor(*parts, self._notes, number, self.manager)

    @property
    def has_coroutine_function(self) -> bool:
        """Whether the callback is a coroutine function, so that the loop can run all of it."""
        return inspect.iscoroutinefunction(find_function(self._callback))

    def process(self, delivery: Delivery) -> Outcome:
        """Run a message on this thread; the loop awaits an awaitable that the callback returns."""
        token = current.set((delivery, self._number))
        if self._desk is not None:
            self._desk.begin(delivery)
        try:
            return self._run(delivery)
        except BaseException as exc:  # Say, from __str__ of a user's subclass of HaltConsumer.
            return self._end(delivery, FAIL, error=exc)
        finally:
            self.awaited = None
            current.reset(token)

    def _run(self, delivery: Delivery) -> Outcome:
        message = self._read(delivery)
        if isinstance(message, Outcome):
            return message
        started = monotonic()
        try:
            result = self._callback(message)
            if result is not None:
                self._finish(result)
        except BaseException as exc:
            return self._judge(delivery, exc, started)
        return self._end(delivery, ACK, seconds=monotonic() - started)

    async def process_on_loop(self, delivery: Delivery) -> Outcome:
        """Run a message of a coroutine function. Thread: the loop's.

        A task that is cancelled before its first step has no outcome; `give_up` makes one.
        """
        current.set((delivery, self._number))  # In the task's own context, which ends with it.
        if self._desk is not None:
            self._desk.begin(delivery)
        message = self._read(delivery)
        if isinstance(message, Outcome):
            return message
        started = monotonic()
        try:
            self.awaited = self._callback(message)
            await self.awaited
        except BaseException as exc:
            # SystemExit and KeyboardInterrupt too: they would end the loop itself.
            if self.coroutines.is_closing:
                return self.give_up(delivery, exc)
            return self._judge(delivery, exc, started)
        finally:
            self.awaited = None
        return self._end(delivery, ACK, seconds=monotonic() - started)

    def give_up(self, delivery: Delivery, error: BaseException) -> Outcome:
        """Give the outcome of a callback that did not come to its end, by no fault of the message.

        While the loop closes, the callback was abandoned, which is no failure.
        """
        verdict = NACK if self.coroutines.is_closing else FAIL
        return self._end(delivery, verdict, error=error)

    def _end(self, delivery: Delivery, verdict: Verdict, **more: Any) -> Outcome:
        """Note the end of a message before anybody else knows it, and make its outcome."""
        if self._desk is not None:
            self._desk.finish(delivery, verdict)
        if self._level and verdict is ACK:
            _log.log(self._level, "%s done", delivery.name)
        return Outcome(delivery=delivery, verdict=verdict, **more)

    def _finish(self, result: Any) -> None:
        """Await the callback's result if it is awaitable; refuse it if it is a generator."""
        if hasattr(result, "__await__"):
            self.awaited = result
            self.coroutines.wait_for(result)
        else:
            refuse_generator(result)

    def _read(self, delivery: Delivery) -> Message | Outcome:
        """Make a message of a delivery, or give the outcome of one that is not to run."""
        if delivery.deaths and (verdict := self._judge_deaths(delivery)) is not None:
            return self._end(delivery, verdict)
        try:
            message = self._decode(delivery)
        except ValidationError as exc:
            verdict = self._reject(delivery, exc)
            flaw = exc.summary if isinstance(exc, UndecodableError) else ""
            return self._end(delivery, verdict, flaw=flaw)
        except BaseException as exc:
            _log.error("%s could not be decoded, put back: %s", delivery.name, describe(exc))
            return self._end(delivery, FAIL, error=exc)
        if self._level:
            _log.log(
                self._level, "%s received, topic %s", delivery.name, printable(delivery.routing_key)
            )
        return message

    def _judge_deaths(self, delivery: Delivery) -> Verdict | None:
        """Set a message aside that has killed its consumer too often; None lets it run again."""
        times = "once" if delivery.deaths == 1 else f"{delivery.deaths} times"
        reason = f"its consumer died {times} while it ran"
        if not self._policy.is_spent(delivery.returns):
            attempt = self._policy.describe(delivery.attempt)
            _log.warning("%s: %s; it runs again%s", delivery.name, reason, attempt)
            return None
        delivery.attempt = delivery.returns  # The present one does not take place.
        kept = self._keep_aside(delivery, reason)
        if kept is None:
            return NACK
        _log.error("%s set aside%s: %s", delivery.name, kept, reason)
        return SET_ASIDE

    def _reject(self, delivery: Delivery, exc: ValidationError) -> Verdict:
        kept = self._keep_aside(delivery, exc.summary)
        if kept is None:
            return NACK
        what = "does not decode" if isinstance(exc, UndecodableError) else "rejected"
        _log.warning("%s %s%s: %s", delivery.name, what, kept, exc.summary)
        return REJECT

    def _judge(self, delivery: Delivery, exc: BaseException, started: float) -> Outcome:
        """Make the outcome for an exception of the callback's."""
        error: BaseException | None = None
        if isinstance(exc, AlreadyDone):
            _log.debug("%s", exc)
            return self._end(delivery, ACK, is_repeat=True)
        if isinstance(exc, HaltConsumer):
            _log.info("%s halted the consumer: %s", delivery.name, brief(str(exc)))
            verdict, error = (NACK if exc.requeue else ACK), exc
        else:
            verdict = self._keep_what_goes(delivery, exc, self._policy.judge(exc))
            error = exc if verdict is FAIL else None
        return self._end(delivery, verdict, error=error, seconds=monotonic() - started)

    def _keep_what_goes(self, delivery: Delivery, exc: BaseException, verdict: Verdict) -> Verdict:
        """Keep what is set aside, or dropped by an exception; it returns where it cannot be kept.

        Returns:
            The verdict; the log tells it.
        """
        if verdict in RETURNS and self._policy.is_last(delivery.attempt):
            verdict = SET_ASIDE
        kept: str | None = ""
        if verdict is SET_ASIDE or (verdict is DROP and not self._policy.is_expected(exc)):
            kept = self._keep_aside(delivery, exc)
            verdict = NACK if kept is None else verdict
        self._tell_failure(delivery, exc, verdict, kept or "")
        return verdict

    def _tell_failure(
        self, delivery: Delivery, exc: BaseException, verdict: Verdict, kept: str
    ) -> None:
        name, attempt = delivery.name, self._policy.describe(delivery.attempt)
        if verdict is SET_ASIDE:
            _log.error("%s set aside%s%s: %s", name, kept, attempt, describe(exc))
        elif isinstance(exc, Nack):
            _log.info("%s returned to its queue by the callback%s", name, attempt)
        elif isinstance(exc, Drop):
            _log.warning("%s dropped by the callback", name)
        elif self._policy.is_expected(exc):
            text = "the callback failed on %s, %s%s: %s"
            _log.warning(text, name, _FATES[verdict], attempt, describe(exc))
        else:
            # SystemExit too: a callback that calls sys.exit() did not finish its message.
            text = "the callback failed on %s, %s%s%s"
            _log.error(text, name, _FATES[verdict], kept, attempt, exc_info=exc)
            if verdict is FAIL:
                self._keep_in_folder(delivery, exc, is_set_aside=False)

    def _keep_aside(self, delivery: Delivery, error: BaseException | str) -> str | None:
        """Keep a message that will be rejected.

        Returns:
            Where, for the log, "" without a folder; None where it must not be rejected, since
            there is a folder and it cannot be kept.
        """
        if self._keep is None:
            return ""
        path = self._keep_in_folder(delivery, error, is_set_aside=True)
        return None if path is None else f", kept as {path}"

    def _keep_in_folder(
        self, delivery: Delivery, error: BaseException | str, *, is_set_aside: bool
    ) -> Path | None:
        if self._keep is not None:
            try:
                return self._keep(delivery, error, is_set_aside=is_set_aside)
            except Exception as exc:
                fate = ", so that it is put back" if is_set_aside else ""
                _log.error("%s could not be kept%s: %s", delivery.name, fate, describe(exc))
        return None


def make_processor(
    callback: Callable[..., Any],
    body_mode: str = "object",
    make_keep: Callable[[], Keep | None] = lambda: None,
    policy: FailurePolicy = HALT,
    notes: Notes | None = None,
    workers: int = 1,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda callback: callback,
) -> Processor:
    """Make the processor for a callback as the user gave it. Thread: any.

    Args:
        callback: A function, an object or a class, coroutine or not.
        body_mode: "object", "json" or "bytes", as for `decode`.
        make_keep: Makes `keep` for the Processor, once the callback is ready.
        policy: As for Processor, like notes.
        workers: As for `callbacks.prepare`.
        wrap: Makes what is called of the callback that is ready, as a service wants it.

    Raises:
        ValueError, Exception: As for `callbacks.instantiate`, or from `make_keep`.
    """
    coroutines = CoroutineRunner()
    ready = prepare(callback, coroutines, workers)
    # One that the user made is the user's to enter.
    manager = ready if inspect.isclass(callback) and is_entered(ready) else None
    # fedora-messaging sends and receives NaN.
    decode_body = partial(decode, body_mode=body_mode, allow_nan=config.is_fedora_messaging)
    made = wrap(ready), decode_body, make_keep(), coroutines, policy, notes
    return Processor(*made, manager=manager)
