"""The installed command over real configuration files, and how it says what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.waiting import PATIENCE, wait_until

from .broker import LOOPBACK, Depth, free_port
from .running import numbered, write_config

_SECRET = "Sesame-17-open"

_CALLBACKS = """
import os, threading
from fmconsume.exceptions import HaltConsumer

together = threading.Barrier(2)
number = 17

def take(message):
    print("took", message.topic, message.body["n"], flush=True)

def meet(message):
    together.wait(60)
    take(message)

def fail(message):
    raise RuntimeError("the disk is full")

def generate(message):
    yield

async def take_async(message):
    take(message)

def wait(message):
    pass

def halt(message):
    raise HaltConsumer(exit_code=42, reason="enough for today")

class Refreshing:
    def __init__(self):
        threading.Thread(target=threading.Event().wait, name="refresh").start()
    def __call__(self, message):
        fail(message)

class NeedsArguments:
    def __init__(self, path):
        pass
    def __call__(self, message):
        pass

class CannotStart:
    def __init__(self):
        raise OSError("no room")
    def __call__(self, message):
        pass
"""

# What the documentation of fedora-messaging shows, but for the package's name.
_SAMPLE = '''
import os

from fmconsume import config


def callback(message):
    print(message)


class SaveMessage:
    """
    A consumer that saves the message to a file.

    A single configuration key is used from the "consumer_config" key, "path", which is where
    the consumer will save the messages::

        [consumer_config]
        path = "/tmp/fedora-messaging/messages.txt"
    """

    def __init__(self):
        """Perform some one-time initialization for the consumer."""
        self.path = config.conf["consumer_config"]["path"]

        # Ensure the path exists before the consumer starts
        if not os.path.exists(os.path.dirname(self.path)):
            os.mkdir(os.path.dirname(self.path))

    def __call__(self, message):
        """Invoked when a message is received by the consumer."""
        with open(self.path, "a") as fd:
            fd.write(str(message))
'''


@pytest.fixture
def folder(tmp_path):
    """The directory where the command is started, with the modules of this file."""
    (tmp_path / "callbacks.py").write_text(_CALLBACKS)
    (tmp_path / "sample.py").write_text(_SAMPLE)
    (tmp_path / "broken.py").write_text("import sys\nimport no_such_thing\n")
    (tmp_path / "failing.py").write_text("1 / 0\n")
    return tmp_path


@pytest.fixture
def fmconsume(broker, queue, folder, run_command):
    """Run the command in `folder`, with a file for the test's queue unless another is given."""

    def start(*args, config=None, callback="callbacks:take", **popen):
        if config is None:
            config = write_config(folder / "config.toml", broker.url(), queue)
        chosen = ["--callback", callback] if callback else []
        return run_command(*chosen, "--config", config, *args, cwd=folder, **popen)

    return start


def _wait_for_print(command, text):
    wait_until(lambda: text in command.printed() or command.poll() is not None)
    assert text in command.printed(), command.logged()


def _complaint(command, status):
    """Return what the command says on its end, which is no traceback."""
    assert command.wait(PATIENCE) == status, command.logged()
    assert "Traceback" not in command.logged()
    head, _, complaint = command.logged().rpartition("fmconsume: ")
    assert complaint, command.logged()
    assert not re.search("^fmconsume: ", head, re.M)
    return complaint.rstrip("\n")


def _stop(command):
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0, command.logged()


# -- What it does


def test_command_sample_function(broker, queue, folder, fmconsume):
    """The documented function prints its messages; SIGTERM ends it and leaves nothing behind."""
    broker.publish(queue, numbered(3))
    command = fmconsume(callback="sample:callback")
    wait_until(lambda: command.printed().count("Body:") == 3 or command.poll() is not None)
    _stop(command)
    assert re.findall(r'"n": (\d)', command.printed()) == ["0", "1", "2"]
    assert "Traceback" not in command.logged()
    assert broker.depth(queue) == Depth(0, 0)


