"""What becomes of running, prefetched and hung callbacks when the consumer is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import fmconsume
from fmconsume.api import consume
from fmconsume.broker.backoff import Backoff
from fmconsume.exceptions import HaltConsumer, Nack, StopTimeout
from tests.waiting import PATIENCE, Stopwatch, wait_until

from .broker import Depth, free_port
from .running import Gate, configured, durable, numbered, warm_up, write_config

_SIGNALS = [signal.SIGTERM, signal.SIGINT]

# A callback for the command: it holds each message until there is a file "open".
_CALLBACKS = """
import os, time, threading

def hold(message):
    print("begun", message.body["n"], flush=True)
    while not os.path.exists("open"):
        time.sleep(0.01)
    print("ended", message.body["n"], flush=True)

def hang(message):
    print("begun", message.body["n"], flush=True)
    threading.Event().wait()
"""

# A second signal while the callback hangs; the interpreter has to end nevertheless.
_SCRIPT = """
import os, signal, threading, time
from fmconsume import api

def callback(message):
    os.kill(os.getpid(), signal.SIGTERM)
    while consumer.state.name != "stopping":
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

consumer = api.Consumer(callback)
try:
    consumer.run()
except KeyboardInterrupt as exc:
    print(type(exc).__name__, consumer.exit_code, consumer.stats.abandoned)
