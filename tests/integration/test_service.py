"""The installed command as a service: what systemd, the journal and monitors are told of it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fmconsume.version import __version__
from tests.unit.test_recipes import TRANSPORT, read_recipe
from tests.waiting import PATIENCE, Stopwatch, wait_until

from .broker import LOOPBACK, free_port
from .running import numbered, write_config

_CALLBACKS = """
import asyncio, os, time
from fmconsume.exceptions import Drop, Nack

seen = set()

def judge(message):
    n = message.body["n"]
    if n % 5 == 1:
        raise Drop
    if n % 5 == 2 and n not in seen:
        seen.add(n)
        raise Nack

def take(message):
    print("took", message.body["n"], flush=True)

def hang(message):
    print("took", message.body["n"], flush=True)
    while message.body["n"] and not os.path.exists("release"):
        time.sleep(0.01)

async def look_up_the_owner():
    while not os.path.exists("release"):
        await asyncio.sleep(0.01)

async def hang_async(message):
    if message.body["n"]:
        await look_up_the_owner()
"""


class Manager:
    """A service manager: a datagram socket for NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address.replace("@", "\0", 1))
        self._heard: list[str] = []

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def heard(self) -> list[str]:
        """Return every line so far."""
        try:
            while True:
                self._heard += self._socket.recv(65536).decode().split("\n")
        except BlockingIOError:
            return self._heard

    def wait_for(self, text: str, after: int = 0) -> int:
        """Wait for a line with this text, and return how many lines came up to it."""

        def find():
            lines = enumerate(self.heard()[after:], after + 1)
            return next((number for number, line in lines if text in line), 0)

        return wait_until(find)


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    """A service manager that listens."""
    path = str(tmp_path / "notify")
    with Manager(path if request.param == "file" else f"@{uuid.uuid4().hex}") as manager:
        yield manager


@pytest.fixture
def folder(tmp_path):
    """The directory where the command is started, with the callbacks of this file."""
    (tmp_path / "callbacks.py").write_text(_CALLBACKS)
    return tmp_path


@pytest.fixture
def port():
    """A free port for monitoring."""
    return free_port()


@pytest.fixture
def serve(broker, queue, folder, port, run_command):
    """Start the command, with monitoring; keys of the configuration as `write_config` has them."""

    def start(callback="take", url=None, env=None, queues=queue, module="callbacks", **config):
        tables = f"[monitoring]\nport = {port}\n[failures.delay]\ninitial = 0.01\nmax = 0.01"
        path = write_config(folder / "my.toml", url or broker.url(), queues, tables, **config)
        arguments = ("--config", path, "--callback", f"{module}:{callback}")
        return run_command(*arguments, cwd=folder, env=env)

    return start