def test_command_sample_class(broker, queue, folder, fmconsume):
    """The documented class appends to the file that consumer_config names."""
    path = folder / "messages" / "messages.txt"
    config = write_config(
        folder / "class.toml",
        broker.url(),
        queue,
        f'[consumer_config]\npath = "{path}"',
        callback="sample:SaveMessage",
    )
    broker.publish(queue, numbered(3))
    command = fmconsume(config=config, callback=None)
    wait_until(lambda: path.exists() and path.read_text().count("Body:") == 3)
    _stop(command)
    assert re.findall(r'"n": (\d)', path.read_text()) == ["0", "1", "2"]
    assert broker.depth(queue) == Depth(0, 0)


def test_command_module(broker, queue, folder, run_command):
    """`python -m fmconsume` is the same command."""
    config = write_config(folder / "config.toml", broker.url(), queue, callback="callbacks:take")
    broker.publish(queue, numbered(1))
    # In place of the script, which the interpreter then takes for its own name.
    command = run_command(
        *("-m", "fmconsume", "--config", config, "--limit", "1"),
        executable=sys.executable,
        cwd=folder,
    )
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == f"took {queue} 0\n"


def test_command_app_dir(broker, queue, folder, run_command):
    """--app-dir finds the callback from any folder, for --check, --replay and -m as well."""
    config = write_config(folder / "config.toml", broker.url(), queue, callback="callbacks:take")
    (folder / "program.py").write_text("print('at', __file__)\n")
    (folder / "messages").write_text('{"topic": "a", "body": {"n": 7}}\n')
    broker.publish(queue, numbered(1))
    for options, text in (
        (("--check",), "callback       take"),
        (("--replay", folder / "messages"), "took a 7\n"),
        (("--limit", "1"), f"took {queue} 0\n"),
        (("-m", "program"), f"at {folder}/program.py\n"),
    ):
        command = run_command("--app-dir", folder, "--config", config, *options, cwd="/")
        assert command.wait(PATIENCE) == 0, command.logged()
        assert text in command.printed()


@pytest.mark.parametrize("variable", ["FMCONSUME_CONF", "FEDORA_MESSAGING_CONF"])
def test_command_configuration_by_variable(broker, queue, folder, run_command, variable):
    """The configuration is the file that the environment names."""
    config = write_config(folder / "config.toml", broker.url(), queue, callback="callbacks:take")
    broker.publish(queue, numbered(1))
    command = run_command("--limit", "1", env={variable: str(config)}, cwd=folder)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == f"took {queue} 0\n"


def test_command_callback_file(broker, queue, folder, run_command):
    """--callback-file takes the callback from a file, wherever the command is started."""
    config = write_config(folder / "config.toml", broker.url(), queue)
    broker.publish(queue, numbered(1))
    file = f"{folder / 'callbacks.py'}:take"
    command = run_command("--callback-file", file, "--conf", config, "--limit", "1")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed() == f"took {queue} 0\n"


def test_command_limit(broker, queue, fmconsume):
    """--limit ends the command with 0 after so many messages; the others stay."""
    broker.publish(queue, numbered(5))
    command = fmconsume("--limit", "3")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed().splitlines() == [f"took {queue} {n}" for n in range(3)]
    assert broker.ready(queue) == 2


def test_command_workers(broker, queue, fmconsume):
    """--workers 2 runs two callbacks at the same time."""
    broker.publish(queue, numbered(2))
    command = fmconsume("--workers", "2", "--limit", "2", callback="callbacks:meet")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed().count("took") == 2


