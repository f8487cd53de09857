"""What the integration tests share: one broker, and for each test a queue, a line, a command."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from fmconsume.api import Consumer
from tests.waiting import PATIENCE

from .broker import Broker
from .command import Command
from .proxy import Proxy
from .running import Gate, Running, configured, durable


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A private RabbitMQ for all tests; one that kills it wants a `Broker` of its own."""
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def frail_broker(broker: Broker) -> Iterator[Broker]:
    """The broker for a test that stops it; it runs again afterwards."""
    yield broker
    broker.start()


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    """The name of a durable queue, empty and this test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield broker.declare(name)
    broker.delete(name)


@pytest.fixture
def new_queue(broker: Broker) -> Iterator[Callable[..., str]]:
    """Declare further queues of this test's own; arguments as `Broker.declare` takes them."""
    declared: list[str] = []

    def declare(**arguments: Any) -> str:
        declared.append(broker.declare(f"test-{uuid.uuid4().hex[:12]}", **arguments))
        return declared[-1]

    yield declare
    for name in declared:
        broker.delete(name)


@pytest.fixture
def run_consumer(broker: Broker) -> Iterator[Callable[..., Running]]:
    """Run a Consumer in a thread until it consumes; stopped when the test ends.

    Takes what a Consumer takes, and settings in place of the configuration's defaults. A string
    for the queues is the name of a durable one. With wait=False it need not consume.
    """
    started: list[Running] = []

    def start(
        callback: Callable[..., Any],
        queues: Any = None,
        bindings: Any = (),
        *,
        workers: int | None = None,
        limit: int | None = None,
        wait: bool = True,
        **settings: Any,
    ) -> Running:
        queues = durable(queues) if isinstance(queues, str) else queues
        with configured(**{"amqp_url": broker.url(), **settings}):
            consumer = Consumer(callback, bindings, queues, workers=workers, limit=limit)
        running = Running(consumer)
        started.append(running)
        running.start()
        if wait:
            running.wait_until_consuming()
        return running

    yield start
    for running in started:
        running.consumer.stop()
    for running in started:
        running.join(PATIENCE)
        assert not running.is_alive(), f"it did not stop: {running.consumer.state}"


@pytest.fixture
def gate(run_consumer: Callable[..., Running]) -> Iterator[Gate]:
    """A callback that holds its messages; it lets go before the test's consumers are stopped."""
    gate = Gate()
    yield gate
    gate.open.set()


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
