"""What the README shows does what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from fmconsume.config import DEFAULTS
from fmconsume.delivery import Verdict
from fmconsume.exceptions import ExitCode
from fmconsume.message import Message
from fmconsume.testing import deliver
from tests.waiting import PATIENCE, wait_until

from .broker import Broker
from .command import Command

README = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Give the code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def config(broker: Broker, tmp_path: Path) -> Path:
    """A configuration that says only where the broker is."""
    path = tmp_path / "config.toml"
    path.write_text(f'amqp_url = "{broker.url()}"\n')
    return path


def test_readme_first_sample(broker: Broker, config: Path, tmp_path: Path) -> None:
    """The first sample prints what is published, and ends with 0 on SIGTERM."""
    sample = tmp_path / "sample.py"
    sample.write_text(blocks("python")[0])
    process = subprocess.Popen(
        [sys.executable, "-u", str(sample)],
        env={**os.environ, "FMCONSUME_CONF": str(config)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout

        def has_queue() -> bool:
            broker.publish("readme.first", [{"n": 1}], exchange="amq.topic")
            return "amq.topic" in bindings_of_nameless(broker)

        wait_until(has_queue, every=0.2)
        broker.publish("readme.first", [{"n": 2}], exchange="amq.topic")
        wait_until(lambda: "readme.first {'n': 2}" in process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def bindings_of_nameless(broker: Broker) -> str:
    """Give the bindings of queues that the broker named."""
    table = broker.ctl("list_bindings", "source_name", "destination_name")
    return "\n".join(line for line in table.splitlines() if "amq.gen-" in line)


def test_readme_class_sample(
    broker: Broker, tmp_path: Path, run_command: Callable[..., Command]
) -> None:
    """The class sample appends to the file of consumer_config and leaves nothing unsettled."""
    written = tmp_path / "topics"
    (tmp_path / "recorder.py").write_text(blocks("python")[1])
    toml = blocks("toml")[0].replace("amqp://guest:guest@localhost/", broker.url())
    toml = toml.replace("/var/lib/fmconsume/topics", str(written))
    (tmp_path / "sample.toml").write_text(toml)
    command = run_command("--config", tmp_path / "sample.toml", cwd=tmp_path)
    command.wait_for("consuming from topics")
    topics = [f"org.centos.prod.{number}" for number in range(10)]
    for topic in topics:
        broker.publish(topic, [{"n": 0}], exchange="amq.topic")
    wait_until(lambda: written.exists() and written.read_text().split() == topics)
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert broker.depth("topics") == (0, 0)
    broker.delete("topics")


@pytest.fixture
def fruit(broker: Broker) -> Iterator[str]:
    """The queue that the samples consume from: empty, and gone afterwards."""
    yield broker.declare("fruit")
    broker.delete("fruit")


def start(code: str, config: Path) -> subprocess.Popen[str]:
    """Run a sample against the private broker."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        env={**os.environ, "FMCONSUME_CONF": str(config)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_readme_consume_sample(broker: Broker, config: Path, fruit: str) -> None:
    """The sample with bindings and queues binds the queue, and prints what is routed to it."""
    code = next(block for block in blocks("python") if "bindings=" in block)
    code = code.replace("amqp://guest:guest@localhost/", broker.url())
    with start(code, config) as process:
        assert process.stdout
        wait_until(lambda: "fruit.#" in broker.ctl("list_bindings", "routing_key"), every=0.2)
        broker.publish("fruit.ripe", [{"n": 1}], exchange="amq.topic")
        words = process.stdout.readline().split(maxsplit=2)
        assert (words[0], words[2]) == (fruit, "fruit.ripe {'n': 1}\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert broker.depth(fruit) == (0, 0)


def test_readme_consumer_sample(broker: Broker, config: Path, fruit: str) -> None:
    """The sample with a thread consumes until Enter, and shows state, counts and exit status."""
    code = next(block for block in blocks("python") if "consumer.stop()" in block)
    broker.publish(fruit, [{"n": 1}])
    with start(code, config) as process:
        assert process.stdout
        assert process.stdout.readline() == "Press Enter to stop\n"
        assert process.stdout.readline() == "fruit {'n': 1}\n"
        printed, _ = process.communicate("\n", 30)
        assert process.returncode == 0
    state, counts = printed.splitlines()
    assert state.startswith("consuming from fruit at ")
    assert counts == "received 1, acknowledged 1 and exit status 0"


def test_readme_drain_sample(broker: Broker, config: Path, fruit: str) -> None:
    """The sample that works off a queue ends by itself, when the queue is empty or at its limit."""
    code = next(block for block in blocks("python") if "drain=True" in block)
    broker.publish(fruit, [{"n": number} for number in range(3)])
    assert "acknowledged 2" in last_line(code.replace("limit=1000", "limit=2"), config)
    assert last_line(code, config) == "received 1, acknowledged 1"
    assert broker.depth(fruit) == (0, 0)


def last_line(code: str, config: Path) -> str:
    """Run a sample to its end, and give the last line that it prints."""
    with start(code, config) as process:
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    return printed.splitlines()[-1]


def test_readme_publish_sample(broker: Broker, config: Path, queue: str) -> None:
    """The publishing sample returns once the broker has the message."""
    broker.bind(queue, "amq.topic", "fruit.*")
    code = next(block for block in blocks("python") if "publish(Message" in block)
    env = {**os.environ, "FMCONSUME_CONF": str(config)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=PATIENCE)
    assert [message.body for message in broker.drain(queue)] == [b'{"fruit": "pear"}']


def test_readme_testing_sample() -> None:
    """The testing sample passes."""
    code = next(block for block in blocks("python") if "deliver" in block)
    subprocess.run([sys.executable, "-c", f"{code}\ntest_callback()"], check=True, timeout=PATIENCE)


def test_readme_configuration_table() -> None:
    """The table of configuration keys has each key, and no other."""
    table = README.split("## Configuration")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(cells))) == set(DEFAULTS)


def test_readme_exit_codes() -> None:
    """The table of exit statuses has each of them."""
    table = README.split("| exit status")[1].split("\n\n")[0]
    assert set(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) == set(ExitCode)


def test_readme_inbox(tmp_path: Path) -> None:
    """The sample of the inbox does its work once."""
    (sample,) = [block for block in blocks("python") if "inbox.transaction" in block]
    url = f"sqlite:///{tmp_path}/builds.db"
    names: dict[str, Any] = {}
    exec(sample.replace("postgresql+psycopg://worker@db/builds", url), names)
    with names["engine"].begin() as connection:
        connection.execute(names["text"]("CREATE TABLE builds (name TEXT)"))
    message = Message(topic="a", body={"name": "kernel"})
    message.queue = "builds"
    result = deliver(names["callback"], message, message)
    assert (result.verdicts, result.error) == ([Verdict.ACK, Verdict.ACK], None)
    with names["engine"].connect() as connection:
        assert connection.execute(names["text"]("SELECT name FROM builds")).all() == [("kernel",)]
    names["engine"].dispose()
