"""Traces that go through a real broker: from whoever publishes to what the callback publishes."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.pika import PikaInstrumentor

from fmconsume import Message, publish, publisher
from tests.waiting import PATIENCE, wait_until

from .running import configured, write_config


@pytest.fixture(autouse=True)
def publishers(broker, monkeypatch):
    """Let no publishing connection outlive the test."""
    publishers = {}
    monkeypatch.setattr(publisher, "_publishers", publishers)
    with configured(amqp_url=broker.url()):
        yield
        for each in list(publishers.values()):
            each.close()


def chain(spans):
    """Give the names of the spans, each after its parent; all must be of one trace."""
    by_id = {span.context.span_id: span for span in spans}
    assert len({span.context.trace_id for span in spans}) == 1
    (first,) = [span for span in spans if span.parent is None]
    names = [first.name]
    while len(names) < len(spans):
        (first,) = [span for span in spans if span.parent and by_id[span.parent.span_id] is first]
        names.append(first.name)
    return names


@pytest.fixture
def instrumented():
    """Switch on OpenTelemetry's own instrumentation of pika."""
    PikaInstrumentor().instrument(tracer_provider=trace.get_tracer_provider())
    yield
    PikaInstrumentor().uninstrument()


def publish_in_thread(message):
    """Publish to the queue that the message names."""
    if "to" in message.body:
        publish(Message(topic=message.body["to"]), "", PATIENCE)


async def publish_on_loop(message):
    """Do the same in a coroutine."""
    publish_in_thread(message)


@pytest.mark.parametrize("callback", [publish_in_thread, publish_on_loop])
@pytest.mark.parametrize("is_instrumented", [False, True])
def test_trace(spans, request, queue, new_queue, run_consumer, callback, is_instrumented):
    """Four spans are one trace, and pika's own instrumentation adds none."""
    if is_instrumented:
        request.getfixturevalue("instrumented")
    other = new_queue()
    run_consumer(callback, {queue: {"durable": True}, other: {"durable": True}})
    publish(Message(topic=queue, body={"to": other}), "", PATIENCE)
    wait_until(lambda: len(spans.get_finished_spans()) >= 4)
    names = ["publish amq.default", f"process {queue}", "publish amq.default", f"process {other}"]
    assert chain(spans.get_finished_spans()) == names
    destinations = [
        span.attributes["messaging.destination.name"] for span in spans.get_finished_spans()
    ]
    assert sorted(destinations) == sorted([queue, queue, other, other])


_CALLBACK = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)

def callback(message):
    raise ValueError(trace.get_current_span().get_span_context().is_valid)
"""


def test_trace_command(broker, queue, tmp_path, run_command):
    """The module of a callback may set OpenTelemetry up, and a span is made of its failure."""
    (tmp_path / "traced.py").write_text(_CALLBACK)
    config = write_config(tmp_path / "my.toml", broker.url(), queue)
    broker.publish(queue, [{}], headers={"traceparent": f"00-{7:032x}-{9:016x}-01"})
    command = run_command("--config", config, "--callback", "traced:callback", cwd=tmp_path)
    assert command.wait(PATIENCE) == 13
    assert "ValueError: True" in command.logged()
    assert f'"trace_id": "0x{7:032x}"' in command.printed()
    assert f'"parent_id": "0x{9:016x}"' in command.printed()
