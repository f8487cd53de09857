"""Runs clients, each in a process of its own, against one broker, and checks what they saw."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.integration.broker import Broker, free_port
from tests.waiting import wait_until

from .messages import make_body

__all__ = [
    "BATCHED",
    "CLIENTS",
    "HANDED",
    "ONCE",
    "OURS",
    "PIKA",
    "THREADED",
    "Bench",
    "Run",
    "Settings",
    "Void",
    "environment",
    "finish",
    "read",
    "switches",
    "time_of",
]

ROOT = Path(__file__).parent.parent

OURS = "fmconsume"
ONCE = "fmconsume_once"
PIKA = "pika"
THREADED = "pika_threaded"
BATCHED = "pika_batched"
HANDED = "pika_batched_threaded"
C_CLIENT = "rabbitmq_c"

#: The scripts in clients/, and what the tables call them.
CLIENTS = {
    OURS: "fmconsume",
    PIKA: "pika by hand",
    THREADED: "pika, threaded pattern",
    BATCHED: "pika, ack for a batch",
    HANDED: "pika, batches to a thread",
    "kombu": "kombu",
    "amqpstorm": "AMQPStorm",
    "aio_pika": "aio-pika",
    "faststream": "FastStream",
    "rabbitpy": "rabbitpy",
    "fedora_messaging": "fedora-messaging",
    C_CLIENT: "rabbitmq-c (C)",
}
#: Those that need nothing but what fmconsume needs.
_NATIVE = (OURS, ONCE, PIKA, THREADED, BATCHED, HANDED)

#: A client that is so slow gets this part of the messages, so that a run stays short.
_SHARE = {"fedora_messaging": 1 / 5}


class Void(Exception):
    """Raised when a run counts for nothing: a message was missed, repeated or left behind."""


class Settings(NamedTuple):
    """What a person may choose.

    Attributes:
        count: Messages in a run.
        size_bytes: Bytes of a body.
        rounds: How often both sides of a ratio are measured.
        peers: A virtual environment with the other clients; None measures without them.
        is_long: Also a million messages.
    """

    count: int = 20_000
    size_bytes: int = 512
    rounds: int = 5
    peers: Path | None = None
    is_long: bool = False


class Run(NamedTuple):
    """One client's consumption of one queue.

    Attributes:
        seconds: From the first message to the last.
        cpu_seconds: The process's own, user and system, meanwhile.
        rss_kb: Resident memory at the end.
        latencies_us: From publishing to the callback, of messages that carry the time.
        peak: Callbacks that ran at once, where the client counts them.
    """

    messages: int
    seconds: float
    cpu_seconds: float
    rss_kb: int
    latencies_us: list[float]
    peak: int = 0

    @property
    def rate(self) -> float:
        """Messages a second."""
        return (self.messages - 1) / self.seconds

    @property
    def cpu_us(self) -> float:
        """Processor time for a message, in microseconds."""
        return self.cpu_seconds * 1e6 / (self.messages - 1)

    def latency_us(self, percent: int) -> float:
        """The latency that so many percent of the messages do not exceed."""
        return statistics.quantiles(self.latencies_us, n=100)[percent - 1]


class Bench:
    """The broker and the settings, and what can be done with them."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self.broker = broker
        self.settings = settings
        self._queues = 0
        #: RabbitMQ has nothing more to do for what was published.
        self._is_at_rest = True

    def has(self, client: str) -> bool:
        """Tell whether a client can be measured."""
        peers = self.settings.peers
        if client in _NATIVE:
            return True
        return peers is not None and (client != C_CLIENT or (peers / "bin" / C_CLIENT).exists())

    @contextmanager
    def queues(
        self, sizes_bytes: Sequence[int], numbers: Collection[int] = ()
    ) -> Iterator[list[str]]:
        """Give new durable queues, one for each size, that hold messages with these numbers.

        Each message is published once, to all queues that have its size.
        """
        with ExitStack() as stack:
            exchanges = {
                size: stack.enter_context(self.broker.fanout()) for size in set(sizes_bytes)
            }
            names = [stack.enter_context(self._queue(exchanges[size])) for size in sizes_bytes]
            for size, exchange in exchanges.items():
                bodies = (make_body(number, size) for number in numbers)
                self.broker.publish("org.fedoraproject.bench", bodies, exchange)
            if numbers:
                self._is_at_rest = False
            yield names

    @contextmanager
    def queue(self, numbers: Collection[int] = ()) -> Iterator[str]:
        """Give one such queue."""
        with self.queues([self.settings.size_bytes], numbers) as (name,):
            yield name

    @contextmanager
    def _queue(self, exchange: str) -> Iterator[str]:
        self._queues += 1
        name = self.broker.declare(f"bench-{self._queues}")
        try:
            self.broker.bind(name, exchange)
            yield name
        finally:
            self.broker.delete(name)

    def consume_all(self, client: str, count: int) -> Run:
        """Fill a queue and let a client consume it; raises Void."""
        with self.queue(range(count)) as queue:
            return self.consume(client, queue, count)

    def consume(
        self, client: str, queue: str, count: int, *options: str, prefetch: int = 100
    ) -> Run:
        """Let a client take so many messages from a queue, or from several with commas between.

        A slow one takes its share of them.

        Raises:
            Void: It failed, or a message was missed, repeated or left behind.
        """
        count = int(count * _SHARE.get(client, 1))
        self._rest()
        before = self._count_ready(queue)
        with self.started(client, queue, count, *options, prefetch=prefetch) as process:
            run = finish(client, process, count)
        self.check_depth(client, queue, before - count)
        return run

    def _rest(self) -> None:
        """Wait until RabbitMQ is done with what was published.

        Once a queue has been idle for a second it puts its memory in order. Who consumed before
        would wait for that meanwhile.
        """
        if not self._is_at_rest:
            time.sleep(1)
            wait_until(self._is_idle)
            self._is_at_rest = True

    def _is_idle(self) -> bool:
        before = self.broker.cpu_seconds()
        time.sleep(0.3)
        return self.broker.cpu_seconds() - before < 0.03

    @contextmanager
    def started(
        self, client: str, queue: str, count: int, *options: str, prefetch: int = 100
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a client for the length of a `with` block."""
        command = [*self._command(client), self.broker.url(), queue, str(count), str(prefetch)]
        with _process([*command, *options]) as process:
            yield process

    def consume_stream(self, client: str, count: int, prefetch: int = 100) -> Run:
        """Let a client consume from a peer that is no broker, and costs the same each time.

        Raises:
            Void: As for `consume`.
        """
        port = free_port()
        peer = [sys.executable, "-m", "benchmarks.peer", str(port), str(count)]
        with _process([*peer, str(self.settings.size_bytes), str(prefetch)]) as served:
            assert served.stdout is not None
            served.stdout.readline()  # It listens.
            url = f"amqp://guest:guest@127.0.0.1:{port}/"
            command = [*self._command(client), url, "stream", str(count), str(prefetch)]
            with _process(command) as process:
                return finish(client, process, count)

    def wait_for_consumer(self, client: str, queue: str, process: subprocess.Popen[str]) -> None:
        """Wait until a client that was started consumes from a queue; raises Void."""

        def has_come() -> bool:
            if process.poll() is not None:
                raise Void(f"{client} ended early: {process.communicate()[1].strip()[-2000:]}")
            with self.broker.channel() as channel:
                return bool(channel.queue_declare(queue, passive=True).method.consumer_count)

        wait_until(has_come)

    @contextmanager
    def flow(self, queue: str, count: int, rate: float) -> Iterator[None]:
        """Publish at a steady rate, from a process of its own, during a `with` block."""
        command = [*_python(sys.executable, "publisher"), self.broker.url(), queue]
        command += [str(count), str(rate)]
        with _process(command) as process:
            yield
            _, errors = process.communicate(timeout=60)
            if process.returncode:
                raise Void(f"the publisher failed: {errors.strip()}")

    def check_depth(self, client: str, queue: str, expected: int) -> None:
        """Make sure that what the client has seen is acknowledged; raises Void."""
        time.sleep(0.1)  # What it left unacknowledged is ready again once its connection is gone.
        try:
            wait_until(lambda: self._count_ready(queue) == expected, timeout=10)
        except TimeoutError as exc:
            left = self._count_ready(queue)
            raise Void(f"{client} left {left} messages in {queue}, expected {expected}") from exc

    def _count_ready(self, queue: str) -> int:
        return sum(self.broker.ready(name) for name in queue.split(","))

    def _command(self, client: str) -> list[str]:
        if client in _NATIVE:
            return _python(sys.executable, client)
        assert self.settings.peers is not None
        folder = self.settings.peers / "bin"
        if client == C_CLIENT:
            return [str(folder / C_CLIENT)]
        return _python(str(folder / "python"), client)


def _python(interpreter: str, script: str) -> list[str]:
    return [interpreter, "-m", f"benchmarks.clients.{script}"]


@functools.cache
def _bytecode() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for compiled modules: a client starts as an installed one does."""
    return tempfile.TemporaryDirectory()


def environment() -> dict[str, str]:
    """Our environment, without what would change how a client behaves."""
    foreign = ("FMCONSUME_", "FEDORA_MESSAGING_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return {**kept, "PYTHONPYCACHEPREFIX": _bytecode().name}


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(client: str, process: subprocess.Popen[str], count: int) -> Run:
    """Wait for a client's end and read its answer; raises Void."""
    try:
        output, errors = process.communicate(timeout=60 + count / 100)
    except subprocess.TimeoutExpired as exc:
        raise Void(f"{client} did not come to an end: a message is missing") from exc
    if process.returncode:
        raise Void(f"{client} failed: {errors.strip()[-2000:]}")
    return read(client, output, count)


def read(client: str, output: str, count: int) -> Run:
    """Read the line that a client prints; raises Void unless each number came exactly once."""
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    missing, repeated = answer.pop("missing"), answer.pop("repeated")
    if missing or repeated or answer["messages"] != count:
        raise Void(f"{client}: of {count} messages {missing} missing, {repeated} repeated")
    return Run(**answer)


def switches(pid: int) -> int:
    """Count the voluntary context switches of a process so far, over all its threads."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def time_of(*command: str) -> float:
    """Run a command and return the seconds that it took."""
    started = time.perf_counter()
    with _process(command) as process:
        _, errors = process.communicate(timeout=60)
    if process.returncode:
        raise Void(f"{command} failed: {errors.strip()}")
    return time.perf_counter() - started
