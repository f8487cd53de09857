"""Tests of the fields that tell which message a log line belongs to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from fmconsume import Message
from fmconsume.context import MessageFilter, message_fields
from fmconsume.decoding import decode
from fmconsume.delivery import Outcome
from fmconsume.engine.pool import make_pool
from fmconsume.engine.processor import Processor
from fmconsume.testing import deliver

from .fakes import get_soon, make_delivery


class Notebook(logging.Handler):
    """Keeps the text of each record, written where a formatter would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(message_id)s %(worker)s %(message)s"))
        self.addFilter(MessageFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Note the text."""
        self.lines.append(self.format(record))


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    """Get all that is logged."""
    notebook, root = Notebook(), logging.getLogger()
    level = root.level
    root.addHandler(notebook)
    root.setLevel(logging.INFO)
    yield notebook
    root.setLevel(level)
    root.removeHandler(notebook)


def numbered(number: int) -> Message:
    """Make a message whose id is a number."""
    message = Message(topic="fruit", body={"n": number})
    message.id, message.queue = str(number), "basket"
    return message


def test_message_fields_outside() -> None:
    """Where no message runs there are none."""
    assert message_fields() == {}


def test_message_fields_in_callback() -> None:
    """They tell of the message that runs."""
    seen: list[Any] = []
    deliver(lambda _: seen.append(message_fields()), numbered(1), numbered(2))
    common = {"queue": "basket", "topic": "fruit", "attempt": 1, "worker": 1}
    assert seen == [{"message_id": "1", **common}, {"message_id": "2", **common}]
    assert message_fields() == {}


def test_message_fields_without_id() -> None:
    """A message without an id has none."""
    seen: list[Any] = []
    message = numbered(1)
    message.id = None
    deliver(lambda _: seen.append(message_fields()), message)
    assert seen[0]["message_id"] is None


def fail(message: Message) -> None:
    """Log a line and fail."""
    logging.info("mine")
    raise ValueError("no")


async def fail_later(message: Message) -> None:
    """Log a line from a thread, and fail."""
    await asyncio.to_thread(logging.info, "mine")
    raise ValueError("no")


def fail_in_coroutine(message: Message) -> Any:
    """Give a coroutine that logs and fails."""
    return fail_later(message)


@pytest.mark.parametrize("callback", [fail, fail_later, fail_in_coroutine])
def test_filter_lines(notebook: Notebook, callback: Any) -> None:
    """The callback's lines have the fields, and so has ours, though another thread writes it."""
    deliver(callback, numbered(7))
    logging.info("after")
    ours = "7 1 the callback failed on message 7 from queue 'basket', put back"
    assert [line.partition("\n")[0] for line in notebook.lines] == ["7 1 mine", ours, "- - after"]


def test_filter_keeps_attributes(notebook: Notebook) -> None:
    """What a record brings stays."""
    logging.info("text", extra={"message_id": "other"})
    assert notebook.lines == ["other - text"]


def test_message_fields_do_not_mix() -> None:
    """Of coroutines that run at the same time each sees its own message."""
    count = 8
    seen: dict[str, Any] = {}
    running: list[Message] = []

    async def callback(message: Message) -> None:
        running.append(message)
        while len(running) < count:
            await asyncio.sleep(0)
        seen[str(message.id)] = message_fields()

    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    processor = Processor(callback, decode)
    pool = make_pool(processor, count, outcomes.put)
    pool.start()
    try:
        for number in range(count):
            pool.inbox.put(make_delivery(tag=number + 1, message_id=str(number)))
        assert all(get_soon(outcomes).error is None for _ in range(count))
    finally:
        pool.end()
        processor.coroutines.close(5)
    assert [fields["message_id"] for fields in seen.values()] == list(seen)
    assert {fields["worker"] for fields in seen.values()} == set(range(1, count + 1))


def test_message_fields_attempt() -> None:
    """The attempt is the message's, the number the worker's."""
    seen: list[Any] = []
    delivery = make_delivery()
    delivery.attempt = 3
    processor = Processor(lambda _: seen.append(message_fields()), decode, number=5)
    processor.process(delivery)
    assert (seen[0]["attempt"], seen[0]["worker"]) == (3, 5)
    assert message_fields() == {}
