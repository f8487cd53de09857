"""Faults that no retry can mend, and two that need none: each consumer is in this process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

import pika

from fmconsume.config import DEFAULTS
from fmconsume.exceptions import (
    BadDeclaration,
    ConnectionException,
    ConsumerCanceled,
    PermissionException,
)
from tests.integration.broker import Broker
from tests.waiting import PATIENCE, wait_until

from .scene import Account, Row, Runner, publish, running, unique

__all__ = [
    "Cluster",
    "acknowledgement_timeout",
    "blocked",
    "home_node_down",
    "in_cluster",
    "memory_alarm",
    "node_killed",
    "queue_contradicts",
    "queue_deleted",
    "user_refused",
]

Step = Callable[[Broker, str], object]

#: What an administrator does to a user on a virtual host of the same name, and what the consumer
#: may end with.
REFUSALS: dict[str, tuple[Step, dict[type[Exception], int]]] = {
    "permission withdrawn": (
        lambda broker, name: broker.ctl("clear_permissions", "-p", name, name),
        # RabbitMQ refuses the whole virtual host to a user without permissions there.
        {ConnectionException: 14},
    ),
    "permission to read withdrawn": (
        lambda broker, name: broker.ctl("set_permissions", "-p", name, name, ".*", ".*", "^$"),
        {PermissionException: 15},
    ),
    "virtual host deleted": (
        lambda broker, name: broker.ctl("delete_vhost", name),
        # Until 4.0 RabbitMQ deletes the queues first, and cancels their consumers.
        {ConsumerCanceled: 12, ConnectionException: 14},
    ),
    "user deleted": (
        lambda broker, name: broker.ctl("delete_user", name),
        {ConnectionException: 14},
    ),
    "password changed": (
        lambda broker, name: broker.ctl("change_password", name, "other"),
        {ConnectionException: 14},
    ),
}


class _Gate:
    """Work that waits until it is let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, message: object) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE)


def queue_deleted(broker: Broker, workers: int, rng: random.Random) -> Row:
    """Delete the queue under a running callback: exit 12, the callback finishes first."""
    row = Row("queue deleted under the consumer", workers, 1, 1)
    gate = _Gate()
    account = Account(gate)
    queue = broker.declare(unique("deleted"))
    publish(broker, queue, range(1))
    with running(broker.url(), queue, account, workers) as runner:
        assert gate.entered.wait(PATIENCE)
        broker.delete(queue)
        runner.wait_for_state("stopping")
        assert not account.finished
        gate.opened.set()
        _expect(runner, {ConsumerCanceled: 12}, queue)
    row.notes.append("exit 12")
    return account.enter_into(row)


def user_refused(broker: Broker, fault: str, workers: int, rng: random.Random) -> Row:
    """Refuse a user who was welcome until the connection is lost."""
    step, codes = REFUSALS[fault]
    row = Row(fault, workers, 1, 1)
    name = unique("refused")
    broker.ctl("add_vhost", name)
    broker.ctl("add_user", name, "secret-word")
    broker.ctl("set_permissions", "-p", name, name, ".*", ".*", ".*")
    account = Account()
    url = broker.url(vhost=quote(name), user=name, password="secret-word")
    with running(url, name, account, workers) as runner:
        runner.wait_for_state("consuming")
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            properties = pika.BasicProperties(message_id="only")
            connection.channel().basic_publish("", name, b'{"n": 0}', properties)
        wait_until(lambda: account.finished)
        step(broker, name)
        broker.close_connections(name)
        _expect(runner, codes, name)
    assert "secret-word" not in str(runner.error), runner.error
    row.notes.append(f"exit {runner.consumer.exit_code}")
    return account.enter_into(row)


def queue_contradicts(broker: Broker, workers: int, rng: random.Random) -> Row:
    """Declare a queue otherwise than it is: exit 10, and the attribute is named."""
    row = Row("queue exists with other attributes", workers, 1, 0)
    queue = broker.declare(unique("contradicts"))
    with running(broker.url(), queue, Account(), workers, {"x-max-length": 5}) as runner:
        _expect(runner, {BadDeclaration: 10}, "x-max-length")
    broker.delete(queue)
    row.notes.append("exit 10")
    return row


