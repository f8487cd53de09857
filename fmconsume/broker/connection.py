"""Wraps pika's blocking connection, and sets deadlines for the calls in which pika has none.

A connection is open when it is made. One thread at a time owns it. Any thread may call `wake`
and set `is_in_a_hurry`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Callable

import pika
from pika.callback import CallbackManager
from pika.exceptions import ConnectionWrongStateError

from ..log import get_logger
from .addresses import Address
from .alarm import Alarm
from .errors import SessionLost, connect_error, make_parameters

__all__ = ["DEADLINE", "STOP_DEADLINE", "Connection", "connect"]

_log = get_logger(__name__)

#: Seconds that the broker gets to answer a request, or to accept acknowledgements; and seconds
#: for each step of a stop (first the consumers are cancelled, then the connection is closed).
DEADLINE, STOP_DEADLINE = 30.0, 5.0
#: Heartbeat intervals after which a line counts as silent.
_SILENT = 1.4
#: Seconds after that for a look, so that it does not come too early.
_MOMENT = 0.01
#: Seconds between two looks whether the broker answers.
_LOOK = 5.0


class Connection:
    """A connection that is open, or was.

    Args:
        address: Where the broker is.
        blocking: pika's BlockingConnection.
        inner: pika's connection inside it, which has the loop and counts the bytes.
        heartbeat: Seconds, as agreed on with the broker; 0 is none.
        retry_codes: As for `connect`.
    """

    def __init__(
        self,
        address: Address,
        blocking: Any,
        inner: Any,
        heartbeat: float,
        retry_codes: Container[int] = (),
    ) -> None:
        self.address = address
        self.retry_codes = retry_codes
        self.heartbeat = heartbeat
        #: Tells whether the broker blocks publishers.
        self.alarm = Alarm(blocking)
        #: A stop waits for this connection, so that `within` gives up earlier; set by any thread.
        self.is_in_a_hurry = False
        self._blocking = blocking
        self._inner = inner
        #: Bytes received until the last one came, and when it came, monotonic seconds.
        self._bytes_heard, self._heard_at = 0, monotonic()

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return bool(self._blocking.is_open)

    @property
    def callbacks(self) -> CallbackManager:
        """The callbacks that pika and its users have registered for methods of the broker."""
        return self._inner.callbacks  # type: ignore[no-any-return]

    @property
    def server_properties(self) -> Mapping[str, Any]:
        """The broker's description of itself, with "product" and "version" where it gives them."""
        return self._inner.server_properties or {}

    @property
    def version(self) -> tuple[int, ...]:
        """The first two numbers of RabbitMQ's version; () for any other product."""
        if self.server_properties.get("product") != "RabbitMQ":
            return ()
        return tuple(map(int, re.findall(r"\d+", str(self.server_properties.get("version")))[:2]))

    def open_channel(self) -> Any:
        """Give a new channel.

        Raises:
            SessionLost: There is no answer in time.
            AMQPError: The connection ends meanwhile.
        """
        with self.within("opening a channel"):
            return self._blocking.channel()

    def process_events(self, seconds: float | None) -> None:
        """Do I/O until an event comes, `seconds` at most; None is no limit."""
        self._blocking.process_data_events(seconds)

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call the action after `seconds`, inside a `process_events`, which then returns."""
        self._blocking.call_later(seconds, action)

    def call_even_inside_pika(self, seconds: float, action: Callable[[], None]) -> None:
        """Call the action after `seconds`, in any call in which pika waits; the wait goes on."""
        self._inner.ioloop.call_later(seconds, action)

    def wake(self) -> None:
        """Make `process_events` return soon. Thread: any."""
        # A closed connection has no wait that could be ended.
        with suppress(ConnectionWrongStateError):
            self._blocking.add_callback_threadsafe(_nothing)

    def until_silent(self, seconds: float) -> float:
        """Give these seconds, or less where the line may count as silent before they are over."""
        if not self.heartbeat or self._inner.bytes_received != self._bytes_heard:
            return seconds
        silent_at = self._heard_at + _SILENT * self.heartbeat + _MOMENT
        return min(seconds, max(_MOMENT, silent_at - monotonic()))

    def listen(self) -> int:
        """Give how many bytes came since the last call; raise if the line is silent.

        A silent line is noticed within two heartbeat intervals; pika needs two and 10 s more.
        Source: RabbitMQ sends a frame at least every half interval.

        Raises:
            SessionLost: Nothing came for too long.
        """
        now, count = monotonic(), int(self._inner.bytes_received) - self._bytes_heard
        if count:
            self._bytes_heard += count
            self._heard_at = now
        elif self.heartbeat and now - self._heard_at > _SILENT * self.heartbeat:
            raise SessionLost(f"nothing heard from the broker for {now - self._heard_at:.0f} s")
        return count

    @contextmanager
    def within(self, what: str, silence: float = DEADLINE) -> Iterator[None]:
        """Limit how long the pika calls in a `with` block wait for the broker.

        They are given up after `silence` without a byte (STOP_DEADLINE when in a hurry), once the
        line is silent, and after DEADLINE even if bytes come. pika alone waits without a limit, or
        as long as its heartbeat allows. So a timer in pika's loop looks now and then, and its
        exception ends pika's wait.

        Args:
            what: The request, for the message of the exception.
            silence: Seconds.

        Raises:
            SessionLost: The time is up, or the connection is closed.
        """
        if not self.is_open:
            raise SessionLost("the connection is closed")  # pika has closed its loop, too.
        loop, began = self._inner.ioloop, monotonic()
        pause = min(_LOOK, self.heartbeat / 2 or _LOOK)

        def look() -> None:
            self.listen()
            now = monotonic()
            patience = STOP_DEADLINE if self.is_in_a_hurry else silence
            if now - began >= DEADLINE:
                patience = DEADLINE
            elif now - max(began, self._heard_at) < patience:
                wait()
                return
            raise SessionLost(f"no answer from the broker within {patience:.0f} s: {what}")

        def wait() -> None:
            timers.append(loop.call_later(pause, look))

        timers: list[Any] = []
        wait()
        try:
            yield
        finally:
            loop.remove_timeout(timers[-1])

    def close(self, *channels: Any) -> bool:
        """Close the channels, then the connection; tell whether the broker has answered all.

        Once it has answered a channel's close, it has every frame that was sent on it.
        A connection that is broken already is only dropped, and so is one that does not answer.
        """
        with suppress(SessionLost), self.within("closing", STOP_DEADLINE):
            return self._close(*channels)
        return False

    def _close(self, *channels: Any) -> bool:
        is_answered = self.is_open
        for each in (*channels, self._blocking):
            try:
                if each.is_open:
                    each.close()
            except SessionLost:  # The time is up.
                raise
            except Exception as exc:  # The connection is given up, whether or not closing works.
                _log.debug("closing %s: %r", self.address.name, exc)
                is_answered = False
        return is_answered

    def discard(self, *channels: Any) -> None:
        """Close on another thread, since the line may be dead, and return at once."""
        if self.is_open:
            # Not limited by `within`, which would end pika's wait before pika closes the socket.
            closer = threading.Thread(
                target=self._close, args=channels, name="fmconsume-closer", daemon=True
            )
            try:
                closer.start()
            except RuntimeError:  # No thread can be started. This blocks, but `within` limits it.
                self.close(*channels)


def connect(address: Address, retry_codes: Container[int] = ()) -> Connection:
    """Connect to a broker.

    Args:
        retry_codes: channel.close codes that make a SessionLost, since their cause may pass.

    Raises:
        ConnectionException: The broker refuses, and would again.
        SessionLost: It cannot be reached now.
    """
    captured: list[Any] = []

    def capture_inner(inner: Any, proposed: int) -> int:
        """Give the heartbeat, seconds; keep pika's inner connection, passed only to this call."""
        heartbeat = proposed if wanted is None else wanted
        captured[:] = inner, heartbeat
        return heartbeat

    parameters = make_parameters(address)
    wanted: Any = parameters.heartbeat
    parameters.heartbeat = capture_inner
    try:
        blocking = pika.BlockingConnection(parameters)
    except SessionLost:
        raise
    except Exception as exc:  # Even one that a log handler of the program raised inside pika.
        raise connect_error(address, exc) from exc
    inner, agreed = captured
    return Connection(address, blocking, inner, agreed, retry_codes)


def _nothing() -> None:
    """Do nothing; being called is enough to end a wait."""
