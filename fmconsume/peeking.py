"""Records what is in queues and puts all of it back: --record with --peek.

It takes messages one by one and settles none of them before the end, so that none comes twice.
Nothing is declared or bound, and no message is rejected, whatever it holds. One thread calls it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from .broker.connection import Connection, connect
from .broker.errors import FORBIDDEN, SessionLost, reason
from .broker.session import make_delivery
from .broker.topology import ask_to_consume, explain
from .broker.wire import install
from .console import say
from .delivery import Delivery
from .exceptions import (
    BadDeclaration,
    ConfigurationException,
    ConnectionException,
    PermissionException,
    UnavailableException,
)
from .kept import readable_fields
from .recording import Recorder
from .wiring import addresses

__all__ = ["peek"]


def peek(path: str, queues: Iterable[str], limit: int | None, body_mode: str) -> int:
    """Add the messages in queues to a file, until the queues are empty; then return all of them.

    The broker marks them as redelivered.

    Args:
        path: As for Recorder.
        queues: Their names.
        limit: Stop after so many messages.
        body_mode: As for `decode`; what does not decode is recorded as bytes.

    Returns:
        0, as an exit status.

    Raises:
        ConfigurationException: A queue has no name, the file cannot be opened, or a URL is wrong.
        BadDeclaration: A queue is a stream, or exclusive to another connection.
        ConnectionException, PermissionException: The broker refuses.
        UnavailableException: No broker can be reached, or it goes away, and it has all messages
            then; or a queue is not there.
    """
    names = list(queues)
    if "" in names:
        raise ConfigurationException("--peek: found a queue without a name: give --queue-name")
    recorder = Recorder(path, limit)
    install()
    connection, count = _connect(), 0
    try:
        _refuse_unreadable(connection, names)
        channel = connection.open_channel()
        for delivery in islice(_take(connection, channel, names), limit):
            recorder.write(json.dumps(readable_fields(delivery, body_mode)).encode() + b"\n")
            count += 1
        with connection.within("returning the messages"):
            channel.basic_nack(0, multiple=True, requeue=True)
    except (AMQPError, SessionLost) as exc:
        raise UnavailableException(f"{connection.address.name}: {reason(exc)}") from exc
    finally:
        connection.close()  # Where they are not returned yet, the broker does it now.
    say(f"{count} messages: recorded and returned")
    return 0


def _connect() -> Connection:
    """Connect to the first broker that answers.

    Raises:
        ConnectionException: One of them refuses, and none answers.
        UnavailableException: None can be reached.
    """
    errors: list[Exception] = []
    for address in addresses():
        try:
            return connect(address)
        except (SessionLost, ConnectionException) as exc:
            errors.append(exc)
    refusals = [error for error in errors if isinstance(error, ConnectionException)]
    raise refusals[0] if refusals else UnavailableException("; ".join(map(str, errors)))


def _refuse_unreadable(connection: Connection, names: list[str]) -> None:
    """Raise if a queue is a stream, or exclusive to another connection.

    RabbitMQ would end the connection over a basic.get from a stream.
    """
    for name in names:
        answer = ask_to_consume(connection, name)
        text = explain(None, answer)
        if text:
            raise BadDeclaration("queue", name, text) from answer


def _take(connection: Connection, channel: Any, names: list[str]) -> Iterator[Delivery]:
    """Take each message that is in the queues, and settle none."""
    for name in names:
        while True:
            try:
                with connection.within(f"taking a message of queue {name!r}"):
                    method, properties, body = channel.basic_get(name)
            except (ChannelClosedByBroker, ConnectionClosedByBroker) as exc:
                raise _refused(name, exc) from exc
            if method is None:
                break
            parts = name, method, properties, body, properties.published
            yield make_delivery(1, method.delivery_tag, *parts)


def _refused(queue: str, exc: Any) -> Exception:
    if exc.reply_code == FORBIDDEN:
        return PermissionException("queue", queue, exc.reply_text)
    return UnavailableException(f"cannot look into queue {queue!r}: {reason(exc)}")
