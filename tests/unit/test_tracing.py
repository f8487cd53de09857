"""Tests of spans: what each callback and each publication leads to, and where nothing is set up."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fmconsume import Drop, HaltConsumer, Message, Nack, publish, publisher
from fmconsume.broker.request import Request
from fmconsume.delivery import NACK, Outcome
from fmconsume.engine.pool import make_pool
from fmconsume.engine.processor import make_processor
from fmconsume.exceptions import PublishReturned
from fmconsume.recording import Recorder, replay
from fmconsume.service import tracing
from fmconsume.testing import deliver, mock_sends

from .fakes import get_soon, make_delivery

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def make_message(**headers: Any) -> Message:
    """Make a message with headers."""
    message = Message(topic="fruit.ripe", headers=headers)
    message.id, message.queue = "apple", "basket"
    return message


def ids(span: ReadableSpan) -> tuple[str, str | None]:
    """Give the id of a span's trace, and that of its parent."""
    assert span.context is not None
    parent = trace.format_span_id(span.parent.span_id) if span.parent else None
    return trace.format_trace_id(span.context.trace_id), parent


# -- callbacks


def test_trace_attributes(spans: InMemorySpanExporter) -> None:
    """A span tells what ran, by the names of the conventions."""
    delivery = make_delivery(queue="basket", body=b'{"n": 1}', tag=7)
    delivery.published = ("orchard", *delivery.published)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    pool = make_pool(make_processor(print, wrap=tracing.trace), 1, outcomes.put)
    pool.start()
    pool.inbox.put(delivery)
    pool.end()
    get_soon(outcomes)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("process basket", SpanKind.CONSUMER)
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orchard:fruit.ripe:basket",
        "messaging.rabbitmq.destination.routing_key": "fruit.ripe",
        "messaging.rabbitmq.message.delivery_tag": 7,
        "messaging.message.id": "apple",
        "messaging.message.body.size": 8,
    }


@pytest.mark.parametrize(
    ("queue", "topic", "name", "destination"),
    [
        ("basket", "basket", "process basket", "basket"),
        ("basket", "", "process basket", "basket"),
        ("", "a", "process", "a"),
        ("amq.gen-x7", "a", "process (server-named)", "a:amq.gen-x7"),
        ("a\nb", "c\ud800", r"process a\nb", r"c\ud800:a\nb"),
    ],
)
def test_trace_names(
    spans: InMemorySpanExporter, queue: str, topic: str, name: str, destination: str
) -> None:
    """The name of a span has the queue alone, and its destination what is not empty."""
    message = Message(topic=topic)
    message.queue = queue
    message.id = None
    deliver(lambda _: None, message)
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert (span.name, span.attributes["messaging.destination.name"]) == (name, destination)
    assert "messaging.message.id" not in span.attributes


@pytest.mark.parametrize("value", [TRACEPARENT, TRACEPARENT.encode()])
def test_trace_parent(spans: InMemorySpanExporter, value: Any) -> None:
    """The span goes on with the trace that the headers name."""
    deliver(lambda _: None, make_message(traceparent=value))
    assert ids(spans.get_finished_spans()[0]) == (TRACE, PARENT)


@pytest.mark.parametrize("value", ["", "00-x", TRACEPARENT[:-1], 7, b"\xff", [TRACEPARENT], None])
def test_trace_no_parent(spans: InMemorySpanExporter, value: Any) -> None:
    """A header that names no trace begins a new one, also after a message that named one."""
    deliver(lambda _: None, make_message(traceparent=TRACEPARENT), make_message(traceparent=value))
    deliver(lambda _: None, make_message())
    first, *others = map(ids, spans.get_finished_spans())
    assert first == (TRACE, PARENT)
    assert [parent for _, parent in others] == [None, None]
    assert len({first[0], *(trace_id for trace_id, _ in others)}) == 3


def in_thread(error: Any) -> Any:
    """Make a callback that raises."""

    def callback(message: Message) -> None:
        raise error

    return callback


def on_loop(error: Any) -> Any:
    """Make a coroutine function that raises."""

    async def callback(message: Message) -> None:
        await asyncio.sleep(0)
        raise error

    return callback


