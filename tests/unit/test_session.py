"""Tests of what a session makes of pika's answers; its use against a broker is tested elsewhere."""

from __future__ import annotations

import threading
from functools import partial
from threading import Event
from types import SimpleNamespace
from typing import Any, Callable

import pika
import pytest
from pika.callback import CallbackManager
from pika.exceptions import (
    AMQPHeartbeatTimeout,
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionBlockedTimeout,
    ConnectionClosedByBroker,
    ConnectionWrongStateError,
    NoFreeChannels,
    ShortStringTooLong,
    StreamLostError,
)

from fmconsume import log
from fmconsume.broker import connection as connection_module
from fmconsume.broker import session as session_module
from fmconsume.broker.addresses import Address
from fmconsume.broker.errors import SessionLost
from fmconsume.broker.session import Session, open_session
from fmconsume.broker.topology import NO_CONSUMER, Topology
from fmconsume.broker.wire import Properties
from fmconsume.delivery import CHANNEL, Delivery, Frame, Verdict
from fmconsume.exceptions import BadDeclaration, ConsumerCanceled, PermissionException
from fmconsume.identity import Identity

from .fakes import wait_soon

ADDRESS = Address("amqp://ann@h:5672 (virtual host '/')", partial(pika.URLParameters, "amqp://"))
ENTITY = {"durable": True, "auto_delete": False, "arguments": {"x": 1}}
TOPOLOGY = Topology(
    exchanges={"market": {"type": "topic", **ENTITY}},
    queues={"fruit": {"exclusive": False, **ENTITY}, "": {"exclusive": True, **ENTITY}},
    bindings=[
        {"queue": "fruit", "exchange": "market", "routing_keys": ["a.#"]},
        {
            "queue": "fruit",
            "exchange": "market",
            "routing_keys": ["b.#"],
            "arguments": {"x-match": "any"},
        },
        {"queue": "", "exchange": "market", "routing_keys": ["#"]},
    ],
    passive=False,
    prefetch_count=10,
    prefetch_size=0,
)


