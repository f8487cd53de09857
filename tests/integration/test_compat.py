"""Consumers and schema packages made for fedora-messaging run with no line changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

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


def test_consumer_without_option(run_consumer_of_fedora):
    """Without the option the error names it."""
    command = run_consumer_of_fedora("Printer", alias=False)
    assert command.wait(PATIENCE) == 2
    assert "No module named 'fedora_messaging'" in command.logged()
    assert "run it with --as-fedora-messaging" in command.logged()


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