"""


@pytest.fixture
def start_command(broker, queue, tmp_path, run_command):
    """Run the command with one of the callbacks above, until it has begun with a message."""

    def start(name, **top):
        (tmp_path / "holding.py").write_text(_CALLBACKS)
        config = write_config(tmp_path / "config.toml", broker.url(), queue, **top)
        command = run_command("--callback", f"holding:{name}", "--config", config, cwd=tmp_path)
        wait_until(lambda: "begun" in command.printed() or command.poll() is not None)
        assert command.poll() is None, command.logged()
        return command

    return start


def _redelivered(received):
    return [message.method.redelivered for message in received]


def test_stop_lets_running_callbacks_finish(broker, queue, run_consumer, gate):
    """On a stop the running callback is acknowledged, and the prefetched ones never run."""
    running = run_consumer(gate, queue)
    before = warm_up(broker, queue, running)
    broker.publish(queue, numbered(5))
    wait_until(lambda: running.consumer.stats.received == before + 5)
    running.consumer.stop()
    running.wait_for_state("stopping")
    wait_until(lambda: broker.ready(queue) == 4)  # while the callback still runs
    gate.open.set()
    running.result()
    assert running.consumer.exit_code == 0
    assert gate.seen == [0]
    returned = broker.drain(queue)
    assert [message.body for message in returned] == [b'{"n": %d}' % n for n in (1, 2, 3, 4)]
    assert _redelivered(returned) == [True] * 4


def test_stop_lets_every_worker_finish(broker, queue, run_consumer, gate):
    """On a stop the running callbacks of all workers are acknowledged."""
    running = run_consumer(gate, queue, workers=3)
    broker.publish(queue, numbered(8))
    wait_until(lambda: len(gate.seen) == 3)
    running.consumer.stop()
    running.wait_for_state("stopping")
    wait_until(lambda: broker.ready(queue) == 5)
    gate.open.set()
    running.result()
    assert sorted(gate.seen) == [0, 1, 2]
    assert running.consumer.stats.acknowledged == 3
    assert broker.ready(queue) == 5


def test_stop_single_active_consumer(broker, new_queue, run_consumer, gate):
    """While a callback of the one that stops still runs, the next active consumer gets nothing."""
    arguments = {"x_single_active_consumer": True}
    queue = new_queue(**arguments)
    first = run_consumer(gate, durable(queue, **arguments))
    broker.publish(queue, numbered(5))
    assert gate.entered.wait(PATIENCE)
    seen = []
    second = run_consumer(
        lambda message: seen.append(message.body["n"]), durable(queue, **arguments)
    )
    first.consumer.stop()
    first.wait_for_state("stopping")
    broker.publish(queue, [{"n": 5}])
    wait_until(lambda: broker.depth(queue) == Depth(0, 6) or second.consumer.stats.received)
    assert not seen
    gate.open.set()
    first.result()
    wait_until(lambda: len(seen) == 5)
    assert (gate.seen, seen) == ([0], [1, 2, 3, 4, 5])
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))


def test_stop_single_active_consumer_keeps_the_order(broker, new_queue, run_consumer):
    """Instances that take over from one another, each stopped under load, keep the order."""
    arguments = {"x_single_active_consumer": True}
    queue, seen = new_queue(**arguments), []

    def callback(message):
        seen.append(message.body["n"])
        time.sleep(0.005)

    instances = [run_consumer(callback, durable(queue, **arguments)) for _ in range(3)]
    broker.publish(queue, numbered(150))
    for number, instance in enumerate(instances[:2], 1):
        wait_until(lambda n=number: len(seen) >= 40 * n)
        instance.stop()
    wait_until(lambda: len(seen) >= 150)
    assert seen == list(range(150))


def test_stop_silent_line(broker, proxy, queue, run_consumer):
    """On a line that is silent a stop ends in time, whatever the heartbeat."""
    running = run_consumer(print, queue, amqp_url=proxy.url(heartbeat=0))
    proxy.stall()
    with Stopwatch() as watch:
        running.stop()
        assert watch.seconds < 15
    assert running.consumer.exit_code == 0


def test_stop_keeps_heartbeats_going(broker, queue, run_consumer, gate):
    """A callback may outlive the stop by several heartbeats and is acknowledged still."""
    running = run_consumer(gate, queue, amqp_url=broker.url(heartbeat=1))
    broker.publish(queue, numbered(1))
    assert gate.entered.wait(PATIENCE)
    running.consumer.stop()
    running.wait_for_state("stopping")
    time.sleep(4)
    gate.open.set()
    running.result()
    assert broker.ready(queue) == 0


def test_stop_while_idle_is_prompt(queue, run_consumer):
    """An idle consumer stops at once."""
    running = run_consumer(print, queue)
    with Stopwatch() as watch:
        running.stop()
        assert watch.seconds < 1


def test_stop_before_run(queue, run_consumer, broker, gate):
    """A stop that comes before anything else is not lost."""
    running = run_consumer(gate, queue, wait=False)
    running.stop()
    assert running.consumer.exit_code == 0


def test_stop_twice(queue, run_consumer, broker, gate):
    """A second stop is no second signal: the running callback is waited for."""
    running = run_consumer(gate, queue)
    broker.publish(queue, numbered(1))
    assert gate.entered.wait(PATIENCE)
    for _ in range(3):
        running.consumer.stop()
    running.wait_for_state("stopping")
    gate.open.set()
    running.result()
    assert broker.ready(queue) == 0


def test_stop_while_backing_off(run_consumer, monkeypatch):
    """A stop does not wait for the end of the delay before the next connection."""
    monkeypatch.setattr(Backoff, "next", lambda self: 50.0)
    url = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    running = run_consumer(print, "any", wait=False, amqp_url=url)
    assert "(1 attempt), next at " in running.wait_for_state("waiting")
    with Stopwatch() as watch:
        running.stop()
        assert watch.seconds < 1


def test_stop_while_the_broker_does_not_answer(proxy, run_consumer):
    """A stop does not wait for a connection that is being made on a dead line."""
    proxy.stall()
    running = run_consumer(print, "any", wait=False, amqp_url=proxy.url())
    wait_until(lambda: proxy.connections)
    with Stopwatch() as watch:
        running.stop()
        assert watch.seconds < 1


def test_stop_after_the_connection_was_lost(broker, proxy, queue, run_consumer, gate, monkeypatch):
    """A stop between two sessions waits for the running callback, not for the network."""
    monkeypatch.setattr(Backoff, "next", lambda self: 50.0)
    running = run_consumer(gate, queue, amqp_url=proxy.url())
    broker.publish(queue, numbered(2))
    assert gate.entered.wait(PATIENCE)
    proxy.cut()
    running.wait_for_state("waiting")
    running.consumer.stop()
    gate.open.set()
    running.result(timeout=PATIENCE)
    assert gate.seen == [0]
    # The one that was not run was not even delivered.
    assert _redelivered(broker.drain(queue)) == [True, False]


def test_stop_leaves_other_consumers_alone(broker, new_queue, run_consumer):
    """Two consumers in one process neither mix their messages nor stop each other."""
    gates = [Gate(), Gate()]
    queues = [new_queue(), new_queue()]
    first, second = (run_consumer(gate, queue) for gate, queue in zip(gates, queues))
    for gate, queue, number in zip(gates, queues, (1, 2)):
        gate.open.set()
        broker.publish(queue, [{"n": number}])
    wait_until(lambda: [gate.seen for gate in gates] == [[1], [2]])
    first.stop()
    broker.publish(queues[1], [{"n": 3}])
    wait_until(lambda: gates[1].seen == [2, 3])
    second.stop()


def test_consume_in_another_thread_leaves_signals_alone(broker, queue, run_consumer):
    """Outside the main thread no signal handler is installed."""
    before = [signal.getsignal(number) for number in _SIGNALS]
    during = []
    run_consumer(lambda message: during.append([signal.getsignal(n) for n in _SIGNALS]), queue)
    broker.publish(queue, [{}])
    wait_until(lambda: during)
    assert during == [before]


def test_consume_in_the_main_thread_puts_signal_handlers_back(broker, queue):
    """While consume runs it has signal handlers of its own; afterwards the old ones are back."""
    before = [signal.getsignal(number) for number in _SIGNALS]
    during = []

    def callback(message):
        during.extend(signal.getsignal(number) for number in _SIGNALS)
        raise HaltConsumer

    assert threading.current_thread() is threading.main_thread()
    broker.publish(queue, [{}])
    with configured(amqp_url=broker.url()), pytest.raises(HaltConsumer):
        consume(callback, [], durable(queue))
    assert [signal.getsignal(number) for number in _SIGNALS] == before
    assert not set(during) & set(before)


@pytest.mark.parametrize("number", _SIGNALS)
def test_consume_in_the_main_thread_returns_on_a_signal(broker, queue, number):
    """A signal ends consume(), which returns once the running callback has ended."""

    def callback(message):
        os.kill(os.getpid(), number)

    broker.publish(queue, numbered(1))
    with configured(amqp_url=broker.url()):
        consume(callback, [], durable(queue))
    assert broker.ready(queue) == 0


@pytest.mark.parametrize("number", _SIGNALS)
def test_consume_leaves_handlers_of_the_program(broker, queue, number):
    """A handler of the program's own is called, and what it raises ends consume() at once."""
    held = threading.Event()

    def leave(*args):
        sys.exit(7)

    def callback(message):
        if not held.is_set():  # Afterwards nobody would catch it.
            os.kill(os.getpid(), number)
        held.wait(PATIENCE)

    broker.publish(queue, numbered(2))
    before = signal.signal(number, leave)
    try:
        with configured(amqp_url=broker.url()), pytest.raises(SystemExit) as raised:
            consume(callback, [], durable(queue))
        assert raised.value.code == 7
        assert signal.getsignal(number) is leave
    finally:
        signal.signal(number, before)
        held.set()
    wait_until(lambda: broker.ready(queue) == 2)


