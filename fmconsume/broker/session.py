"""One session with the broker: a connection, a channel and its consumers, used and thrown away.

One thread at a time owns a session: an opener until the supervisor takes it. Any thread may
call `wake` and `hurry`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Callable, NoReturn

from pika.exceptions import ChannelClosedByBroker, NoFreeChannels

from ..delivery import ACK, CHANNEL, FAIL, NACK, Delivery, Frame
from ..exceptions import BadDeclaration, ConsumerCanceled, PermissionException
from ..identity import Identity
from ..redaction import hide_passwords
from .addresses import Address
from .connection import DEADLINE, STOP_DEADLINE, Connection, connect
from .errors import LOSS, SessionLost, connect_error, is_gone
from .topology import Topology, ask, ask_to_consume, declare, is_stream, stream_error
from .wire import expect_no_callbacks, install, ordered

__all__ = ["Session", "make_delivery", "open_session"]

#: If this many bytes came, more are probably waiting: pika reads 100 KB at most before it
#: dispatches, and counts whole frames only. Source: `_MAX_CONSUME_BYTES` in pika 1.3 and 1.4.
_PIECE = 64 * 1024
#: Pieces that one wait reads at most, so that the workers soon get the deliveries.
_PIECES = 10


def open_session(
    address: Address,
    topology: Topology,
    deliver: Callable[[Delivery], None],
    number: int = 1,
    retry_codes: Container[int] = (),
    identity: Identity | None = None,
) -> Session:
    """Connect, open a channel and declare; the session does not consume yet.

    Args:
        deliver: Gets each delivery, inside `Session.wait`.
        number: Tells the deliveries of this session from those of every other.
        retry_codes: channel.close codes that make a SessionLost, since their cause may pass.
        identity: Names the consumers to the broker; None leaves that to pika.

    Raises:
        ConnectionException, BadDeclaration, PermissionException: The broker refuses, and would
            again.
        SessionLost: The broker cannot be reached now, or the connection ended meanwhile.
    """
    install()
    connection = connect(address, retry_codes)
    expect_no_callbacks(connection.callbacks)
    try:
        channel, names = declare(connection, _open_channel(connection), topology)
    except BaseException:
        connection.discard()
        raise
    return Session(connection, channel, topology, names, deliver, number, identity)


def _open_channel(connection: Connection) -> Any:
    try:
        return connection.open_channel()
    except SessionLost:
        raise
    except Exception as exc:
        raise connect_error(connection.address, exc) from exc


class Session:
    """A connection and its channels; on the first one everything is declared.

    Args:
        names: The actual name of each queue by its configured name, which is "" where the
            broker chose the name.
        deliver: As for `open_session`, like number and identity.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Any,
        topology: Topology,
        names: dict[str, str],
        deliver: Callable[[Delivery], None],
        number: int,
        identity: Identity | None = None,
    ) -> None:
        self.number = number
        self._identity = identity
        self.address = connection.address
        #: The name of the queue by consumer tag.
        self._consumers: dict[str, str] = {}
        self._connection = connection
        #: The channels that are open, by number; the last one is for the consumers to come.
        self._channels = {0: channel}
        #: How many channels there have been.
        self._opened = 1
        #: The number of the channel, and the prefetch that it gives the consumers to come.
        self._prefetch = 0, -1
        self._names = names
        self._topology = topology
        #: The arguments of each queue's consumer, by the actual name.
        self._arguments = {
            names[name]: queue.get("consumer_arguments") for name, queue in topology.queues.items()
        }
        self._sorting = topology.sorting_queues(connection.version)
        #: Queues of which nothing has come yet, and whose type is not known.
        self._untyped = {names[name] for name in topology.untyped_queues}
        #: Queues whose first message came as from a stream.
        self._maybe_streams: set[str] = set()
        self._deliver = deliver
        #: When the present `settle` began to send, monotonic seconds; infinity while none runs.
        self._sending_since = math.inf
        #: Queue whose consumer the broker has cancelled; None before that.
        self._cancelled: str | None = None
        channel.add_on_cancel_callback(self._on_cancel)

    # -- for other threads -------------------------------------------------

    def wake(self) -> None:
        """Make `wait` return soon. Thread: any."""
        self._connection.wake()

    def hurry(self) -> None:
        """Give each request up after 5 s of silence, because of a stop. Thread: any."""
        self._connection.is_in_a_hurry = True

    # -- consuming ---------------------------------------------------------

    def consume(self, prefetch_count: int | None = None) -> None:
        """Start a consumer for each queue; `wait` delivers what they get.

        Args:
            prefetch_count: Messages that each may get ahead, 0 is no limit; None takes the
                topology's.

        Raises:
            BadDeclaration, PermissionException: The broker refuses, and would again.
            SessionLost: The session ended meanwhile.
        """
        count = self._topology.prefetch_count if prefetch_count is None else prefetch_count
        self._consume(self.queues, count)

    def _consume(self, queues: Iterable[str], count: int) -> None:
        number, channel = next(reversed(self._channels.items()))
        if self._prefetch != (number, count):
            with ask(self._connection, "channel", f"prefetch {count}"):
                channel.basic_qos(self._topology.prefetch_size, count)
            self._prefetch = number, count
        for name in queues:
            with ask(self._connection, "queue", name, PermissionException):
                on_message = partial(self._on_message, name, number * CHANNEL)
                # That of the class: OpenTelemetry's instrumentation of pika replaces that of the
                # channel, and would make a span of each delivery, beside that of its callback.
                tag = type(channel).basic_consume(
                    channel,
                    name,
                    on_message,
                    consumer_tag=self._identity and self._identity.tag(len(self._consumers) + 1),
                    arguments=self._arguments[name],
                )
            self._consumers[tag] = name

    def open_channel(self) -> int | None:
        """Open a channel for the consumers to come; give its number, None where there is no other.

        Consumers and unacknowledged deliveries stay on the earlier ones: `close_channel` closes
        them.

        Raises:
            SessionLost: The session ended meanwhile.
        """
        with LOSS:
            try:
                channel = self._connection.open_channel()
            except NoFreeChannels:
                return None
        channel.add_on_cancel_callback(self._on_cancel)
        number, self._opened = self._opened, self._opened + 1
        self._channels[number] = channel
        return number

    def consume_again(self, queues: Sequence[str], prefetch_count: int) -> None:
        """Replace consumers by others on the latest channel; each gets a whole prefetch more.

        The deliveries that are unacknowledged now stay so. The broker counts them for the old
        consumers, not for the new ones.

        Source: measured on RabbitMQ 3.10 and 4.3; the prefetch counts for each consumer, not for
        the channel.

        Args:
            queues: Whose consumers; none may have room for another message.
            prefetch_count: As for `consume`.

        Raises:
            ConsumerCanceled: A queue is gone.
            BadDeclaration, PermissionException, SessionLost: As for `consume`.
        """
        old = [each for each in self._all_consumers if self._consumers[each[1]] in queues]
        # The new ones first, since a queue may be deleted with its last consumer.
        try:
            self._consume(queues, prefetch_count)
        except (BadDeclaration, SessionLost) as exc:
            if is_gone(exc.__cause__):  # Its basic.cancel is still on its way.
                raise ConsumerCanceled(f"{exc}: the queue is gone") from exc
            raise
        with LOSS, self._connection.within("consuming again"):
            self._cancel(old)

    def close_channel(self, number: int) -> None:
        """Close a channel that has no consumer and no unacknowledged delivery.

        Raises:
            SessionLost: The session ended meanwhile.
        """
        with LOSS, self._connection.within("closing a channel"):
            self._channels.pop(number).close()

    @property
    def queues(self) -> list[str]:
        """The names of the queues."""
        return list(self._names.values())

    @property
    def _all_consumers(self) -> list[tuple[Any, str]]:
        """The channel and the consumer tag of every consumer."""
        return [(each, tag) for each in self._channels.values() for tag in each.consumer_tags]

    @property
    def name(self) -> str:
        """The queues and the broker, as the log calls them."""
        return hide_passwords(f"{', '.join(self.queues)} at {self.address.name}")

    @property
    def blocked(self) -> str:
        """The broker's reason while it blocks publishers (an alarm), or ""."""
        return self._connection.alarm.reason

    @property
    def is_consuming(self) -> bool:
        """Whether connection and channels are open and every consumer is registered."""
        channels = self._channels.values()
        return (
            self._connection.is_open
            and all(channel.is_open for channel in channels)
            and sum(len(channel.consumer_tags) for channel in channels) == len(self._names)
        )

    def start_ticking(self, seconds: float) -> None:
        """Make `wait` return every `seconds` or quarter of a heartbeat, and for a silent line.

        A line is heard when a wait returns, so that a longer pause would count it as alive longer.

        It also ends a `settle` in which the broker has accepted nothing for almost DEADLINE.
        """
        self._tick(min(seconds, self._connection.heartbeat / 4 or seconds))

    def _tick(self, seconds: float) -> None:
        if monotonic() - self._sending_since > DEADLINE - seconds:
            raise SessionLost("the broker takes no acknowledgements")
        # Two timers: the first fires also while a call of pika's blocks, the second ends a wait.
        again = self._connection.until_silent(seconds)
        self._connection.call_even_inside_pika(again, partial(self._tick, seconds))
        self._connection.call_later(0.0, _nothing)

    def wait(self, seconds: float | None = None) -> None:
        """Do I/O until an event comes, `seconds` at most; deliver the messages that have come.

        It reads ten times at most, and leaves further messages to the next wait. To wait without a
        limit is cheaper, as pika makes a timer for each limit.

        Raises:
            SessionLost: The connection or the channel is closed, or the line is silent.
            BadDeclaration: A queue is a stream.
        """
        with LOSS:
            for _ in range(_PIECES):
                self._connection.process_events(seconds)
                if self._connection.listen() < _PIECE:
                    break
                seconds = 0.0
        self._check()
        if self._maybe_streams:
            self._refuse_streams(self._maybe_streams)

    def refuse_streams(self) -> None:
        """Raise if a queue is a stream, without waiting for its first message.

        Raises:
            BadDeclaration: It is.
            SessionLost: The session ended meanwhile.
        """
        self._refuse_streams(self._untyped)

    def _refuse_streams(self, queues: set[str]) -> None:
        with LOSS:
            while queues:
                queue = queues.pop()
                answer = ask_to_consume(self._connection, queue)
                if is_stream(answer):
                    raise stream_error(queue) from answer

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call the action after `seconds`, inside a `wait`; never once the session has ended."""
        self._connection.call_later(seconds, action)

    def _check(self) -> None:
        """Raise if connection or channel is closed: pika raises nothing when a channel closes."""
        if not self._connection.is_open:
            raise SessionLost("the connection is closed")
        if not all(channel.is_open for channel in self._channels.values()):
            lost = SessionLost("the broker closed the channel")
            lost.is_by_channel = True
            raise lost

    def settle(self, frames: Iterable[Frame]) -> None:
        """Send the frames that settle deliveries.

        Raises:
            SessionLost: The session ended first; any of the frames may have arrived or not.
        """
        self._sending_since = monotonic()
        with LOSS:
            for tag, verdict, multiple in frames:
                number, tag = divmod(tag, CHANNEL)
                channel = self._channels[number]
                if verdict is ACK:
                    channel.basic_ack(tag, multiple)
                elif verdict is NACK:
                    channel.basic_nack(tag, multiple, requeue=True)
                else:
                    # RabbitMQ 4.3 counts this, and no basic.nack, towards a delivery limit.
                    channel.basic_reject(tag, requeue=verdict is FAIL)
        self._sending_since = math.inf

    def depths(self) -> dict[str, int]:
        """Ask the broker how many messages are ready in each queue.

        Deliveries that the broker sent before its answers have arrived too; the next `wait`
        delivers them.

        Raises:
            SessionLost: The session ended first.
        """
        with LOSS, self._connection.within("the depths of the queues"):
            *_, channel = self._channels.values()
            answers = [channel.queue_declare(queue, passive=True) for queue in self.queues]
        return {answer.method.queue: answer.method.message_count for answer in answers}

    def raise_cancellation(self) -> NoReturn:
        """Raise the exception for a consumer that the broker has cancelled.

        Source: RabbitMQ cancels where a queue is deleted, where its node goes down, and, from
        4.3 on, where a quorum queue's delivery is not acknowledged in time.

        Raises:
            ConsumerCanceled: The queue is gone.
            SessionLost: The queue is there, or its node is down.
        """
        queue = repr(self._cancelled)
        lost = SessionLost(f"the broker cancelled the consumer of queue {queue}")
        lost.is_by_channel = True
        try:
            with LOSS, self._connection.within(f"queue {queue}"):
                channel = self._connection.open_channel()
                channel.queue_declare(self._cancelled or "", passive=True)
        except SessionLost as exc:
            if is_gone(exc.__cause__):
                raise ConsumerCanceled(f"{lost}, and the queue is gone") from exc
            raise SessionLost(f"{lost}: {exc}") from exc
        raise lost

    # -- ending it ---------------------------------------------------------

    def cancel(self) -> None:
        """Stop deliveries; return to their queues those that arrive meanwhile.

        Raises:
            SessionLost: The session ended first, or there was no answer in time.
        """
        with LOSS, self._connection.within("cancelling the consumers", STOP_DEADLINE):
            self._cancel(self._all_consumers)

    def _cancel(self, consumers: Iterable[tuple[Any, str]]) -> None:
        """Cancel consumers.

        For each, pika rejects, one by one, the messages that it holds when it sends the
        basic.cancel, and those that come before the answer. So let it deliver those it holds first.
        """
        for channel, tag in consumers:
            self._connection.process_events(0)
            channel.basic_cancel(tag)

    def leave(self) -> None:
        """Make the broker close the channel, by asking for a queue that does not exist.

        pika's own close would cancel the consumers first. The broker replaces a single active
        consumer as soon as it is cancelled, before its messages are back in the queue. A channel
        that the broker closes returns all its messages in one step.

        Raises:
            SessionLost: The session ended first, or there was no answer in time.
        """
        nowhere = f"fmconsume-leaves-{uuid.uuid4()}"
        within = self._connection.within("leaving the queue", STOP_DEADLINE)
        with LOSS, within, suppress(ChannelClosedByBroker):
            self._channels[0].queue_declare(nowhere, passive=True)

    def close(self) -> bool:
        """Close the channels, then the connection, as `Connection.close` does."""
        return self._connection.close(*self._channels.values())

    def discard(self) -> None:
        """Close on another thread, since the line may be dead, and return at once."""
        self._connection.discard(*self._channels.values())

    # -- called by pika, inside wait ---------------------------------------

    def _on_message(
        self, queue: str, base: int, channel: Any, method: Any, properties: Any, body: bytes
    ) -> None:
        # In older RabbitMQs a quorum queue sorts the headers when it adds its count. Sorted
        # always, they are the same in a redelivery.
        published = properties.published
        if queue in self._untyped:
            self._untyped.remove(queue)
            if "x-stream-offset" in (properties.headers or ()):
                self._maybe_streams.add(queue)
        if queue in self._sorting:
            published = ordered(published)
        numbers = self.number, base + method.delivery_tag
        self._deliver(make_delivery(*numbers, queue, method, properties, body, published))

    def _on_cancel(self, frame: Any) -> None:
        self._cancelled = self._consumers.get(frame.method.consumer_tag)


def make_delivery(
    session: int,
    tag: int,
    queue: str,
    method: Any,
    properties: Any,
    body: bytes,
    published: tuple[Any, ...],
) -> Delivery:
    """Make a Delivery of what pika gives for a basic.deliver, or for a basic.get-ok.

    Args:
        published: As the properties have it, or `ordered`.
    """
    return Delivery(
        session=session,
        tag=tag,
        queue=queue,
        routing_key=method.routing_key,
        redelivered=method.redelivered,
        properties=properties,
        body=body,
        message_id=properties.message_id,
        received=monotonic(),
        published=(method.exchange, *published),
    )


def _nothing() -> None:
    """Do nothing; being called is enough to end a wait."""