class FakeChannel:
    """Writes down what is asked of it; `failure` is raised by the method of that name."""

    def __init__(self) -> None:
        self.is_open = True
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, Exception] = {}
        self.consumer_tags: list[str] = []
        self.on_cancel: Callable[[Any], None]
        #: Called with the name of each method.
        self.before: Callable[[str], object] = str
        self.on_message: dict[str, Callable[..., None]] = {}

    def _note(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        self.before(name)
        if name in self.failures:
            raise self.failures[name]

    def exchange_declare(self, name: str, kind: str = "direct", **options: Any) -> None:
        self._note("exchange_declare", name, kind, options)

    def queue_declare(self, name: str, **options: Any) -> Any:
        self._note("queue_declare", name, options)
        return SimpleNamespace(method=SimpleNamespace(queue=name or "amq.gen-1", message_count=3))

    def queue_bind(self, *args: Any) -> None:
        self._note("queue_bind", *args)

    def basic_qos(self, *args: Any) -> None:
        self._note("basic_qos", *args)

    def basic_consume(
        self,
        queue: str,
        on_message: Callable[..., None],
        consumer_tag: str | None = None,
        arguments: Any = None,
    ) -> str:
        self._note("basic_consume", queue)
        assert arguments in (None, NO_CONSUMER)
        tag = consumer_tag or f"tag of {queue}"
        self.consumer_tags.append(tag)
        self.on_message[queue] = on_message
        return tag

    def basic_ack(self, *args: Any) -> None:
        self._note("basic_ack", *args)

    def basic_nack(self, *args: Any, requeue: bool) -> None:
        self._note("basic_nack", *args, requeue)

    def basic_reject(self, *args: Any, requeue: bool) -> None:
        self._note("basic_reject", *args, requeue)

    def basic_cancel(self, tag: str) -> None:
        self._note("basic_cancel", tag)
        self.consumer_tags.remove(tag)

    def add_on_cancel_callback(self, callback: Callable[[Any], None]) -> None:
        self.on_cancel = callback

    def close(self) -> None:
        self._note("close")
        self.is_open = False


class FakeLoop:
    """pika's loop, whose timers go off on demand."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, action: Callable[[], None]) -> Any:
        self.timers.append((seconds, action))
        return self.timers[-1]

    def remove_timeout(self, timer: Any) -> None:
        if timer in self.timers:  # pika does not mind one that went off.
            self.timers.remove(timer)

    def fire(self) -> None:
        """Let the newest timer go off."""
        self.timers.pop()[1]()


@pytest.mark.parametrize(
    ("version", "sorting"),
    [
        ((), {"quorum", "passive"}),
        ((3, 10), {"quorum", "passive"}),
        ((3, 13), {"quorum", "passive", "untyped"}),
        ((4, 0), {"quorum", "passive"}),
    ],
)
def test_sorting_queues(version: tuple[int, ...], sorting: set[str]) -> None:
    """The queues that are, or may be, quorum queues; a virtual host has a default from 3.11 on."""
    queues: dict[str, dict[str, Any]] = {
        "quorum": {"exclusive": False, "arguments": {"x-queue-type": "quorum"}},
        "classic": {"exclusive": False, "arguments": {"x-queue-type": "classic"}},
        "passive": {"exclusive": False, "arguments": {}, "passive": True},
        "untyped": {"exclusive": False, "arguments": {}},
        "own": {"exclusive": True, "arguments": {}},
    }
    assert TOPOLOGY._replace(queues=queues).sorting_queues(version) == sorting


class FakeConnection:
    """Stands in for pika.BlockingConnection, and for the connection inside it."""

    def __init__(self) -> None:
        self.is_open = True
        self.callbacks = CallbackManager()
        self.server_properties = {"product": "RabbitMQ", "version": "3.10.8"}
        self.ioloop = FakeLoop()
        #: The method that the broker does not answer; the time meanwhile.
        self.silent_at = ""
        self.now = 0.0
        self.fake_channel = FakeChannel()
        self.fake_channel.before = self._stay_silent
        #: Given before it.
        self.next_channels: list[FakeChannel] = []
        self.failure: Exception | None = None
        self.wakes = 0
        self.waits: list[float | None] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.closed = 0
        self.bytes_received = 0
        #: Bytes that come with each wait, until there are none.
        self.arrivals: list[int] = []

    def open(self, parameters: pika.ConnectionParameters) -> FakeConnection:
        """Negotiate as pika does, with a broker that proposes 60 s."""
        self.is_open = True
        self.heartbeat = parameters.heartbeat(self, 60)
        return self

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _stay_silent(self, name: str) -> None:
        while name == self.silent_at:
            self.now += self.ioloop.timers[-1][0]
            self.ioloop.fire()

    def channel(self) -> FakeChannel:
        self._fail()
        self._stay_silent("channel")
        return self.next_channels.pop(0) if self.next_channels else self.fake_channel

    def add_on_connection_blocked_callback(self, callback: Callable[..., None]) -> None:
        self.on_blocked = callback

    def add_on_connection_unblocked_callback(self, callback: Callable[..., None]) -> None:
        self.on_unblocked = callback

    def process_data_events(self, time_limit: float | None) -> None:
        self.waits.append(time_limit)
        self._fail()
        if self.arrivals:
            self.bytes_received += self.arrivals.pop(0)

    def add_callback_threadsafe(self, callback: Callable[[], None]) -> None:
        self._fail()
        self.wakes += 1

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append((seconds, action))

    def close(self) -> None:
        self._fail()
        self.closed += 1
        self.is_open = False


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    """Let sessions connect to nothing."""
    result = FakeConnection()
    monkeypatch.setattr(pika, "BlockingConnection", result.open)
    return result


def ignore(delivery: Delivery) -> None:
    """Take a delivery."""


def open_quietly(
    connection: FakeConnection, address: Address = ADDRESS, topology: Topology = TOPOLOGY
) -> Session:
    """Open a session, and forget what was asked of the channel for that."""
    result = open_session(address, topology, ignore, number=3)
    connection.fake_channel.calls.clear()
    return result


@pytest.fixture
def session(connection: FakeConnection) -> Session:
    """Make a session that is connected to nothing."""
    return open_quietly(connection)


@pytest.fixture
def channel(connection: FakeConnection) -> FakeChannel:
    """Give the channel of the connection."""
    return connection.fake_channel


def test_connect_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting raises what the error means."""

    def refuse(parameters: Any) -> None:
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(pika, "BlockingConnection", refuse)
    with pytest.raises(SessionLost, match="Connection refused"):
        open_session(ADDRESS, TOPOLOGY, ignore)


# -- what pika's exceptions mean while declaring ----------------------------


def refusal(connection: FakeConnection, error: Exception, passing: Any = ()) -> Exception:
    """Give what a session raises for an error while it declares a queue."""
    connection.fake_channel.failures["queue_declare"] = error
    with pytest.raises((SessionLost, PermissionException)) as caught:
        open_session(ADDRESS, TOPOLOGY, ignore, retry_codes=passing)
    return caught.value


@pytest.mark.parametrize("error_class", [ChannelClosedByBroker, ConnectionClosedByBroker])
@pytest.mark.parametrize("passing", [(), (404, 405)])
def test_refusals_no_permission(connection: FakeConnection, error_class: Any, passing: Any) -> None:
    """403 is a refused declaration, whenever and wherever it comes, and has pika's exception."""
    error = refusal(connection, error_class(403, "ACCESS_REFUSED"), passing)
    assert type(error) is BadDeclaration
    assert str(error) == "cannot declare queue 'fruit': ACCESS_REFUSED"
    assert error.reason.args == (403, "ACCESS_REFUSED")


@pytest.mark.parametrize("code", [404, 405])
def test_refusals_passing(connection: FakeConnection, code: int) -> None:
    """What is missing or locked is fatal unless it may pass now."""
    error = ChannelClosedByBroker(code, "NOT_FOUND")
    assert type(refusal(connection, error, {1})) is BadDeclaration
    later = refusal(connection, error, {code})
    assert isinstance(later, SessionLost)
    assert "'fruit'" in str(later)
    assert "NOT_FOUND" in str(later)


@pytest.mark.parametrize(
    ("code", "answer", "passing", "told"),
    [
        (405, (405, "locked"), (), "exclusive to another connection"),
        (405, (405, "locked"), (405,), None),
        (405, (406, "x-priority"), (405,), "it is there, and not exclusive"),
        (405, (403, "no"), (), "refused"),
        (405, (404, "gone"), (405,), None),
        (405, (406, "rabbit_stream_queue"), (405,), "it is a stream"),
        (406, (406, "rabbit_stream_queue"), (), "it is a stream"),
        (406, (406, "x-priority"), (), "refused"),
    ],
)
def test_refusals_clarified(
    connection: FakeConnection, code: int, answer: Any, passing: Any, told: str | None
) -> None:
    """Who asks to consume learns why a queue that is there cannot be declared."""
    connection.fake_channel.failures["basic_consume"] = ChannelClosedByBroker(*answer)
    error = refusal(connection, ChannelClosedByBroker(code, "refused"), passing)
    assert isinstance(error, BadDeclaration if told else SessionLost)
    assert (told or "refused") in str(error)


@pytest.mark.parametrize("passing", [(), (404, 405)])
@pytest.mark.parametrize(
    "error",
    [
        ChannelClosedByBroker(406, "PRECONDITION_FAILED"),
        ConnectionClosedByBroker(503, "COMMAND_INVALID"),
        ConnectionClosedByBroker(530, "NOT_ALLOWED"),
        ConnectionClosedByBroker(540, "NOT_IMPLEMENTED"),
        ConnectionClosedByBroker(502, "SYNTAX_ERROR"),
        ShortStringTooLong("fruit"),
        ValueError("no value"),
        TypeError("no type"),
    ],
    ids=repr,
)
def test_refusals_hopeless(connection: FakeConnection, error: Exception, passing: Any) -> None:
    """A declaration that would be refused again is told with the name of what it declares."""
    result = refusal(connection, error, passing)
    assert type(result) is BadDeclaration
    assert (result.obj_type, result.description) == ("queue", "fruit")
    assert str(result).startswith("cannot declare queue 'fruit': ")


@pytest.mark.parametrize("passing", [(), (404, 405)])
@pytest.mark.parametrize(
    "error",
    [
        ConnectionClosedByBroker(320, "CONNECTION_FORCED"),
        ConnectionClosedByBroker(541, "INTERNAL_ERROR"),
        StreamLostError("reset"),
        AMQPHeartbeatTimeout("no heartbeat"),
        ConnectionBlockedTimeout("blocked"),
        ConnectionWrongStateError(),
    ],
    ids=repr,
)
def test_refusals_connection_lost(
    connection: FakeConnection, error: Exception, passing: Any
) -> None:
    """A connection that ends meanwhile says nothing about the declaration."""
    assert isinstance(refusal(connection, error, passing), SessionLost)


@pytest.mark.parametrize(
    "text",
    [
        "NOT_FOUND - home node 'rabbit@b' of durable queue 'fruit' in vhost '/' is down or "
        "inaccessible",
        "NOT_FOUND - queue 'fruit' in vhost '/' process is stopped by supervisor",
        "NOT_FOUND - queue 'fruit' in vhost '/' has crashed and failed to restart",
    ],
)
def test_refusals_queue_away(connection: FakeConnection, text: str) -> None:
    """A queue whose node is down is waited for, at the first start too."""
    assert isinstance(refusal(connection, ChannelClosedByBroker(404, text)), SessionLost)


@pytest.mark.parametrize(
    ("feature", "cure"),
    [
        ("transient_nonexcl_queues", "set durable = true, or exclusive = true"),
        ("something_new", "see RabbitMQ's list of deprecated features"),
    ],
)
def test_refusals_deprecated(connection: FakeConnection, feature: str, cure: str) -> None:
    """A kind of queue that is not permitted any more is named, with what to change."""
    text = f"INTERNAL_ERROR - Feature `{feature}` is deprecated.\nBy default, this feature\ncan"
    result = refusal(connection, ConnectionClosedByBroker(541, text))
    assert type(result) is BadDeclaration
    assert str(result) == (
        f"cannot declare queue 'fruit': this RabbitMQ does not permit {feature} any more: {cure}"
    )


@pytest.mark.parametrize(
    ("step", "limit"),
    [("channel", 30.0), ("queue_declare", 30.0), ("basic_consume", 30.0), ("basic_cancel", 5.0)],
)
def test_silence_ends(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, step: str, limit: float
) -> None:
    """Whatever pika waits for without a limit has one of ours."""
    monkeypatch.setattr(connection_module, "monotonic", lambda: connection.now)
    connection.silent_at = step
    with pytest.raises(SessionLost, match="no answer from the broker within"):
        open_and_cancel()
    assert connection.now == limit
    assert not connection.ioloop.timers


def test_depths_silent_line(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request on a silent line is given up as early as a wait."""
    monkeypatch.setattr(connection_module, "monotonic", lambda: connection.now)
    parameters = partial(pika.URLParameters, "amqp://h?heartbeat=2")
    session = open_quietly(connection, ADDRESS._replace(parameters=parameters))
    connection.silent_at = "queue_declare"
    with pytest.raises(SessionLost, match="nothing heard from the broker for 3 s"):
        session.depths()


def test_depths_silent_in_a_hurry(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop does not wait for an answer to anything else."""
    monkeypatch.setattr(connection_module, "monotonic", lambda: connection.now)
    session = open_quietly(connection)
    connection.silent_at = "queue_declare"
    session.hurry()
    with pytest.raises(SessionLost, match="the depths of the queues"):
        session.depths()
    assert connection.now == 5.0


def test_cancel_delivers_first(
    session: Session, connection: FakeConnection, channel: FakeChannel
) -> None:
    """What pika holds is delivered before each basic.cancel, or pika would reject it."""
    session.consume()
    connection.waits.clear()
    session.cancel()
    assert connection.waits == [0, 0]


@pytest.mark.parametrize("step", ["connect", "close"])
def test_log_handler_fails_inside_pika(
    connection: FakeConnection, channel: FakeChannel, step: str
) -> None:
    """What a log handler raises inside pika costs a new session, and to close one nothing."""
    if step == "connect":
        connection.failure = KeyError("a log handler")
        with pytest.raises(SessionLost, match="a log handler"):
            open_session(ADDRESS, TOPOLOGY, ignore)
    else:
        session = open_session(ADDRESS, TOPOLOGY, ignore)
        channel.failures["close"] = KeyError("a log handler")
        session.close()
        assert connection.closed == 1


def test_close_silent(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """To close waits for a silent broker no longer than its part of a stop, and says nothing."""
    monkeypatch.setattr(connection_module, "monotonic", lambda: connection.now)
    connection.silent_at = "close"
    open_and_cancel().close()
    assert connection.now == 5.0


def open_and_cancel() -> Session:
    """Take all steps of a session but the last."""
    session = open_session(ADDRESS, TOPOLOGY, ignore)
    session.consume()
    session.cancel()
    return session


def test_raise_cancellation_gone(session: Session, channel: FakeChannel) -> None:
    """A cancel whose queue is not found ends the consumer, naming the queue."""
    cancel(session, channel)
    channel.failures["queue_declare"] = ChannelClosedByBroker(404, "NOT_FOUND - no queue 'fruit'")
    with pytest.raises(ConsumerCanceled, match=r"consumer of queue 'fruit', and the queue is gone"):
        session.raise_cancellation()


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (None, "the broker cancelled the consumer of queue 'fruit'"),
        (ChannelClosedByBroker(404, "NOT_FOUND - home node 'b' is down or inaccessible"), "home"),
        (ChannelClosedByBroker(405, "RESOURCE_LOCKED"), "RESOURCE_LOCKED"),
        (StreamLostError("reset"), "reset"),
    ],
)
def test_raise_cancellation_not_gone(
    session: Session, channel: FakeChannel, failure: Any, told: str
) -> None:
    """A cancel whose queue is there, or only away, costs the session."""
    cancel(session, channel)
    if failure:
        channel.failures["queue_declare"] = failure
    with pytest.raises(SessionLost, match=told) as caught:
        session.raise_cancellation()
    # Without a failure it may be the acknowledgement timeout, of which the log gives a hint.
    assert caught.value.is_by_channel is (failure is None)


def cancel(session: Session, channel: FakeChannel) -> None:
    """Let the broker cancel the consumer of a session."""
    session.consume()
    channel.on_cancel(SimpleNamespace(method=SimpleNamespace(consumer_tag="tag of fruit")))


def test_wait_pika_fails(
    session: Session, connection: FakeConnection, caplog: pytest.LogCaptureFixture
) -> None:
    """What else fails inside pika, such as a log filter of the program's, costs the session."""
    connection.failure = KeyError("a log filter")
    with pytest.raises(SessionLost):
        session.wait()
    assert "pika failed" in caplog.text


def test_settle_line_full(
    session: Session,
    connection: FakeConnection,
    channel: FakeChannel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that takes no acknowledgements for long enough costs the session."""
    now = [1000.0]
    monkeypatch.setattr(session_module, "monotonic", lambda: now[0])
    session.start_ticking(5.0)

    def block(*args: Any) -> None:
        for _ in range(10):
            now[0] += 5.0
            connection.ioloop.fire()

    channel.basic_ack = block  # type: ignore[method-assign]
    with pytest.raises(SessionLost, match="takes no acknowledgements"):
        session.settle([Frame(1, Verdict.ACK, False)])
    assert now[0] <= 1030.0


@pytest.fixture
def second(connection: FakeConnection) -> FakeChannel:
    """Give the channel on which a session consumes again."""
    result = FakeChannel()
    result.before = connection.fake_channel.before
    return result


def give(channel: FakeChannel, tag: int) -> None:
    """Deliver a message on a channel."""
    method = SimpleNamespace(delivery_tag=tag, routing_key="a", redelivered=False, exchange="")
    channel.on_message["fruit"](channel, method, Properties(), b"{}")


def test_consume_again(
    connection: FakeConnection, channel: FakeChannel, second: FakeChannel
) -> None:
    """New consumers on a channel of their own take the place of the old ones."""
    got: list[Delivery] = []
    session = open_session(ADDRESS, TOPOLOGY, got.append)
    session.consume(3)
    for tag in (1, 2, 3):
        give(channel, tag)
    channel.calls.clear()
    connection.next_channels = [second]
    assert session.open_channel() == 1
    session.consume_again(session.queues, 10)
    assert [call[0] for call in second.calls] == ["basic_qos", *["basic_consume"] * 2]
    assert [call[0] for call in channel.calls] == ["basic_cancel"] * 2
    assert session.is_consuming
    give(second, 1)
    give(second, 2)
    give(channel, 4)
    tags = [delivery.tag for delivery in got]
    assert tags == [1, 2, 3, CHANNEL + 1, CHANNEL + 2, 4]
    for each in (channel, second):
        each.calls.clear()
    session.settle([Frame(tags[4], Verdict.ACK, True), Frame(2, Verdict.NACK, False)])
    assert second.calls == [("basic_ack", 2, True)]
    assert channel.calls == [("basic_nack", 2, False, True)]


def test_consume_with_identity(
    connection: FakeConnection, channel: FakeChannel, second: FakeChannel
) -> None:
    """The broker is told who consumes; each consumer of a session has a tag of its own."""
    session = open_session(ADDRESS, TOPOLOGY, ignore, identity=Identity("sample", "far", 4711))
    session.consume(3)
    assert channel.consumer_tags == ["fmconsume.sample.far.4711.1", "fmconsume.sample.far.4711.2"]
    connection.next_channels = [second]
    session.open_channel()
    session.consume_again(session.queues[:1], 10)
    assert second.consumer_tags == ["fmconsume.sample.far.4711.3"]


@pytest.mark.parametrize("passing", [set(), {404}])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, "NOT_FOUND - no queue 'fruit' in vhost '/'"), ConsumerCanceled),
        ((404, "NOT_FOUND - queue 'fruit' process is stopped by supervisor"), SessionLost),
        ((403, "ACCESS_REFUSED"), PermissionException),
    ],
)
def test_consume_again_refused(
    connection: FakeConnection,
    channel: FakeChannel,
    answer: tuple[int, str],
    error: type[Exception],
    passing: set[int],
) -> None:
    """A queue that is gone ends the consumer as its basic.cancel would, which is on its way."""
    session = open_session(ADDRESS, TOPOLOGY, ignore, retry_codes=passing)
    session.consume(3)
    channel.failures["basic_consume"] = ChannelClosedByBroker(*answer)
    with pytest.raises(error):
        session.consume_again(session.queues, 10)


def test_consume_again_without_another_channel(
    connection: FakeConnection,
    channel: FakeChannel,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there may be no more channels, the same one takes the new consumers."""

    def refuse() -> FakeChannel:
        raise NoFreeChannels

    session.consume(3)
    give(channel, 1)
    channel.calls.clear()
    monkeypatch.setattr(session, "_connection", SimpleNamespace(open_channel=refuse))
    assert session.open_channel() is None
    monkeypatch.undo()
    session.consume_again(session.queues, 10)
    names = [call[0] for call in channel.calls]
    assert names == ["basic_qos", *["basic_consume"] * 2, *["basic_cancel"] * 2]
    channel.calls.clear()
    session.settle([Frame(1, Verdict.ACK, True)])
    assert channel.calls == [("basic_ack", 1, True)]


def test_close_channel(
    connection: FakeConnection, channel: FakeChannel, second: FakeChannel
) -> None:
    """An old channel is closed on demand; until then its end is that of the session."""
    session = open_session(ADDRESS, TOPOLOGY, ignore)
    session.consume(3)
    give(channel, 1)
    connection.next_channels = [second]
    assert session.open_channel() == 1
    session.consume_again(session.queues, 10)
    session.wait(0)
    session.close_channel(0)
    assert channel.calls[-1] == ("close",)
    session.wait(0)
    second.is_open = False
    with pytest.raises(SessionLost, match="the broker closed the channel"):
        session.wait(0)


def test_wait_old_channel_closed(
    connection: FakeConnection, channel: FakeChannel, second: FakeChannel
) -> None:
    """A broker that closes an old channel has taken back what was outstanding there."""
    session = open_session(ADDRESS, TOPOLOGY, ignore)
    session.consume(3)
    give(channel, 1)
    connection.next_channels = [second]
    assert session.open_channel() == 1
    session.consume_again(session.queues, 10)
    channel.is_open = False
    with pytest.raises(SessionLost, match="the broker closed the channel"):
        session.wait(0)


# -- making it ---------------------------------------------------------------


def test_open_declares_topology(connection: FakeConnection, channel: FakeChannel) -> None:
    """Exchanges, queues and bindings are declared in this order, as configured."""
    open_session(ADDRESS, TOPOLOGY, ignore)
    common = {"durable": True, "auto_delete": False, "arguments": {"x": 1}}
    assert channel.calls == [
        ("exchange_declare", "market", "topic", common),
        ("queue_declare", "fruit", {"exclusive": False, **common}),
        ("queue_declare", "", {"exclusive": True, **common}),
        ("queue_bind", "fruit", "market", "a.#", None),
        ("queue_bind", "fruit", "market", "b.#", {"x-match": "any"}),
        ("queue_bind", "amq.gen-1", "market", "#", None),
    ]


def test_open_declares_passively(connection: FakeConnection, channel: FakeChannel) -> None:
    """Passively nothing is created, except the queue that the broker names."""
    open_session(ADDRESS, TOPOLOGY._replace(passive=True), ignore)
    assert [call[-1].get("passive") for call in channel.calls[:3]] == [True, True, None]


def test_open_declares_one_queue_passively(
    connection: FakeConnection, channel: FakeChannel
) -> None:
    """A queue's own setting goes before the one for all."""
    queues = {"fruit": {**TOPOLOGY.queues["fruit"], "passive": True}}
    open_session(ADDRESS, TOPOLOGY._replace(queues=queues, bindings=[]), ignore)
    assert [call[-1].get("passive") for call in channel.calls[:2]] == [None, True]


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("queue_declare", "queue 'fruit'"),
        ("queue_bind", "binding 'market -> fruit (a.#)'"),
    ],
)
def test_open_refused(
    connection: FakeConnection, channel: FakeChannel, method: str, named: str
) -> None:
    """A refusal names what it is that the broker refuses, and leaves no connection open."""
    closed = Event()
    connection.close = closed.set  # type: ignore[method-assign]
    channel.failures[method] = ChannelClosedByBroker(406, "PRECONDITION_FAILED")
    with pytest.raises(BadDeclaration, match=r"^cannot declare ") as caught:
        open_session(ADDRESS, TOPOLOGY, ignore)
    assert named in str(caught.value)
    wait_soon(closed)


