"""Publishing to a real broker: what arrives, what is refused, and what a lost line costs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pika
import pytest

from fmconsume import Message, exceptions, publish, publisher
from fmconsume.broker.request import Request
from fmconsume.config import conf
from tests.waiting import PATIENCE, Stopwatch, wait_until

from .broker import free_port
from .running import configured

#: Seconds; a publish that takes as long as the default timeout has failed.
_SOON = 15.0


@pytest.fixture(autouse=True)
def settings(broker, monkeypatch):
    """The configuration for a test to change; no connection outlives the test."""
    publishers = {}
    monkeypatch.setattr(publisher, "_publishers", publishers)
    with configured(amqp_url=broker.url()):
        yield conf
        for each in list(publishers.values()):
            each.close()


@pytest.fixture
def exchange(broker, queue):
    """A topic exchange of this test's own, bound to its queue."""
    name = f"{queue}-exchange"
    with broker.channel() as channel:
        channel.exchange_declare(name, "topic")
    broker.bind(queue, name)
    yield name
    with broker.channel() as channel:
        channel.exchange_delete(name)


@pytest.fixture
def user(broker):
    """The URL of a user without any permission, and how to give it some."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    broker.ctl("add_user", name, "Sesame-17-open")
    yield name
    broker.ctl("delete_user", name)


def numbers(broker, queue):
    """Take what is in the queue and return the number of each message."""
    return [int(message.method.routing_key.rpartition(".")[2]) for message in broker.drain(queue)]


def number(n):
    """Make a message that carries a number in its topic."""
    return Message(topic=f"number.{n}", body={"n": n})


def test_publish_arrives_whole(broker, queue, exchange, settings):
    """A message arrives persistent, with prefix, id, priority, headers and body."""
    settings.update(publish_exchange=exchange, topic_prefix="org.example", publish_priority=3)
    message = Message(topic="build.done", body={"n": 1}, headers={"color": "red"})
    publish(message, timeout=_SOON)
    (received,) = broker.drain(queue)
    assert received.method.routing_key == "org.example.build.done"
    assert received.body == b'{"n": 1}'
    properties = received.properties
    assert (properties.message_id, properties.delivery_mode) == (message.id, 2)
    assert (properties.priority, properties.content_type) == (3, "application/json")
    assert properties.headers["color"] == "red"
    assert properties.headers["fedora_messaging_schema"] == "base.message"


def test_publish_exchange_given(broker, queue):
    """The exchange that is given counts; the nameless one reaches a queue by its name."""
    publish(Message(topic=queue), exchange="", timeout=_SOON)
    assert len(broker.drain(queue)) == 1


def test_publish_many_threads(broker, queue, exchange):
    """Messages of many threads arrive once each, those of one thread in order."""
    with ThreadPoolExecutor(40) as pool:
        list(
            pool.map(
                lambda t: [publish(number(t * 100 + n), exchange, _SOON) for n in range(25)],
                range(40),
            )
        )
    arrived = numbers(broker, queue)
    assert sorted(arrived) == [t * 100 + n for t in range(40) for n in range(25)]
    assert [n for n in arrived if n // 100 == 7] == [700 + n for n in range(25)]


def test_publish_one_connection(broker, queue, proxy, settings):
    """One connection serves every publish."""
    settings["amqp_url"] = proxy.url()
    for _ in range(5):
        publish(Message(topic=queue), "", _SOON)
    assert proxy.accepted == 1


def test_publish_unroutable(broker):
    """A message that no queue wants is taken by the broker, which is all that is asked."""
    publish(Message(topic="nobody.listens"), timeout=_SOON)


def test_publish_invalid(settings):
    """An invalid message is refused before anything connects."""
    settings["amqp_url"] = f"amqp://127.0.0.1:{free_port()}"
    with pytest.raises(exceptions.ValidationError, match="the body is a list"):
        publish(Message(body=["no object"]))


@pytest.mark.parametrize(
    ("headers", "topic", "exchange"),
    [({"odd": object()}, "t", ""), ({}, "t" * 256, ""), ({}, "t", "e" * 256)],
    ids=["header", "topic", "exchange"],
)
def test_publish_not_encodable(broker, queue, headers, topic, exchange):
    """What AMQP cannot express is the message's fault, and the next one goes through."""
    with pytest.raises(exceptions.ValidationError, match="cannot be encoded"):
        publish(Message(topic=topic, headers=headers), exchange, _SOON)
    publish(Message(topic=queue), "", _SOON)
    assert len(broker.drain(queue)) == 1


