"""Tests of what others chose and a person is shown: in the log, on a terminal, in errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from fmconsume import Drop, HaltConsumer, Message, Nack
from fmconsume.broker.errors import reason
from fmconsume.delivery import Delivery
from fmconsume.engine.account import DeliveryAccount
from fmconsume.engine.intake import Intake
from fmconsume.engine.prefetch import Prefetch
from fmconsume.engine.processor import Processor
from fmconsume.engine.states import Stats
from fmconsume.engine.status import Status
from fmconsume.exceptions import BadDeclaration, PermissionException, ValidationError
from fmconsume.message import decode
from fmconsume.text import brief, describe, printable, printable_lines

from .fakes import PLAIN, make_delivery

#: What publishers may choose, and what they would choose to do harm.
NAMES = st.text() | st.sampled_from(
    ["a\n<0>[fmconsume.engine ERROR] forged", "\x1b[2J\x1b[31m", "\u202egnp.exe", "\x00", "\r\x9b"]
)


@pytest.mark.parametrize(
    "text",
    [
        "org.fedoraproject.prod.buildsys",
        "\u017eluv\u00e1 \u0421\u043b\u0438\u0432\u0430 \u674e\u3000\u0628\u0631\u0642\u0648\u0642",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f33e",
        "",
    ],
)
def test_printable_keeps_ordinary_text(text: str) -> None:
    """Words of every script stay as they are."""
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[2J\x9b\ud800 \u017e", "\\x1b[2J\\x9b\\ud800 \u017e"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("\x00\ufeff\U000e0041", r"\x00\ufeff\U000e0041"),
        ("x" * 300, "x" * 300),
        ("x" * 10**6, "x" * 297 + "..."),
        ("\x00" * 10**6, r"\x00" * 74 + r"\..."),
        (None, "None"),
        (b"\xff", r"b'\xff'"),
    ],
)
def test_printable_escapes(text: object, expected: str) -> None:
    """What forges, commands, reverses or is very long becomes harmless."""
    assert printable(text) == expected


def test_printable_lines() -> None:
    """Of a text of several lines, line feeds and tabs stay."""
    assert printable_lines("a\n\tb\r\x1b[2J\n") == "a\n\tb\\r\\x1b[2J\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n  b\tc", "a b c"),
        ("\x1b[2J\x9b\ud800 \u017e", "\\x1b[2J\\x9b\\ud800 \u017e"),
        ("x" * 300, "x" * 300),
        ("x" * 10**6, "x" * 297 + "..."),
    ],
)
def test_brief(text: str, expected: str) -> None:
    """A text becomes one line of at most 300 printable characters."""
    assert brief(text) == expected


class Speechless(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("the disk\n  is full"), "ValueError: the disk is full"),
        (KeyError("three"), "KeyError: 'three'"),
        (ValueError(), "ValueError"),
        (Speechless(), "Speechless (its text cannot be had)"),
    ],
)
def test_describe(error: Exception, expected: str) -> None:
    """An error is one line that names its class."""
    assert describe(error) == expected


# -- in the log ------------------------------------------------------------------------


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the texts of our records."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("fmconsume")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def is_one_line(text: str) -> bool:
    """Tell whether a text keeps to its line and to its direction."""
    return len(text.splitlines()) == 1 and printable(text, len(text)) == text


def process(delivery: Delivery, error: BaseException | None) -> None:
    """Process one delivery whose callback raises something."""

    def callback(message: Message) -> None:
        if error is not None:
            raise error

    def keep(delivery: Delivery, error: BaseException) -> None:
        raise OSError(28, f"No space left for {delivery.message_id}")

    Processor(callback, decode, keep).process(delivery)


@given(message_id=NAMES, topic=NAMES, queue=NAMES, body=st.sampled_from([b"{}", b"[", b"\xff"]))
def test_no_record_is_forged(message_id: str, topic: str, queue: str, body: bytes) -> None:
    """Whatever a message, its topic and its queue are called, a record of ours is one line."""
    errors: list[Any] = [Nack(), Drop(), HaltConsumer(1, message_id), ValueError(topic)]
    errors.append(ValidationError(topic))
    with logged() as texts:
        for error in errors:
            delivery = make_delivery(
                message_id=message_id, routing_key=topic, queue=queue, body=body
            )
            process(delivery, error)
    assert len(texts) >= len(errors)
    assert [text for text in texts if not is_one_line(text)] == []


@given(message_id=NAMES, queue=NAMES)
def test_no_state_is_forged(message_id: str, queue: str) -> None:
    """Nor does a state, or its record, hold anything but one line."""
    account = DeliveryAccount(0)
    status = Status(
        observers=[],
        stats=Stats(),
        account=account,
        intake=Intake(SimpleQueue(), None),
        workers=[],
        prefetch=Prefetch(account, PLAIN, 1),
    )
    account.begin(1, [queue])
    account.receive(make_delivery(message_id=message_id, queue=queue))
    with logged() as texts:
        for blocked, now in (("", 0.0), (message_id, 0.0), ("", 10.0**9)):
            session: Any = type("FakeSession", (), {"blocked": blocked, "name": queue})
            status.enter(*status._flow(session, now))
            texts.append(status.state.text)
    assert [text for text in texts if not is_one_line(text)] == []


@given(text=NAMES)
def test_no_refusal_is_forged(text: str) -> None:
    """What the broker answers is one line in every error."""
    for error in (
        PermissionException("queue", text, text),
        BadDeclaration("binding", text, text),
        reason(ChannelClosedByBroker(404, text)),
        reason(ConnectionClosedByBroker(320, text)),
        reason(OSError(text)),
        ValidationError(f"{text} is no message").summary,
    ):
        assert is_one_line(str(error))
