"""Makes spans of OpenTelemetry: one for each callback, and one for each message that is published.

Any thread may call. opentelemetry-api is an extra. Where nobody has set up a provider of traces,
callbacks run as they are and messages are published as they are.

The names are those of OpenTelemetry's semantic conventions for messaging and for RabbitMQ, but for
the names of the spans, which leave out the routing key: it may be another one for each message.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable

from ..callbacks import find_function
from ..context import current
from ..delivery import CHANNEL, Delivery
from ..exceptions import AlreadyDone, Drop, HaltConsumer, Nack
from ..headers import to_text
from ..log import get_logger, warn_once
from ..text import describe, printable
from ..version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from ..message import Message

__all__ = ["is_set_up", "publication", "trace"]

_log = get_logger(__name__)

#: What a callback raises to say what becomes of its message: no error.
_VERDICTS = (Nack, Drop, HaltConsumer, AlreadyDone)


def is_set_up(provider: object) -> bool:
    """Tell whether a provider is one that does something; those of the API itself do nothing."""
    return not type(provider).__module__.startswith(
        ("opentelemetry.trace", "opentelemetry.metrics")
    )


def _find_tracer() -> Tracer | None:
    """Return what makes spans; None where nobody has set up a provider."""
    # Who sets one up has imported this.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return provider.get_tracer("fmconsume", __version__) if is_set_up(provider) else None


# -- callbacks -------------------------------------------------------------------------


def trace(callback: Callable[[Message], Any]) -> Callable[[Message], Any]:
    """Return a callback that runs the given one in a span; the same one where nothing is set up.

    The span's parent is the one that the headers of the message name (traceparent). It ends with
    the callback, or with the coroutine that the callback returns.
    """
    tracer = _find_tracer()
    if tracer is None:
        return callback

    def run(message: Message) -> Any:
        span = _begin(tracer, message)
        try:
            result = callback(message)
        except BaseException as exc:
            _end(span, exc)
            raise
        if hasattr(result, "__await__"):
            return _finish(span, result)
        _end(span)
        return result

    async def run_coroutine(message: Message) -> Any:
        return await run(message)

    return run_coroutine if inspect.iscoroutinefunction(find_function(callback)) else run


async def _finish(span: Span, awaitable: Awaitable[Any]) -> Any:
    try:
        result = await awaitable
    except BaseException as exc:
        _end(span, exc)
        raise
    _end(span)
    return result


@contextmanager
def _tolerated() -> Iterator[None]:
    """Go on where OpenTelemetry, or what was added to it, fails: no message depends on it."""
    try:
        yield
    except Exception as exc:
        warn_once(_log, "tracing", describe(exc), "OpenTelemetry failed; no message suffers: %r")


def _begin(tracer: Tracer, message: Message) -> Span:
    """Begin the span of a callback, at worst one that does nothing, and make it current."""
    from opentelemetry import context
    from opentelemetry.context import Context
    from opentelemetry.trace import INVALID_SPAN, set_span_in_context

    span: Span = INVALID_SPAN
    parent = Context()
    with _tolerated():
        parent = _read_parent(message.headers)
    with _tolerated():
        span = _start(tracer, parent)
    # It stays until the next message: the line that tells of a failure belongs to it, too.
    context.attach(set_span_in_context(span, parent))
    return span


def _start(tracer: Tracer, parent: Context) -> Span:
    from opentelemetry.trace import SpanKind

    from .history import label  # Without a provider nobody needs it.

    running = current.get()
    assert running is not None  # The processor has set it.
    queue = running[0].queue
    return tracer.start_span(
        f"process {printable(queue and label(queue))}".rstrip(),
        parent,
        SpanKind.CONSUMER,
        _describe_delivery(running[0]),
    )


def _read_parent(headers: Mapping[Any, Any]) -> Context:
    """Return the context that the headers of a message name, an empty one where they name none."""
    from opentelemetry import propagate
    from opentelemetry.context import Context

    texts = {
        name: to_text(each)
        for name, each in headers.items()
        if isinstance(name, str) and isinstance(each, (str, bytes))
    }
    # Without a context of its own it would begin with that of the message before.
    return propagate.extract(texts, Context())


def _describe_delivery(delivery: Delivery) -> dict[str, Any]:
    exchange = to_text(delivery.exchange) or ""
    # Source: the conventions leave out the queue where it is called as the routing key.
    queue = "" if delivery.queue == delivery.routing_key else delivery.queue
    return {
        **_describe("process", exchange, delivery.routing_key, queue),
        **_describe_message(delivery.message_id, delivery.body),
        "messaging.rabbitmq.message.delivery_tag": delivery.tag % CHANNEL,
    }


def _end(span: Span, exc: BaseException | None = None) -> None:
    """End a span, perhaps of what raised: a verdict is no error."""
    with _tolerated():
        if isinstance(exc, _VERDICTS):
            span.set_attribute("fmconsume.raised", type(exc).__name__)
        elif exc is not None:
            _fail(span, exc)
    with _tolerated():
        span.end()


# -- publishing ------------------------------------------------------------------------


@contextmanager
def publication(
    exchange: str, routing_key: str, message_id: str | None, body: bytes
) -> Iterator[dict[str, str]]:
    """Publish a message in a span, within a `with` block.

    Yields:
        Headers that the message gets, so that its consumers go on with the trace.
    """
    tracer = _find_tracer()
    if tracer is None:
        yield {}
        return
    from opentelemetry import propagate
    from opentelemetry.trace import INVALID_SPAN, SpanKind, set_span_in_context, use_span

    span: Span = INVALID_SPAN
    headers: dict[str, str] = {}
    with _tolerated():
        attributes = {
            **_describe("publish", exchange, routing_key),
            **_describe_message(message_id, body),
        }
        name = f"publish {printable(exchange or 'amq.default')}"
        span = tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes)
        propagate.inject(headers, set_span_in_context(span))
    with use_span(span, record_exception=False, set_status_on_exception=False):
        try:
            yield headers
        except BaseException as exc:
            _end(span, exc)
            raise
    _end(span)


# -- both ------------------------------------------------------------------------------


def _describe(operation: str, *names: str) -> dict[str, Any]:
    """Give the attributes of an operation on an exchange, a routing key and perhaps a queue."""
    routing_key = printable(names[1])
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": "send" if operation == "publish" else operation,
        "messaging.destination.name": ":".join(map(printable, filter(None, names)))
        or "amq.default",
        **({"messaging.rabbitmq.destination.routing_key": routing_key} if routing_key else {}),
    }


def _describe_message(message_id: str | None, body: bytes) -> dict[str, Any]:
    known = {} if message_id is None else {"messaging.message.id": printable(message_id)}
    return {**known, "messaging.message.body.size": len(body)}


def _fail(span: Span, exc: BaseException) -> None:
    """Let a span tell of an error."""
    from opentelemetry.trace import StatusCode

    span.record_exception(exc)
    span.set_attribute("error.type", f"{type(exc).__module__}.{type(exc).__qualname__}")
    span.set_status(StatusCode.ERROR, describe(exc))
