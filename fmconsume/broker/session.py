"""One session with the broker: a connection, a channel and its consumers, used and thrown away.

One thread at a time owns a session: an opener until it is open, the supervisor
afterwards. `wake` alone may come from any thread.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, Callable, NamedTuple

import pika
from pika.exceptions import (
    AMQPChannelError,
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionWrongStateError,
)

from ..delivery import ACK, FAIL, NACK, Delivery, Frame
from ..exceptions import BadDeclaration, ConsumerCanceled, FmconsumeError, PermissionException
from ..log import get_logger
from ..redaction import hide_passwords
from ..text import printable
from .addresses import Address
from .errors import SessionLost, connect_error, make_parameters, reason
from .wire import install, ordered

__all__ = ["Session", "Topology"]

#: connection.close codes that the same declaration would meet again.
#: Source: AMQP 0-9-1, section 1.2 (syntax error, command invalid, not allowed, not implemented).
_HOPELESS = {502, 503, 530, 540}
#: channel.close: the queue is not found, which it also is where its node is down.
_NOT_FOUND = 404
#: What RabbitMQ says of a queue that is there but cannot be reached now.
_AWAY = re.compile(r"down or inaccessible|process is (stopped|unavailable)|has crashed")
#: What RabbitMQ says, with code 541, of a kind of queue that its operators do not permit any more.
_DEPRECATED = re.compile(r"Feature `(\w+)` is deprecated")
#: Seconds that the broker gets for an answer, or for what is sent; and for each of the two steps
#: of a stop, to cancel and to close.
_DEADLINE, _STOP_DEADLINE = 30.0, 5.0
#: Heartbeat intervals after which a line counts as silent. It is noticed half of one later.
_SILENT = 1.4
#: When so many bytes came, more are probably there: pika dispatches what it has once it has read
#: 100 KB, of which it counts whole frames. Source: `_MAX_CONSUME_BYTES` in pika 1.3 and 1.4.
_PIECE = 64 * 1024
#: Pieces taken in by one wait at most, so that the workers get something to do.
_PIECES = 10


_log = get_logger(__name__)


class _Loss:
    """Turns what pika raises into SessionLost."""

    # contextlib would need a generator each time, and this is entered twice in every turn.

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if not isinstance(exc, Exception) or isinstance(exc, (SessionLost, FmconsumeError)):
            return
        if not isinstance(exc, (AMQPError, OSError)):
            # A log handler of the program's that failed inside pika, say.
            _log.error("pika failed in a way that it does not name", exc_info=exc)
        lost = SessionLost(reason(exc))
        lost.is_by_channel = isinstance(exc, AMQPChannelError)
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

    @property
    def counting_queues(self) -> set[str]:
        """The queues that count how often they deliver a message."""
        return {
            name
            for name, queue in self.queues.items()
            if queue["arguments"].get("x-queue-type") == "quorum"
        }

    @property
    def has_single_active_consumer(self) -> bool:
        """Whether a queue keeps the order of its messages over several consumers."""
        key = "x-single-active-consumer"
        return any(queue["arguments"].get(key) for queue in self.queues.values())


class Session:
    """A connection and its one channel.

    Args:
        number: Tells the deliveries of this session from those of every other.
        passing: channel.close codes that may pass and refuse nothing for good.
    """

    def __init__(
        self, number: int, address: Address, topology: Topology, passing: Container[int] = ()
    ) -> None:
        self.number = number
        self.address = address
        self._topology = topology
        self._passing = passing
        #: Takes each Delivery; the supervisor sets it before it waits.
        self.deliver: Callable[[Delivery], None] = lambda delivery: None
        #: A wake is under way; set by any thread, cleared by the supervisor before it reads.
        self.is_woken = False
        #: A stop waits for this session; set by any thread.
        self.is_in_a_hurry = False
        #: Reason given by the broker while it blocks publishers (an alarm), or "".
        self.blocked = ""
        #: Each consumer tag of this session to the name of its queue.
        self.consumers: dict[str, str] = {}
        #: Bytes received when something last came, and when that was, monotonic seconds.
        self._bytes_heard, self._heard_at = 0, monotonic()
        #: When it began to send what pika has not taken yet, monotonic seconds.
        self._sending_since = math.inf
        #: Queue whose consumer the broker has cancelled, None while it did not.
        self._cancelled: str | None = None
        #: None until it is open; what uses them comes later.
        self._connection: Any = None
        self._channel: Any = None
        #: pika's connection inside its BlockingConnection, and what was agreed on with the broker.
        self._wire: Any = None
        self._heartbeat = 0
        self._counting = topology.counting_queues
        #: Each configured name of a queue to the one that it has.
        self._names: dict[str, str] = {}

    # -- making it ---------------------------------------------------------

    def connect(self) -> None:
        """Connect and open the channel.

        Raises:
            ConnectionException: The broker refuses, and would again.
            SessionLost: It cannot be reached now.
        """
        install()
        parameters = make_parameters(self.address)
        wanted = parameters.heartbeat
        # A function and not the method: pika copies its parameters deeply.
        parameters.heartbeat = lambda *args: self._negotiate(wanted, *args)
        try:
            self._connection = pika.BlockingConnection(parameters)
            with self._within(_DEADLINE, "opening a channel"):
                self._channel = self._connection.channel()
        except SessionLost:
            raise
        except Exception as exc:  # Also what a log handler of the program's raises inside pika.
            raise connect_error(self.address, exc) from exc
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._channel.add_on_cancel_callback(self._on_cancel)

    def _negotiate(self, wanted: Any, wire: pika.connection.Connection, proposed: int) -> int:
        """Agree on a heartbeat, and keep what counts the bytes."""
        self._heartbeat = proposed if wanted is None else wanted
        self._wire = wire
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
        """Start a consumer for each queue; deliveries wait until `wait` is called.

        Raises:
            BadDeclaration, PermissionException: The broker refuses, and would again.
            SessionLost: The session ended meanwhile.
        """
        for name in self._names.values():
            with self._refusals("queue", name):
                tag = self._channel.basic_consume(name, partial(self._on_message, name))
            self.consumers[tag] = name

    def consume_again(self) -> None:
        """Get a whole prefetch, beside what is unacknowledged now and stays so.

        Source: measured on RabbitMQ 3.10 and 4.3; it counts for each consumer, not for the channel.

        Raises:
            As `consume`.
        """
        before = list(self._channel.consumer_tags)
        # First, since a queue may be deleted with its last consumer.
        self.consume()
        with _LOSS, self._within(_DEADLINE, "consuming again"):
            self._cancel(before)

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
            with self._within(_DEADLINE, f"{obj_type} {name!r}"):
                yield
        except (ChannelClosedByBroker, ConnectionClosedByBroker) as exc:
            raise self._refusal(obj_type, name, exc) from exc
        except AMQPConnectionError as exc:
            raise SessionLost(reason(exc)) from exc
        except (AMQPError, ValueError, TypeError, struct.error) as exc:
            # pika refuses to encode it: a name over 255 bytes, an argument of no AMQP type.
            raise BadDeclaration(obj_type, name, reason(exc)) from exc

    def _refusal(self, obj_type: str, name: str, exc: Any) -> Exception:
        if exc.reply_code == 403:
            return PermissionException(obj_type, name, exc.reply_text)
        deprecated = _DEPRECATED.search(exc.reply_text)
        if deprecated:
            return BadDeclaration(obj_type, name, _cure(deprecated[1]))
        is_connection = isinstance(exc, ConnectionClosedByBroker)
        if is_connection and exc.reply_code not in _HOPELESS:
            return SessionLost(reason(exc))
        if exc.reply_code in self._passing or _AWAY.search(exc.reply_text):
            return SessionLost(f"{obj_type} {name!r}: {printable(exc.reply_text)}")
        return BadDeclaration(obj_type, name, exc.reply_text)

    @contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[None]:
        """Give up what blocks inside pika when nothing came for so many seconds.

        That is 5 s when in a hurry, and 30 s altogether, whatever came. pika waits for an answer
        without a limit, or as long as its heartbeat allows; what its loop calls meanwhile may end
        that.

        Raises:
            SessionLost: The time is up.
        """
        loop, end = self._wire.ioloop, monotonic() + _DEADLINE
        count, heard = self._wire.bytes_received, monotonic()

        def look() -> None:
            nonlocal count, heard
            now = monotonic()
            if self._wire.bytes_received != count:
                count, heard = self._wire.bytes_received, now
            patience = _STOP_DEADLINE if self.is_in_a_hurry else seconds
            if now >= end or now - heard >= patience:
                raise SessionLost(f"no answer from the broker within {patience:.0f} s: {what}")
            wait()

        def wait() -> None:
            timers.append(loop.call_later(_STOP_DEADLINE, look))

        timers: list[Any] = []
        wait()
        try:
            yield
        finally:
            loop.remove_timeout(timers[-1])

    # -- using it ----------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Make sure that something happens every so many seconds, or half a heartbeat."""
        seconds = min(seconds, self._heartbeat / 2 or seconds)
        if monotonic() - self._sending_since > _DEADLINE - seconds:
            raise SessionLost("the broker takes no acknowledgements")
        # Twice: pika's loop calls also while it blocks, and its connection ends a wait.
        self._wire.ioloop.call_later(seconds, partial(self.tick, seconds))
        self.call_later(0.0, _nothing)

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
            lost.is_by_channel = True
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
        elif self._heartbeat and now - self._heard_at > _SILENT * self._heartbeat:
            raise SessionLost(f"nothing heard from the broker for {now - self._heard_at:.0f} s")
        return count

    @property
    def name(self) -> str:
        """Its queues and its broker, as the log calls them."""
        return hide_passwords(f"{', '.join(self._names.values())} at {self.address.name}")

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
        self._sending_since = monotonic()
        with _LOSS:
            for tag, verdict, multiple in frames:
                if verdict is ACK:
                    self._channel.basic_ack(tag, multiple)
                elif verdict is NACK:
                    self._channel.basic_nack(tag, multiple, requeue=True)
                else:
                    # RabbitMQ 4.3 counts this, and no basic.nack, towards a delivery limit.
                    self._channel.basic_reject(tag, requeue=verdict is FAIL)
        self._sending_since = math.inf

    def depths(self) -> dict[str, int]:
        """Ask the broker how many messages are ready in each queue.

        Deliveries that arrive with the answer are here too, waiting for `wait`.

        Raises:
            SessionLost: The session ended first.
        """
        with _LOSS, self._within(_DEADLINE, "the depths of the queues"):
            answers = [self._channel.queue_declare(q, passive=True) for q in self._names.values()]
        return {answer.method.queue: answer.method.message_count for answer in answers}

    def look_for_queue(self) -> None:
        """Find out what a cancel by the broker means.

        Source: RabbitMQ cancels where a queue is deleted, where its node goes down, and, from
        4.3 on, where a quorum queue's delivery is not acknowledged in time.

        Raises:
            ConsumerCanceled: The queue is gone.
            SessionLost: It is there, or away with its node.
        """
        queue = repr(self._cancelled)
        lost = SessionLost(f"the broker cancelled the consumer of queue {queue}")
        lost.is_by_channel = True
        try:
            with _LOSS, self._within(_DEADLINE, f"queue {queue}"):
                self._connection.channel().queue_declare(self._cancelled or "", passive=True)
        except SessionLost as exc:
            if _is_gone(exc.__cause__):
                raise ConsumerCanceled(f"{lost}, and the queue is gone") from exc
            raise SessionLost(f"{lost}: {exc}") from exc
        raise lost

    # -- ending it ---------------------------------------------------------

    def cancel(self) -> None:
        """Stop deliveries; what pika still holds goes back to its queue.

        Raises:
            SessionLost: The session ended first, or there was no answer in time.
        """
        with _LOSS, self._within(_STOP_DEADLINE, "cancelling the consumers"):
            self._cancel(list(self._channel.consumer_tags))

    def _cancel(self, tags: Iterable[str]) -> None:
        """Cancel consumers.

        pika rejects, one by one, what it holds when it sends a basic.cancel, and what comes before
        the answer. So it delivers first all that it has.
        """
        for tag in tags:
            self._connection.process_data_events(0)
            self._channel.basic_cancel(tag)

    def leave(self) -> None:
        """Let the broker close the channel: pika would cancel the consumers first.

        A single active consumer that is cancelled is replaced before what it had is back in the
        queue. A channel that dies returns all that it had in one step.

        Raises:
            SessionLost: The session ended first, or there was no answer in time.
        """
        nowhere = f"fmconsume-leaves-{uuid.uuid4()}"
        within = self._within(_STOP_DEADLINE, "leaving the queue")
        with _LOSS, within, suppress(ChannelClosedByBroker):
            self._channel.queue_declare(nowhere, passive=True)

    def close(self) -> None:
        """Close the channel, whose answer tells that every frame has arrived, and the connection.

        A session that is broken already is only dropped, and so is one that does not answer.
        """
        if self._connection is not None:
            with suppress(SessionLost), self._within(_STOP_DEADLINE, "closing"):
                self._close()

    def _close(self) -> None:
        for each in (self._channel, self._connection):
            try:
                if each is not None and each.is_open:
                    each.close()
            except SessionLost:  # The time is up.
                raise
            except Exception as exc:  # Nothing that happens here changes anything.
                _log.debug("closing %s: %r", self.address.name, exc)

    def discard(self) -> None:
        """Close without waiting for a line that may be dead; whoever calls may go on."""
        if self._connection is not None and self._connection.is_open:
            # Without a limit of ours, so that pika closes the socket in the end.
            closer = threading.Thread(target=self._close, name="fmconsume-closer", daemon=True)
            try:
                closer.start()
            except RuntimeError:  # There is no thread to be had; closing ends soon, too.
                self.close()

    # -- called by pika, inside wait ---------------------------------------

    def _on_message(
        self, queue: str, channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        # Earlier quorum queues than those of 4.3 sort the headers when they add a count.
        published = properties.published
        if queue in self._counting:
            published = ordered(published)
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
                (method.exchange, *published),
            )
        )

    def _on_cancel(self, frame: Any) -> None:
        self._cancelled = self.consumers.get(frame.method.consumer_tag)

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self.blocked = frame.method.reason or "no reason given"

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked = ""


def _is_gone(answer: object) -> bool:
    """Tell a queue that does not exist from one whose node is down."""
    return (
        isinstance(answer, ChannelClosedByBroker)
        and answer.reply_code == _NOT_FOUND
        and not _AWAY.search(answer.reply_text)
    )


def _cure(feature: str) -> str:
    """Say in one line what to change where RabbitMQ does not permit a kind of queue."""
    cures = {
        "transient_nonexcl_queues": "set durable = true, or exclusive = true",
        "global_qos": "set qos.prefetch_count only",
    }
    cure = cures.get(feature, "see RabbitMQ's list of deprecated features")
    return f"this RabbitMQ does not permit {feature} any more: {cure}"


def _nothing() -> None:
    """Do nothing; being called is enough to end a wait."""
