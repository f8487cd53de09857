"""What the README shows does what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

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


def test_readme_testing_sample() -> None:
    """The testing sample passes."""
    code = next(block for block in blocks("python") if "deliver" in block)
    subprocess.run([sys.executable, "-c", f"{code}\ntest_callback()"], check=True, timeout=PATIENCE)