def test_publish_what_was_dead_lettered(broker, new_queue, run_consumer, settings):
    """A callback may publish what came with the broker's own headers, long integers among them."""
    goal, queue = new_queue(), new_queue()
    parking = new_queue(x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key=queue)

    def callback(message):
        message.topic = goal
        publish(message, "")

    running = run_consumer(callback, queue)
    broker.publish(parking, [{"n": 1}], headers={"large": 2**40})
    wait_until(lambda: broker.ready(goal) == 1)
    running.stop()
    (message,) = broker.drain(goal)
    assert message.properties.headers["x-death"]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"large": "x" * 200_000}, "the headers take 200,.* bytes, and the broker takes 131,072"),
        ({f"h{n}": "x" * 1000 for n in range(131)}, "put into the body what is that large"),
        ({"float": float("nan")}, "header .float. holds nan"),
        ({"integer": 2**63}, "header 'integer' holds 9223372036854775808"),
        ({"n" * 256: 1}, "header 'nnn"),
    ],
    ids=["frame", "frame-of-many", "float", "integer", "name"],
)
def test_publish_impossible_disturbs_nobody(
    broker, queue, exchange, proxy, settings, headers, reason
):
    """What cannot be sent is refused at once; what others send goes on, on the same connection."""
    settings["amqp_url"] = proxy.url()
    stop, sent = threading.Event(), []

    def send():
        while not stop.is_set():
            publish(number(len(sent)), exchange, _SOON)
            sent.append(len(sent))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        wait_until(lambda: sent)
        for _ in range(10):
            with pytest.raises(exceptions.ValidationError, match=reason):
                publish(Message(topic=queue, headers=headers), "", _SOON)
        seen = len(sent)
        wait_until(lambda: len(sent) > seen + 10)
    finally:
        stop.set()
        thread.join()
    assert proxy.accepted == 1
    assert numbers(broker, queue) == sent


def test_publish_largest_headers(broker, queue):
    """Headers as large as a frame holds arrive."""
    properties = pika.BasicProperties(headers={"": ""})
    room = 131_072 - Request("", "", b"", properties, 0).header_bytes
    properties.headers[""] = "x" * room
    message = Message(topic=queue, properties=properties)
    publish(message, "", _SOON)
    message.headers[""] += "x"
    with pytest.raises(exceptions.ValidationError, match="131,073 bytes"):
        publish(message, "", _SOON)
    (arrived,) = broker.drain(queue)
    assert len(arrived.properties.headers[""]) == room


def test_publish_received_again(broker, queue, new_queue, run_consumer):
    """Copies of a received message differ from it and from one another; it stays as it was."""
    target = new_queue()

    def callback(message):
        headers = dict(message.headers)
        message.topic = target
        publish(message, "", _SOON)
        publish(message, "", _SOON)
        assert message.headers == headers

    broker.publish(queue, [b"{}"], message_id="m", headers={"color": "red"})
    run_consumer(callback, queue, limit=1, wait=False).result()
    first, second = broker.drain(target)
    assert first.properties.headers == {"color": "red", "x-fmconsume-copies": 1}
    assert second.properties.headers == {"color": "red", "x-fmconsume-copies": 2}
    assert first.properties.message_id == second.properties.message_id == "m"
    # A copy of the copy counts on.
    broker.publish(queue, [b"{}"], message_id="m", headers=second.properties.headers)
    run_consumer(callback, queue, limit=1, wait=False).result()
    assert [m.properties.headers["x-fmconsume-copies"] for m in broker.drain(target)] == [3, 4]


def test_publish_missing_exchange(broker, queue, exchange):
    """A missing exchange is told to its own publisher; what others send arrives once."""
    stop, sent = threading.Event(), []

    def send():
        while not stop.is_set():
            sent.append(len(sent))
            publish(number(sent[-1]), exchange, _SOON)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for _ in range(20):
            with pytest.raises(exceptions.PublishReturned, match=r"404 .*no exchange 'nowhere'"):
                publish(Message(topic="t"), "nowhere", _SOON)
        wait_until(lambda: len(sent) > 50)
    finally:
        stop.set()
        thread.join()
    assert numbers(broker, queue) == sent


def test_publish_refused_by_queue(broker, new_queue):
    """A queue that is full and rejects what comes is told to the publisher."""
    full = new_queue(x_max_length=1, x_overflow="reject-publish")
    publish(Message(topic=full), "", _SOON)
    with pytest.raises(exceptions.PublishReturned, match="nack"):
        publish(Message(topic=full), "", _SOON)
    assert len(broker.drain(full)) == 1


