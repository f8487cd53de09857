"""What the faults share: a consumer that keeps account of its runs, in this process or another.

The test's thread calls everything here; callbacks run on the consumer's workers.
"""

from __future__ import annotations

import collections
import json
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from fmconsume import publisher
from fmconsume.api import Consumer
from fmconsume.broker.backoff import Backoff
from fmconsume.config import conf
from fmconsume.message import Message
from tests.integration.broker import Broker
from tests.integration.command import Command
from tests.waiting import PATIENCE, wait_until

__all__ = [
    "Account",
    "EqualAccount",
    "Process",
    "Row",
    "Runner",
    "check",
    "publish",
    "publish_equal",
    "publishing_to",
    "running",
]

DURABLE = {"durable": True, "auto_delete": False, "exclusive": False}


@dataclass
class Row:
    """One line of the table.

    Attributes:
        lost: Messages that no run finished.
        rerun: Runs of a message that had been finished before.
    """

    fault: str
    workers: int
    runs: int
    messages: int
    lost: int = 0
    rerun: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the promise was kept."""
        return self.lost == 0 and self.rerun == 0


class Account:
    """A callback that counts the runs of each numbered message.

    Args:
        work: Called in the middle of each run, with the message.
    """

    def __init__(self, work: Callable[[Message], object] = lambda message: None) -> None:
        self.work = work
        # list.append is atomic, so the workers need no lock.
        self.started: list[int] = []
        self.finished: list[int] = []

    def __call__(self, message: Message) -> None:
        number = message.body["n"]
        self.started.append(number)
        self.work(message)
        self.finished.append(number)

    def has_all(self, count: int) -> bool:
        """Tell whether messages 0 to count - 1 are finished."""
        return len(self.finished) >= count and len(set(self.finished)) == count

    def enter_into(self, row: Row) -> Row:
        """Count what was lost and what was run again."""
        runs = collections.Counter(self.finished)
        row.lost += row.messages - len(runs)
        row.rerun += sum(count - 1 for count in runs.values())
        return row


class EqualAccount(Account):
    """The account of messages that are all numbered 0 and equal to the letter.

    Args:
        in_doubt: So many of them may have been finished without the broker's knowledge.
    """

    def __init__(self, in_doubt: int, work: Callable[[Message], object]) -> None:
        super().__init__(work)
        self._in_doubt = in_doubt

    def has_all(self, count: int) -> bool:
        """Tell whether there were so many runs."""
        return len(self.finished) >= count

    def enter_into(self, row: Row) -> Row:
        """Count runs that are missing, and such as are too many."""
        more = len(self.finished) - row.messages
        row.lost += max(0, -more)
        row.rerun += max(0, more - self._in_doubt)
        if more > 0:
            row.notes.append(f"{more} in doubt run again (at least once)")
        return row


class Runner(threading.Thread):
    """A consumer on a thread of its own; `error` is what ended it."""

    def __init__(self, consumer: Consumer) -> None:
        super().__init__(name="consumer", daemon=True)
        self.consumer = consumer
        self.error: BaseException | None = None

    def run(self) -> None:
        """Consume."""
        try:
            self.consumer.run()
        except BaseException as exc:
            self.error = exc

    def wait_for_state(self, name: str, timeout: float = PATIENCE) -> str:
        """Wait until the consumer is in a state; give the state's text."""
        return wait_until(lambda: self.state_text(name), timeout)

    def state_text(self, name: str) -> str:
        """Give the text of the state if that is its name."""
        state = self.consumer.state
        return state.text if state.name == name else ""

    def wait_for_end(self, timeout: float = PATIENCE) -> BaseException | None:
        """Wait until the consumer has ended; give what it raised."""
        self.join(timeout)
        assert not self.is_alive(), f"still {self.consumer.state}"
        return self.error


@contextmanager
def running(
    url: str | Sequence[str],
    queues: str | Sequence[str],
    callback: Callable[..., Any],
    workers: int = 1,
    arguments: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Runner]:
    """Run a consumer of durable queues in this process, and stop it in the end."""
    names = [queues] if isinstance(queues, str) else queues
    topology = {name: {**DURABLE, "arguments": arguments or {}} for name in names}
    with mock.patch.dict(conf, {"amqp_url": url, "tls": NO_TLS, **settings}):
        runner = Runner(Consumer(callback, [], topology, workers=workers))
    # The usual delays grow to a minute, which is for brokers in trouble and not for tests.
    runner.consumer._supervisor._backoff = Backoff(0.5, 2.0)
    runner.start()
    try:
        yield runner
    finally:
        runner.consumer.stop()
        runner.wait_for_end()


