"""Publishing: `publish` blocks until the broker confirms, on a connection of its own.

Any thread may call `publish`, in a callback or not. A private thread for each process
owns the connection, so that nothing is shared with a consumer.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from contextlib import suppress
from contextvars import Context
from functools import partial
from queue import Empty
from time import monotonic

from pika.adapters.select_connection import IOLoop

from . import config
from .broker.addresses import Address, Addresses
from .broker.backoff import Backoff
from .broker.errors import SessionLost
from .broker.publish_connection import PublishConnection
from .broker.request import Request
from .exceptions import ConnectionException, PublishException, PublishTimeout
from .log import get_logger, quieten_pika
from .message import Message
from .schema import tolerate
from .service.tracing import publication
from .shortage import shortage
from .text import printable
from .wiring import addresses

__all__ = ["Publisher", "count_published", "publish", "send"]

_log = get_logger(__name__)

#: First and longest delay before another connection, seconds. Short: a caller waits.
_RETRY = (0.5, 5.0)
#: Seconds that the connection gets to close when the interpreter ends.
_DEADLINE = 1.0


def publish(message: Message, exchange: str | None = None, timeout: float = 30.0) -> None:
    """Publish a message and wait until the broker confirms it.

    A message whose confirmation was lost with the connection is sent again, with the
    same message id, until the timeout: it may arrive twice.

    A message that was received is sent as a new one: its header x-fmconsume-copies, an
    integer, counts the attempts to publish it again. The received message itself stays as it is.

    Args:
        message: It is validated first. Its topic gets the configured topic_prefix. Its body holds
            JSON values and its headers hold AMQP values, both without NaN and Infinity. A schema
            that cannot be used is a warning.
        exchange: Name of the exchange; None takes the configured publish_exchange.
        timeout: Seconds for all of it, connecting included.

    Raises:
        ValidationError: The message is invalid, or cannot be encoded; nothing was sent.
        ConfigurationException: The configuration cannot be used.
        PublishReturned: The broker does not take the message, or has no such exchange.
        PublishForbidden: The user may not publish there.
        PublishTimeout: The broker did not confirm it in time. If it was not sent by then, it will
            not be sent; if it was, it may have arrived.
        PublishException: This process cannot get a thread or a file for a connection now.
        ConnectionException: The broker refuses the connection, or the client certificate has
            expired or is not valid yet.
    """
    deadline = monotonic() + timeout
    with tolerate(type(message)):
        message.validate()
    exchange = config.conf["publish_exchange"] if exchange is None else exchange
    routing_key, body = message._encoded_routing_key, message._encoded_body
    with publication(exchange, routing_key, message.id, body) as headers:
        properties = message._outgoing_properties(**headers)
        _send(message, Request(exchange, routing_key, body, properties, deadline))


def _send(message: Message, request: Request) -> None:
    """Send a valid message; `fmconsume.testing.mock_sends` replaces this function."""
    send(request)


def send(request: Request) -> None:
    """Send what is encoded already, and wait until the broker confirms it. Thread: any.

    Raises:
        PublishException, ConfigurationException, ConnectionException: As for `publish`.
        ValidationError: The properties are too large for a frame.
    """
    _publisher().send(request)


class Publisher:
    """A thread that connects when there is a request to send, and keeps the connection.

    It is the `Owner` of its PublishConnection.

    Args:
        brokers: Addresses to try in turn.
    """

    def __init__(self, brokers: list[Address]) -> None:
        self._addresses = Addresses(brokers)
        #: Other threads add callbacks to it; everything else happens in its callbacks.
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name="fmconsume-publisher", daemon=True)
        #: Requests that are not sent yet, oldest first.
        self._waiting: deque[Request] = deque()
        #: The connection, open or being opened; None without one. Set here, read by any thread.
        self._connection: PublishConnection | None = None
        #: The error of each address that was tried in this round.
        self._errors: list[Exception] = []
        self._backoff = Backoff(*_RETRY)
        #: Messages that the broker has confirmed. Counted here, read by any thread.
        self.confirmed = 0
        #: A timer runs, and there is no new connection before it ends.
        self._is_resting = False
        self._is_closing = False
        #: Why the last connection failed or ended; "" once one is open. Set here, read by any
        #: thread.
        self._trouble = ""

    def start(self) -> None:
        """Start the thread. Thread: any.

        Raises:
            RuntimeError: This process cannot get a thread now; the publisher is discarded.
        """
        try:
            # A thread may inherit the context, as it does on a free-threaded Python, but this one
            # outlives the message that runs here.
            Context().run(self._thread.start)
        except BaseException:
            self.discard()
            raise

    def send(self, request: Request) -> None:
        """Publish, wait for the answer, and raise it if it is an error. Thread: any."""
        self._loop.add_callback_threadsafe(partial(self._enqueue, request))
        try:
            error = request.answer.get(timeout=max(0.0, request.deadline - monotonic()))
        except BaseException as exc:  # Empty, or a KeyboardInterrupt.
            self._loop.add_callback_threadsafe(partial(self._forget, request))
            if not isinstance(exc, Empty):
                raise
            raise PublishTimeout(f"not confirmed in time: {self._explain()}") from None
        if error is not None:
            raise error

    def close(self) -> None:
        """Close the connection and end the thread. Thread: any."""
        self._loop.add_callback_threadsafe(self._begin_closing)
        self._thread.join(_DEADLINE)

    def discard(self) -> None:
        """Free the loop of a publisher whose thread was never started. Thread: any."""
        self._loop.close()

    def _explain(self) -> str:
        connection = self._connection
        blocked = printable(connection.alarm.reason) if connection else ""
        blocked = blocked and f"the broker blocks publishers: {blocked}"
        return blocked or self._trouble or "no answer from the broker"

    # -- its own thread ----------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.start()
        except Exception as exc:
            _log.critical("the publisher failed, which is a bug", exc_info=exc)
            self._trouble = f"the publisher failed: {exc!r}"
        # The next call of `publish` makes a new publisher.
        if _publishers.get(os.getpid()) is self:
            del _publishers[os.getpid()]
        self._loop.close()

    def _enqueue(self, request: Request) -> None:
        self._waiting.append(request)
        self.on_room()

    def _forget(self, request: Request) -> None:
        with suppress(ValueError):
            self._waiting.remove(request)
        if self._connection is not None:
            self._connection.forget(request)

    def _begin_closing(self) -> None:
        self._is_closing = True
        if self._connection is not None:
            self._connection.close()
        else:
            self._loop.stop()

    def _connect(self) -> None:
        address = self._addresses[len(self._errors)]
        _log.debug("connecting to %s to publish", address.name)
        try:
            self._connection = PublishConnection(address, self._loop, self)
        except SessionLost as exc:
            self.on_end(exc, [])

    def on_open(self) -> None:
        """Prefer the address from now on, and send the requests that wait."""
        assert self._connection is not None
        _log.info("publishing to %s", self._connection.address.name)
        self._addresses.prefer(self._connection.address)
        self._errors.clear()
        self._backoff.reset()
        self._trouble = ""
        self.on_room()

    def on_confirmed(self) -> None:
        """Count a message."""
        self.confirmed += 1

    def on_room(self) -> None:
        """Send the requests that wait; for the rest, connect or open more channels."""
        connection = self._connection
        while self._waiting and connection is not None and connection.has_room:
            request = self._waiting.popleft()
            if request.deadline > monotonic():
                connection.send(request)
        if not self._waiting or self._is_resting:
            return
        if connection is None:
            self._connect()
        elif connection.is_open:
            connection.grow(len(self._waiting))

    def on_end(self, error: Exception, unconfirmed: list[Request]) -> None:
        """Try the next address; after the last, wait before the first is tried again."""
        self._connection = None
        self._trouble = str(error)
        self._errors.append(error)
        self._waiting.extendleft(reversed(unconfirmed))
        if self._is_closing:
            self._loop.stop()
        elif len(self._errors) < len(self._addresses):
            self.on_room()
        else:
            self._rest()

    def _rest(self) -> None:
        refusals = [error for error in self._errors if isinstance(error, ConnectionException)]
        if refusals:
            self._answer_all(refusals[0])
        self._errors.clear()
        delay = self._backoff.next()
        if self._waiting:
            _log.warning("cannot publish: %s; reconnecting in %.1f s", self._trouble, delay)
        else:
            _log.info("%s; the next to publish makes a new connection", self._trouble)
        self._is_resting = True
        self._loop.call_later(delay, self._resume)

    def _answer_all(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().answer.put(error)

    def _resume(self) -> None:
        self._is_resting = False
        self.on_room()


#: By process id: a forked child never touches its parent's.
_publishers: dict[int, Publisher] = {}


def count_published() -> int:
    """Count the messages that the broker has confirmed to this process. Thread: any."""
    found = _publishers.get(os.getpid())
    return found.confirmed if found else 0


def _publisher() -> Publisher:
    pid = os.getpid()
    found = _publishers.get(pid)
    if found is None:
        made = _start_publisher()
        # Started before other threads can find it: without a thread it would never answer them.
        # Of two threads that make one at the same time, both use the one that is stored first.
        found = _publishers.setdefault(pid, made)
        if found is not made:
            made.close()
    return found


def _start_publisher() -> Publisher:
    brokers = addresses()
    quieten_pika()
    try:
        made = Publisher(brokers)
        made.start()
    except (OSError, RuntimeError) as exc:
        raise PublishException(f"cannot publish now: {shortage(exc) or exc}") from exc
    return made


@atexit.register
def _close() -> None:
    publisher = _publishers.get(os.getpid())
    if publisher is not None:
        publisher.close()
