"""Helps to test callbacks, and code that publishes, without a broker.

    with mock_sends(Message(topic="build.done", body={"id": 1})):
        code_that_publishes()

    assert deliver(callback, Message(body={"id": 1})).verdicts == [Verdict.ACK]

Any thread may call `deliver`; `mock_sends` holds for all threads until its block ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Callable, NamedTuple

from . import publisher
from .broker.wire import published
from .delivery import Delivery, Verdict
from .engine.account import DeliveryAccount
from .engine.pool import rehearse
from .engine.processor import make_processor
from .message import Message
from .service.tracing import trace

__all__ = ["DeliverResult", "Verdict", "deliver", "mock_sends"]


@contextmanager
def mock_sends(*expected: Message | type[Message]) -> Iterator[list[Message]]:
    """Catch the messages that are published in a `with` block, and compare them at its end.

    `publish` validates and encodes them as usual, but sends nothing.

    Args:
        expected: In the order of publishing, the messages expected, or only their classes.

    Yields:
        The list of messages published so far.

    Raises:
        AssertionError: Other messages were published; tells the first difference.
    """
    from unittest import mock  # Slow to import, and the rest of the module does without.

    sent: list[Message] = []
    with mock.patch.object(publisher, "_send", lambda message, *_: sent.append(message)):
        yield sent
    if len(sent) != len(expected):
        raise AssertionError(
            f"{len(sent)} messages were published, expected {len(expected)}: {sent}"
        )
    for number, (message, wanted) in enumerate(zip(sent, expected), 1):
        difference = _difference(message, wanted)
        if difference:
            raise AssertionError(f"message {number}: {difference}")


def _difference(message: Message, wanted: Message | type[Message]) -> str:
    """Say how a message differs from the expected message or class; "" if it does not."""
    cls = wanted if isinstance(wanted, type) else type(wanted)
    if not isinstance(message, cls):
        return f"{type(message).__name__} was published, expected {cls.__name__}"
    if isinstance(wanted, type) or message == wanted:
        return ""
    for part in ("topic", "body"):
        found, hoped = getattr(message, part), getattr(wanted, part)
        if found != hoped:
            return f"{part} {found!r} was published, expected {hoped!r}"
    return f"headers {message.headers!r} were published, expected {wanted.headers!r}"


class DeliverResult(NamedTuple):
    """The verdicts that the broker would have received.

    Attributes:
        verdicts: One for each message, in order.
        error: The exception that `consume` would have raised, None when it would have gone on.
    """

    verdicts: list[Verdict]
    error: BaseException | None


def deliver(
    callback: Callable[..., Any], *messages: Message, body_mode: str = "object"
) -> DeliverResult:
    """Give messages to a callback as a consumer does: encoded, decoded, validated, settled.

    The callback runs on another thread than the caller's, as it does in a consumer, one message
    after the other. If it ends the consumer, by HaltConsumer or by failing, the messages that come
    later go back to their queue. A message whose attribute `redelivered` is set does not run again
    if it ran before.

    Args:
        callback: A function, an object or a class, coroutine or not.
        messages: Delivered in this order.
        body_mode: "object", "json" or "bytes", as `body` in the configuration.

    Raises:
        ValueError: The callback cannot be called with a message.
        Exception: Whatever the constructor of a callback class raises.
    """
    verdicts: list[Verdict] = []
    error = None
    account = DeliveryAccount(len(messages))
    session = 1
    queues = {message.queue or "" for message in messages}
    account.begin(session, queues)
    with rehearse(make_processor(callback, body_mode, wrap=trace)) as run:
        for number, message in enumerate(messages, 1):
            if message.redelivered:
                # The broker redelivers after a session is lost: end this one and begin another.
                account.lose([])
                session = number
                account.begin(session, queues)
            delivery = _make_delivery(message, session, number)
            is_to_run = account.receive(delivery)
            if is_to_run and error is None:
                outcome = run(delivery)
                account.conclude(outcome)
                account.release_all()
                error = outcome.error
            elif is_to_run:
                account.return_unstarted([delivery])
            verdicts += [frame.verdict for frame in account.take_frames()]
    return DeliverResult(verdicts, error)


def _make_delivery(message: Message, session: int, tag: int) -> Delivery:
    """Make the delivery of a message; a body of bytes stays as it is."""
    body = message.body if isinstance(message.body, bytes) else message._encoded_body
    return Delivery(
        session=session,
        tag=tag,
        queue=message.queue or "",
        routing_key=message.topic,
        redelivered=message.redelivered,
        properties=message.properties,
        body=body,
        message_id=message.properties.message_id,
        received=monotonic(),
        published=published(message.properties),
    )