@pytest.mark.parametrize("tables", ["", "[queues.other]\ndurable = true\n"])
def test_command_queue_exchange_and_routing_keys(broker, folder, fmconsume, tables):
    """--queue-name, --exchange and --routing-key stand in for the configuration's topology."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    command = fmconsume(
        *("--queue-name", name, "--exchange", "amq.direct", "--limit", "2"),
        *("--routing-key", f"{name}.a", "--routing-key", f"{name}.b"),
        config=write_config(folder / "own.toml", broker.url(), tables=tables),
    )
    assert name in command.wait_for("consuming from")
    for key in "cba":
        broker.publish(f"{name}.{key}", numbered(1), "amq.direct")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.printed().splitlines() == [f"took {name}.b 0", f"took {name}.a 0"]


def test_command_app_name_and_log_level(broker, queue, fmconsume):
    """--app-name is what administrators see; --log-level hides what is below it."""
    name = f"app-{uuid.uuid4().hex[:12]}"
    broker.publish(queue, numbered(1))
    command = fmconsume("--app-name", name, "--log-level", "error")
    _wait_for_print(command, "took")
    assert f'"{name}"' in broker.ctl("list_connections", "client_properties")
    _stop(command)
    assert command.logged() == ""


def test_command_log_level_debug(broker, queue, fmconsume):
    """The log tells of the connection by default, and --log-level warning does not."""
    broker.publish(queue, numbered(2))
    normal = fmconsume("--limit", "1")
    assert normal.wait(PATIENCE) == 0
    assert "connecting to" in normal.logged()
    quiet = fmconsume("--limit", "1", "--log-level", "warning")
    assert quiet.wait(PATIENCE) == 0
    assert quiet.logged() == ""


# -- What is wrong with what it is given


@pytest.mark.parametrize(
    ("top", "complaint"),
    [
        ("workers = ", "config.toml is not valid TOML: .*line 2"),
        ('workers = "two"', "workers: found 'two', expected an integer of 1 or more"),
        ("wrokers = 2", "wrokers: found an unknown key, .*did you mean 'workers'"),
        ("queues = []", "queues: found .*list, expected a table"),
        ('callback = "callbacks.take"', r"callback: found 'callbacks\.take', expected"),
        ("qos = {prefetch_count = -1}", r"qos\.prefetch_count: found -1, expected"),
    ],
)
def test_command_wrong_configuration(folder, fmconsume, top, complaint):
    """A mistake in the configuration is a usage error that names key, value and expectation."""
    config = write_config(folder / "config.toml", "amqp://")
    config.write_text(config.read_text().rstrip("\n") + f"\n{top}\n")
    said = _complaint(fmconsume(config=config), 2)
    assert re.search(complaint, said)
    assert len(said.splitlines()) <= 2


def test_command_wrong_url(folder, fmconsume):
    """A URL that does not parse is a usage error that does not show its password."""
    config = write_config(folder / "config.toml", f"amqp://someone:{_SECRET}@host:port/")
    command = fmconsume(config=config)
    assert re.search(r"amqp_url: found 'amqp://someone:\*+@host:port/'", _complaint(command, 2))
    assert _SECRET not in command.logged()


def test_command_missing_configuration(folder, fmconsume):
    """A file that --config names and that is not there is a usage error."""
    said = _complaint(fmconsume(config=folder / "nowhere.toml"), 2)
    assert said.count("\n") == 0
    assert "nowhere.toml: No such file" in said


@pytest.mark.parametrize(
    ("option", "callback", "complaint"),
    [
        (
            "--callback",
            "callbacks.take",
            "found 'callbacks.take', expected 'package.module:object'",
        ),
        ("--callback", "callbakcs:take", "no module named 'callbakcs'"),
        ("--callback", "callbacks:tkae", "callbacks has no 'tkae'"),
        ("--callback", "callbacks:number", "found 17, expected a function, or a class"),
        ("--callback", "callbacks:NeedsArguments", "it is called without arguments"),
        ("--callback", "callbacks:generate", "generate contains a yield"),
        ("--callback", "callbacks:NeedsArguments.__call__", "cannot be called with one argument"),
        (
            "--callback",
            "broken:take",
            "importing broken failed: .*No module named 'no_such_thing'.*broken.py, line 2",
        ),
        ("--callback-file", "callbakcs.py:take", "file 'callbakcs.py' does not exist"),
        ("--callback-file", "callbacks.py", "found 'callbacks.py', expected .*file.py:object"),
        ("--callback-file", "callbacks.py:tkae", "has no 'tkae'"),
        ("--callback-file", "broken.py:take", "importing broken.py failed: .*'no_such_thing'"),
    ],
)
def test_command_wrong_callback(fmconsume, option, callback, complaint):
    """A callback that cannot be found or called is a usage error in one line."""
    said = _complaint(fmconsume(option, callback, callback=None), 2)
    assert said.count("\n") == 0
    assert re.search(complaint, said)


@pytest.mark.parametrize("option", ["--workers", "--limit"])
@pytest.mark.parametrize("value", ["0", "many"])
def test_command_wrong_number(fmconsume, option, value):
    """A number that makes no sense is a usage error that names its option."""
    command = fmconsume(option, value)
    assert command.wait(PATIENCE) == 2
    assert re.search(rf"{option[2:]}.*{value}", command.logged())
    assert "Traceback" not in command.logged()


@pytest.mark.parametrize(
    ("option", "callback", "complaint"),
    [
        ("--callback", "callbacks:CannotStart", "OSError: no room (callbacks.py, line "),
        ("--callback", "failing:take", "ZeroDivisionError: division by zero (failing.py, line 1)"),
        ("--callback-file", "failing.py:take", "ZeroDivisionError: division by zero"),
    ],
)
def test_command_callback_that_cannot_start_now(fmconsume, option, callback, complaint):
    """A callback that may start later ends with 1, which systemd retries, and one traceback."""
    command = fmconsume(option, callback, callback=None)
    assert command.wait(PATIENCE) == 1, command.logged()
    assert command.logged().count("Traceback") == 1
    last = command.logged().splitlines()[-1]
    assert last.startswith("fmconsume: the callback failed before the first message: ")
    assert complaint in last


_SHORTAGE = """
import threading