def test_publish_forbidden(broker, queue, exchange, user, settings):
    """A user without permission for an exchange is told so, and may publish elsewhere."""
    broker.ctl("set_permissions", user, "^$", f"^{exchange}$", "^$")
    settings["amqp_url"] = broker.url(user=user, password="Sesame-17-open")
    with pytest.raises(exceptions.PublishForbidden, match=r"403 .*amq.topic") as caught:
        publish(Message(topic="t"), timeout=_SOON)
    assert isinstance(caught.value, exceptions.PublishException)
    publish(number(1), exchange, _SOON)
    assert numbers(broker, queue) == [1]


def test_publish_forbidden_topic(broker, queue, exchange, user, settings):
    """A user may have some topics of an exchange and not others."""
    broker.ctl("set_permissions", user, "^$", ".*", "^$")
    broker.ctl("set_topic_permissions", user, exchange, "^number", "^$")
    settings["amqp_url"] = broker.url(user=user, password="Sesame-17-open")
    with pytest.raises(exceptions.PublishForbidden, match=r"topic 'letter.a'"):
        publish(Message(topic="letter.a"), exchange, _SOON)
    publish(number(2), exchange, _SOON)
    assert numbers(broker, queue) == [2]


def test_publish_refused_login(broker, settings):
    """A wrong password is a ConnectionException at once, without the password in it."""
    settings["amqp_url"] = broker.url(password="Sesame-17-open")
    with pytest.raises(exceptions.ConnectionException, match="ACCESS_REFUSED") as caught:
        publish(Message(topic="t"), timeout=_SOON)
    assert "Sesame" not in str(caught.value)


def test_publish_unknown_virtual_host(broker, settings):
    """A virtual host that does not exist is a ConnectionException that names it."""
    settings["amqp_url"] = broker.url("nowhere")
    with pytest.raises(exceptions.ConnectionException, match="nowhere"):
        publish(Message(topic="t"), timeout=_SOON)


def test_publish_unreachable(settings):
    """An unreachable broker is tried until the timeout, which tells address and reason."""
    port = free_port()
    settings["amqp_url"] = f"amqp://127.0.0.1:{port}"
    started = time.monotonic()
    with Stopwatch() as watch:
        with pytest.raises(exceptions.PublishTimeout, match=f"127.0.0.1:{port}.*refused"):
            publish(Message(topic="t"), timeout=0.5)
        assert time.monotonic() - started >= 0.5
        assert watch.seconds < 5


def test_publish_next_address(broker, queue, settings):
    """With several brokers the one that works is found."""
    settings["amqp_url"] = [f"amqp://127.0.0.1:{free_port()}", broker.url()]
    publish(Message(topic=queue), "", _SOON)
    assert len(broker.drain(queue)) == 1


def test_publish_timeout_is_final(broker, queue, proxy, settings):
    """What was not sent in time is never sent."""
    settings["amqp_url"] = proxy.url()
    proxy.stall()
    with pytest.raises(exceptions.PublishTimeout):
        publish(number(1), "", timeout=0.3)
    proxy.resume()
    publish(Message(topic=queue), "", _SOON)
    assert len(broker.drain(queue)) == 1


def test_publish_after_cut(broker, queue, exchange, proxy, settings):
    """After the loss of the connection the next publish makes another."""
    settings["amqp_url"] = proxy.url()
    for n in range(3):
        publish(number(n), exchange, _SOON)
        proxy.cut()
    assert numbers(broker, queue) == [0, 1, 2]


def test_publish_cut_under_load(broker, queue, exchange, proxy, settings):
    """Cut again and again while many threads publish, every confirmed message is there."""
    settings["amqp_url"] = proxy.url()
    done = threading.Event()

    def cut():
        while not done.wait(0.3):
            proxy.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: publish(number(n), exchange, 40), range(2000)))
    finally:
        done.set()
        cutter.join()
    arrived = Counter(numbers(broker, queue))
    assert set(arrived) == set(range(2000))
    assert proxy.accepted > 2


def test_publish_unconfirmed_is_sent_again(broker, queue, proxy, settings):
    """A message whose confirmation is lost with the connection is sent again, with its id."""
    settings["amqp_url"] = proxy.url()
    publish(Message(topic=queue), "", _SOON)
    broker.drain(queue)
    proxy.stall()
    message = Message(topic=queue)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(publish, message, "", _SOON)
        assert not result.done()
        proxy.cut()
        proxy.resume()
        result.result()
    arrived = broker.drain(queue)
    assert {each.properties.message_id for each in arrived} == {message.id}


