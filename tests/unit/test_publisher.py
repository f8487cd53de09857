"""Tests of publishing without a broker: when it connects, what it sends, whom it answers."""

from __future__ import annotations

import copy
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from pika import BasicProperties

from fmconsume import Message, publish, publisher
from fmconsume.broker.addresses import Address, parse_address
from fmconsume.broker.errors import SessionLost
from fmconsume.broker.request import Request
from fmconsume.config import DEFAULTS
from fmconsume.context import message_fields
from fmconsume.exceptions import (
    ConnectionException,
    PublishException,
    PublishTimeout,
    ValidationError,
)
from fmconsume.publisher import Publisher
from fmconsume.testing import deliver, mock_sends

from .fakes import TIMEOUT, get_soon, restored_configuration

_TLS = {"ca_cert": None, "certfile": None, "keyfile": None}


class FakeConnection:
    """A line that takes as many messages as the test says."""

    made: list[FakeConnection]

    def __init__(self, address: Address, loop: Any, owner: Publisher) -> None:
        self.made.append(self)
        self.address = address
        self.alarm = SimpleNamespace(reason="")
        self.is_open = False
        self.room = 0
        self.wanted = 0
        self.sent: list[Request] = []
        self.forgotten: list[Request] = []

    @property
    def has_room(self) -> bool:
        return self.room > 0

    def send(self, request: Request) -> None:
        self.room -= 1
        self.sent.append(request)

    def grow(self, wanted: int) -> None:
        self.wanted = wanted

    def forget(self, request: Request) -> None:
        self.forgotten.append(request)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[FakeConnection]:
    """The connections made so far, instead of real ones."""
    monkeypatch.setattr(FakeConnection, "made", [], raising=False)
    monkeypatch.setattr(publisher, "PublishConnection", FakeConnection)
    return FakeConnection.made


@pytest.fixture
def idle(connections: list[FakeConnection]) -> Iterator[Publisher]:
    """A publisher whose thread does not run: the test's thread takes its place."""
    made = Publisher([make_address("one"), make_address("two")])
    yield made
    made.discard()


@pytest.fixture
def publishers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Publisher]]:
    """The publishers by process, none at first; closed in the end."""
    made: dict[int, Publisher] = {}
    monkeypatch.setattr(publisher, "_publishers", made)
    with restored_configuration() as conf:
        conf.loaded = True
        conf.update({**copy.deepcopy(DEFAULTS), "amqp_url": "amqp://127.0.0.1:1"})
        yield made
        for each in list(made.values()):
            each.close()


def make_address(host: str) -> Address:
    """Make an address that nobody connects to."""
    return parse_address(f"amqp://{host}", _TLS, {})


def make_request(seconds: float = TIMEOUT) -> Request:
    """Make a request that has so much time."""
    return Request("fruit", "apple", b"{}", BasicProperties(), monotonic() + seconds)


def take(idle: Publisher, *requests: Request) -> None:
    """Hand requests over as their threads would."""
    for request in requests:
        idle._enqueue(request)


def open_connection(idle: Publisher, line: FakeConnection, room: int = 1) -> None:
    """Let a line open."""
    line.is_open, line.room = True, room
    idle.on_open()


def test_take_connects_once(idle: Publisher, connections: list[FakeConnection]) -> None:
    """The first request makes a line, those that come while it opens wait for it."""
    assert not connections
    take(idle, make_request(), make_request())
    assert [line.address.parameters().host for line in connections] == ["one"]


def test_on_open_sends_in_order(idle: Publisher, connections: list[FakeConnection]) -> None:
    """What waits is sent oldest first as far as there is room, and room is asked for."""
    requests = [make_request() for _ in range(5)]
    take(idle, *requests)
    open_connection(idle, connections[0], room=2)
    assert connections[0].sent == requests[:2]
    assert connections[0].wanted == 3


def test_on_room_late(idle: Publisher, connections: list[FakeConnection]) -> None:
    """A request whose time is up is not sent, and takes nobody's place."""
    late, timely = make_request(seconds=0), make_request()
    take(idle, late, timely)
    open_connection(idle, connections[0])
    assert connections[0].sent == [timely]