start = threading.Thread.start

def refuse(thread):
    if thread.name == "{}":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = refuse
"""


@pytest.mark.parametrize(
    ("thread", "callback"),
    [
        ("fmconsume-supervisor", "callbacks:take"),
        ("fmconsume-opener", "callbacks:take"),
        ("fmconsume-worker-1", "callbacks:take"),
        ("fmconsume-asyncio", "callbacks:take_async"),
    ],
)
def test_command_no_thread(fmconsume, folder, thread, callback):
    """A machine that has no thread left ends with 1 and one line; it is no bug."""
    with (folder / "callbacks.py").open("a") as file:
        file.write(_SHORTAGE.format(thread))
    said = _complaint(fmconsume(callback=callback), 1)
    assert said == "no thread can be started now: see the unit's TasksMax=, or ulimit -u"


# -- Where its output goes

_REDIRECTIONS = ["2>&-", "2>/dev/full", "2>&1 | true", ">/dev/full 2>&1", ">&- 2>&-"]


@pytest.fixture
def shell(folder, tmp_path):
    """Run the command with arguments and a redirection; return its exit status and its output."""

    def run(arguments, redirection, env=None):
        line = (
            f'{{ "$0" {arguments}; echo $? >status; }} {redirection}'
            if "|" in redirection
            else f'"$0" {arguments} {redirection}; echo $? >status'
        )
        ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        script = Path(sys.executable).with_name("fmconsume")
        done = subprocess.run(
            ["sh", "-c", line, script],
            cwd=folder,
            env={**ours, **(env or {})},
            capture_output=True,
            timeout=PATIENCE,
        )
        # With a pipe, the shell ends before the command does.
        wait_until(lambda: (folder / "status").exists() and (folder / "status").read_text())
        status = int((folder / "status").read_text())
        return status, done.stdout.decode() + done.stderr.decode()

    return run


@pytest.fixture
def configuration(broker, queue, folder):
    """The arguments for a configuration with the test's queue."""
    return f"--config {write_config(folder / 'config.toml', broker.url(), queue)}"


