"""`fmconsume --reload`: a change of the code or of the configuration starts the consumer again."""

from __future__ import annotations

import os
import pty
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, wait_until

from .running import numbered, write_config

#: A callback that says by which version of the file it ran, and waits for a file where it is told.
_APP = """
import os, time

def take(message):
    n = message.body["n"]
    while n and not os.path.exists(f"release-{{n}}"):
        time.sleep(0.01)
    with open("../seen", "a") as file:
        file.write(f"{version} {{n}}\\n")
"""


def app(version):
    """Write the callback's source."""
    return _APP.format(version=version)


@pytest.fixture
def folder(tmp_path):
    """The folder of the code: nothing else is written there."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "app.py").write_text(app("first"))
    return folder


@pytest.fixture
def config(broker, queue, tmp_path):
    """A configuration outside of the code's folder."""
    return write_config(tmp_path / "my.toml", broker.url(), queue, callback="app:take")


@pytest.fixture
def seen(tmp_path):
    """Return the lines that callbacks have written so far."""
    path = tmp_path / "seen"
    return lambda: path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def run_alone(folder, run_command):
    """Run the command without a terminal; what it has started ends with it."""
    started = []

    def start(*options, **popen):
        popen = {"start_new_session": True, **popen}
        started.append(run_command(*options, cwd=folder, **popen))
        return started[-1]

    yield start
    for command in started:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)


@pytest.fixture
def develop(config, run_alone):
    """Start the command with --reload, and wait until it consumes."""

    def start(*options, **popen):
        command = run_alone("--reload", "--config", config, *options, **popen)
        command.wait_for("consuming from")
        return command

    return start


def _wait_for(command, text, count=1):
    """Wait until a text was logged so often."""
    wait_until(lambda: command.logged().count(text) >= count or command.poll() is not None)
    assert command.logged().count(text) == count, command.logged()


def test_reload_loses_nothing(broker, queue, folder, seen, develop):
    """The running callback finishes, the new code gets the rest, and none runs twice."""
    command = develop()
    broker.publish(queue, numbered(12))
    wait_until(lambda: seen() == ["first 0"])
    (folder / "app.py").write_text(app("newer"))
    _wait_for(command, "fmconsume: app.py changed: starting again\n")
    wait_until(lambda: "stopping" in command.logged())
    for n in range(1, 12):
        (folder / f"release-{n}").touch()
    wait_until(lambda: len(seen()) == 12)
    assert seen() == ["first 0", "first 1", *(f"newer {n}" for n in range(2, 12))]
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert broker.depth(queue) == (0, 0)
    assert len(seen()) == 12


def test_reload_after_a_mistake(broker, queue, folder, seen, develop):
    """A file that does not parse is told of, and the next change starts the consumer again."""
    command = develop()
    (folder / "app.py").write_text("def take(message:\n")
    _wait_for(command, "fmconsume: exit status 2: waiting for a change\n")
    assert "importing app failed: SyntaxError" in command.logged()
    (folder / "app.py").write_text(app("mended"))
    _wait_for(command, "consuming from", 2)
    broker.publish(queue, numbered(1))
    wait_until(lambda: seen() == ["mended 0"])
    assert command.logged().count("waiting for a change") == 1


def test_reload_configuration(queue, new_queue, config, develop):
    """A configuration that is replaced by another file counts, twice; `python -m` does the same."""
    command = develop(module="fmconsume")
    text = config.read_text()
    for number in (2, 3):
        name = new_queue()
        config.with_name("new.toml").write_text(text.replace(queue, name))
        config.with_name("new.toml").replace(config)
        _wait_for(command, f"consuming from {name}")
        assert command.logged().count("fmconsume: ../my.toml changed: starting") == number - 1


def test_reload_what_does_not_count(folder, develop):
    """Packages, bytecode and other files start nothing again; a new module does, though."""
    lib = folder / "venv" / "lib" / "site-packages"
    for ignored in (lib, folder / ".git", folder / "__pycache__"):
        ignored.mkdir(parents=True)
    command = develop("--app-dir", folder)
    for path in (lib / "a.py", folder / ".git" / "b.py", folder / "__pycache__" / "c.py"):
        path.touch()
    (folder / "notes.txt").touch()
    (folder / "d.py").touch()
    _wait_for(command, "changed: starting again")
    assert "fmconsume: d.py changed: starting again\n" in command.logged()


def test_reload_program(broker, queue, folder, config, seen, run_alone):
    """A program that consumes by itself is started again, with its arguments."""
    program = "import sys, fmconsume, app\nfmconsume.consume(app.take)\nprint(sys.argv[1:])\n"
    (folder / "program.py").write_text(program)
    command = run_alone("--rel", "--config", config, "-m", "program", "--reload", "--rel")
    wait_until(lambda: f"{queue}\t1" in broker.ctl("list_queues", "name", "consumers"))
    (folder / "app.py").write_text(app("newer"))
    wait_until(lambda: command.printed() == "['--reload', '--rel']\n")
    broker.publish(queue, numbered(1))
    wait_until(lambda: seen() == ["newer 0"])
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0, command.logged()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_reload_signal(broker, queue, folder, seen, develop, number):
    """A signal to the command alone is the consumer's, and so is a second, which does not wait."""
    for n, release, status in ((1, True, 0), (2, False, 128 + number)):
        command = develop()
        broker.publish(queue, [{"n": n}])
        wait_until(lambda: broker.depth(queue) == (0, 1))
        command.send_signal(number)
        command.wait_for("stopping")
        if release:
            (folder / f"release-{n}").touch()
        else:
            command.insist(number)
        assert command.wait(PATIENCE) == status, command.logged()
    assert seen() == ["first 1"]


def test_reload_signal_while_it_starts_again(broker, queue, folder, seen, develop):
    """A signal that comes while the old code finishes its callback waits for it, and ends all."""
    command = develop()
    broker.publish(queue, [{"n": 1}])
    wait_until(lambda: broker.depth(queue) == (0, 1))
    (folder / "app.py").write_text(app("newer"))
    command.wait_for("stopping")
    command.send_signal(signal.SIGTERM)
    (folder / "release-1").touch()
    assert command.wait(PATIENCE) == 0, command.logged()
    assert (seen(), broker.depth(queue)) == (["first 1"], (0, 0))


def test_reload_key(broker, queue, folder, config, seen, run_alone):
    """Ctrl-C, which a terminal sends to both processes, ends both once the callback has ended."""
    keyboard, terminal = pty.openpty()
    script = Path(sys.executable).with_name("fmconsume")
    options = ("--ctty", script, "--reload", "--config", config)
    command = run_alone(*options, executable="setsid", start_new_session=False, stdin=terminal)
    command.wait_for("consuming from")
    broker.publish(queue, [{"n": 1}])
    wait_until(lambda: broker.depth(queue) == (0, 1))
    os.write(keyboard, b"\x03")
    command.wait_for("stopping")
    (folder / "release-1").touch()
    assert command.wait(PATIENCE) == 0, command.logged()
    assert (seen(), broker.depth(queue)) == (["first 1"], (0, 0))
    os.close(keyboard)
    os.close(terminal)
