"""Consumers and schema packages made for fedora-messaging run with no line changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import Depth
from .running import numbered, write_config

_HERE = Path(__file__).parent
_SCHEMAS = Path(sys.prefix) / "schema-packages"
_PACKAGES = [
    line
    for line in (_HERE.parent / "schema-packages.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.fixture
def run_consumer_of_fedora(broker, queue, tmp_path, run_command):
    """Run a callback of fedora_consumers.py, with or without the option, until `limit`."""

    def start(name, *args, target="", alias=True):
        tables = (
            f'[consumer_config]\nprefix = "seen"\ntarget = "{target}"\n'
            "[failures.delay]\ninitial = 0.1\nmax = 0.1"
        )
        config = write_config(tmp_path / "config.toml", broker.url(), queue, tables)
        option = ["--as-fedora-messaging"] if alias else []
        options = ["--config", config, "--callback", f"fedora_consumers:{name}", *option, *args]
        return run_command(*options, cwd=_HERE)

    return start


@pytest.mark.parametrize("package", _PACKAGES)
def test_schema_package(broker, queue, package):
    """A message of each class of the package is published, consumed and valid, without Twisted."""
    done = subprocess.run(
        [sys.executable, str(_HERE / "schema_classes.py"), package, broker.url(), queue],
        env={**os.environ, "PYTHONPATH": str(_SCHEMAS)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{done.stderr}\nwas {_SCHEMAS} made by `make test`?"
    assert int(done.stdout) > 0
    assert broker.ready(queue) == 0


@pytest.mark.parametrize("name", ["Printer", "bound", "async_object", "closure", "by_attribute"])
def test_consumer_style(broker, queue, run_consumer_of_fedora, name):
    """A consumer of each style gets its messages, and Twisted is never imported."""
    broker.publish(queue, numbered(3))
    command = run_consumer_of_fedora(name, "--limit", 3)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == "".join(f"seen {queue} {n}\n" for n in range(3)) + "False\n"
    assert broker.depth(queue) == Depth(0, 0)


def test_consumer_that_publishes(broker, queue, new_queue, run_consumer_of_fedora):
    """A consumer that publishes from its callback does, and catches what is refused."""
    target = new_queue()
    broker.publish(queue, numbered(3))
    command = run_consumer_of_fedora("republish", "--limit", 3, target=target)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed().endswith("False\n")
    assert [message.body for message in broker.drain(target)] == [
        b'{"n": 0}',
        b'{"n": 1}',
        b'{"n": 2}',
    ]
    assert broker.depth(queue) == Depth(0, 0)


def test_consumer_that_judges(broker, queue, run_consumer_of_fedora):
    """Nack, Drop and HaltConsumer mean what they mean in fedora-messaging."""
    broker.publish(queue, numbered(4))
    command = run_consumer_of_fedora("Judge")
    assert command.wait(PATIENCE) == 7, command.logged()
    assert "enough" in command.logged()
    assert set(command.printed().splitlines()) >= {f"seen {queue} 0", f"seen {queue} 3", "False"}


def test_consumer_with_main(broker, queue, tmp_path):
    """A program that calls api.consume itself runs after one call of install()."""
    tables = '[consumer_config]\nprefix = "seen"'
    config = write_config(tmp_path / "config.toml", broker.url(), queue, tables)
    broker.publish(queue, numbered(3))
    script = "import fmconsume.compat; fmconsume.compat.install()\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}import fedora_consumers as c; c.main()", str(config)],
        env={**os.environ, "PYTHONPATH": str(_HERE), "FEDORA_MESSAGING_CONF": str(config)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout.count("seen")) == (0, 3), done.stderr
    assert done.stdout.endswith("False\n")


def test_consumer_without_option(broker, queue, run_consumer_of_fedora):
    """Where fedora-messaging is not installed no option is needed; the log says it once."""
    broker.publish(queue, numbered(3))
    command = run_consumer_of_fedora("Printer", "--limit", 3, alias=False)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed().endswith("False\n")
    assert command.logged().count("fmconsume stands in for it") == 1
    assert command.logged().count(f"from queue '{queue}' received, topic {queue}") == 3
    assert command.logged().count(" done") == 3


def test_consumer_that_is_a_program(broker, queue, tmp_path, run_command):
    """`-m` runs a program that consumes by itself, with its arguments."""
    config = write_config(
        tmp_path / "config.toml", broker.url(), queue, '[consumer_config]\nprefix = "seen"'
    )
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "import fedora_consumers\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        fedora_consumers.main()\n"
        "    except SystemExit:\n"
        "        sys.exit(int(sys.argv[2]))\n"
    )
    broker.publish(queue, numbered(3))
    environment = {"PYTHONPATH": str(_HERE), "FEDORA_MESSAGING_CONF": str(config)}
    options = ("--as-fedora-messaging", "-m", "program", config, 7)
    command = run_command(*options, cwd=tmp_path, env=environment)
    assert command.wait(PATIENCE) == 7, command.logged()
    assert command.printed().count("seen") == 3


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        ("raise SystemExit('too bad')", 1, "fmconsume: too bad\n"),
        ("import fmconsume; raise fmconsume.HaltConsumer(5, 'enough')", 5, "fmconsume: enough\n"),
        ("raise SystemExit(9)", 9, ""),
        ("raise SystemExit", 0, ""),
        (
            "from fmconsume import config; config.conf.load_config('/no')",
            2,
            "fmconsume: cannot read",
        ),
        ("import sys; sys.stderr.close(); raise OSError('a\\nb')", 1, ""),
    ],
)
def test_consumer_that_is_a_program_fails(tmp_path, run_command, program, status, text):
    """Its failure is the command's, in one line."""
    (tmp_path / "program.py").write_text(program)
    command = run_command("-m", "program", cwd=tmp_path)
    assert command.wait(PATIENCE) == status, command.logged()
    assert command.logged().startswith(text)
    assert command.logged().count("\n") == bool(text)


