"""Describes exchanges, queues and bindings, and declares them or asks the broker for them.

Consuming and checking use the same functions. The thread that owns the connection calls them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
)

from ..exceptions import BadDeclaration, PermissionException
from ..log import get_logger, warn_once
from .connection import Connection
from .errors import FORBIDDEN, LOSS, RESOURCE_LOCKED, SessionLost, reason, refusal

__all__ = [
    "NO_CONSUMER",
    "Topology",
    "ask",
    "ask_to_consume",
    "declare",
    "declare_exchange",
    "declare_queue",
    "explain",
    "is_built_in",
    "is_stream",
    "is_usable",
    "stream_error",
    "try_to_consume",
]

_log = get_logger(__name__)

#: channel.close code: what is there differs from what is declared, or an argument is wrong.
_DIFFERS = 406
#: channel.close codes for an exchange that may be there: the user may not declare one, or it is
#: another than the declared one.
_MAY_BE_THERE = {FORBIDDEN, _DIFFERS}
#: Arguments whose values have the wrong type: RabbitMQ refuses them, and names them in its answer.
NO_CONSUMER = {"x-priority": "none"}
_STREAM = (
    "it is a stream, which keeps its messages whatever a consumer answers: bind a quorum queue "
    "to the exchange and consume from that, or use a client for streams"
)
_LOCKED = (
    "RESOURCE_LOCKED - it is exclusive to another connection, and goes with that: end that "
    "connection, or choose another name"
)
_SHARED = "RESOURCE_LOCKED - it is there, and not exclusive: set exclusive = false, or delete it"


class Topology(NamedTuple):
    """Exchanges, queues and bindings of a consumer, and its prefetch.

    Attributes:
        exchanges: Name to "type", "durable", "auto_delete", "arguments".
        queues: Name to "durable", "auto_delete", "exclusive", "arguments" and
            perhaps "passive" and "consumer_arguments"; for the name "" the broker chooses one.
        bindings: Each with "queue", "exchange", "routing_keys" and perhaps "arguments".
        passive: The broker is asked whether exchanges and queues exist; it creates none.
        prefetch_count: Messages; 0 is no limit.
        prefetch_size: Bytes; RabbitMQ takes only 0, which is no limit.
    """

    exchanges: Mapping[str, Mapping[str, Any]]
    queues: Mapping[str, Mapping[str, Any]]
    bindings: Sequence[Mapping[str, Any]]
    passive: bool
    prefetch_count: int
    prefetch_size: int

    @property
    def counting_queues(self) -> set[str]:
        """The queues configured as quorum queues, which count how often they deliver a message."""
        return {
            name
            for name, queue in self.queues.items()
            if queue["arguments"].get("x-queue-type") == "quorum"
        }

    def sorting_queues(self, version: tuple[int, ...]) -> set[str]:
        """The queues that are, or may be, quorum queues and sort the headers of a message.

        Args:
            version: The first two numbers of RabbitMQ's version.
        """
        passive = {n for n, queue in self.queues.items() if queue.get("passive", self.passive)}
        # From 3.11 on a virtual host may have another type than "classic" for what declares none.
        has_default_type = (3, 11) <= version < (4, 0)
        return self.counting_queues | (self.untyped_queues if has_default_type else passive)

    @property
    def untyped_queues(self) -> set[str]:
        """The queues that may turn out to be streams, as their type is not declared."""
        return {
            name
            for name, queue in self.queues.items()
            if not queue["exclusive"]
            and (queue.get("passive", self.passive) or "x-queue-type" not in queue["arguments"])
        }

    @property
    def dead_lettering_queues(self) -> set[str]:
        """The queues whose arguments name a dead-letter exchange; a policy may name more."""
        key = "x-dead-letter-exchange"
        return {name for name, queue in self.queues.items() if key in queue["arguments"]}

    @property
    def has_single_active_consumer(self) -> bool:
        """Whether a queue has a single active consumer, which gets its messages in order."""
        key = "x-single-active-consumer"
        return any(queue["arguments"].get(key) for queue in self.queues.values())


def declare(connection: Connection, channel: Any, topology: Topology) -> tuple[Any, dict[str, str]]:
    """Declare exchanges and queues, and bind them.

    An exchange that is there and cannot be declared, as somebody else's may be, is used as it is.

    Returns:
        The channel, or another one where the broker has closed it over an exchange; and the
        actual name of each queue by its configured name.

    Raises:
        BadDeclaration: The broker refuses, and would again.
        SessionLost: The connection ended meanwhile.
    """
    for name, exchange in topology.exchanges.items():
        if is_built_in(name):
            continue
        try:
            with ask(connection, "exchange", name):
                declare_exchange(channel, name, exchange, passive=topology.passive)
        except BadDeclaration as refusal:
            channel = _use_as_it_is(connection, name, refusal)
    names = {}
    for name, queue in topology.queues.items():
        # A server-named queue exists only once it is declared.
        passive = bool(name) and queue.get("passive", topology.passive)
        try:
            with ask(connection, "queue", name):
                names[name] = declare_queue(channel, name, queue, passive=passive).queue
        except (BadDeclaration, SessionLost) as exc:
            raise _clarify(connection, name, exc) from exc.__cause__
    for binding in topology.bindings:
        _bind(connection, channel, names[binding["queue"]], binding)
    return channel, names


def is_built_in(exchange: str) -> bool:
    """Tell whether an exchange is RabbitMQ's own, which nobody need or may declare."""
    return not exchange or exchange.startswith("amq.")