@pytest.mark.parametrize(
    "answers",
    [
        (ChannelClosedByBroker(404, "NOT_FOUND"),),
        (ConnectionClosedByBroker(503, "COMMAND_INVALID"),),
        (ChannelClosedByBroker(403, "ACCESS_REFUSED"), ChannelClosedByBroker(404, "NOT_FOUND")),
    ],
)
def test_open_without_exchange(connection: FakeConnection, answers: Any) -> None:
    """An exchange that is not there, and cannot be declared, is refused; the first answer tells."""
    connection.next_channels = [FakeChannel(), FakeChannel()]
    for channel, answer in zip(connection.next_channels, answers):
        channel.failures["exchange_declare"] = answer
    with pytest.raises(BadDeclaration, match=f"exchange 'market': {answers[0].reply_text}"):
        open_session(ADDRESS, TOPOLOGY, ignore)


@pytest.mark.parametrize("code", [403, 406])
@pytest.mark.parametrize("is_seen", [True, False])
def test_open_with_exchange_of_others(
    connection: FakeConnection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    is_seen: bool,
) -> None:
    """An exchange that cannot be declared is used as it is, which one warning tells."""
    monkeypatch.setattr(log, "_warned", {})
    for _ in range(2):
        first, second, third = (FakeChannel() for _ in range(3))
        first.failures["exchange_declare"] = ChannelClosedByBroker(code, "WHY")
        if not is_seen:
            second.failures["exchange_declare"] = ChannelClosedByBroker(403, "ACCESS_REFUSED")
        connection.next_channels = [first, second, third]
        open_session(ADDRESS, TOPOLOGY, ignore).consume()
        assert [call[0] for call in first.calls] == ["exchange_declare"]
        assert (second if is_seen else third).calls[-1][0] == "basic_consume"
    assert caplog.messages == [
        "exchange 'market' is used as it is: cannot declare exchange 'market': WHY"
    ]