def test_consumer_that_is_a_broken_program(tmp_path, run_command):
    """An exception of its own is logged with its traceback, and ends in one line."""
    (tmp_path / "program.py").write_text("raise OSError('first\\nsecond')")
    for name, status, text in (
        ("program", 1, "fmconsume: the module failed: OSError: first second (program.py, line 1)"),
        ("no.such", 2, "fmconsume: argument -m: no module named 'no.such'"),
    ):
        command = run_command("-m", name, cwd=tmp_path)
        assert command.wait(PATIENCE) == status, command.logged()
        assert command.logged().splitlines()[-1].startswith(text)
        assert ("Traceback" in command.logged()) == (name == "program")


@pytest.fixture
def run_fedora_messaging(broker, queue, tmp_path, run_command):
    """Run the command line of fedora-messaging."""
    config = write_config(
        tmp_path / "config.toml", broker.url(), queue, '[consumer_config]\nprefix = "seen"'
    )

    def start(*args, **popen):
        popen = {"cwd": _HERE, **popen}
        return run_command("--conf", config, *args, module="fmconsume.compat", **popen)

    return start


def test_command_line_consume(broker, queue, run_fedora_messaging):
    """`consume` takes the callback, and exits with the status of its HaltConsumer."""
    broker.publish(queue, numbered(4))
    command = run_fedora_messaging("consume", "--callback", "fedora_consumers:Judge")
    assert command.wait(PATIENCE) == 7, command.logged()
    assert "enough" in command.logged()