def test_forget_waiting(idle: Publisher, connections: list[FakeConnection]) -> None:
    """A request whose caller has gone is not sent."""
    gone = make_request()
    take(idle, gone)
    idle._forget(gone)
    open_connection(idle, connections[0])
    assert not connections[0].sent


def test_forget_sent(idle: Publisher, connections: list[FakeConnection]) -> None:
    """The line hears that nobody waits for a confirmation."""
    gone = make_request()
    take(idle, gone)
    open_connection(idle, connections[0])
    idle._forget(gone)
    assert connections[0].forgotten == [gone]


def test_on_end_tries_next_address(idle: Publisher, connections: list[FakeConnection]) -> None:
    """An address that does not answer is followed by the next, and the one that does stays."""
    take(idle, make_request())
    idle.on_end(SessionLost("one is down"), [])
    open_connection(idle, connections[1])
    idle.on_end(SessionLost("two went away"), connections[1].sent)
    assert [line.address.parameters().host for line in connections] == ["one", "two", "one"]
    open_connection(idle, connections[2])
    assert idle._addresses[0].parameters().host == "one"


def test_on_end_unconfirmed_goes_first(idle: Publisher, connections: list[FakeConnection]) -> None:
    """What a lost line left unconfirmed is sent again before what came later."""
    requests = [make_request() for _ in range(4)]
    take(idle, *requests)
    open_connection(idle, connections[0], room=2)
    idle.on_end(SessionLost("gone"), connections[0].sent)
    open_connection(idle, connections[1], room=4)
    assert connections[1].sent == requests


def test_on_end_rests(idle: Publisher, connections: list[FakeConnection]) -> None:
    """After the last address it rests, and begins with the first again."""
    take(idle, make_request())
    for _ in range(2):
        idle.on_end(SessionLost("down"), [])
    take(idle, make_request())
    assert len(connections) == 2
    idle._resume()
    assert [line.address.parameters().host for line in connections] == ["one", "two", "one"]


def test_on_end_nobody_waits(idle: Publisher, connections: list[FakeConnection]) -> None:
    """Without anything to publish no connection is made."""
    take(idle, make_request())
    open_connection(idle, connections[0])
    for _ in range(2):
        idle.on_end(SessionLost("gone"), [])
        idle._resume()
    assert len(connections) == 1


def test_on_end_refused(idle: Publisher) -> None:
    """When no address works and one refuses, everybody who waits is told of the refusal."""
    requests = [make_request(), make_request()]
    take(idle, *requests)
    refusal = ConnectionException(reason="wrong password")
    idle.on_end(refusal, [])
    assert requests[0].answer.empty()
    idle.on_end(SessionLost("down"), [])
    assert [get_soon(request.answer) for request in requests] == [refusal, refusal]


def test_send_tells_why(idle: Publisher, connections: list[FakeConnection]) -> None:
    """A timeout says what the broker or the line had to say."""
    with pytest.raises(PublishTimeout, match="no answer"):
        idle.send(make_request(seconds=0.01))
    take(idle, make_request())
    idle.on_end(SessionLost("one is down"), [])
    with pytest.raises(PublishTimeout, match="one is down"):
        idle.send(make_request(seconds=0.01))
    connections[1].alarm.reason = "low on disk"
    with pytest.raises(PublishTimeout, match="blocks publishers: low on disk"):
        idle.send(make_request(seconds=0.01))


def test_publish_invalid(publishers: dict[int, Publisher]) -> None:
    """An invalid message never gets to a publisher."""
    with pytest.raises(ValidationError, match="the body is a str"):
        publish(Message(body="text"))
    assert not publishers


def test_publish_time_is_up(publishers: dict[int, Publisher]) -> None:
    """Without any time left it is a timeout, however little there was to do."""
    with pytest.raises(PublishTimeout):
        publish(Message(), timeout=0)


def test_publish_one_publisher(publishers: dict[int, Publisher]) -> None:
    """Threads that begin at the same time share one publisher."""
    together = threading.Barrier(4)

    def send() -> None:
        together.wait(TIMEOUT)
        with pytest.raises(PublishTimeout):
            publish(Message(), timeout=0.2)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert list(publishers) == [os.getpid()]
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("fmconsume-publisher") == 1


