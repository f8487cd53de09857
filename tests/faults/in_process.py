"""Faults of the broker and of the line, with the consumer in this process."""

from __future__ import annotations

import random
import time
from typing import Any, Callable

from fmconsume import publish as publish_again
from fmconsume.message import Message
from tests.integration.broker import Broker
from tests.integration.proxy import Proxy
from tests.waiting import Stopwatch, wait_until

from .scene import (
    Account,
    EqualAccount,
    Row,
    busy,
    publish,
    publish_equal,
    publishing_to,
    running,
    unique,
)

__all__ = [
    "close_connection",
    "crash",
    "hold_cpu",
    "republished",
    "reset",
    "reset_equal",
    "slow",
    "stall",
]


def crash(
    broker: Broker, rounds: int, workers: int, rng: random.Random, queue_type: str = "classic"
) -> Row:
    """Kill the broker again and again while messages flow."""
    batch, arguments = 200, {"x-queue-type": queue_type}
    row = Row(f"broker killed and restarted ({queue_type} queue)", workers, rounds, rounds * batch)
    account = Account(busy(0.004, rng))
    queue = broker.declare(unique("crash"), x_queue_type=queue_type)
    # RabbitMQ forgets a queue that was declared right before a crash.
    broker.stop()
    broker.start()
    prefetch = {"prefetch_count": 20, "prefetch_size": 0}
    with running(broker.url(), queue, account, workers, arguments, qos=prefetch) as runner:
        for number in range(rounds):
            publish(broker, queue, range(number * batch, (number + 1) * batch))
            some = (number + rng.random()) * batch
            wait_until(lambda goal=some: len(account.finished) > goal, 120)
            broker.kill()
            broker.start()
        wait_until(lambda: account.has_all(row.messages), 120)
        wait_until(lambda: broker.depth(queue) == (0, 0))
        row.notes.append(f"{runner.consumer.stats.deduplicated} deduplicated")
    broker.delete(queue)
    return account.enter_into(row)