def in_awaitable(error: Any) -> Any:
    """Make a function that returns a coroutine that raises."""
    return lambda message: on_loop(error)(message)


KINDS = pytest.mark.parametrize("make", [in_thread, on_loop, in_awaitable])


@KINDS
@pytest.mark.parametrize(
    "error", [Nack, Drop("bad"), HaltConsumer(3), HaltConsumer(3, requeue=True)]
)
def test_trace_verdict(spans: InMemorySpanExporter, make: Any, error: Any) -> None:
    """A verdict is no error; the span tells it."""
    deliver(make(error), make_message())
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
    name = error.__name__ if isinstance(error, type) else type(error).__name__
    assert (span.attributes or {})["fmconsume.raised"] == name
    assert not span.events


@KINDS
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)], ids=repr)
def test_trace_error(spans: InMemorySpanExporter, make: Any, error: BaseException) -> None:
    """Any other exception is an error, with its traceback."""
    assert deliver(make(error), make_message()).error is error
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == f"{type(error).__name__}: {error}"
    assert (span.attributes or {})["error.type"] == f"builtins.{type(error).__name__}"
    (event,) = span.events
    assert "in callback" in str((event.attributes or {})["exception.stacktrace"])


@KINDS
def test_trace_failure_line(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    """The line that tells of a failure belongs to the span of its callback."""
    seen: list[int] = []
    caplog.handler.addFilter(
        lambda _: seen.append(trace.get_current_span().get_span_context().span_id) is None
    )
    deliver(make(ValueError("no")), make_message())
    (span,) = spans.get_finished_spans()
    assert "the callback failed" in caplog.text
    assert span.context is not None
    assert seen == [span.context.span_id]


def test_trace_undecodable(spans: InMemorySpanExporter) -> None:
    """A message that no callback sees has no span."""
    deliver(lambda _: None, Message(body=["no object"]))
    assert not spans.get_finished_spans()


def test_trace_replay(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    """A replay makes the spans that a consumer would."""
    path = str(tmp_path / "messages")
    deliver(Recorder(path), make_message(traceparent=TRACEPARENT))
    spans.clear()
    assert replay(path, lambda _: None) == 0
    assert ids(spans.get_finished_spans()[0]) == (TRACE, PARENT)


def test_trace_current(spans: InMemorySpanExporter) -> None:
    """Spans that a callback makes are children of its own, and eight coroutines do not mix."""
    count = 8
    running: list[Message] = []

    async def callback(message: Message) -> None:
        running.append(message)
        while len(running) < count:
            await asyncio.sleep(0)
        with trace.get_tracer_provider().get_tracer("test").start_as_current_span(str(message.id)):
            await asyncio.sleep(0)

    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    processor = make_processor(callback, wrap=tracing.trace)
    assert processor.has_coroutine_function
    pool = make_pool(processor, count, outcomes.put)
    pool.start()
    try:
        for number in range(count):
            headers = {"traceparent": f"00-{number + 1:032x}-{PARENT}-01"}
            pool.inbox.put(
                make_delivery(tag=number + 1, message_id=str(number + 1), headers=headers)
            )
        assert [get_soon(outcomes).error for _ in range(count)] == [None] * count
    finally:
        pool.end()
        processor.coroutines.close(5)
    found = spans.get_finished_spans()
    own = {span.context.trace_id: span for span in found if span.kind is SpanKind.CONSUMER}  # type: ignore[union-attr]
    inner = [span for span in found if span.kind is SpanKind.INTERNAL]
    assert len(own) == len(inner) == count
    for span in inner:
        parent = own[int(span.name)]
        assert span.parent is not None
        assert parent.context is not None
        assert span.parent.span_id == parent.context.span_id


def test_trace_not_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a provider, or without the API, nothing is called but the callback."""
    assert tracing.trace(print) is print  # type: ignore[comparison-overlap]
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert tracing.trace(print) is print  # type: ignore[comparison-overlap]


# -- publishing


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, conf: Any) -> list[Request]:
    """Get what would be sent."""
    conf.update(publish_exchange="orchard")
    sent: list[Request] = []
    monkeypatch.setattr(publisher, "_send", lambda _, request: sent.append(request))
    return sent


def test_publication(spans: InMemorySpanExporter, sent: list[Request]) -> None:
    """A message is published in a span, which its header names; the message stays as it is."""
    message = make_message()
    before = dict(message.headers)
    publish(message)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("publish orchard", SpanKind.PRODUCER)
    assert span.attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orchard:fruit.ripe",
        "messaging.rabbitmq.destination.routing_key": "fruit.ripe",
        "messaging.message.id": "apple",
        "messaging.message.body.size": 2,
    }
    assert message.headers == before
    assert span.context is not None
    trace_id, span_id = span.context.trace_id, span.context.span_id
    headers = sent[0].properties.headers
    assert headers == {**before, "traceparent": headers["traceparent"]}
    named = f"00-{trace.format_trace_id(trace_id)}-{trace.format_span_id(span_id)}-"
    assert headers["traceparent"].startswith(named)


def test_publication_in_callback(spans: InMemorySpanExporter, sent: list[Request]) -> None:
    """What a callback publishes goes on with the trace of its message, also the message itself."""
    deliver(publish, make_message(traceparent=TRACEPARENT))
    published, processed = spans.get_finished_spans()
    assert processed.context is not None
    assert ids(processed) == (TRACE, PARENT)
    assert ids(published) == (TRACE, trace.format_span_id(processed.context.span_id))
    assert published.context is not None
    span_id = trace.format_span_id(published.context.span_id)
    assert sent[0].properties.headers["traceparent"] == f"00-{TRACE}-{span_id}-01"


def test_publication_fails(spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """What publish() raises is an error of its span."""

    def refuse(*_: Any) -> None:
        raise PublishReturned("no queue takes it")

    monkeypatch.setattr(publisher, "_send", refuse)
    with pytest.raises(PublishReturned):
        publish(make_message(), "")
    (span,) = spans.get_finished_spans()
    assert span.name == "publish amq.default"
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "fmconsume.exceptions.PublishReturned"
    assert len(span.events) == 1


def test_publication_not_set_up(sent: list[Request]) -> None:
    """Without a provider nothing is added to a message."""
    message = make_message()
    publish(message)
    assert sent[0].properties.headers == message.headers
    assert "traceparent" not in message.headers


def test_publication_mocked(spans: InMemorySpanExporter) -> None:
    """Tests that compare what is published see no difference."""
    with mock_sends(make_message()):
        publish(make_message())


# -- where OpenTelemetry fails


class Failing:
    """A part of OpenTelemetry's that fails."""

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("no header")

    inject = extract


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_trace_broken_propagator(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """A propagator that fails changes no verdict, and its span has no parent."""
    monkeypatch.setattr("opentelemetry.propagate._HTTP_TEXT_FORMAT", Failing())

    def callback(message: Message) -> None:
        if error:
            raise error

    told = deliver(callback, make_message(traceparent=TRACEPARENT))
    assert told.error is error
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    with mock_sends(Message(topic="fruit")):
        publish(Message(topic="fruit"))


def test_trace_header_names_of_bytes(spans: InMemorySpanExporter) -> None:
    """A propagator gets no name that is no text."""
    message = make_message(traceparent=TRACEPARENT)
    message._headers[b"\xff"] = "x"
    assert deliver(print, message).error is None
    (span,) = spans.get_finished_spans()
    assert ids(span) == (TRACE, PARENT)


@pytest.mark.parametrize("step", ["start_span", "end"])
def test_trace_broken_span(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A span that cannot begin or end changes no verdict, of a function or a coroutine."""

    async def coroutine(message: Message) -> None:
        raise Nack

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no span")

    owner = "Tracer" if step == "start_span" else "Span"
    monkeypatch.setattr(f"opentelemetry.sdk.trace.{owner}.{step}", fail)
    assert deliver(print, make_message()).error is None
    assert deliver(coroutine, make_message()).verdicts == [NACK]