def test_publish_other_process(
    publishers: dict[int, Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process does not use the publisher of the one that it was forked from."""
    with pytest.raises(PublishTimeout):
        publish(Message(), timeout=0)
    monkeypatch.setattr(os, "getpid", lambda: 2)
    with pytest.raises(PublishTimeout):
        publish(Message(), timeout=0)
    parent, child = publishers.values()
    assert parent is not child


def test_publish_after_a_bug(
    publishers: dict[int, Publisher],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A publisher that fails says so in its callers' timeouts, and the next one is new."""

    def fail(*args: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(publisher, "PublishConnection", fail)
        with pytest.raises(PublishTimeout, match=r"RuntimeError.*a bug"):
            publish(Message(), timeout=0.2)
    assert "which is a bug" in caplog.text
    assert not publishers
    with pytest.raises(PublishTimeout, match="refused"):
        publish(Message(), timeout=0.2)


def test_publish_without_thread(publishers: dict[int, Publisher]) -> None:
    """Where no thread can be started the call says so at once, and the next one tries again."""
    before = threading.stack_size(2**46)  # So much memory has no machine.
    try:
        with pytest.raises(PublishException, match=r"cannot publish now: no thread can"):
            publish(Message())
    finally:
        threading.stack_size(before)
    assert not publishers
    with pytest.raises(PublishTimeout, match="refused"):
        publish(Message(), timeout=0.2)


def test_publish_without_files(publishers: dict[int, Publisher]) -> None:
    """So does one for which no file can be opened."""
    message = Message()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(PublishException, match=r"cannot publish now: no file can"):
            publish(message)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(PublishTimeout, match="refused"):
        publish(Message(), timeout=0.2)


def test_connect_certificate_gone(
    idle: Publisher, connections: list[FakeConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address whose certificate is of no use now is passed over, as one that does not answer."""
    first, second = idle._addresses

    def make(address: Address, loop: Any, owner: Publisher) -> FakeConnection:
        if address is first:
            raise SessionLost("one: cannot use client.pem")
        return FakeConnection(address, loop, owner)

    monkeypatch.setattr(publisher, "PublishConnection", make)
    take(idle, make_request())
    assert [line.address for line in connections] == [second]
    assert idle._explain() == "one: cannot use client.pem"


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), [{"deep": float("inf")}]])
def test_publish_body_not_json(publishers: dict[int, Publisher], value: Any) -> None:
    """JSON has no NaN and no Infinity: a body with one is invalid, and nothing connects."""
    with pytest.raises(ValidationError, match="not JSON: Out of range float values"):
        publish(Message(body={"n": value}))
    assert not publishers


@pytest.mark.parametrize(
    "message",
    [Message(body={"n": float("nan")}), Message(headers={"n": float("inf")})],
    ids=["body", "header"],
)
def test_mock_sends_not_encodable(message: Message) -> None:
    """What could not be sent is refused where sending is mocked, too."""
    with mock_sends() as sent, pytest.raises(ValidationError):
        publish(message)
    assert not sent


def test_mock_sends_received() -> None:
    """A received message that is published again is the one that a test expects."""

    def callback(message: Message) -> None:
        publish(message)
        publish(message)
        assert message.headers == original.headers

    original = Message(topic="fruit.ripe", body={"n": 1})
    with mock_sends(original, original):
        assert deliver(callback, original).error is None


def test_thread_has_no_message(
    publishers: dict[int, Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread belongs to no message, also where Python lets threads inherit the context."""
    known: SimpleQueue[dict[str, Any]] = SimpleQueue()
    start = threading.Thread.start

    def start_inheriting(thread: threading.Thread) -> None:
        thread.run = partial(copy_context().run, thread.run)  # type: ignore[method-assign]
        start(thread)

    def callback(message: Message) -> None:
        with suppress(PublishTimeout):
            publish(Message(), timeout=0.1)

    monkeypatch.setattr(threading.Thread, "start", start_inheriting)
    monkeypatch.setattr(publisher, "PublishConnection", lambda *_: known.put(message_fields()))
    deliver(callback, Message())
    assert get_soon(known) == {}