def is_usable(answer: object) -> bool:
    """Tell whether an exchange may be used although the broker refused to declare it."""
    return isinstance(answer, ChannelClosedByBroker) and answer.reply_code in _MAY_BE_THERE


def _use_as_it_is(connection: Connection, name: str, refusal: BadDeclaration) -> Any:
    """Give another channel, and log a warning; raise the refusal if there is no such exchange."""
    if not is_usable(refusal.reason):
        raise refusal
    with LOSS:
        channel = connection.open_channel()
        try:
            with ask(connection, "exchange", name):
                declare_exchange(channel, name, {}, passive=True)
        except BadDeclaration as exc:
            # From RabbitMQ 4.3 on, who has no permission is not told whether it exists.
            if not is_usable(exc.reason):
                raise refusal from exc
            channel = connection.open_channel()
    warn_once(_log, "exchange", name, "exchange %r is used as it is: %s", refusal)
    return channel


def _clarify(connection: Connection, name: str, error: Exception) -> Exception:
    """Give the exception for a queue that was not declared: a clearer one if the queue is there."""
    refusal = error.__cause__
    if not isinstance(refusal, ChannelClosedByBroker):
        return error
    if refusal.reply_code not in (RESOURCE_LOCKED, _DIFFERS):
        return error
    with LOSS:
        text = explain(refusal, ask_to_consume(connection, name))
    # A queue of another connection's may be waited for.
    is_final = text and (text != _LOCKED or isinstance(error, BadDeclaration))
    return BadDeclaration("queue", name, text) if is_final else error


def _bind(connection: Connection, channel: Any, queue: str, binding: Mapping[str, Any]) -> None:
    exchange = binding["exchange"]
    for key in binding["routing_keys"]:
        with ask(connection, "binding", f"{exchange} -> {queue} ({key})"):
            channel.queue_bind(queue, exchange, key, binding.get("arguments"))


def declare_exchange(
    channel: Any,
    name: str,
    exchange: Mapping[str, Any],
    *,
    passive: bool = False,
    more_arguments: Mapping[str, Any] | None = None,
) -> None:
    """Declare an exchange, or ask whether it exists (`passive`); raises as pika does.

    Source: RabbitMQ refuses an unknown type also where a declaration is passive.
    """
    if passive:
        channel.exchange_declare(name, passive=True)
        return
    channel.exchange_declare(
        name,
        exchange["type"],
        durable=exchange["durable"],
        auto_delete=exchange["auto_delete"],
        arguments={**exchange["arguments"], **(more_arguments or {})},
    )


def declare_queue(
    channel: Any,
    name: str,
    queue: Mapping[str, Any],
    *,
    passive: bool = False,
    more_arguments: Mapping[str, Any] | None = None,
) -> Any:
    """Declare a queue, or ask whether it exists (`passive`); raises as pika does.

    Returns:
        pika's Queue.DeclareOk.
    """
    if passive:
        return channel.queue_declare(name, passive=True).method
    answer = channel.queue_declare(
        name,
        durable=queue["durable"],
        exclusive=queue["exclusive"],
        auto_delete=queue["auto_delete"],
        arguments={**queue["arguments"], **(more_arguments or {})},
    )
    return answer.method


def try_to_consume(channel: Any, name: str) -> None:
    """Ask whether one may consume from a queue, with arguments that RabbitMQ refuses afterwards."""
    channel.basic_consume(name, print, arguments=NO_CONSUMER)


def ask_to_consume(connection: Connection, name: str) -> ChannelClosedByBroker | None:
    """Give the broker's answer to `try_to_consume`, on a channel of its own.

    Raises:
        SessionLost: There is no answer in time.
        AMQPError: The connection ends meanwhile.
    """
    channel = connection.open_channel()
    try:
        with connection.within(f"queue {name!r}"):
            try_to_consume(channel, name)
            channel.close()  # A broker that accepts it may not send us anything.
    except ChannelClosedByBroker as exc:
        return exc
    return None


def explain(refusal: object, answer: object) -> str:
    """Say why a queue that is there cannot be declared; "" where the broker's own words do.

    RabbitMQ has the same words for a queue that is exclusive to another connection, and for one
    that is not exclusive but declared so.

    Args:
        refusal: The broker's answer to the declaration.
        answer: Its answer to `try_to_consume`.
    """
    if is_stream(answer):
        return _STREAM
    refused, answered = (getattr(each, "reply_code", 0) for each in (refusal, answer))
    if answered == RESOURCE_LOCKED:
        return _LOCKED
    return _SHARED if (refused, answered) == (RESOURCE_LOCKED, _DIFFERS) else ""


def is_stream(refusal: object) -> bool:
    """Tell whether an answer to `try_to_consume` comes from a stream.

    Source: seen on RabbitMQ 3.10 and 4.3, which name the type of queue that lacks the argument.
    """
    return "rabbit_stream_queue" in getattr(refusal, "reply_text", "")


def stream_error(name: str) -> BadDeclaration:
    """Make the exception for a queue that is a stream."""
    return BadDeclaration("queue", name, _STREAM)


@contextmanager
def ask(
    connection: Connection,
    obj_type: str,
    name: str,
    forbidden: type[PermissionException] = BadDeclaration,
) -> Iterator[None]:
    """Limit the time of a request in a `with` block, and raise a refusal that names its object.

    Args:
        obj_type: "exchange", "queue", "binding" or "channel".
        name: Of the object.
        forbidden: Raised where the user has no permission.

    Raises:
        BadDeclaration: The broker refuses, and would again.
        SessionLost: The connection ended meanwhile, or there is no answer in time.
    """
    try:
        with connection.within(f"{obj_type} {name!r}"):
            yield
    except (ChannelClosedByBroker, ConnectionClosedByBroker) as exc:
        raise refusal(obj_type, name, exc, connection.retry_codes, forbidden) from exc
    except AMQPConnectionError as exc:
        raise SessionLost(reason(exc)) from exc
    except (AMQPError, ValueError, TypeError, struct.error) as exc:
        # pika cannot encode the request: a name over 255 bytes, an argument of no AMQP type.
        raise BadDeclaration(obj_type, name, reason(exc)) from exc