def memory_alarm(broker: Broker, workers: int, rng: random.Random) -> Row:
    """Raise a memory alarm; consuming goes on."""
    row = Row("memory alarm", workers, 1, 100)
    gate = _Gate()
    account = Account(gate)
    queue = broker.declare(unique("alarm"))
    publish(broker, queue, range(row.messages))
    with running(broker.url(), queue, account, workers):
        assert gate.entered.wait(PATIENCE)
        _alarm(broker)
        try:
            gate.opened.set()
            wait_until(lambda: account.has_all(row.messages))
            wait_until(lambda: broker.depth(queue) == (0, 0))
        finally:
            _end_alarm(broker)
    broker.delete(queue)
    return account.enter_into(row)


def acknowledgement_timeout(
    broker: Broker, rounds: int, workers: int, rng: random.Random, queue_type: str = "classic"
) -> Row:
    """Let a callback outlive RabbitMQ's consumer_timeout; it runs once and is settled.

    The broker closes the channel, or, from 4.3 on for a quorum queue, cancels the consumer.
    """
    row = Row(f"acknowledgement timeout ({queue_type} queue)", workers, rounds, rounds)
    account = Account(lambda message: time.sleep(4))
    arguments = {"x-queue-type": queue_type}
    prefetch = {"prefetch_count": workers, "prefetch_size": 0}
    with _impatient(broker):
        queue = broker.declare(unique("timeout"), x_queue_type=queue_type)
        publish(broker, queue, range(rounds))
        with running(broker.url(), queue, account, workers, arguments, qos=prefetch) as runner:
            wait_until(lambda: account.has_all(rounds), PATIENCE + 8 * rounds)
            wait_until(lambda: broker.depth(queue) == (0, 0))
            assert runner.consumer.stats.reconnections, row
            row.notes.append(f"{runner.consumer.stats.reconnections} reconnections")
        broker.delete(queue)
    return account.enter_into(row)


@contextmanager
def _impatient(broker: Broker) -> Iterator[None]:
    """Let channels that are opened meanwhile wait 1.5 s for an acknowledgement, not 30 minutes."""
    _set(broker, consumer_timeout=1500, channel_tick_interval=500)  # RabbitMQ looks once a tick.
    try:
        yield
    finally:
        _set(broker, consumer_timeout=1_800_000, channel_tick_interval=60_000)


def _set(broker: Broker, **milliseconds: int) -> None:
    for name, value in milliseconds.items():
        broker.eval(f"application:set_env(rabbit, {name}, {value}).")


def node_killed(nodes: list[Broker], rounds: int, workers: int, rng: random.Random) -> Row:
    """Kill the node that serves the consumer, of three that share a quorum queue."""
    batch = 200
    row = Row("node of a cluster of three killed", workers, rounds, rounds * batch)
    account = Account(lambda message: time.sleep(rng.random() * 0.004))
    queue = nodes[2].declare(unique("cluster"), x_queue_type="quorum")
    wait_until(lambda: _members(nodes[2], queue) == 3)
    urls = [node.url(heartbeat=5) for node in nodes[:2]]
    with running(urls, queue, account, workers, {"x-queue-type": "quorum"}) as runner:
        for number in range(rounds):
            serving = nodes[number % 2]
            wait_until(lambda n=serving: f":{n.port} " in runner.state_text("consuming"))
            publish(nodes[2], queue, range(number * batch, (number + 1) * batch))
            some = (number + rng.random() / 2) * batch
            wait_until(lambda goal=some: len(account.finished) > goal)
            serving.kill()
            wait_until(lambda n=number + 1: account.has_all(n * batch))
            serving.start()
        row.notes.append(f"{runner.consumer.stats.reconnections} reconnections")
    return account.enter_into(row)