def reset(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Cut the line again and again while messages flow."""
    return _disturb(broker, rounds, workers, rng, "connection reset", lambda proxy: proxy.cut())


def reset_equal(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Cut the line again and again while messages flow that are equal to the letter."""
    batch = 100
    row = Row("equal messages, connection reset", workers, rounds, rounds * batch)
    # Of what was in hand at a cut nobody can tell which acknowledgements the broker had.
    account = EqualAccount(10 * rounds, busy(0.004, rng))
    queue = broker.declare(unique("equal"))
    with Proxy(broker) as proxy, running(proxy.url(), queue, account, workers):
        for number in range(rounds):
            publish_equal(broker, queue, batch)
            some = (number + rng.random()) * batch
            wait_until(lambda goal=some: len(account.finished) > goal, 120)
            proxy.cut()
        wait_until(lambda: account.has_all(row.messages))
        wait_until(lambda: broker.depth(queue) == (0, 0))
    broker.delete(queue)
    return account.enter_into(row)


def republished(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Cut the line while callbacks publish each message once more, to be retried."""
    batch = 50
    row = Row("retries by publishing, connection reset", workers, rounds, 2 * rounds * batch)
    account = Account()
    work = busy(0.004, rng)
    queue = broker.declare(unique("retried"))

    def retry(message: Message) -> None:
        work(message)
        copies = (message.properties.headers or {}).get("x-fmconsume-copies", 0)
        if not copies:
            publish_again(message, "")
        # Whether it is the message or its copy is told by its number.
        account.finished.append(2 * message.body["n"] + copies)

    with (
        Proxy(broker) as proxy,
        publishing_to(broker),
        running(proxy.url(), queue, retry, workers) as runner,
    ):
        for number in range(rounds):
            publish(broker, queue, range(number * batch, (number + 1) * batch))
            some = (number + rng.random()) * 2 * batch
            wait_until(lambda goal=some: len(account.finished) > goal, 120)
            proxy.cut()
        wait_until(lambda: account.has_all(row.messages))
        wait_until(lambda: broker.depth(queue) == (0, 0))
        row.notes.append(f"{runner.consumer.stats.reconnections} reconnections")
    broker.delete(queue)
    return account.enter_into(row)


def close_connection(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Close the connection as an administrator does, again and again."""

    def close(proxy: Proxy) -> None:
        wait_until(lambda: proxy.connections)
        broker.ctl("close_all_connections", "--vhost", "/", "--limit", "10", "test")

    return _disturb(broker, rounds, workers, rng, "connection closed by the administrator", close)


def _disturb(
    broker: Broker,
    rounds: int,
    workers: int,
    rng: random.Random,
    fault: str,
    disturb: Callable[[Proxy], Any],
) -> Row:
    """Disturb the line once for each batch of messages."""
    batch = 100
    row = Row(fault, workers, rounds, rounds * batch)
    account = Account(busy(0.004, rng))
    queue = broker.declare(unique("disturb"))
    with Proxy(broker) as proxy, running(proxy.url(), queue, account, workers) as runner:
        for number in range(rounds):
            publish(broker, queue, range(number * batch, (number + 1) * batch))
            some = (number + rng.random()) * batch
            wait_until(lambda goal=some: len(account.finished) > goal, 120)
            disturb(proxy)
        wait_until(lambda: account.has_all(row.messages))
        wait_until(lambda: broker.depth(queue) == (0, 0))
        row.notes.append(f"{runner.consumer.stats.reconnections} reconnections")
    broker.delete(queue)
    return account.enter_into(row)


def stall(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Silence the line; it has to be noticed within two heartbeat intervals."""
    heartbeat, batch = 3, 20
    row = Row("line goes silent", workers, rounds, rounds * batch)
    account = Account(busy(0.004, rng))
    queue = broker.declare(unique("stall"))
    with Proxy(broker) as proxy:
        url = proxy.url(heartbeat=heartbeat, socket_timeout=2, stack_timeout=3)
        with running(url, queue, account, workers) as runner:
            for number in range(rounds):
                runner.wait_for_state("consuming")
                publish(broker, queue, range(number * batch, (number + 1) * batch))
                wait_until(lambda n=number: len(account.finished) > n * batch)
                proxy.stall()
                with Stopwatch() as watch:
                    wait_until(lambda: runner.consumer.state.name != "consuming")
                    noticed = watch.seconds
                row.notes.append(f"noticed after {noticed / heartbeat:.2f} heartbeats")
                assert noticed <= 2 * heartbeat, row
                proxy.resume()
            wait_until(lambda: account.has_all(row.messages))
    broker.delete(queue)
    return account.enter_into(row)


def slow(broker: Broker, messages: int, workers: int, rng: random.Random) -> Row:
    """Consume over a line that passes one byte at a time, 300 ms late."""
    row = Row("slow line, one byte at a time, 300 ms", workers, 1, messages)
    account = Account()
    queue = broker.declare(unique("slow"))
    publish(broker, queue, range(messages))
    with Proxy(broker) as proxy:
        proxy.slow()
        with running(proxy.url(stack_timeout=60), queue, account, workers) as runner:
            wait_until(lambda: account.has_all(messages), 50)
            proxy.resume()
        row.notes.append(f"{runner.consumer.stats.reconnections} reconnections")
    assert broker.depth(queue) == (0, 0), row
    broker.delete(queue)
    return account.enter_into(row)


def hold_cpu(broker: Broker, rounds: int, workers: int, rng: random.Random) -> Row:
    """Hold the CPU in pure Python for five heartbeat intervals; the connection stays up."""
    heartbeat = 2
    row = Row("callback holds the CPU for five heartbeats", workers, rounds, rounds)

    def burn(message: object) -> None:
        end = time.monotonic() + 5 * heartbeat
        while time.monotonic() < end:
            sum(range(1000))

    account = Account(burn)
    queue = broker.declare(unique("cpu"))
    publish(broker, queue, range(rounds))
    with running(broker.url(heartbeat=heartbeat), queue, account, workers) as runner:
        wait_until(lambda: account.has_all(rounds))
    assert runner.consumer.stats.reconnections == 0, row
    assert broker.depth(queue) == (0, 0), row
    broker.delete(queue)
    return account.enter_into(row)