@pytest.mark.parametrize("redirection", _REDIRECTIONS)
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--callback callbacks:nothing", 2),
        ("--callback callbacks:CannotStart", 1),
        ("--callback callbacks:halt", 42),
        ("--callback callbacks:fail", 13),
        ("--callback callbacks:wait --limit 1", 0),
        ("--colour", 2),
    ],
)
def test_command_standard_error_broken(
    broker, queue, configuration, shell, redirection, arguments, status
):
    """Standard error that is closed, full or read by nobody changes no exit status."""
    broker.publish(queue, numbered(1))
    assert shell(f"{configuration} {arguments}", redirection)[0] == status


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "| true", "| head -n 1"])
@pytest.mark.parametrize("env", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--check --callback callbacks:take", 0),
        ("--replay messages --callback callbacks:halt", 42),
        ("--version", 0),
        ("--help", 0),
    ],
)
def test_command_standard_output_broken(
    folder, configuration, shell, redirection, env, arguments, status
):
    """Standard output that is closed, full or read by nobody changes no exit status."""
    (folder / "messages").write_text(json.dumps({"topic": "t", "body": {"n": 1}}))
    ended, said = shell(f"{configuration} {arguments}", redirection, env)
    assert ended == status
    assert "Error" not in said
    assert "Exception" not in said


def test_command_ascii_output(folder, queue, shell):
    """Where the output knows only ASCII, everything else is shown as an escape."""
    write_config(folder / "\u03b2.toml", f"amqp://{LOOPBACK}:{free_port()}", queue)
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    status, said = shell("--config \u03b2.toml --check --callback callbacks:take", "", env)
    assert status == 14, said
    assert re.search(r"^  configuration  \\u03b2.toml +valid$", said, re.MULTILINE)


# -- What is wrong with the broker, or what it answers


def test_command_broker_not_there(queue, folder, fmconsume):
    """A broker that is not there is tried again, with the delay in the log, until a stop."""
    config = write_config(
        folder / "config.toml", f"amqp://someone:{_SECRET}@127.0.0.1:{free_port()}/", queue
    )
    command = fmconsume(config=config)
    log = command.wait_for("(2 attempts), next at ")
    assert re.search(r"not consuming since [\d:]{8} \(2 attempts\), next at [\d:]{8}: ", log)
    assert "someone@127.0.0.1" in log
    _stop(command)
    assert "Traceback" not in command.logged()
    assert _SECRET not in command.logged()


def test_command_contradicting_queue(broker, queue, folder, fmconsume):
    """A queue that the broker has otherwise is refused by name and attribute, and stays."""
    broker.publish(queue, numbered(1))
    config = write_config(folder / "config.toml", broker.url(), {queue: {"durable": False}})
    said = _complaint(fmconsume(config=config), 10)
    assert said.count("\n") == 0
    assert queue in said
    assert "'durable'" in said
    assert broker.ready(queue) == 1


def test_command_wrong_password(broker, queue, folder, fmconsume):
    """A refused login shows host and user, never the password."""
    url = broker.url(password=_SECRET)
    command = fmconsume(config=write_config(folder / "config.toml", url, queue))
    said = _complaint(command, 14)
    assert said.count("\n") == 0
    assert f"guest@127.0.0.1:{broker.port}" in said
    assert "ACCESS_REFUSED" in said
    assert _SECRET not in command.logged() + command.printed()


def test_command_unknown_vhost(broker, queue, folder, fmconsume):
    """A virtual host that the broker does not have is refused by name."""
    config = write_config(folder / "config.toml", broker.url("nowhere"), queue)
    said = _complaint(fmconsume(config=config), 14)
    assert said.count("\n") == 0
    assert "nowhere" in said
    assert f"guest@127.0.0.1:{broker.port}" in said


@pytest.fixture(scope="module")
def stranger(broker):
    """A user who may use amq.topic and queues called allowed-...; gives his URL."""
    # Another name each time: modules mix, and a fixture of one may be made twice.
    user = f"stranger-{uuid.uuid4().hex[:12]}"
    allowed = r"^(allowed-.*|amq\.topic)$"
    broker.ctl("add_user", user, _SECRET)
    broker.ctl("set_permissions", user, allowed, allowed, allowed)
    return broker.url(user=user, password=_SECRET)