def home_node_down(nodes: list[Broker], rounds: int, workers: int, rng: random.Random) -> Row:
    """Stop the node of a classic queue under a consumer that is connected to another one.

    RabbitMQ cancels the consumer, and says of the queue that it is not found. From 4.3 on it then
    delivers what had been delivered as if it were new, so that a prefetch of it may run again.
    """
    batch = 50
    row = Row("home node of a classic queue down", workers, rounds, rounds * batch)
    account = Account(lambda message: time.sleep(rng.random() * 0.004))
    home, other = nodes[1], nodes[0]
    queue = home.declare(unique("home"))
    with running(other.url(heartbeat=5), queue, account, workers) as runner:
        for number in range(rounds):
            runner.wait_for_state("consuming")
            publish(home, queue, range(number * batch, (number + 1) * batch))
            some = (number + rng.random() / 2) * batch
            wait_until(lambda goal=some: len(account.finished) > goal)
            home.stop()
            assert queue in runner.wait_for_state("waiting")
            home.start()
            wait_until(lambda n=number + 1: account.has_all(n * batch))
        row.notes.append(f"{runner.consumer.stats.reconnections} reconnections")
    account.enter_into(row)
    if home.version >= (4, 3):
        row.notes.append(f"{row.rerun} run again, as if they were new")
        row.rerun = max(0, row.rerun - rounds * DEFAULTS["qos"]["prefetch_count"])
    return row


def _expect(runner: Runner, codes: dict[type[Exception], int], word: str) -> None:
    """Check how the consumer ended, and that it says of what."""
    ended = runner.wait_for_end()
    assert runner.consumer.exit_code == codes.get(type(ended)), repr(ended)
    assert word in str(ended), ended


class Cluster:
    """Three nodes that share their queues."""

    def __init__(self, folder: Path) -> None:
        self._nodes: list[Broker] = []
        self._folder = folder

    def __enter__(self) -> list[Broker]:
        try:
            for number in range(3):
                folder = self._folder / str(number)
                folder.mkdir(parents=True)
                first = self._nodes[0] if self._nodes else None
                self._nodes.append(Broker(folder, beside=first))
                self._nodes[-1].start()
                if first:
                    self._join(self._nodes[-1], first)
        except BaseException:
            self.__exit__()
            raise
        return self._nodes

    def _join(self, node: Broker, first: Broker) -> None:
        node.stop()
        node.ctl("join_cluster", first.name)
        node.start()

    def __exit__(self, *exc_info: Any) -> None:
        for node in reversed(self._nodes):
            node.close()


def in_cluster(folder: Path, fault: Callable[..., Row], *args: Any) -> Row:
    """Make a cluster for one fault."""
    with Cluster(folder) as nodes:
        return fault(nodes, *args)


def _members(node: Broker, queue: str) -> int:
    """Count the nodes that hold a replica of a quorum queue."""
    return int(node.eval(_MEMBERS % queue))


_MEMBERS = """
{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)),
case maps:get(nodes, amqqueue:get_type_state(Q)) of
    Map when is_map(Map) -> maps:size(Map);
    List -> length(List)
end.
"""


def blocked(broker: Broker, workers: int, rng: random.Random) -> Row:
    """Have the broker block the consumer's own connection, which it does to one that publishes."""
    row = Row("connection blocked by an alarm", workers, 1, 0)
    queue = broker.declare(unique("blocked"))
    with running(broker.url(), queue, Account(), workers) as runner:
        runner.wait_for_state("consuming")
        _alarm(broker)
        supervisor = runner.consumer._supervisor

        def is_blocked() -> bool:
            # RabbitMQ looks when it gets something, and the alarm may not have reached it yet.
            supervisor.mailbox.post(
                lambda: supervisor._session._channels[0].basic_publish("", "nowhere", b"")
            )
            return "low on memory" in runner.state_text("blocked")

        wait_until(is_blocked)
        _end_alarm(broker)
        runner.wait_for_state("consuming")
    broker.delete(queue)
    return row


def _alarm(broker: Broker) -> None:
    """Let the broker run out of memory."""
    broker.ctl("set_vm_memory_high_watermark", "0")
    wait_until(lambda: "memory" in broker.eval("rabbit_alarm:get_alarms()."))


def _end_alarm(broker: Broker) -> None:
    """Let it have memory again."""
    broker.ctl("set_vm_memory_high_watermark", "0.4")
    wait_until(lambda: broker.eval("rabbit_alarm:get_alarms().") == "[]")