def test_open_with_built_in_exchange(channel: FakeChannel) -> None:
    """RabbitMQ's own exchanges are never declared, and not looked for."""
    exchanges = dict.fromkeys(("amq.topic", ""), TOPOLOGY.exchanges["market"])
    open_session(ADDRESS, TOPOLOGY._replace(exchanges=exchanges), ignore)
    assert channel.calls[0][0] == "queue_declare"


def test_consume_registers(session: Session, channel: FakeChannel) -> None:
    """Each queue gets a consumer, under the name that the broker gave it."""
    assert not session.is_consuming
    session.consume()
    assert channel.consumer_tags == ["tag of fruit", "tag of amq.gen-1"]
    assert session.is_consuming
    assert session.name == f"fruit, amq.gen-1 at {ADDRESS.name}"


@pytest.mark.parametrize(("asked", "expected"), [(None, 10), (3, 3), (0, 0)])
def test_consume_prefetch(
    session: Session, channel: FakeChannel, asked: int | None, expected: int
) -> None:
    """Each time the consumers get the prefetch that is asked for, or the configured one."""
    session.consume(asked)
    assert ("basic_qos", 0, expected) in channel.calls


def test_consume_again_one_of_several(
    connection: FakeConnection, channel: FakeChannel, second: FakeChannel
) -> None:
    """The consumer of another queue stays where it is, and counts as a consumer."""
    session = open_session(ADDRESS, TOPOLOGY, ignore)
    session.consume(3)
    connection.next_channels = [second]
    assert session.open_channel() == 1
    channel.calls.clear()
    session.consume_again(["fruit"], 10)
    assert channel.calls == [("basic_cancel", "tag of fruit")]
    assert (channel.consumer_tags, second.consumer_tags) == (["tag of amq.gen-1"], ["tag of fruit"])
    assert session.is_consuming
    session.cancel()
    assert not channel.consumer_tags
    assert not second.consumer_tags
    assert not session.is_consuming


