"""One session with the broker: a connection, a channel and its consumers, used and thrown away.

One thread at a time owns a session: an opener until it is open, the supervisor
afterwards. `wake` alone may come from any thread.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, Callable, NamedTuple

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import (
    AMQPChannelError,
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionWrongStateError,
)

from ..exceptions import BadDeclaration, PermissionException
from ..text import printable
from .address import Address
from .delivery import ACK, NACK, Delivery
from .failure import SessionLost, connect_error, reason
from .ledger import Frame

__all__ = ["Session", "Topology"]

#: connection.close codes that the same declaration would meet again.
#: Source: AMQP 0-9-1, section 1.2 (syntax error, command invalid, not allowed, not implemented).
_HOPELESS = {502, 503, 530, 540}
#: channel.close codes that may pass once the broker has settled down: not found, resource locked.
_PASSING = {404, 405}
#: When so many bytes came, more are probably there: pika dispatches what it has once it has read
#: 100 KB, of which it counts whole frames. Source: `_MAX_CONSUME_BYTES` in pika 1.3 and 1.4.
_PIECE = 64 * 1024
#: Pieces taken in by one wait at most, so that the workers get something to do.
_PIECES = 10


class _Loss:
    """Turns what pika raises into SessionLost."""

    # contextlib would need a generator each time, and this is entered twice in every turn.

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if isinstance(exc, (AMQPError, OSError)):
            lost = SessionLost(reason(exc))
            lost.is_channel_closed = isinstance(exc, AMQPChannelError)
            raise lost from exc


_LOSS = _Loss()


class Topology(NamedTuple):
    """What a session declares, binds and consumes.

    Attributes:
        exchanges: Name to "type", "durable", "auto_delete", "arguments".
        queues: Name to "durable", "auto_delete", "exclusive", "arguments" and
            perhaps "passive"; the name "" asks the broker for one.
        bindings: Each with "queue", "exchange", "routing_keys" and perhaps "arguments".
        passive: Exchanges and queues are checked, not created.
        prefetch_count: Messages; 0 is no limit.
        prefetch_size: Bytes; 0 is no limit, and all that RabbitMQ takes.
    """

    exchanges: Mapping[str, Mapping[str, Any]]
    queues: Mapping[str, Mapping[str, Any]]
    bindings: Sequence[Mapping[str, Any]]
    passive: bool
    prefetch_count: int
    prefetch_size: int


class Session:
    """A connection and its one channel.

    Args:
        number: Tells the deliveries of this session from those of every other.
        settled_before: An earlier session was good, so the broker knows the topology and
            what it does not find now may come back.
    """

    def __init__(
        self, number: int, address: Address, topology: Topology, settled_before: bool
    ) -> None:
        self.number = number
        self.address = address
        self._topology = topology
        self._settled_before = settled_before
        #: Takes each Delivery; the supervisor sets it before it waits.
        self.deliver: Callable[[Delivery], None] = lambda delivery: None
        #: A wake is under way; set by any thread, cleared by the supervisor before it reads.
        self.is_woken = False
        #: Reason given by the broker while it blocks publishers (an alarm), or "".
        self.blocked = ""
        #: Consumer tag to the name of its queue.
        self.consumers: dict[str, str] = {}
        #: Bytes received when something last came, and when that was, monotonic seconds.
        self._bytes_heard, self._heard_at = 0, monotonic()
        #: Queue whose consumer the broker has cancelled, if it did.
        self.cancelled_queue = ""
        self._connection: pika.BlockingConnection
        self._channel: pika.adapters.blocking_connection.BlockingChannel

    # -- making it ---------------------------------------------------------

    def connect(self) -> None:
        """Connect and open the channel.

        Raises:
            ConnectionException: The broker refuses, and would again.
            SessionLost: It cannot be reached now.
        """
        parameters = copy.copy(self.address.parameters)
        # A function and not the method: pika copies its parameters deeply.
        parameters.heartbeat = lambda *args: self._negotiate(*args)
        try:
            self._connection = pika.BlockingConnection(parameters)
            self._channel = self._connection.channel()
        except (AMQPError, AMQPConnectorException, OSError) as exc:
            raise connect_error(self.address, exc) from exc
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._channel.add_on_cancel_callback(self._on_cancel)

    def _negotiate(self, wire: pika.connection.Connection, proposed: int) -> int:
        """Agree on a heartbeat, and keep what counts the bytes."""
        wanted: Any = self.address.parameters.heartbeat
        self._heartbeat: int = proposed if wanted is None else wanted
        self._wire: Any = wire
        return self._heartbeat

    def declare(self) -> None:
        """Declare exchanges and queues, bind them and set the prefetch.

        Raises:
            BadDeclaration, PermissionException: The broker refuses, and would again.
            SessionLost: The session ended meanwhile.
        """
        topology = self._topology
        for name, exchange in topology.exchanges.items():
            with self._refusals("exchange", name):
                self._declare_exchange(name, exchange)
        self._names = {
            name: self._declare_queue(name, queue) for name, queue in topology.queues.items()
        }
        for binding in topology.bindings:
            self._bind(binding)
        with self._refusals("channel", f"prefetch {topology.prefetch_count}"):
            self._channel.basic_qos(topology.prefetch_size, topology.prefetch_count)

    def consume(self) -> None:
        """Start a consumer for each queue; deliveries wait until `wait` is called."""
        for name in self._names.values():
            with self._refusals("queue", name):
                tag = self._channel.basic_consume(name, partial(self._on_message, name))
            self.consumers[tag] = name

    def _declare_exchange(self, name: str, exchange: Mapping[str, Any]) -> None:
        self._channel.exchange_declare(
            name,
            exchange["type"],
            passive=self._topology.passive,
            durable=exchange["durable"],
            auto_delete=exchange["auto_delete"],
            arguments=exchange["arguments"],
        )

    def _declare_queue(self, name: str, queue: Mapping[str, Any]) -> str:
        with self._refusals("queue", name):
            answer = self._channel.queue_declare(
                name,
                # A server-named queue exists only once it is declared.
                passive=bool(name) and queue.get("passive", self._topology.passive),
                durable=queue["durable"],
                exclusive=queue["exclusive"],
                auto_delete=queue["auto_delete"],
                arguments=queue["arguments"],
            )
        return str(answer.method.queue)

    def _bind(self, binding: Mapping[str, Any]) -> None:
        queue, exchange = self._names[binding["queue"]], binding["exchange"]
        for key in binding["routing_keys"]:
            with self._refusals("binding", f"{exchange} -> {queue} ({key})"):
                self._channel.queue_bind(queue, exchange, key, binding.get("arguments"))

    @contextmanager
    def _refusals(self, obj_type: str, name: str) -> Iterator[None]:
        """Raise what the broker answers as an exception that names the object."""
        try:
            yield
        except (ChannelClosedByBroker, ConnectionClosedByBroker) as exc:
            raise self._refusal(obj_type, name, exc) from exc
        except AMQPConnectionError as exc:
            raise SessionLost(reason(exc)) from exc
        except (AMQPError, ValueError, TypeError) as exc:
            # pika refuses to encode it: a name over 255 bytes, an argument of no AMQP type.
            raise BadDeclaration(obj_type, name, reason(exc)) from exc

    def _refusal(self, obj_type: str, name: str, exc: Any) -> Exception:
        if exc.reply_code == 403:
            return PermissionException(obj_type, name, exc.reply_text)
        is_connection = isinstance(exc, ConnectionClosedByBroker)
        if is_connection and exc.reply_code not in _HOPELESS:
            return SessionLost(reason(exc))
        if self._settled_before and exc.reply_code in _PASSING:
            return SessionLost(f"{obj_type} {name!r}: {printable(exc.reply_text)}")
        return BadDeclaration(obj_type, name, exc.reply_text)

    # -- using it ----------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Make sure that something happens every so many seconds, or half a heartbeat."""
        seconds = min(seconds, self._heartbeat / 2 or seconds)
        self.call_later(seconds, partial(self.tick, seconds))

    def wait(self, seconds: float | None = None) -> None:
        """Do I/O until something happened, or at most so long; deliver all that has come.

        To wait without a limit is cheaper, as pika makes a timer for each limit.

        Raises:
            SessionLost: The connection or the channel is closed, or the line is silent.
        """
        with _LOSS:
            for _ in range(_PIECES):
                self._connection.process_data_events(seconds)
                if self._listen() < _PIECE:
                    break
                seconds = 0.0
        self._check()

    def wake(self) -> None:
        """Make `wait` return soon. Thread: any."""
        if not self.is_woken:
            self.is_woken = True
            # On a closed connection there is no wait to end.
            with suppress(ConnectionWrongStateError):
                self._connection.add_callback_threadsafe(_nothing)

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call the action from a later `wait`; it is forgotten with the session."""
        self._connection.call_later(seconds, action)

    def _check(self) -> None:
        """Make sure that it lives: pika raises nothing when the broker closes a channel."""
        if not self._connection.is_open:
            raise SessionLost("the connection is closed")
        if not self._channel.is_open:
            lost = SessionLost("the broker closed the channel")
            lost.is_channel_closed = True
            raise lost

    def _listen(self) -> int:
        """Give the bytes that came since the last time.

        Notices a silent line within two heartbeat intervals; pika takes two and 10 s more.
        Source: RabbitMQ sends something at least every half interval.
        """
        now = monotonic()
        count: int = self._wire.bytes_received - self._bytes_heard
        if count:
            self._bytes_heard += count
            self._heard_at = now
        elif self._heartbeat and now - self._heard_at > 1.5 * self._heartbeat:
            raise SessionLost(f"nothing heard from the broker for {now - self._heard_at:.0f} s")
        return count

    @property
    def name(self) -> str:
        """Its queues and its broker, as the log calls them."""
        return f"{', '.join(self.consumers.values())} at {self.address.name}"

    @property
    def is_consuming(self) -> bool:
        """Whether connection and channel are open and every consumer is registered."""
        return (
            self._connection.is_open
            and self._channel.is_open
            and len(self._channel.consumer_tags) == len(self._names)
        )

    def settle(self, frames: Iterable[Frame]) -> None:
        """Send what settles deliveries.

        Raises:
            SessionLost: The session ended first; what was sent may have arrived or not.
        """
        with _LOSS:
            for tag, verdict, multiple in frames:
                if verdict is ACK:
                    self._channel.basic_ack(tag, multiple)
                elif verdict is NACK:
                    self._channel.basic_nack(tag, multiple, requeue=True)
                else:
                    self._channel.basic_reject(tag, requeue=False)

    def depths(self) -> dict[str, int]:
        """Ask the broker how many messages are ready in each queue.

        Deliveries that arrive with the answer are here too, waiting for `wait`.

        Raises:
            SessionLost: The session ended first.
        """
        with _LOSS:
            answers = [self._channel.queue_declare(q, passive=True) for q in self._names.values()]
        return {answer.method.queue: answer.method.message_count for answer in answers}

    # -- ending it ---------------------------------------------------------

    def cancel(self) -> None:
        """Stop deliveries; what pika still holds goes back to its queue.

        Raises:
            SessionLost: The session ended first.
        """
        with _LOSS:
            for tag in list(self.consumers):
                self._channel.basic_cancel(tag)

    def close(self) -> None:
        """Close the channel, whose answer tells that every frame has arrived, and the connection.

        A session that is broken already is only dropped.
        """
        with suppress(AMQPError, OSError, AttributeError):
            if self._channel.is_open:
                self._channel.close()
        with suppress(AMQPError, OSError, AttributeError):
            if self._connection.is_open:
                self._connection.close()

    def discard(self) -> None:
        """Close without waiting for a line that may be dead; whoever calls may go on."""
        connection = getattr(self, "_connection", None)
        if connection is not None and connection.is_open:
            threading.Thread(target=self.close, name="fmconsume-closer", daemon=True).start()

    # -- called by pika, inside wait ---------------------------------------

    def _on_message(
        self, queue: str, channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        self.deliver(
            Delivery(
                self.number,
                method.delivery_tag,
                queue,
                method.routing_key,
                method.redelivered,
                properties,
                body,
                properties.message_id,
                monotonic(),
            )
        )

    def _on_cancel(self, frame: Any) -> None:
        self.cancelled_queue = repr(self.consumers.get(frame.method.consumer_tag, "?"))

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self.blocked = frame.method.reason or "no reason given"

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = ""


def _nothing() -> None:
    """Do nothing; being called is enough to end a wait."""