@pytest.fixture
def ask(port):
    """Return status and body of a path of the monitoring server; status 0 while there is none."""

    def ask(path):
        connection = HTTPConnection(LOOPBACK, port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return 0, ""
        finally:
            connection.close()

    return ask


# -- systemd


def test_notify_from_start_to_end(broker, queue, manager, serve):
    """systemd hears of readiness, of the counts, of the stop and of the end, in this order."""
    command = serve(env=manager.environment)
    ready = manager.wait_for("READY=1")
    broker.publish(queue, numbered(3))
    counted = manager.wait_for("acknowledged 3", ready)
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0, command.logged()
    stopping = manager.wait_for("STOPPING=1", counted)
    assert manager.wait_for("STATUS=stopped", stopping)
    lines = manager.heard()
    assert lines.count("READY=1") == lines.count("STOPPING=1") == 1
    assert lines[ready].startswith(f"STATUS=consuming from {queue} at amqp://")


def test_notify_not_ready_before_the_queue_is_consumed(broker, queue, manager, proxy, serve):
    """While the broker is away systemd is told why, and not that the consumer is ready."""
    proxy.stall()
    serve(url=proxy.url(), env=manager.environment)
    manager.wait_for("STATUS=connecting")
    assert "READY=1" not in manager.heard()
    proxy.resume()
    assert manager.wait_for("READY=1")


def test_notify_asks_for_time_while_the_broker_is_down(manager, serve):
    """Until the consumer is ready it keeps asking systemd for more time to start."""
    serve(url=f"amqp://{LOOPBACK}:{free_port()}", env=manager.environment)
    asked = 0
    for _ in range(3):
        asked = manager.wait_for("EXTEND_TIMEOUT_USEC=60000000", asked)
    assert "READY=1" not in manager.heard()


def test_watchdog_is_fed(manager, serve):
    """An idle consumer gives a sign of life in half the time that systemd waits."""
    serve(env={**manager.environment, "WATCHDOG_USEC": "1000000"})
    fed = 0
    for _ in range(4):
        fed = manager.wait_for("WATCHDOG=1", fed)


@pytest.mark.parametrize(
    ("callback", "line"),
    [("hang", "time.sleep(0.01)"), ("hang_async", "await asyncio.sleep(0.01)")],
)
def test_watchdog_withheld_while_a_callback_hangs(
    broker, queue, folder, tmp_path, serve, callback, line
):
    """A callback past its time is logged with its stack, and starves the watchdog till it ends."""
    with Manager(str(tmp_path / "notify")) as manager:
        environment = {**manager.environment, "WATCHDOG_USEC": "1000000"}
        command = serve(callback, env=environment, callback_timeout=0.2)
        manager.wait_for("WATCHDOG=1")
        broker.publish(queue, numbered(2))  # The first ends, so that the prefetch is whole.
        logged = command.wait_for("past callback_timeout: fmconsume-worker-1 works on message ")
        assert line in logged
        before = len(manager.heard())
        broker.publish(queue, numbered(1))
        seen = manager.wait_for("received 3", before)
        assert "WATCHDOG=1" not in manager.heard()[before:seen]
        (folder / "release").touch()
        assert manager.wait_for("WATCHDOG=1", seen)
    assert command.logged().count("past callback_timeout: ") <= 2


def test_stuck_shows_at_once(broker, queue, folder, tmp_path, serve, ask):
    """A callback past its time shows in STATUS, /ready, the page and the metrics till it ends."""
    with Manager(str(tmp_path / "notify")) as manager:
        serve("hang", env=manager.environment, callback_timeout=0.5)
        ready = manager.wait_for("READY=1")
        broker.publish(queue, [{"n": 1}], message_id="apple")
        stuck = manager.wait_for("STATUS=stuck, 1 of 1 workers past callback_timeout", ready)
        text = f"message apple from queue {queue!r} runs for "
        status, body = ask("/ready")
        assert (status, json.loads(body)["consuming"]) == (503, False)
        assert text in json.loads(body)["state"]
        wait_until(lambda: 'data-head="State">past callback_timeout</td>' in ask("/")[1])
        assert '<h1 class="bad">Stuck <small>nothing is consumed</small></h1>' in ask("/")[1]
        assert 'fmconsume_state{state="stuck"} 1.0' in ask("/metrics")[1]
        assert "fmconsume_busy_workers 1.0" in ask("/metrics")[1]
        assert text in manager.heard()[stuck - 1]
        (folder / "release").touch()
        manager.wait_for(f"STATUS=consuming from {queue}", stuck)
        wait_until(lambda: ask("/ready")[0] == 200)
        page = ask("/")[1]
    assert '<h1 class="good">Consuming <small>no trouble</small></h1>' in page
    assert '<td class="" data-head="State">stuck</td>' in page


def test_partly_stuck_consumes_on(broker, queue, folder, serve, ask):
    """While another worker is left, messages are consumed, and the state names what is stuck."""
    serve("hang", callback_timeout=0.2, workers=2)
    broker.publish(queue, [{"n": 1}, {"n": 0}])
    wait_until(lambda: "partly stuck, 1 of 2 workers" in ask("/ready")[1])
    assert ask("/ready")[0] == 200
    broker.publish(queue, [{"n": 0}])
    wait_until(lambda: json.loads(ask("/ready")[1])["consumed"]["processed"] == 2)
    assert "partly stuck, 1 of 2 workers" in ask("/ready")[1]


def test_status_names_what_runs(broker, queue, tmp_path, serve):
    """What runs for more than a second is in STATUS, without any callback_timeout."""
    with Manager(str(tmp_path / "notify")) as manager:
        serve("hang", env=manager.environment)
        ready = manager.wait_for("READY=1")
        broker.publish(queue, [{"n": 1}], message_id="apple")
        line = manager.wait_for("runs for", ready)
        text = f"; message apple from queue {queue!r} runs for "
        assert text in manager.heard()[line - 1]


def test_identity(broker, queue, serve, ask):
    """The broker, the page and the metrics call the consumer by program, host and process."""
    command = serve(client_properties={"app": "sample"})
    wait_until(lambda: ask("/ready")[0] == 200)
    host, pid = socket.gethostname(), command.pid
    consumers = broker.ctl("list_consumers", "queue_name", "consumer_tag")
    tags = dict(line.split() for line in consumers.splitlines())
    assert tags[queue] == f"fmconsume.sample.{host}.{pid}.1"
    assert f"sample on {host}, process {pid}" in ask("/")[1]
    info = f'fmconsume_info{{app="sample",host="{host}",pid="{pid}",version="{__version__}"}} 1.0'
    assert info in ask("/metrics")[1]


def test_ages_of_messages(broker, queue, serve, ask):
    """A message that says when it was published tells how long it waited."""
    broker.publish(queue, [{"n": 0}], timestamp=int(time.time()) - 100)
    broker.publish(queue, [{"n": 1}])
    serve()
    name, end = "fmconsume_message_age_seconds", f'queue="{queue}"}} 1.0'
    wait_until(lambda: f"{name}_count{{{end}" in ask("/metrics")[1])
    assert f'{name}_bucket{{le="300.0",{end}' in ask("/metrics")[1]


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "nonsense", "@"])
def test_notify_socket_of_no_use(broker, queue, serve, address):
    """A consumer does its work whatever NOTIFY_SOCKET says."""
    broker.publish(queue, numbered(1))
    command = serve(env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    wait_until(lambda: "took 0" in command.printed())
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0, command.logged()


# -- the journal


def test_journal_priorities(broker, queue, folder):
    """Where standard error is the journal, each line has its priority and none has the time."""
    config = write_config(folder / "my.toml", broker.url(), queue)
    broker.publish(queue, [b"no json"], message_id="torn")
    broker.publish(queue, [{"n": "boom"}])
    fmconsume = str(Path(sys.executable).with_name("fmconsume"))
    arguments = ["--config", str(config), "--callback", "callbacks:judge"]
    script = 'JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec "$0" "$@"'
    with (folder / "journal").open("w") as journal:
        done = subprocess.run(
            ["sh", "-c", script, fmconsume, *arguments],
            cwd=folder,
            stderr=journal,
            timeout=PATIENCE,
        )
    lines = (folder / "journal").read_text().splitlines()
    assert done.returncode == 13
    assert lines[0].startswith("<6>[fmconsume.engine.")
    rejected = next(line for line in lines if "does not decode" in line)
    assert rejected.startswith(
        f"<4>[fmconsume.engine.processor WARNING] message torn from queue {queue!r} does not "
    )
    traceback = lines.index("<3>  Traceback (most recent call last):")
    assert queue in lines[traceback - 1]
    assert all(line[:3] in ("<3>", "<4>", "<6>") for line in lines[:-1])


def test_json_lines(broker, queue, folder, serve):
    """With log_format = "json" each line is an object, and those of a callback tell its message."""
    broker.publish(queue, [{"n": "boom"}], message_id="apple")
    command = serve("judge", log_format="json")
    assert command.wait(PATIENCE) == 13
    *lines, last = command.logged().splitlines()
    assert last.startswith("fmconsume: the callback failed: TypeError: ")
    entries = [json.loads(line) for line in lines]
    (failure,) = [entry for entry in entries if "exception" in entry]
    assert failure["exception"].startswith("Traceback (most recent call last):")
    names = ("level", "message_id", "queue", "topic", "attempt", "worker")
    assert [failure[name] for name in names] == ["ERROR", "apple", queue, queue, 1, 1]
    others = [entry for entry in entries if entry is not failure]
    assert others
    assert all(entry.keys() == {"time", "level", "logger", "message"} for entry in others)


def test_sentry_event(broker, queue, folder, serve):
    """What ends the command is one event for Sentry, by the recipe of the man page."""
    recipe = read_recipe(".SS Sentry").replace("init(", 'init("http://key@localhost/1", ')
    callback = "def fail(message):\n    raise ValueError('no')\n"
    (folder / "reporting.py").write_text("\n".join([recipe, TRANSPORT, callback]))
    broker.publish(queue, [{}], message_id="apple")
    command = serve("fail", module="reporting")
    assert command.wait(PATIENCE) == 13, command.logged()
    (event,) = map(json.loads, command.printed().splitlines())
    assert event["exception"][0]["type"] == "ValueError"
    assert (event["tags"]["message_id"], event["tags"]["queue"]) == ("apple", queue)


# -- monitors


def test_ready_while_consuming(proxy, broker, queue, folder, serve, ask):
    """Ready is who consumes: not before the broker is there, nor while a stop waits."""
    proxy.stall()
    command = serve("hang", url=proxy.url())
    wait_until(lambda: ask("/ready")[0])
    status, body = ask("/ready")
    assert (status, json.loads(body)["consuming"]) == (503, False)
    assert ask("/live")[0] == 200
    proxy.resume()
    wait_until(lambda: ask("/ready")[0] == 200)
    broker.publish(queue, [{"n": 1}])
    wait_until(lambda: "took 1" in command.printed())
    consumed = json.loads(ask("/ready")[1])["consumed"]
    assert consumed == {"received": 1, "processed": 0, "dropped": 0, "rejected": 0, "failed": 0}
    command.send_signal(signal.SIGTERM)
    wait_until(lambda: ask("/ready")[0] == 503)
    assert "stopping" in ask("/ready")[1]
    (folder / "release").touch()
    assert command.wait(PATIENCE) == 0, command.logged()


def test_metrics_agree_with_the_broker(broker, new_queue, serve, ask):
    """What is counted is what the broker gave out, and what it got back as dead letters."""
    dead = new_queue()
    queue = new_queue(x_dead_letter_exchange="", x_dead_letter_routing_key=dead)
    broker.publish(queue, [*numbered(50), b"no json"])
    serve("judge", queues={queue: {"passive": True}})
    wait_until(lambda: broker.ready(dead) == 11 and broker.depth(queue) == (0, 0))

    def count():
        families = text_string_to_metric_families(ask("/metrics")[1])
        return {
            sample.labels.get("outcome", sample.name): sample.value
            for family in families
            for sample in family.samples
            if family.name in ("fmconsume_received", "fmconsume_deliveries")
            and sample.value
            and not sample.name.endswith("_created")
        }

    expected = {"fmconsume_received_total": 61, "acknowledged": 40, "requeued": 10}
    assert count() == {**expected, "dropped": 10, "rejected": 1}
    assert f'fmconsume_failed_attempts_total{{queue="{queue}"}} 10.0' in ask("/metrics")[1]
    depth = f'fmconsume_queue_messages_ready{{queue="{queue}"}} 0.0'
    wait_until(lambda: depth in ask("/metrics")[1])
    consumed = json.loads(ask("/ready")[1])["consumed"]
    assert list(consumed.values()) == [61, 40, 10, 11, 0]


def test_metrics_of_a_queue_named_by_the_broker(broker, proxy, serve, ask):
    """A queue that has another name after each reconnection is counted on under one."""
    serve(url=proxy.url(), queues=None)
    count = 'fmconsume_deliveries_total{outcome="acknowledged",queue="(server-named)"}'
    wait_until(lambda: ask("/ready")[0] == 200)
    for number in range(1, 4):
        reconnected = f"fmconsume_reconnections_total {number - 1}.0"
        wait_until(lambda text=reconnected: text in ask("/metrics")[1])
        broker.publish("some.topic", [{"n": number}], exchange="amq.topic")
        wait_until(lambda number=number: f"{count} {number}.0" in ask("/metrics")[1])
        proxy.cut()
    assert "amq.gen-" not in ask("/metrics")[1]


def test_page_of_the_command(broker, queue, serve, ask):
    """The status page shows the queue, the broker and what became of the messages."""
    broker.publish(queue, [*numbered(1), b"no json"])
    command = serve()
    command.wait_for("does not decode")
    wait_until(lambda: f'<td class="text" data-head="Queue">{queue}</td>' in ask("/")[1])
    page = ask("/")[1]
    assert f"consuming from {queue} at amqp://guest@{LOOPBACK}:{broker.port}" in page
    assert "does not decode: JSONDecodeError" in page
    assert "guest:guest" not in page


def test_hostile_clients_delay_no_message(broker, queue, port, serve, ask):
    """Clients that are idle, and as many as there may be, hold neither a message nor a probe."""
    command = serve()
    wait_until(lambda: ask("/ready")[0] == 200)
    with ExitStack() as stack:
        for number in range(120):
            client = stack.enter_context(socket.create_connection((LOOPBACK, port)))
            client.sendall(b"GET / HTTP/1.1\r\nX: " * (number % 2))
        with Stopwatch() as watch:
            assert ask("/live")[0] == 200
            assert watch.seconds < 1
        broker.publish(queue, numbered(100))
        wait_until(lambda: command.printed().count("took") == 100)


def test_port_in_use(broker, queue, proxy, port, serve):
    """A port for monitoring that is taken is one line and status 1, before anything connects."""
    with socket.create_server((LOOPBACK, port)):
        command = serve(url=proxy.url())
        assert command.wait(PATIENCE) == 1
    assert command.logged() == (
        f"fmconsume: monitoring: cannot listen at port {port} of localhost: "
        "Address already in use\n"
    )
    assert proxy.accepted == 0


def test_library_serves_too(broker, queue, port, run_consumer, ask):
    """A program that calls fmconsume itself is monitored alike, until its consumer ends."""
    running = run_consumer(lambda message: None, queue, monitoring={"address": "", "port": port})
    assert ask("/ready")[0] == 200
    running.stop()
    assert ask("/ready")[0] == 0
