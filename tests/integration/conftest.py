"""What the integration tests share: one broker, and for each test a queue, a line, a command."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from .broker import Broker
from .command import Command
from .proxy import Proxy


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A private RabbitMQ for all tests; one that breaks it wants a `Broker` of its own."""
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    """The name of a durable queue, empty and this test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield broker.declare(name)
    broker.delete(name)


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """A line to the broker that the test can cut, stall or slow."""
    with Proxy(broker) as proxy:
        yield proxy


@pytest.fixture
def run_command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the installed `fmconsume` with the given arguments; killed when the test ends."""
    started: list[Command] = []
    folders = (tmp_path / f"command-{number}" for number in itertools.count())

    def start(*args: object, env: dict[str, str] | None = None, **popen: object) -> Command:
        folder = next(folders)
        folder.mkdir()
        started.append(Command(folder, *args, env=env or {}, **popen))
        return started[-1]

    yield start
    for command in started:
        command.kill()
        command.wait()