def test_consume_prefetch_refused(session: Session, channel: FakeChannel) -> None:
    """A refusal of the prefetch names it."""
    channel.failures["basic_qos"] = ChannelClosedByBroker(406, "PRECONDITION_FAILED")
    with pytest.raises(BadDeclaration, match="channel 'prefetch 10'"):
        session.consume()


def test_consume_refused(session: Session, channel: FakeChannel) -> None:
    """A queue that may not be read is named."""
    channel.failures["basic_consume"] = ChannelClosedByBroker(403, "ACCESS_REFUSED")
    with pytest.raises(PermissionException, match="no permission for queue 'fruit'"):
        session.consume()


def test_on_message_delivers(connection: FakeConnection, channel: FakeChannel) -> None:
    """A delivery carries its session, its tag, and the real name of its queue."""
    got: list[Delivery] = []
    session = open_session(ADDRESS, TOPOLOGY, got.append, number=3)
    session.consume()
    method = SimpleNamespace(
        delivery_tag=9, routing_key="a.b", redelivered=True, exchange="amq.topic"
    )
    properties = Properties(message_id="apple")
    channel.on_message["amq.gen-1"](channel, method, properties, b"{}")
    (delivery,) = got
    assert (delivery.session, delivery.tag, delivery.queue) == (3, 9, "amq.gen-1")
    assert (delivery.routing_key, delivery.redelivered) == ("a.b", True)
    assert (delivery.properties, delivery.body) == (properties, b"{}")
    assert delivery.message_id == "apple"