def test_command_replaces_handlers_of_the_callback(broker, queue, tmp_path, run_command):
    """The command stops cleanly also where the callback's module handles signals."""
    (tmp_path / "handling.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGTERM, lambda *args: print('mine', flush=True))\n"
        "def callback(message):\n    pass\n"
    )
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    command = run_command("--config", config, "--callback", "handling:callback", cwd=tmp_path)
    command.wait_for("consuming from")
    command.terminate()
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == ""


@pytest.mark.parametrize("number", _SIGNALS)
def test_command_stopped_by_a_signal(broker, queue, tmp_path, start_command, number):
    """A first signal ends the command with 0 when the running callback has ended."""
    broker.publish(queue, numbered(4))
    command = start_command("hold")
    command.send_signal(number)
    wait_until(lambda: broker.ready(queue) == 3)
    (tmp_path / "open").touch()
    assert command.wait(PATIENCE) == 0
    assert command.printed().splitlines() == ["begun 0", "ended 0"]
    assert "Traceback" not in command.logged()
    wait_until(lambda: broker.depth(queue) == Depth(3, 0))


@pytest.mark.parametrize("number", _SIGNALS)
def test_command_stopped_by_a_second_signal(broker, queue, start_command, number):
    """A second signal ends the command at once, and the hung callback's message is redelivered."""
    broker.publish(queue, numbered(2))
    command = start_command("hang")
    command.send_signal(signal.SIGTERM)
    command.wait_for("stopping")
    assert command.insist(number) == 128 + number
    assert "Traceback" not in command.logged()
    wait_until(lambda: broker.ready(queue) == 2)
    assert _redelivered(broker.drain(queue)) == [True, False]


