"""What the samples in the manual show does what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmconsume.delivery import Verdict
from fmconsume.message import Message
from fmconsume.testing import deliver
from tests.manual import MAN, samples, section
from tests.waiting import PATIENCE, wait_until

from .broker import Broker

PAGE = (MAN / "fmconsume-callbacks.7").read_text(encoding="utf-8")


def sample(title: str, word: str) -> str:
    """Give the sample in a section that has a word in it."""
    (found,) = [text for text in samples(section(PAGE, title)) if word in text]
    return found


@pytest.fixture
def config(broker: Broker, tmp_path: Path) -> Path:
    """A configuration that says only where the broker is."""
    path = tmp_path / "config.toml"
    path.write_text(f'amqp_url = "{broker.url()}"\n')
    return path


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


def test_manual_consume_sample(broker: Broker, config: Path, fruit: str) -> None:
    """The sample with bindings and queues binds the queue, and prints what is routed to it."""
    code = sample("IN A PROGRAM", "bindings=")
    code = code.replace("amqp://guest:guest@localhost/", broker.url())
    with start(code, config) as process:
        assert process.stdout
        wait_until(lambda: "fruit.#" in broker.ctl("list_bindings", "routing_key"))
        broker.publish("fruit.ripe", [{"n": 1}], exchange="amq.topic")
        words = process.stdout.readline().split(maxsplit=2)
        assert (words[0], words[2]) == (fruit, "fruit.ripe {'n': 1}\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert broker.depth(fruit) == (0, 0)


def test_manual_consumer_sample(broker: Broker, config: Path, fruit: str) -> None:
    """The sample with a thread consumes until Enter, and shows state, counts and exit status."""
    code = sample("IN A PROGRAM", "consumer.stop()")
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


def test_manual_drain_sample(broker: Broker, config: Path, fruit: str) -> None:
    """The sample that works off a queue ends by itself, when the queue is empty or at its limit."""
    code = sample("IN A PROGRAM", "drain=True")
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


def test_manual_publish_sample(broker: Broker, config: Path, queue: str) -> None:
    """The publishing sample returns once the broker has the message."""
    broker.bind(queue, "amq.topic", "fruit.*")
    code = sample("PUBLISHING", "publish(Message")
    env = {**os.environ, "FMCONSUME_CONF": str(config)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=PATIENCE)
    assert [message.body for message in broker.drain(queue)] == [b'{"fruit": "pear"}']


def test_manual_inbox(tmp_path: Path) -> None:
    """The sample of the inbox does its work once."""
    code = sample("EXACTLY ONCE", "inbox.transaction")
    url = f"sqlite:///{tmp_path}/builds.db"
    names: dict[str, Any] = {}
    exec(code.replace("postgresql+psycopg://worker@db/builds", url), names)
    with names["engine"].begin() as connection:
        connection.execute(names["text"]("CREATE TABLE builds (name TEXT)"))
    message = Message(topic="a", body={"name": "kernel"})
    message.queue = "builds"
    result = deliver(names["callback"], message, message)
    assert (result.verdicts, result.error) == ([Verdict.ACK, Verdict.ACK], None)
    with names["engine"].connect() as connection:
        assert connection.execute(names["text"]("SELECT name FROM builds")).all() == [("kernel",)]
    names["engine"].dispose()


def test_manual_testing_sample(tmp_path: Path) -> None:
    """The sample for pytest passes, with the fixtures that fmconsume brings."""
    (tmp_path / "test_sample.py").write_text(sample("TESTING", "mock_sends"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert "1 passed" in done.stdout, done.stdout