# -- using it ----------------------------------------------------------------


def test_settle_frames(session: Session, channel: FakeChannel) -> None:
    """Each verdict becomes its own method."""
    session.settle(
        [
            Frame(4, Verdict.ACK, True),
            Frame(5, Verdict.NACK, False),
            Frame(6, Verdict.DROP, False),
            Frame(7, Verdict.REJECT, False),
            Frame(8, Verdict.FAIL, False),
        ]
    )
    assert channel.calls == [
        ("basic_ack", 4, True),
        ("basic_nack", 5, False, True),
        ("basic_reject", 6, False),
        ("basic_reject", 7, False),
        ("basic_reject", 8, True),
    ]


@pytest.mark.parametrize(
    ("error", "is_by_channel"),
    [
        (ChannelWrongStateError("Channel is closed."), True),
        (ChannelClosedByBroker(406, "PRECONDITION_FAILED - delivery acknowledgement"), True),
        (ConnectionWrongStateError(), False),
        (StreamLostError("reset"), False),
        (OSError("reset"), False),
    ],
    ids=repr,
)
def test_settle_session_lost(
    session: Session, channel: FakeChannel, error: Exception, is_by_channel: bool
) -> None:
    """A session that ended is lost; whether only its channel closed is told."""
    channel.failures["basic_ack"] = error
    with pytest.raises(SessionLost) as caught:
        session.settle([Frame(1, Verdict.ACK, False)])
    assert caught.value.is_by_channel is is_by_channel