def test_command_line_consume_from_file(broker, queue, run_fedora_messaging):
    """A callback may come from a file, and a queue, an exchange and keys from options."""
    key = uuid.uuid4().hex
    options = ("--queue-name", queue, "--exchange", "amq.direct", "--routing-key", key)
    file = ("--callback-file", "fedora_consumers.py:Judge", "--app-name", "mine")
    command = run_fedora_messaging("consume", *file, *options, "--routing-key=second")
    command.wait_for("consuming from")
    for n in (0, 3):
        broker.publish(key, [{"n": n}], "amq.direct")
    assert command.wait(PATIENCE) == 7, command.logged()
    assert f"seen {key} 0" in command.printed()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["consume", "--callback", "no.such:thing"], 1, "no module named 'no'"),
        (["consume", "--callback", "nonsense"], 1, "found 'nonsense'"),
        (["consume", "--callback-file", "no.py:thing"], 1, "'no.py' does not exist"),
        (["consume"], 1, "no callback"),
        (["consume", "--workers", "2"], 2, "unrecognized arguments: --workers 2"),
        (["consume", "--call", "a:b"], 2, "unrecognized arguments: --call a:b"),
        (
            ["record", "out.jsonl", "--limit", "0"],
            2,
            "argument --limit: found '0', expected a number",
        ),
        (["publish", "/no/such/file"], 2, "cannot read '/no/such/file'"),
        (["replay"], 2, "required: message_id"),
        (["replay", str(uuid.uuid4()), "--datagrepper-url", "http://127.0.0.1:9"], 1, "refused"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_command_line_refuses(run_fedora_messaging, arguments, status, text):
    """A mistake has the exit status that it has there, and tells what is wrong."""
    command = run_fedora_messaging(*arguments)
    assert command.wait(PATIENCE) == status, command.logged()
    assert text in command.logged()
    assert "Traceback" not in command.logged()


def test_command_line_without_configuration(tmp_path, run_command):
    """A configuration that is missing or wrong has status 2."""
    for text in (None, "workers = 'x'"):
        config = tmp_path / "config.toml"
        if text:
            config.write_text(text)
        command = run_command("--conf", config, "consume", module="fmconsume.compat")
        assert command.wait(PATIENCE) == 2, command.logged()
        assert str(config) in command.logged()


def test_command_line_record_and_publish(broker, queue, new_queue, tmp_path, run_fedora_messaging):
    """What is recorded, to a file or standard output, may be published again."""
    broker.publish(queue, numbered(4))
    file = tmp_path / "recorded"
    file.write_text("what was there before is gone\n")
    command = run_fedora_messaging("record", file, "--limit", "2")
    assert command.wait(PATIENCE) == 0, command.logged()
    lines = file.read_text().splitlines()
    assert [json.loads(line)["body"]["n"] for line in lines] == [0, 1]
    command = run_fedora_messaging("record", "-", "--limit", "2")
    assert command.wait(PATIENCE) == 0, command.logged()
    standard = command.printed()
    assert [json.loads(line)["body"]["n"] for line in standard.splitlines()] == [2, 3]
    # The routing key of each is the queue's name.
    command = run_fedora_messaging("publish", "--exchange", "", file)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == f"Publishing message with topic {queue}\n" * 2
    recorded = tmp_path / "standard"
    recorded.write_text(standard)
    with recorded.open() as stdin:
        command = run_fedora_messaging("publish", "--exchange", "", "-", stdin=stdin)
        assert command.wait(PATIENCE) == 0, command.logged()
    assert [json.loads(each.body)["n"] for each in broker.drain(queue)] == [0, 1, 2, 3]


def test_command_line_publish_fails(tmp_path, run_fedora_messaging, run_command):
    """Why nothing is published shows in the exit status, as there."""
    file = tmp_path / "messages"
    file.write_text('{"topic": "t", "body": {}}\n')
    command = run_fedora_messaging("publish", "--exchange", "no.such.exchange", file)
    assert command.wait(PATIENCE) == errno.EREMOTEIO, command.logged()
    assert "no exchange 'no.such.exchange'" in command.logged()
    file.write_text("[]\n")
    command = run_fedora_messaging("publish", file)
    assert command.wait(PATIENCE) == 2, command.logged()
    assert "line 1: found a list, expected an object" in command.logged()


@pytest.fixture
def datagrepper():
    """Serve one message as Datagrepper does."""
    message = {"topic": "a.topic", "body": {"n": 3}, "id": "apple", "headers": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(message).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_command_line_replay(broker, queue, datagrepper, run_fedora_messaging):
    """A message of Datagrepper's is published again, or given to the callback.

    An id may be one of fedmsg's to be published, and no other than a UUID to be consumed.
    """
    broker.bind(queue, "amq.topic", "a.topic")
    old = ("2016-apple", "--datagrepper-url", datagrepper)
    options = (str(uuid.uuid4()), *old[1:])
    command = run_fedora_messaging("reconsume", *old, "--callback", "fedora_consumers:Printer")
    assert command.wait(PATIENCE) == 2
    assert "argument message_id: found '2016-apple', expected a UUID" in command.logged()
    command = run_fedora_messaging("replay", *old)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert [each.body for each in broker.drain(queue)] == [b'{"n": 3}']
    for name, status in (("Printer", 0), ("Judge", 1)):
        command = run_fedora_messaging(
            "reconsume", *options, "--callback", f"fedora_consumers:{name}"
        )
        assert command.wait(PATIENCE) == status, command.logged()
        assert "seen a.topic 3" in command.printed()


@pytest.mark.parametrize("where", ["module", "constructor"])
def test_consumer_with_reactor(broker, queue, tmp_path, run_command, where):
    """A callback that imports Twisted's reactor would never do its work: it is refused."""
    package = tmp_path / "twisted" / "internet"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py", package / "reactor.py"):
        file.touch()
    first, second = ("import twisted.internet.reactor", "pass")[:: 1 if where == "module" else -1]
    (tmp_path / "reactive.py").write_text(
        f"{first}\nclass Callback:\n    def __init__(self):\n        {second}\n"
        "    def __call__(self, message):\n        pass\n"
    )
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    options = ("--config", config, "--callback", "reactive:Callback")
    for option in ("--check", "--drain"):
        command = run_command(*options, option, cwd=tmp_path)
        assert command.wait(PATIENCE) == 2, command.logged()
        assert "imported twisted.internet.reactor, which nobody runs here" in command.logged()
        assert command.logged().count("\n") == 1
    config.write_text(f'twisted_reactor = "ignore"\n{config.read_text()}')
    command = run_command(*options, "--drain", cwd=tmp_path)
    assert command.wait(PATIENCE) == 0, command.logged()


_LOOPER = """
import asyncio
class Callback:
    def __init__(self):
        self.loop = asyncio.get_event_loop()
    def __call__(self, message):
        self.loop.run_until_complete(self.work(message))
    async def work(self, message):
        self.left = asyncio.ensure_future(asyncio.sleep(3600))
        await asyncio.sleep(0)
        print(message.body["n"], flush=True)
"""


def test_consumer_with_loop(broker, queue, tmp_path, run_command):
    """A callback may run coroutines on the loop that its constructor got, with one worker."""
    (tmp_path / "looping.py").write_text(_LOOPER)
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    broker.publish(queue, numbered(3))
    options = ("--config", config, "--callback", "looping:Callback")
    for option in ("--check", "--drain"):
        command = run_command(*options, option, "--workers", 4, cwd=tmp_path)
        assert command.wait(PATIENCE) == 2, command.logged()
        assert "workers: found 4, expected 1: Callback keeps an event loop" in command.logged()
    command = run_command(*options, "--limit", 3, cwd=tmp_path)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == "0\n1\n2\n"
    assert "Task was destroyed" not in command.logged()


@pytest.mark.parametrize("way", ["key", "variable"])
def test_consumer_told_to_stand_in(broker, queue, tmp_path, run_command, way):
    """The configuration or the environment may say it where fedora-messaging is installed."""
    (tmp_path / "fedora_messaging.py").write_text("class Real: pass\n")
    (tmp_path / "mine.py").write_text(
        "import fedora_messaging\n"
        "def callback(message):\n"
        "    print(hasattr(fedora_messaging, 'Real'), flush=True)\n"
    )
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    if way == "key":
        config.write_text(f"as_fedora_messaging = true\n{config.read_text()}")
    environment = {"FMCONSUME_AS_FEDORA_MESSAGING": "1"} if way == "variable" else {}
    broker.publish(queue, numbered(1))
    options = ("--config", config, "--callback", "mine:callback", "--limit", 1)
    command = run_command(*options, cwd=tmp_path, env=environment)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == "False\n"


def test_consumer_with_queue_by_option(broker, tmp_path, run_command):
    """A binding may be for the queue that an option brings; without it the queue is unknown."""
    queue, key = f"test-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    config = tmp_path / "config.toml"
    binding = f'queue = "{queue}"\nexchange = "amq.topic"\nrouting_keys = ["{key}"]'
    config.write_text(f'amqp_url = "{broker.url()}"\n[[bindings]]\n{binding}\n[log_config]\n')
    options = ("--config", config, "--callback", "fmconsume.example:printer")
    command = run_command(*options, "--queue-name", queue, "--limit", 1)
    wait_until(lambda: key in broker.ctl("list_bindings", "routing_key"))
    broker.publish(key, [{"n": 1}], "amq.topic")
    assert command.wait(PATIENCE) == 0, command.logged()
    command = run_command(*options)
    assert command.wait(PATIENCE) == 2
    assert f"bindings[0].queue: found '{queue}', expected ''" in command.logged()


def test_consumer_of_twisted(tmp_path, run_command):
    """A consumer that needs the reactor is told what to do instead, before anything connects."""
    (tmp_path / "reactive.py").write_text("from fedora_messaging.api import twisted_consume\n")
    config = write_config(tmp_path / "config.toml", "amqp://127.0.0.1:1")
    options = ("--config", config, "--callback", "reactive:main", "--as-fedora-messaging")
    command = run_command(*options, cwd=tmp_path)
    assert command.wait(PATIENCE) == 2
    assert "without Twisted: consume with fedora_messaging.api.consume()" in command.logged()


def test_consumer_beside_the_real_package(broker, queue, tmp_path, run_command):
    """With fedora-messaging installed the option wins, and a warning tells who forgot it."""
    package = tmp_path / "fedora_messaging"
    package.mkdir()
    (package / "__init__.py").write_text("class Real: pass\n")
    (tmp_path / "mine.py").write_text(
        "import fedora_messaging\n"
        "def callback(message):\n"
        "    print(hasattr(fedora_messaging, 'Real'), flush=True)\n"
    )
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    options = ("--config", config, "--callback", "mine:callback", "--limit", 1)
    broker.publish(queue, numbered(2))
    with_option = run_command(*options, "--as-fedora-messaging", cwd=tmp_path)
    assert with_option.wait(PATIENCE) == 0, with_option.logged()
    assert with_option.printed() == "False\n"
    without = run_command(*options, cwd=tmp_path)
    assert without.wait(PATIENCE) == 0, without.logged()
    assert without.printed() == "True\n"
    assert "run it with --as-fedora-messaging" in without.logged()
