"""Tests of what fmconsume gives to the tests of its users."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from fmconsume import Drop, HaltConsumer, Message, Nack, api, publish
from fmconsume.exceptions import ValidationError
from fmconsume.testing import DeliverResult, Verdict, deliver, mock_sends
from tests.waiting import PATIENCE

ACK, NACK, DROP, REJECT, SET_ASIDE, FAIL = Verdict


class Ripe(Message):
    """A message class that is registered nowhere: it is made with properties."""


@pytest.fixture
def ripe(monkeypatch: pytest.MonkeyPatch) -> type[Message]:
    """A registered message class of its own."""
    monkeypatch.setitem(
        vars(sys.modules[Message.__module__])["_class_to_schema_name"], Ripe, "ripe"
    )
    return Ripe


def numbered(*numbers: int) -> list[Message]:
    """Make messages that carry numbers."""
    return [Message(topic="fruit", body={"n": number}) for number in numbers]


def by_number(message: Message) -> None:
    """Do with a message what its number stands for."""
    errors: list[Any] = [
        None,
        Nack,
        Drop,
        HaltConsumer(3),
        KeyError("three"),
        HaltConsumer(4, requeue=True),
    ]
    error = errors[message.body["n"]]
    if error is not None:
        raise error


# -- mock_sends ------------------------------------------------------------------------


def test_mock_sends_as_expected(ripe: type[Message]) -> None:
    """Messages that are equal, or of the class, pass; and all are given back."""
    message, other = Message(topic="fruit", body={"n": 1}), ripe(topic="fruit")
    with mock_sends(Message(topic="fruit", body={"n": 1}), ripe, Message) as sent:
        publish(message)
        api.publish(other, exchange="orchard", timeout=3)
        publish(other)
    assert sent == [message, other, other]


def test_mock_sends_nothing() -> None:
    """Without arguments nothing may be published."""
    with mock_sends():
        pass
    with pytest.raises(AssertionError, match="1 messages were published, expected 0"), mock_sends():
        publish(Message())


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        (Message(topic="nut"), r"message 1: topic 'fruit' was published, expected 'nut'"),
        (
            Message(topic="fruit", body={"n": 2}),
            r"body \{'n': 1\} was published, expected \{'n': 2\}",
        ),
        (
            Message(topic="fruit", body={"n": 1}, headers={"color": "red"}),
            r"headers \{.*\} were published, expected \{.*'color': 'red'",
        ),
        (Ripe, "Message was published, expected Ripe"),
    ],
)
def test_mock_sends_differs(expected: Any, difference: str) -> None:
    """What differs is named, with both values."""
    with pytest.raises(AssertionError, match=difference), mock_sends(expected):
        publish(Message(topic="fruit", body={"n": 1}))


def test_mock_sends_too_few() -> None:
    """A message that is not published fails."""
    reason = "0 messages were published, expected 1"
    with pytest.raises(AssertionError, match=reason), mock_sends(Message):
        pass


def test_mock_sends_validates() -> None:
    """An invalid message fails where it is published, as it would without the mock."""
    with mock_sends() as sent, pytest.raises(ValidationError):
        publish(Message(body=["no object"]))
    assert not sent


def test_mock_sends_error_inside() -> None:
    """What goes wrong inside comes out, and the mock ends."""
    before = api.publish.__globals__["_send"]
    with pytest.raises(KeyError), mock_sends(Message):
        raise KeyError("inside")
    assert api.publish.__globals__["_send"] is before


def test_mock_sends_other_thread() -> None:
    """What other threads publish counts."""
    with mock_sends(Message):
        thread = threading.Thread(target=publish, args=[Message()])
        thread.start()
        thread.join()


# -- deliver ---------------------------------------------------------------------------


def test_deliver_tells_in_order() -> None:
    """Each message has its verdict, in the order of the messages."""
    assert deliver(by_number, *numbered(0, 1, 2, 0)) == DeliverResult([ACK, NACK, DROP, ACK], None)


def test_deliver_nothing() -> None:
    """Without messages nothing is told."""
    assert deliver(by_number) == ([], None)


def test_deliver_failure() -> None:
    """A callback that fails returns its message and those after it, which it does not see."""
    seen: list[int] = []

    def callback(message: Message) -> None:
        seen.append(message.body["n"])
        by_number(message)

    told = deliver(callback, *numbered(0, 4, 0, 0))
    assert told.verdicts == [ACK, FAIL, NACK, NACK]
    assert isinstance(told.error, KeyError)
    assert seen == [0, 4]


@pytest.mark.parametrize(("number", "verdict"), [(3, ACK), (5, NACK)])
def test_deliver_halt(number: int, verdict: Verdict) -> None:
    """A callback that halts settles its message and returns those after it."""
    told = deliver(by_number, *numbered(number, 0))
    assert told.verdicts == [verdict, NACK]
    assert isinstance(told.error, HaltConsumer)


def test_deliver_invalid() -> None:
    """A message that is invalid is rejected unseen, and the next one runs."""
    seen: list[Message] = []
    invalid = Message(body=["no object"])
    assert deliver(seen.append, invalid, Message()).verdicts == [REJECT, ACK]
    assert len(seen) == 1


def test_deliver_body_mode() -> None:
    """Bodies that are not objects are delivered where the configuration would let them."""
    seen: list[Any] = []

    def callback(message: Message) -> None:
        seen.append(message.body)

    assert deliver(callback, Message(body=[1]), body_mode="json").verdicts == [ACK]
    raw = b"\xff"
    assert deliver(callback, Message(body=raw), body_mode="bytes").verdicts == [ACK]
    assert seen == [[1], b"\xff"]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()], ids=repr)
def test_deliver_base_exception(error: BaseException) -> None:
    """What ends a consumer is an error of the result, whatever its class."""

    def callback(message: Message) -> None:
        raise error

    assert deliver(callback, *numbered(0, 1)) == DeliverResult([Verdict.FAIL, Verdict.NACK], error)


def test_deliver_whole_message() -> None:
    """The callback sees what was given: topic, queue, id, headers and body."""
    seen: list[Message] = []
    message = Message(topic="fruit.ripe", body={"n": 1}, headers={"color": "red"})
    message.queue = "basket"
    deliver(seen.append, message)
    assert seen == [message]
    assert seen[0] is not message
    assert (seen[0].id, seen[0].queue) == (message.id, "basket")


def test_deliver_redelivered() -> None:
    """A redelivery of what ran does not run again, and one of what was returned does."""
    seen: list[int] = []

    def callback(message: Message) -> None:
        seen.append(message.body["n"])
        by_number(message)

    done, returned = numbered(0, 1)
    again = [
        Message(body=each.body, topic="fruit", properties=each.properties)
        for each in (done, returned)
    ]
    for each in again:
        each.redelivered = True
    assert deliver(callback, done, returned, *again).verdicts == [ACK, NACK, ACK, NACK]
    assert seen == [0, 1, 1]


class Counting:
    """A callback class that remembers its loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_event_loop()

    async def __call__(self, message: Message) -> None:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop


async def drop(message: Message) -> None:
    """Drop a message, as a coroutine."""
    await asyncio.sleep(0)
    raise Drop(message)


@pytest.mark.parametrize(
    ("callback", "verdict"), [(Counting, ACK), (drop, DROP), (lambda _: drop(_), DROP)]
)
def test_deliver_coroutine(callback: Callable[..., Any], verdict: Verdict) -> None:
    """Coroutines are awaited, and a class finds its loop in its constructor."""
    assert deliver(callback, Message()) == ([verdict], None)


class Diary:
    """A callback that only its own thread may use, as if it had a connection to SQLite."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def __call__(self, message: Message) -> None:
        self.write()

    def write(self) -> None:
        """Fail on another thread."""
        if threading.get_ident() != self.thread:
            raise RuntimeError("only that same thread may write")


class AsyncDiary(Diary):
    """The same, as a coroutine."""

    async def __call__(self, message: Message) -> None:
        self.write()


@pytest.mark.parametrize("callback", [Diary, AsyncDiary])
def test_deliver_other_thread(callback: Any) -> None:
    """What a constructor binds to its thread fails in a test as it would in a consumer."""
    result = deliver(callback, Message())
    assert isinstance(result.error, RuntimeError)


def test_deliver_one_thread() -> None:
    """All messages run on the same thread, which is not that of the test."""
    threads: list[threading.Thread] = []
    deliver(lambda _: threads.append(threading.current_thread()), Message(), Message())
    assert threads[0] is threads[1] is not threading.current_thread()


def test_deliver_interrupted() -> None:
    """What is meant for the test runner is not taken for a failure of the callback."""

    def callback(message: Message) -> None:
        pytest.fail("the test says so")

    with pytest.raises(pytest.fail.Exception, match="the test says so"):
        deliver(callback, Message())


def test_deliver_not_callable() -> None:
    """Something that cannot be called is refused as a consumer would."""
    with pytest.raises(ValueError, match="callback"):
        deliver(3, Message())  # type: ignore[arg-type]


def test_deliver_publishing() -> None:
    """A callback that publishes is tested with both."""

    def callback(message: Message) -> None:
        publish(Message(topic="reply", body=message.body))

    with mock_sends(Message(topic="reply", body={"n": 1})):
        assert deliver(callback, *numbered(1)).verdicts == [ACK]


# -- The plugin ------------------------------------------------------------------------

_PLUGIN = """
import sys
from fmconsume import Message, publish

def test_fixtures(deliver, mock_sends):
    with mock_sends(Message(topic="reply")):
        told = deliver(lambda message: publish(Message(topic="reply")), Message())
    assert told.error is None

def test_difference(mock_sends):
    with mock_sends(Message(topic="other")):
        publish(Message(topic="reply"))
"""


def run_pytest(
    folder: Path, source: str, *args: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run tests in a process of their own, with warnings as errors."""
    (folder / "test_users.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *args],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_plugin_fixtures(tmp_path: Path) -> None:
    """Both fixtures are there without an import, and a failure shows its reason."""
    done = run_pytest(tmp_path, _PLUGIN)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "topic 'reply' was published, expected 'other'" in done.stdout


def test_plugin_offers_fedora_messaging(tmp_path: Path) -> None:
    """Tests written for fedora-messaging import it where it is not installed."""
    source = (
        "import jsonschema, pytest\n"
        "from fedora_messaging import api, testing\n"
        "def test():\n"
        "    with testing.mock_sends(api.Message(topic='a')):\n"
        "        api.publish(api.Message(topic='a'))\n"
        "    with pytest.raises(jsonschema.ValidationError):\n"
        "        api.publish(api.Message(body=[1]))\n"
        "    with pytest.raises(jsonschema.ValidationError):\n"
        "        api.Message(severity=5).validate()\n"
    )
    done = run_pytest(tmp_path, source, FMCONSUME_CONF=os.devnull)
    assert done.returncode == 0, done.stdout


def test_plugin_is_cheap(tmp_path: Path) -> None:
    """Tests that do not use the plugin do not import the package, nor pika."""
    source = "import sys\ndef test():\n    assert not {'fmconsume', 'pika'} & set(sys.modules)\n"
    args = ("-p", "pytest_fmconsume")
    done = run_pytest(tmp_path, source, *args, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout
