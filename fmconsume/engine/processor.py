"""Runs one message: decodes it, calls the callback, and makes an outcome of the result.

Each worker has a processor of its own, and calls it on the worker's thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from functools import partial
from time import monotonic
from typing import Any, Callable

from ..callbacks import find_function, prepare
from ..delivery import ACK, DROP, FAIL, NACK, REJECT, Delivery, Outcome
from ..exceptions import Drop, HaltConsumer, Nack, ValidationError
from ..log import get_logger
from ..message import Message, decode
from ..text import brief, describe
from .coroutines import CoroutineRunner, refuse_generator

__all__ = ["Keep", "Processor", "make_processor"]

_log = get_logger(__name__)

#: Keeps a delivery on which the callback failed, with the exception.
Keep = Callable[[Delivery, BaseException], None]


class Processor:
    """Runs messages, one at a time.

    `process` never raises: every exception becomes an outcome.

    Args:
        callback: Gets each Message.
        decode: Makes a Message of a Delivery, or raises ValidationError.
        keep: Gets each delivery on which the callback failed.
        coroutines: Awaits an awaitable that the callback returns; None makes a new runner.
    """

    def __init__(
        self,
        callback: Callable[[Message], Any],
        decode: Callable[[Delivery], Message],
        keep: Keep | None = None,
        coroutines: CoroutineRunner | None = None,
    ) -> None:
        self.coroutines = coroutines or CoroutineRunner()
        #: The awaitable that the callback returned, while it is awaited. Set by the worker, read by
        #: any thread.
        self.awaited: Awaitable[Any] | None = None
        self._callback = callback
        self._decode = decode
        self._keep = keep

    def copy(self) -> Processor:
        """Make an equal processor for another worker. Thread: any."""
        return Processor(self._callback, self._decode, self._keep, self.coroutines)

    @property
    def has_coroutine_function(self) -> bool:
        """Whether the callback is a coroutine function, so that the loop can run all of it."""
        return inspect.iscoroutinefunction(find_function(self._callback))

    def process(self, delivery: Delivery) -> Outcome:
        """Run a message on this thread; the loop awaits an awaitable that the callback returns."""
        try:
            return self._run(delivery)
        except BaseException as exc:  # Say, from __str__ of a user's subclass of HaltConsumer.
            return Outcome(delivery=delivery, verdict=FAIL, error=exc)
        finally:
            self.awaited = None

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
        return Outcome(delivery=delivery, verdict=ACK, seconds=monotonic() - started)

    async def process_on_loop(self, delivery: Delivery) -> Outcome:
        """Run a message of a coroutine function. Thread: the loop's.

        A task that is cancelled before its first step has no outcome; `give_up` makes one.
        """
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
        return Outcome(delivery=delivery, verdict=ACK, seconds=monotonic() - started)

    def give_up(self, delivery: Delivery, error: BaseException) -> Outcome:
        """Give the outcome of a callback that did not come to its end, by no fault of the message.

        While the loop closes, the callback was abandoned, which is no failure.
        """
        verdict = NACK if self.coroutines.is_closing else FAIL
        return Outcome(delivery=delivery, verdict=verdict, error=error)

    def _finish(self, result: Any) -> None:
        """Await the callback's result if it is awaitable; refuse it if it is a generator."""
        if hasattr(result, "__await__"):
            self.awaited = result
            self.coroutines.wait_for(result)
        else:
            refuse_generator(result)

    def _read(self, delivery: Delivery) -> Message | Outcome:
        """Make a message of a delivery, or give the outcome of a delivery that does not decode."""
        try:
            return self._decode(delivery)
        except ValidationError as exc:
            _log.warning("%s rejected: %s", delivery.name, exc.summary)
            return Outcome(delivery=delivery, verdict=REJECT)
        except BaseException as exc:
            _log.error("%s could not be decoded, put back: %s", delivery.name, describe(exc))
            return Outcome(delivery=delivery, verdict=FAIL, error=exc)

    def _judge(self, delivery: Delivery, exc: BaseException, started: float) -> Outcome:
        """Make the outcome for an exception of the callback's."""
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
            self._keep_failed(delivery, exc)
            verdict, error = FAIL, exc
        return Outcome(
            delivery=delivery, verdict=verdict, error=error, seconds=monotonic() - started
        )

    def _keep_failed(self, delivery: Delivery, error: BaseException) -> None:
        if self._keep is not None:
            try:
                self._keep(delivery, error)
            except Exception as exc:
                _log.error("%s could not be kept: %s", delivery.name, describe(exc))


def make_processor(
    callback: Callable[..., Any],
    body_mode: str = "object",
    make_keep: Callable[[], Keep | None] = lambda: None,
) -> Processor:
    """Make the processor for a callback as the user gave it. Thread: any.

    Args:
        callback: A function, an object or a class, coroutine or not.
        body_mode: "object", "json" or "bytes", as for `decode`.
        make_keep: Makes `keep` for the Processor, once the callback is ready.

    Raises:
        ValueError, Exception: As for `callbacks.instantiate`, or from `make_keep`.
    """
    coroutines = CoroutineRunner()
    ready = prepare(callback, coroutines)
    return Processor(ready, partial(decode, body_mode=body_mode), make_keep(), coroutines)
