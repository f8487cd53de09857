"""Faults of the consumer's own process, with the installed command as its victim."""

from __future__ import annotations

import collections
import json
import random
import signal
import time
from pathlib import Path

import sqlalchemy

from fmconsume.inbox import Inbox
from tests.integration.broker import Broker
from tests.integration.databases import SERVERS
from tests.waiting import PATIENCE, wait_until

from .scene import Process, Row, publish, unique

__all__ = [
    "both_killed",
    "consumer_killed",
    "consumers_share",
    "inbox_killed",
    "kills_itself",
    "terminated",
]

_HEARTBEAT = 10


def _account(row: Row, runs: list[int], *, allowed_again: int = 0) -> Row:
    """Count what was lost, and runs beyond the ones that a killed process may repeat."""
    counts = collections.Counter(runs)
    row.lost = row.messages - len(counts)
    again = sum(counts.values()) - len(counts)
    row.rerun = max(0, again - allowed_again)
    if again:
        row.notes.append(f"{again} run again by another process (at least once)")
    return row


def _keep_state(folder: Path) -> str:
    """Give the configuration of a process with a state."""
    return f"state = {json.dumps(str(folder / 'state'))}\n"


def _in_doubt(messages: int) -> int:
    """Give how many may have been at their very end when a process was killed: 0.02 %."""
    return max(1, messages // 5000)


def consumer_killed(
    broker: Broker,
    folder: Path,
    rounds: int,
    workers: int,
    rng: random.Random,
    *,
    has_state: bool = False,
) -> Row:
    """Kill the consumer with SIGKILL again and again.

    Without a state what it had not settled is run again.
    """
    batch = 200
    fault = "consumer killed, with a state" if has_state else "consumer killed (SIGKILL)"
    row = Row(fault, workers, rounds, rounds * batch)
    queue = broker.declare(unique("killed"))
    more = _keep_state(folder) if has_state else ""
    url = broker.url(heartbeat=_HEARTBEAT)
    # As many messages a second with any number of workers: each of them may be at its very end.
    seconds = 0.002 * workers if has_state else 0.002
    process = Process(folder, url, queue, seconds=seconds, workers=workers, more=more)
    for number in range(rounds):
        publish(broker, queue, range(number * batch, (number + 1) * batch))
        command = process.start()
        some = (number + rng.random() / 2) * batch
        wait_until(lambda goal=some: len(process.finished()) > goal, 120)
        command.kill()
        command.wait()
    process.finish(row.messages)
    broker.delete(queue)
    # A finished callback whose acknowledgement the kill prevented: at most the prefetch a kill.
    allowed = _in_doubt(row.messages) if has_state else 10 * rounds
    return _account(row, process.finished(), allowed_again=allowed)


def both_killed(broker: Broker, folder: Path, rounds: int, workers: int, rng: random.Random) -> Row:
    """Kill the broker and the consumer at once; with a state nothing finished runs again."""
    batch = 500
    row = Row("broker and consumer killed, with a state", workers, rounds, rounds * batch)
    queue = broker.declare(unique("both"))
    # RabbitMQ forgets a queue that was declared right before a crash.
    broker.stop()
    broker.start()
    process = Process(
        folder,
        broker.url(heartbeat=_HEARTBEAT),
        queue,
        seconds=0,
        workers=workers,
        more=_keep_state(folder),
    )
    for number in range(rounds):
        publish(broker, queue, range(number * batch, (number + 1) * batch))
        command = process.start()
        some = (number + rng.random()) * batch
        wait_until(lambda goal=some: len(process.finished()) > goal, 120)
        broker.kill()
        command.kill()
        command.wait()
        broker.start()
    process.finish(row.messages, lambda: broker.depth(queue) == (0, 0))
    broker.delete(queue)
    return _account(row, process.finished(), allowed_again=_in_doubt(row.messages))


def kills_itself(
    broker: Broker, folder: Path, workers: int, rng: random.Random, queue_type: str = "classic"
) -> Row:
    """Let one of 100 messages kill its process each time; it is set aside after three times."""
    row = Row(f"message that kills its consumer ({queue_type} queue)", workers, 3, 99)
    queue = broker.declare(unique("deadly"), x_queue_type=queue_type)
    kept = folder / "kept"
    more = f"failures = {{max_attempts = 3, keep_in = {json.dumps(str(kept))}}}\n"
    arguments = f'arguments = {{"x-queue-type" = "{queue_type}"}}\n'
    process = Process(
        folder,
        broker.url(heartbeat=_HEARTBEAT),
        queue,
        workers=workers,
        more=_keep_state(folder) + more,
        queue_settings=arguments,
    )
    deadly = rng.randrange(100)
    numbers = [number for number in range(100) if number != deadly]
    broker.publish(queue, [{"n": number} for number in numbers[:deadly]])
    broker.publish(queue, [{"n": deadly, "bad": "kill"}])
    broker.publish(queue, [{"n": number} for number in numbers[deadly:]])
    for _ in range(3):
        assert process.start().wait(PATIENCE) == -signal.SIGKILL
    process.finish(row.messages)
    assert broker.depth(queue) == (0, 0), row
    assert len(list(kept.iterdir())) == 1, row
    row.notes.append("started 4 times")
    broker.delete(queue)
    return _account(row, process.finished(), allowed_again=3 * (workers - 1))


def terminated(broker: Broker, folder: Path, rounds: int, workers: int, rng: random.Random) -> Row:
    """Stop the consumer with SIGTERM at a random moment; nothing finished comes again."""
    batch = 100
    row = Row("SIGTERM at a random moment", workers, rounds, rounds * batch)
    queue = broker.declare(unique("terminated"))
    process = Process(folder, broker.url(heartbeat=_HEARTBEAT), queue, workers=workers)
    for number in range(rounds):
        publish(broker, queue, range(number * batch, (number + 1) * batch))
        command = process.start()
        command.wait_for("connecting")
        # The moment is the point: anywhere from connecting to idle.
        time.sleep(rng.random() * 0.3)
        command.send_signal(signal.SIGTERM)
        code = command.wait(PATIENCE)
        assert code == 0, command.logged()
    process.finish(row.messages)
    broker.delete(queue)
    return _account(row, process.finished())


def consumers_share(
    broker: Broker, folder: Path, rounds: int, workers: int, rng: random.Random
) -> Row:
    """Let three consumers share a queue; one is killed and comes back, the others take over."""
    batch = 300
    row = Row("three consumers, one killed and back", workers, rounds, rounds * batch)
    queue = broker.declare(unique("shared"))
    url = broker.url(heartbeat=_HEARTBEAT)
    consumers = [Process(folder / str(n), url, queue, workers=workers) for n in range(3)]

    def finished() -> list[int]:
        return [number for consumer in consumers for number in consumer.finished()]

    commands = [consumer.start() for consumer in consumers]
    for number in range(rounds):
        for command in commands:
            command.wait_for("consuming from")
        publish(broker, queue, range(number * batch, (number + 1) * batch))
        some = (number + rng.random() / 2) * batch
        wait_until(lambda goal=some: len(finished()) > goal, 120)
        victim = rng.randrange(3)
        commands[victim].kill()
        commands[victim].wait()
        wait_until(lambda n=number + 1: len(set(finished())) == n * batch)
        commands[victim] = consumers[victim].start()
    for command in commands:
        command.wait_for("consuming from")
        command.send_signal(signal.SIGTERM)
        assert command.wait(PATIENCE) == 0, command.logged()
    assert broker.depth(queue) == (0, 0), row
    broker.delete(queue)
    return _account(row, finished(), allowed_again=10 * rounds)


class _InboxProcess(Process):
    """Its callback writes a row into a database, in the transaction of an inbox."""

    callback = """
import random, time
import sqlalchemy
from fmconsume.inbox import Inbox
engine = sqlalchemy.create_engine({database!r})
inbox = Inbox(engine)
def work(message):
    with inbox.transaction(message) as connection:
        time.sleep(random.random() * {seconds})
        row = {{"n": message.body["n"]}}
        connection.execute(sqlalchemy.text("INSERT INTO work (n) VALUES (:n)"), row)
"""


def inbox_killed(
    broker: Broker,
    folder: Path,
    kind: str,
    rounds: int,
    workers: int,
    rng: random.Random,
) -> Row:
    """Kill one of three consumers of a queue again and again; each has the same inbox.

    A message runs once, whoever is killed when.
    """
    batch = 100
    row = Row(f"one of three killed, inbox in {kind}", workers, rounds, rounds * batch)
    queue = broker.declare(unique("inbox"))
    with SERVERS[kind]() as url:
        engine = sqlalchemy.create_engine(url)
        Inbox(engine).create()
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE work (n INTEGER)"))
            if kind == "sqlite":
                connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))

        def count(what: str) -> int:
            with engine.connect() as connection:
                found = connection.execute(sqlalchemy.text(f"SELECT count({what}) FROM work"))
                return int(found.scalar_one())

        database = f"{url}?timeout=60" if kind == "sqlite" else url
        consumers = [
            _InboxProcess(
                *(folder / str(number), broker.url(heartbeat=_HEARTBEAT), queue),
                workers=workers,
                database=database,
            )
            for number in range(3)
        ]
        commands = [consumer.start() for consumer in consumers]
        for number in range(rounds):
            publish(broker, queue, range(number * batch, (number + 1) * batch))
            some = (number + rng.random()) * batch
            wait_until(lambda goal=some: count("*") > goal, 120)
            victim = rng.randrange(3)
            commands[victim].kill()
            commands[victim].wait()
            commands[victim] = consumers[victim].start()
        wait_until(lambda: count("DISTINCT n") == row.messages, 120)
        wait_until(lambda: broker.depth(queue) == (0, 0))
        for command in commands:
            command.wait_for("consuming from")
            command.send_signal(signal.SIGTERM)
            assert command.wait(PATIENCE) == 0, command.logged()
        row.lost = row.messages - count("DISTINCT n")
        row.rerun = count("*") - count("DISTINCT n")
        engine.dispose()
    broker.delete(queue)
    return row