def test_wait_time_limit(session: Session, connection: FakeConnection) -> None:
    """Waiting lasts as long as asked at most; without a limit, until something happens."""
    session.wait(2.5)
    session.wait()
    assert connection.waits == [2.5, None]


@pytest.mark.parametrize(
    ("configured", "agreed", "longest"),
    [("", 60, 15.0), ("heartbeat=7", 7, 1.75), ("heartbeat=0", 0, 1000.0)],
)
def test_start_ticking_heartbeat(
    connection: FakeConnection, configured: str, agreed: int, longest: float
) -> None:
    """Each quarter of a heartbeat has a tick, if there are any; the URL goes before the broker."""
    parameters = partial(pika.URLParameters, f"amqp://h?{configured}")
    session = open_quietly(connection, ADDRESS._replace(parameters=parameters))
    connection.ioloop.timers.clear()
    session.start_ticking(1000.0)
    assert connection.heartbeat == agreed
    for _ in range(3):
        ((seconds, _),) = connection.ioloop.timers
        assert seconds == longest
        connection.timers.clear()
        connection.ioloop.fire()
        assert connection.timers, "nothing ends a wait"


def test_start_ticking_silent_line(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that goes silent has a tick as soon as it counts as silent."""
    now = 1000.0
    monkeypatch.setattr(connection_module, "monotonic", lambda: now)
    parameters = partial(pika.URLParameters, "amqp://h?heartbeat=10")
    session = open_quietly(connection, ADDRESS._replace(parameters=parameters))
    connection.ioloop.timers.clear()
    session.start_ticking(1000.0)
    pauses = []
    for _ in range(6):
        ((seconds, _),) = connection.ioloop.timers
        pauses.append(round(seconds, 2))
        now += seconds
        connection.ioloop.fire()
    assert pauses == [2.5, 2.5, 2.5, 2.5, 2.5, 1.51]
    with pytest.raises(SessionLost, match="nothing heard from the broker for 14 s"):
        session.wait(0)


@pytest.mark.parametrize(
    ("arrivals", "count"), [([99_000, 100_000, 8_000, 99_000], 3), ([100_000] * 99, 10)]
)
def test_wait_takes_all(
    session: Session, connection: FakeConnection, arrivals: list[int], count: int
) -> None:
    """While pika reads as much as it does at a time, a wait goes on to read, but not for ever."""
    connection.arrivals = arrivals
    session.wait()
    assert connection.waits == [None] + [0] * (count - 1)


def test_wait_counts_read_meanwhile(session: Session, connection: FakeConnection) -> None:
    """What pika read while it sent something counts as well."""
    connection.bytes_received += 100_000
    session.wait()
    assert connection.waits == [None, 0]


@pytest.mark.parametrize("heartbeat", [10, 0])
def test_wait_silent_line(
    connection: FakeConnection, monkeypatch: pytest.MonkeyPatch, heartbeat: int
) -> None:
    """A line is lost that is silent for 1.4 heartbeats, where there are any."""
    now = [1000.0]
    monkeypatch.setattr(connection_module, "monotonic", lambda: now[0])
    parameters = partial(pika.URLParameters, f"amqp://h?heartbeat={heartbeat}")
    session = open_quietly(connection, ADDRESS._replace(parameters=parameters))
    connection.ioloop.timers.clear()
    now[0] += 14
    connection.bytes_received += 8
    session.wait(0)
    now[0] += 14
    session.wait(0)
    now[0] += 2
    if heartbeat:
        with pytest.raises(SessionLost, match="nothing heard from the broker for 16 s") as caught:
            session.wait(0)
        assert not caught.value.is_by_channel
        connection.bytes_received += 8
    session.wait(0)


def test_wait_session_lost(session: Session, connection: FakeConnection) -> None:
    """A connection that ends while waiting is a lost session."""
    connection.failure = ConnectionClosedByBroker(320, "CONNECTION_FORCED")
    with pytest.raises(SessionLost, match="320 CONNECTION_FORCED"):
        session.wait(1)


def test_wake(session: Session, connection: FakeConnection) -> None:
    """Each wake reaches pika: the mailbox sees to it that there is one at most."""
    session.wake()
    session.wake()
    assert connection.wakes == 2


def test_wake_closed(session: Session, connection: FakeConnection) -> None:
    """Waking a closed connection is no error."""
    connection.failure = ConnectionWrongStateError()
    session.wake()


def test_wait_channel_closed(
    session: Session, connection: FakeConnection, channel: FakeChannel
) -> None:
    """A closed channel, then a closed connection, is a lost session, though pika raised nothing."""
    session.wait(0)
    channel.is_open = False
    with pytest.raises(SessionLost, match="channel") as caught:
        session.wait(0)
    assert caught.value.is_by_channel
    connection.is_open = False
    with pytest.raises(SessionLost, match="connection") as caught:
        session.wait(0)
    assert not caught.value.is_by_channel


def test_depths_by_queue(session: Session) -> None:
    """The number of ready messages comes by the real name of each queue."""
    assert session.depths() == {"fruit": 3, "amq.gen-1": 3}


def test_blocked_while_alarm(session: Session, connection: FakeConnection) -> None:
    """An alarm of the broker is shown for as long as it lasts."""
    assert session.blocked == ""
    frame = SimpleNamespace(method=SimpleNamespace(reason="low on memory"))
    connection.on_blocked(connection, frame)
    assert session.blocked == "low on memory"
    connection.on_blocked(connection, SimpleNamespace(method=SimpleNamespace(reason="")))
    assert session.blocked
    connection.on_unblocked(connection, frame)
    assert session.blocked == ""


# -- ending it ---------------------------------------------------------------


def test_cancel_each_consumer(session: Session, channel: FakeChannel) -> None:
    """Every consumer is cancelled."""
    session.consume()
    channel.calls.clear()
    session.cancel()
    assert channel.calls == [
        ("basic_cancel", "tag of fruit"),
        ("basic_cancel", "tag of amq.gen-1"),
    ]


def test_close_channel_first(
    session: Session, connection: FakeConnection, channel: FakeChannel
) -> None:
    """The channel is closed before the connection, so that every frame is known to be out."""
    session.close()
    assert channel.calls == [("close",)]
    assert connection.closed == 1
    session.close()
    assert channel.calls == [("close",)]
    assert connection.closed == 1


def test_close_broken(session: Session, connection: FakeConnection, channel: FakeChannel) -> None:
    """A session that is broken closes quietly, and the connection is closed nevertheless."""
    channel.failures["close"] = ChannelWrongStateError()
    session.close()
    assert connection.closed == 1
    connection.is_open, connection.failure = True, ConnectionWrongStateError()
    session.close()


def test_discard_waits_for_nothing(session: Session, connection: FakeConnection) -> None:
    """A session is closed aside, since its line may be dead."""
    reached, go_on, closed = Event(), Event(), Event()

    def close() -> None:
        reached.set()
        wait_soon(go_on)
        closed.set()

    connection.fake_channel.is_open = False
    connection.close = close  # type: ignore[method-assign]
    session.discard()
    wait_soon(reached)
    assert not closed.is_set()
    go_on.set()
    wait_soon(closed)


@pytest.mark.parametrize("step", ["depths", "cancel", "consume"])
def test_closed_connection(session: Session, connection: FakeConnection, step: str) -> None:
    """Whatever is asked over a connection that is closed, the session is lost."""
    connection.is_open = False
    with pytest.raises(SessionLost, match="the connection is closed"):
        getattr(session, step)()


def test_discard_closed(session: Session, connection: FakeConnection) -> None:
    """A connection that is closed already takes no thread."""
    connection.is_open = False
    before = threading.active_count()
    session.discard()
    assert threading.active_count() == before
    assert connection.closed == 0
