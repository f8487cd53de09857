"""How consuming goes on after the connection or the broker was gone."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections import Counter

import pika
import pytest

from tests.waiting import PATIENCE, Stopwatch, wait_until

from .broker import Depth, free_port
from .proxy import Proxy
from .running import durable, numbered, write_config

_HEARTBEAT = 2


@pytest.mark.parametrize("workers", [1, 8])
def test_recovery_connection_cut(broker, proxy, queue, run_consumer, workers):
    """With the connection cut again and again under load, every message runs exactly once."""
    count, runs = 3000, Counter()
    cuts = {400, 1200, 2000}

    def callback(message):
        number = message.body["n"]
        runs[number] += 1
        if number in cuts and runs[number] == 1:
            proxy.cut()

    broker.publish(queue, numbered(count))
    running = run_consumer(
        callback,
        queue,
        workers=workers,
        amqp_url=proxy.url(),
        qos={"prefetch_count": 100, "prefetch_size": 0},
    )
    wait_until(lambda: len(runs) == count)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    running.stop()
    assert set(runs.values()) == {1}
    assert running.consumer.stats.reconnections >= 1
    assert broker.ready(queue) == 0


@pytest.mark.parametrize(("kind", "passive"), [("classic", False), ("quorum", True)])
def test_recovery_callback_outlives_its_connection(
    broker, proxy, new_queue, run_consumer, gate, kind, passive
):
    """A callback that runs while the connection is lost settles its redelivery, and runs once.

    A quorum queue may sort the headers, also one that is only looked for.
    """
    queue = new_queue(x_queue_type=kind)
    queues = {queue: {"passive": True}} if passive else queue
    running = run_consumer(gate, queues, amqp_url=proxy.url())
    broker.publish(queue, numbered(3), headers={"zeta": 1, "alpha": 2, "mid": "x", "b": True})
    assert gate.entered.wait(PATIENCE)
    proxy.cut()
    wait_until(lambda: running.consumer.stats.deduplicated == 1)
    gate.open.set()
    wait_until(lambda: running.consumer.stats.acknowledged == 3)
    running.stop()
    assert gate.seen == [0, 1, 2]
    assert broker.ready(queue) == 0


def test_recovery_callback_without_message_id_runs_again(broker, proxy, queue, run_consumer, gate):
    """A message without an id runs again after a lost connection, as at least once means."""
    running = run_consumer(gate, queue, amqp_url=proxy.url())
    broker.publish(queue, [b'{"n": 0}'])
    assert gate.entered.wait(PATIENCE)
    proxy.cut()
    running.wait_until_consuming(reconnections=1)
    gate.open.set()
    wait_until(lambda: gate.seen == [0, 0])
    wait_until(lambda: running.consumer.stats.acknowledged == 2)
    running.stop()
    assert broker.ready(queue) == 0


@pytest.fixture
def impatient_broker(broker):
    """The broker, with a second to acknowledge in for all channels opened from now on."""
    usual = broker.eval("application:get_env(rabbit, consumer_timeout, undefined).")
    set_timeout = "application:set_env(rabbit, consumer_timeout, {}),"
    set_tick = "application:set_env(rabbit, channel_tick_interval, {})."
    broker.eval(set_timeout.format(1000) + set_tick.format(200))
    yield broker
    broker.eval(set_timeout.format(usual) + set_tick.format(60_000))


@pytest.mark.parametrize("whose", ["broker", "queue", "consumer"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_recovery_acknowledgement_timeout(
    impatient_broker, new_queue, run_consumer, gate, kind, whose
):
    """A callback that outlives the acknowledgement timeout runs once and is settled.

    The broker closes the channel then, of which pika tells nothing, or, from 4.3 on, cancels the
    consumer. Then no classic queue has a timeout, and a consumer may have one of its own. Before
    3.12 no queue has one.
    """
    kind = "quorum" if impatient_broker.version >= (4, 3) else kind
    has_own = whose == "queue" and impatient_broker.version >= (3, 12)
    arguments = {"x_queue_type": kind, **({"x_consumer_timeout": 500} if has_own else {})}
    queue = new_queue(**arguments)
    queues = durable(queue, **arguments)
    if whose == "consumer":
        queues[queue]["consumer_arguments"] = {"x-consumer-timeout": 500}
    running = run_consumer(gate, queues)
    impatient_broker.publish(queue, numbered(2))
    wait_until(lambda: running.consumer.stats.deduplicated)
    gate.open.set()
    wait_until(lambda: running.consumer.stats.acknowledged == 2)
    running.stop()
    assert running.consumer.stats.reconnections >= 1
    assert gate.seen == [0, 1]
    assert impatient_broker.ready(queue) == 0


def test_recovery_stalled_line(broker, proxy, queue, run_consumer, gate):
    """A line that went silent is noticed within two heartbeats, and consuming goes on after it."""
    gate.open.set()
    running = run_consumer(gate, queue, amqp_url=proxy.url(heartbeat=_HEARTBEAT))
    proxy.stall()
    with Stopwatch() as watch:
        wait_until(lambda: not running.consumer.state.is_consuming)
        assert watch.seconds < 2 * _HEARTBEAT + 0.5
    proxy.resume()
    broker.publish(queue, numbered(1))
    wait_until(lambda: running.consumer.stats.acknowledged == 1)
    assert running.consumer.stats.reconnections >= 1


def test_recovery_broker_restart(frail_broker, run_consumer, gate):
    """After a restart of the broker the rest of the messages run, and none twice."""
    queue = frail_broker.declare("restart")
    running = run_consumer(gate, queue, amqp_url=frail_broker.url())
    frail_broker.publish(queue, numbered(30))
    assert gate.entered.wait(PATIENCE)
    frail_broker.stop()
    assert "next at " in running.wait_for_state("waiting")
    frail_broker.start()
    running.wait_until_consuming(reconnections=1)
    gate.open.set()
    wait_until(lambda: running.consumer.stats.acknowledged == 30)
    running.stop()
    assert gate.seen == list(range(30))
    assert frail_broker.ready(queue) == 0


def test_recovery_first_connection(frail_broker, run_consumer, gate):
    """A consumer that is started before its broker waits for it."""
    frail_broker.stop()
    gate.open.set()
    running = run_consumer(gate, "first", wait=False, amqp_url=frail_broker.url())
    assert "next at " in running.wait_for_state("waiting")
    frail_broker.start()
    running.wait_until_consuming()
    frail_broker.publish("first", numbered(1))
    wait_until(lambda: gate.seen == [0])
    assert running.consumer.stats.reconnections == 0


def test_recovery_one_refuses_while_the_other_is_down(broker, run_consumer, gate):
    """An address that refuses ends nothing while the good one is only down."""
    port = free_port()
    gate.open.set()
    urls = [broker.url(port=port), broker.url(vhost="there-is-none")]
    running = run_consumer(gate, "refused", wait=False, amqp_url=urls)
    text = running.wait_for_state("waiting")
    assert "there-is-none" in text
    assert f":{port}" in text
    with Proxy(broker, port):
        running.wait_until_consuming()
        running.stop()


def test_recovery_exclusive_queue_still_held(broker, run_consumer, gate):
    """An exclusive queue that another connection still holds at the first start is waited for."""
    gate.open.set()
    name = f"held-{uuid.uuid4()}"
    queues = {name: {"exclusive": True, "durable": False, "auto_delete": False}}
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url()))) as holder:
        holder.channel().queue_declare(name, exclusive=True)
        running = run_consumer(gate, queues, wait=False)
        assert "RESOURCE_LOCKED" in running.wait_for_state("waiting")
    running.wait_until_consuming()
    assert running.consumer.stats.reconnections == 0


_CLOSE_STANDARD_ERROR = """
import sys
def callback(message):
    sys.stderr.close()
    print("took", message.body["n"], flush=True)
"""


def test_recovery_after_standard_error_was_closed(broker, proxy, queue, tmp_path, run_command):
    """A callback that closes standard error makes no consumer deaf."""
    (tmp_path / "closing.py").write_text(_CLOSE_STANDARD_ERROR)
    config = write_config(tmp_path / "config.toml", proxy.url(), queue)
    command = run_command("--callback", "closing:callback", "--config", config, cwd=tmp_path)
    for number in range(3):
        broker.publish(queue, [{"n": number}])
        wait_until(lambda n=number: f"took {n}" in command.printed())
        proxy.cut()
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0


def test_recovery_second_address(broker, queue, run_consumer, gate):
    """Of several addresses the one that answers is taken."""
    gate.open.set()
    broker.publish(queue, numbered(1))
    running = run_consumer(gate, queue, amqp_url=[broker.url(port=free_port()), broker.url()])
    wait_until(lambda: gate.seen == [0])
    assert f":{broker.port}" in running.consumer.state.text