NO_TLS = {"ca_cert": None, "certfile": None, "keyfile": None}


def publish(broker: Broker, queue: str, numbers: Sequence[int]) -> None:
    """Publish numbered messages; each has an id of its own."""
    broker.publish(queue, ({"n": number} for number in numbers))


def publish_equal(broker: Broker, queue: str, count: int) -> None:
    """Publish messages that nobody can tell from one another."""
    broker.publish(queue, [{"n": 0}] * count, message_id="the same", headers={"a": 1})


@contextmanager
def publishing_to(broker: Broker) -> Iterator[None]:
    """Let callbacks publish to a broker; no connection outlives the block."""
    made: dict[int, publisher.Publisher] = {}
    settings = {"amqp_url": broker.url(), "tls": NO_TLS, "topic_prefix": ""}
    with mock.patch.object(publisher, "_publishers", made), mock.patch.dict(conf, settings):
        yield
        for each in list(made.values()):
            each.close()


def unique(name: str) -> str:
    """Give a name that nobody else has."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def check(row: Row) -> None:
    """Fail unless the promise was kept."""
    assert row.is_good, row


def busy(seconds: float, rng: random.Random) -> Callable[[Message], None]:
    """Make work that takes a random time up to so many seconds."""
    return lambda message: time.sleep(rng.random() * seconds)


class Process:
    """The installed command, consuming with a callback that writes a file.

    Args:
        folder: For its configuration, its callback and its files.
        seconds: How long each callback runs, at most.
        more: More of the configuration's keys, as TOML.
        queue_settings: More of the queue's.
        names: For the callback's text.
    """

    callback = """
import os, random, time
from fmconsume import Nack
out = os.open({out!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def work(message):
    bad = message.body.get("bad")
    if bad == "kill":
        os.kill(os.getpid(), 9)
    elif bad:
        raise {{"Nack": Nack, "ValueError": ValueError}}[bad]
    time.sleep(random.random() * {seconds})
    os.write(out, b"%d\\n" % message.body["n"])
"""

    def __init__(
        self,
        folder: Path,
        url: str,
        queue: str,
        seconds: float = 0.002,
        workers: int = 1,
        more: str = "",
        queue_settings: str = "",
        **names: object,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._out = folder / "finished"
        self._out.touch()
        callback = folder / "callback.py"
        text = self.callback.format(out=str(self._out), seconds=seconds, **names)
        callback.write_text(text)
        config = folder / "config.toml"
        config.write_text(
            f"amqp_url = {json.dumps(url)}\nworkers = {workers}\n{more}"
            f"[queues.{queue}]\ndurable = true\nauto_delete = false\nexclusive = false\n"
            f"{queue_settings}"
        )
        self._args = ("--config", config, "--callback-file", f"{callback}:work")
        self._commands = 0

    def start(self) -> Command:
        """Start the command."""
        self._commands += 1
        folder = self.folder / f"run-{self._commands}"
        folder.mkdir()
        return Command(folder, *self._args, env={})

    def finished(self) -> list[int]:
        """Give the numbers of the messages whose callback has ended, in order."""
        return [int(line) for line in self._out.read_text().split()]

    def finish(self, messages: int, is_done: Callable[[], bool] = lambda: True) -> None:
        """Let a last command consume what is left, and stop it.

        Args:
            messages: How many have to finish.
            is_done: Tells whether nothing else has to happen.
        """
        command = self.start()
        try:
            wait_until(lambda: len(set(self.finished())) == messages and is_done())
        except TimeoutError as exc:
            done = f"{len(set(self.finished()))} of {messages} finished"
            raise AssertionError(f"{done}:\n{command.logged()}") from exc
        command.wait_for("consuming from")
        command.send_signal(signal.SIGTERM)
        assert command.wait(PATIENCE) == 0, command.logged()