def test_command_no_permission(queue, folder, fmconsume, stranger):
    """A queue that the user may not use is named, with the user."""
    command = fmconsume(config=write_config(folder / "config.toml", stranger, queue))
    said = _complaint(command, 10)
    assert said.count("\n") == 0
    assert queue in said
    assert "stranger" in said
    assert _SECRET not in command.logged()


def test_command_password_in_no_log(broker, folder, fmconsume, stranger):
    """Even with everything logged, the client library's words included, the password is not."""
    logging = """
        [log_config]
        version = 1
        [log_config.handlers.all]
        class = "logging.StreamHandler"
        [log_config.loggers.pika]
        level = "DEBUG"
        [log_config.root]
        level = "DEBUG"
        handlers = ["all"]
    """
    name = f"allowed-{uuid.uuid4().hex[:12]}"
    queue = {name: {"auto_delete": True}}
    config = write_config(folder / "config.toml", stranger, queue, logging)
    command = fmconsume("--log-level", "debug", config=config)
    command.wait_for("consuming from")
    broker.publish(name, numbered(1))
    _wait_for_print(command, "took")
    broker.close_connections(urlsplit(stranger).username)
    command.wait_for("not consuming since")
    wait_until(lambda: command.logged().count("consuming from") >= 2)
    _stop(command)
    assert "Pika version" in command.logged()
    assert _SECRET not in command.logged() + command.printed()


def test_command_queue_deleted(broker, queue, fmconsume):
    """A queue that is deleted under the consumer ends it, by name."""
    broker.publish(queue, numbered(1))
    command = fmconsume()
    _wait_for_print(command, "took")
    broker.delete(queue)
    said = _complaint(command, 12)
    assert said.count("\n") == 0
    assert queue in said


def test_command_callback_fails(broker, queue, fmconsume):
    """A failed callback ends the command with 13 and one traceback; its message is back."""
    broker.publish(queue, numbered(2))
    command = fmconsume(callback="callbacks:fail")
    assert command.wait(PATIENCE) == 13
    assert command.logged().count("Traceback") == 1
    assert 'callbacks.py", line' in command.logged()
    assert command.logged().splitlines()[-1].startswith("fmconsume: ")
    assert "RuntimeError: the disk is full" in command.logged().splitlines()[-1]
    wait_until(lambda: broker.ready(queue) == 2)


def test_command_thread_left_behind(broker, queue, fmconsume):
    """A thread of the callback's own that never ends keeps no process without a consumer."""
    broker.publish(queue, numbered(1))
    command = fmconsume(callback="callbacks:Refreshing")
    assert command.wait(PATIENCE) == 13
    assert "left behind: the callback's own threads refresh" in command.logged()


def test_command_thread_waited_for(broker, queue, fmconsume):
    """A thread of the callback's own may finish after a stop; what is waited for is said."""
    command = fmconsume(callback="callbacks:Refreshing")
    command.wait_for("consuming from")
    command.send_signal(signal.SIGTERM)
    command.wait_for("waiting; a signal ends that: the callback's own threads refresh")
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("option", ["--replay", "--queue-name", "--exchange"])
def test_command_empty_value(fmconsume, option):
    """An option with an empty value is not taken for none: that would consume what it must not."""
    command = fmconsume(option, "", callback="callbacks:take")
    assert command.wait(PATIENCE) == 2
    assert f"argument {option}: found an empty value" in command.logged()


def test_command_usage_hides_passwords(fmconsume):
    """A URL where none belongs is shown without its password."""
    url = f"amqp://bob:{_SECRET}@localhost/"
    for arguments in (["--amqp-url", url], ["--limit", url], ["--log-level", url]):
        command = fmconsume(*arguments, callback="callbacks:take")
        assert command.wait(PATIENCE) == 2
        assert "amqp://bob:***@localhost/" in command.logged()
        assert _SECRET not in command.logged()


def test_command_callback_halts(broker, queue, fmconsume):
    """The exit status is what HaltConsumer says, and its reason is shown."""
    broker.publish(queue, numbered(2))
    said = _complaint(fmconsume(callback="callbacks:halt"), 42)
    assert said.count("\n") == 0
    assert "enough for today" in said
    assert broker.ready(queue) == 1