def test_command_stopped_twice_at_once(broker, queue, tmp_path, start_command):
    """A signal to the process and to its group, as timeout(1) sends it, is one."""
    broker.publish(queue, numbered(1))
    command = start_command("hold")
    for _ in range(2):
        command.send_signal(signal.SIGTERM)
    command.wait_for("stopping")
    (tmp_path / "open").touch()
    assert command.wait(PATIENCE) == 0, command.logged()


def test_run_raises_keyboard_interrupt_on_a_second_signal(broker, queue, tmp_path):
    """With a second signal run() raises KeyboardInterrupt, and a hung callback keeps nothing."""
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    broker.publish(queue, numbered(1))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "FMCONSUME_CONF": str(config)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["KeyboardInterrupt", "130", "1"], done.stderr
    assert done.returncode == 0
    wait_until(lambda: broker.ready(queue) == 1)
    assert _redelivered(broker.drain(queue)) == [True]


def test_stop_timeout(start_command, broker, queue, tmp_path):
    """A callback that hangs is abandoned stop_timeout after a SIGTERM; the log says which."""
    broker.publish(queue, numbered(1))
    command = start_command("hang", stop_timeout=0.2)
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 17
    log = command.logged()
    assert "not waiting for a callback: fmconsume-worker-1 works on message" in log
    assert "threading.Event().wait()" in log
    assert log.splitlines()[-1] == (
        "fmconsume: the stop has taken 0.2 s (stop_timeout), and waits no longer: "
        "RabbitMQ will redeliver what is not acknowledged"
    )
    wait_until(lambda: broker.ready(queue) == 1)


@pytest.mark.parametrize(
    ("halt", "raised", "exit_code"),
    [(HaltConsumer(), StopTimeout, 17), (HaltConsumer(2), HaltConsumer, 2)],
    ids=["halt", "failure"],
)
def test_stop_timeout_after_halt(broker, queue, run_consumer, gate, halt, raised, exit_code):
    """It counts as well when one callback halts while another hangs; a failure counts more."""

    def callback(message):
        if message.body["n"] == 0:
            gate(message)
        raise halt

    running = run_consumer(callback, queue, workers=2, stop_timeout=0.2)
    broker.publish(queue, numbered(2))
    with pytest.raises(raised):
        running.result()
    assert running.consumer.exit_code == exit_code
    assert running.consumer.stats.abandoned == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_wait_for_stop(broker, queue, run_consumer, is_async):
    """A callback that waits before it tries again learns of the stop, and returns its message."""

    def wait(message):
        begun.set()
        if fmconsume.wait_for_stop(PATIENCE):
            assert fmconsume.is_stopping()
            raise Nack

    async def wait_later(message):
        begun.set()
        if await asyncio.to_thread(fmconsume.wait_for_stop, PATIENCE):
            assert fmconsume.is_stopping()
            raise Nack

    begun = threading.Event()
    running = run_consumer(wait_later if is_async else wait, queue)
    broker.publish(queue, numbered(1))
    assert begun.wait(PATIENCE)
    assert not fmconsume.is_stopping()
    running.stop()
    assert running.consumer.stats.requeued == 1
    wait_until(lambda: broker.ready(queue) == 1)
