"""One session with the broker: a connection, a channel and its consumers, used and thrown away.

One thread at a time owns a session: an opener until the supervisor takes it. Any thread may
call `wake` and `hurry`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Container, Iterable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Callable

from pika.exceptions import ChannelClosedByBroker

from ..delivery import ACK, FAIL, NACK, Delivery, Frame
from ..exceptions import ConsumerCanceled
from ..redaction import hide_passwords
from .addresses import Address
from .connection import DEADLINE, STOP_DEADLINE, Connection, connect
from .errors import LOSS, SessionLost, connect_error, is_gone
from .topology import Topology, declare, naming
from .wire import install, ordered

__all__ = ["Session", "open_session"]

#: Heartbeat intervals after which a line counts as silent. It is noticed half of one later.
_SILENT = 1.4
#: When so many bytes came, more are probably there: pika dispatches what it has once it has read
#: 100 KB, of which it counts whole frames. Source: `_MAX_CONSUME_BYTES` in pika 1.3 and 1.4.
_PIECE = 64 * 1024
#: Pieces taken in by one wait at most, so that the workers get something to do.
_PIECES = 10


def open_session(
    address: Address,
    topology: Topology,
    deliver: Callable[[Delivery], None],
    number: int = 1,
    passing: Container[int] = (),
) -> Session:
    """Connect, open a channel and declare; the session does not consume yet.

    Args:
        deliver: Gets each delivery, inside `Session.wait`.
        number: Tells the deliveries of this session from those of every other.
        passing: channel.close codes that may pass and refuse nothing for good.

    Raises:
        ConnectionException, BadDeclaration, PermissionException: The broker refuses, and would
            again.
        SessionLost: It cannot be reached now, or the connection ended meanwhile.
    """
    install()
    connection = connect(address)
    try:
        channel = _open_channel(connection)
        names = declare(connection, channel, topology, passing)
    except BaseException:
        connection.discard()
        raise
    return Session(connection, channel, topology, names, deliver, number, passing)


def _open_channel(connection: Connection) -> Any:
    try:
        return connection.open_channel()
    except SessionLost:
        raise
    except Exception as exc:
        raise connect_error(connection.address, exc) from exc


class Session:
    """A connection and its one channel, on which everything is declared.

    Args:
        names: Each configured name of a queue to the one that it has.
        deliver: As for `open_session`, like number and passing.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Any,
        topology: Topology,
        names: dict[str, str],
        deliver: Callable[[Delivery], None],
        number: int,
        passing: Container[int],
    ) -> None:
        self.number = number
        self.address = connection.address
        #: Each consumer tag of this session to the name of its queue.
        self.consumers: dict[str, str] = {}
        self._connection = connection
        self._channel = channel
        self._names = names
        self._counting = topology.counting_queues
        self._deliver = deliver
        self._passing = passing
        #: Bytes received when something last came, and when that was, monotonic seconds.
        self._bytes_heard, self._heard_at = 0, monotonic()
        #: When it began to send what pika has not taken yet, monotonic seconds.
        self._sending_since = math.inf
        #: Queue whose consumer the broker has cancelled; None before that.
        self._cancelled: str | None = None
        channel.add_on_cancel_callback(self._on_cancel)

    # -- for other threads -------------------------------------------------

    def wake(self) -> None:
        """Make `wait` return soon. Thread: any."""
        self._connection.wake()

    def hurry(self) -> None:
        """Let no request wait longer than 5 s from now on, because of a stop. Thread: any."""
        self._connection.is_in_a_hurry = True

    # -- consuming ---------------------------------------------------------

    def consume(self) -> None:
        """Start a consumer for each queue; deliveries wait until `wait` is called.

        Raises:
            BadDeclaration, PermissionException: The broker refuses, and would again.
            SessionLost: The session ended meanwhile.
        """
        for name in self._names.values():
            with naming(self._connection, "queue", name, self._passing):
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
        with LOSS, self._connection.within(DEADLINE, "consuming again"):
            self._cancel(before)

    @property
    def name(self) -> str:
        """Its queues and its broker, as the log calls them."""
        return hide_passwords(f"{', '.join(self._names.values())} at {self.address.name}")

    @property
    def blocked(self) -> str:
        """The broker's reason while it blocks publishers (an alarm), or ""."""
        return self._connection.alarm.reason

    @property
    def is_consuming(self) -> bool:
        """Whether connection and channel are open and every consumer is registered."""
        return (
            self._connection.is_open
            and self._channel.is_open
            and len(self._channel.consumer_tags) == len(self._names)
        )

    def tick(self, seconds: float) -> None:
        """Make sure that something happens every so many seconds, or half a heartbeat.

        Raises:
            SessionLost: Inside pika, when the broker takes no acknowledgements for too long.
        """
        seconds = min(seconds, self._connection.heartbeat / 2 or seconds)
        if monotonic() - self._sending_since > DEADLINE - seconds:
            raise SessionLost("the broker takes no acknowledgements")
        # Twice: the first is called also while pika blocks, the second ends a wait.
        self._connection.call_even_inside_pika(seconds, partial(self.tick, seconds))
        self._connection.call_later(0.0, _nothing)

    def wait(self, seconds: float | None = None) -> None:
        """Do I/O until something happened, or at most so long; deliver all that has come.

        To wait without a limit is cheaper, as pika makes a timer for each limit.

        Raises:
            SessionLost: The connection or the channel is closed, or the line is silent.
        """
        with LOSS:
            for _ in range(_PIECES):
                self._connection.process_events(seconds)
                if self._listen() < _PIECE:
                    break
                seconds = 0.0
        self._check()

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
        now, heartbeat = monotonic(), self._connection.heartbeat
        count = self._connection.bytes_received - self._bytes_heard
        if count:
            self._bytes_heard += count
            self._heard_at = now
        elif heartbeat and now - self._heard_at > _SILENT * heartbeat:
            raise SessionLost(f"nothing heard from the broker for {now - self._heard_at:.0f} s")
        return count

    def settle(self, frames: Iterable[Frame]) -> None:
        """Send what settles deliveries.

        Raises:
            SessionLost: The session ended first; what was sent may have arrived or not.
        """
        self._sending_since = monotonic()
        with LOSS:
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
        with LOSS, self._connection.within(DEADLINE, "the depths of the queues"):
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
            with LOSS, self._connection.within(DEADLINE, f"queue {queue}"):
                channel = self._connection.open_channel()
                channel.queue_declare(self._cancelled or "", passive=True)
        except SessionLost as exc:
            if is_gone(exc.__cause__):
                raise ConsumerCanceled(f"{lost}, and the queue is gone") from exc
            raise SessionLost(f"{lost}: {exc}") from exc
        raise lost

    # -- ending it ---------------------------------------------------------

    def cancel(self) -> None:
        """Stop deliveries; what pika still holds goes back to its queue.

        Raises:
            SessionLost: The session ended first, or there was no answer in time.
        """
        with LOSS, self._connection.within(STOP_DEADLINE, "cancelling the consumers"):
            self._cancel(list(self._channel.consumer_tags))

    def _cancel(self, tags: Iterable[str]) -> None:
        """Cancel consumers.

        pika rejects, one by one, what it holds when it sends a basic.cancel, and what comes before
        the answer. So it delivers first all that it has.
        """
        for tag in tags:
            self._connection.process_events(0)
            self._channel.basic_cancel(tag)

    def leave(self) -> None:
        """Let the broker close the channel: pika would cancel the consumers first.

        A single active consumer that is cancelled is replaced before what it had is back in the
        queue. A channel that dies returns all that it had in one step.

        Raises:
            SessionLost: The session ended first, or there was no answer in time.
        """
        nowhere = f"fmconsume-leaves-{uuid.uuid4()}"
        within = self._connection.within(STOP_DEADLINE, "leaving the queue")
        with LOSS, within, suppress(ChannelClosedByBroker):
            self._channel.queue_declare(nowhere, passive=True)

    def close(self) -> None:
        """Close the channel, whose answer tells that every frame has arrived, and the connection.

        A session that is broken already is only dropped, and so is one that does not answer.
        """
        self._connection.close(self._channel)

    def discard(self) -> None:
        """Close without waiting for a line that may be dead; whoever calls may go on."""
        self._connection.discard(self._channel)

    # -- called by pika, inside wait ---------------------------------------

    def _on_message(
        self, queue: str, channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        # Earlier quorum queues than those of 4.3 sort the headers when they add a count.
        published = properties.published
        if queue in self._counting:
            published = ordered(published)
        self._deliver(
            Delivery(
                session=self.number,
                tag=method.delivery_tag,
                queue=queue,
                routing_key=method.routing_key,
                redelivered=method.redelivered,
                properties=properties,
                body=body,
                message_id=properties.message_id,
                received=monotonic(),
                published=(method.exchange, *published),
            )
        )

    def _on_cancel(self, frame: Any) -> None:
        self._cancelled = self.consumers.get(frame.method.consumer_tag)


def _nothing() -> None:
    """Do nothing; being called is enough to end a wait."""