def test_publish_blocked(frail_broker, settings):
    """While the broker blocks publishers a publish times out, says why, and is not sent later."""
    settings["amqp_url"] = frail_broker.url()
    queue = frail_broker.declare("blocked")
    publish(Message(topic=queue), "", _SOON)
    frail_broker.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        # The broker tells of its alarm only when something is published.
        with pytest.raises(exceptions.PublishTimeout, match=r"blocks publishers.*memory"):
            publish(Message(topic=queue, body={"n": 1}), "", 2)
        with pytest.raises(exceptions.PublishTimeout, match=r"blocks publishers.*memory"):
            publish(Message(topic=queue, body={"n": 2}), "", 0.2)
    finally:
        frail_broker.ctl("set_vm_memory_high_watermark", "0.6")
    publish(Message(topic=queue, body={"n": 3}), "", _SOON)
    arrived = [message.body for message in frail_broker.drain(queue)]
    assert b'{"n": 2}' not in arrived
    assert arrived[-1] == b'{"n": 3}'


def test_publish_broker_comes_back(frail_broker, settings):
    """A publish that finds the broker down succeeds if it comes back in time."""
    settings["amqp_url"] = frail_broker.url()
    queue = frail_broker.declare("back")
    publish(Message(topic=queue), "", _SOON)
    frail_broker.stop()
    with ThreadPoolExecutor(1) as pool:
        try:
            result = pool.submit(publish, Message(topic=queue), "", 50)
        finally:
            frail_broker.start()
        result.result()
    assert len(frail_broker.drain(queue)) == 2


@pytest.mark.parametrize("workers", [1, 4])
def test_publish_in_callback(broker, queue, new_queue, run_consumer, workers):
    """A callback may publish, on any worker."""
    target = new_queue()
    running = run_consumer(lambda _: publish(Message(topic=target), ""), queue, workers=workers)
    broker.publish(queue, ({"n": n} for n in range(50)))
    wait_until(lambda: running.consumer.stats.acknowledged == 50)
    running.stop()
    assert len(broker.drain(target)) == 50


def test_publish_in_coroutine(broker, queue, new_queue, run_consumer):
    """A coroutine callback may publish; its loop waits for it."""
    target = new_queue()

    async def callback(message):
        await asyncio.sleep(0)
        publish(Message(topic=target), "", _SOON)

    running = run_consumer(callback, queue)
    broker.publish(queue, [{"n": 1}])
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    running.stop()
    assert len(broker.drain(target)) == 1


def test_publish_during_stop(broker, queue, new_queue, run_consumer, gate):
    """A callback that publishes after the stop has begun is confirmed and acknowledged."""
    target = new_queue()

    def callback(message):
        gate(message)
        publish(Message(topic=target), "", _SOON)

    running = run_consumer(callback, queue)
    broker.publish(queue, [{"n": 1}])
    assert gate.entered.wait(PATIENCE)
    running.consumer.stop()
    running.wait_for_state("stopping")
    gate.open.set()
    running.result()
    assert running.consumer.stats.acknowledged == 1
    assert (broker.ready(queue), broker.ready(target)) == (0, 1)


_FORK = """
import os, sys
from fmconsume import Message, publish

def send(who):
    publish(Message(topic=os.environ["QUEUE"], body={"who": who}), "", 15)

send("parent")
child = os.fork()
if not child:
    send("child")
    sys.exit()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
send("parent again")
sys.exit(status)
"""

_EXIT = """
import threading, time
from fmconsume import Message, publish

threading.Thread(target=publish, args=(Message(topic="t"),), daemon=True).start()
while "fmconsume-publisher" not in [thread.name for thread in threading.enumerate()]:
    time.sleep(0.01)
"""


def run_script(script, tmp_path, url, **env):
    """Run a script with a configuration that has this URL, and return what it said."""
    config = tmp_path / "config.toml"
    config.write_text(f'amqp_url = "{url}"\n')
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            script,
        ],
        env={**os.environ, "FMCONSUME_CONF": str(config), **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_publish_after_fork(broker, queue, tmp_path):
    """A forked child publishes on a connection of its own, its parent goes on with the first."""
    done = run_script(_FORK, tmp_path, broker.url(), QUEUE=queue)
    assert (done.returncode, done.stderr) == (0, "")
    bodies = [message.body for message in broker.drain(queue)]
    assert bodies == [b'{"who": "parent"}', b'{"who": "child"}', b'{"who": "parent again"}']


@pytest.mark.parametrize("is_stalled", [False, True])
def test_publish_at_exit(proxy, tmp_path, is_stalled):
    """The interpreter ends while a thread publishes, whatever the line does."""
    if is_stalled:
        proxy.stall()
    with Stopwatch() as watch:
        done = run_script(_EXIT, tmp_path, proxy.url())
        assert done.returncode == 0
        assert watch.seconds < 10
