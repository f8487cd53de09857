"""Faults of the consumer's own process, with the installed command as its victim."""

from __future__ import annotations

import collections
import random
import signal
import time
from pathlib import Path

from tests.integration.broker import Broker
from tests.waiting import wait_until

from .scene import Process, Row, publish, unique

__all__ = ["consumer_killed", "consumers_share", "terminated"]

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


def consumer_killed(
    broker: Broker, folder: Path, rounds: int, workers: int, rng: random.Random
) -> Row:
    """Kill the consumer with SIGKILL again and again; what it had not settled is run again."""
    batch = 200
    row = Row("consumer killed (SIGKILL)", workers, rounds, rounds * batch)
    queue = broker.declare(unique("killed"))
    process = Process(folder, broker.url(heartbeat=_HEARTBEAT), queue, workers=workers)
    for number in range(rounds):
        publish(broker, queue, range(number * batch, (number + 1) * batch))
        command = process.start()
        some = (number + rng.random() / 2) * batch
        wait_until(lambda goal=some: len(process.finished()) > goal, 120)
        command.kill()
        command.wait()
    _finish(process, row.messages)
    broker.delete(queue)
    # A finished callback whose acknowledgement the kill prevented: at most the prefetch a kill.
    return _account(row, process.finished(), allowed_again=10 * rounds)


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
        code = command.wait(30)
        assert code == 0, command.logged()
    _finish(process, row.messages)
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
        assert command.wait(30) == 0, command.logged()
    assert broker.depth(queue) == (0, 0), row
    broker.delete(queue)
    return _account(row, finished(), allowed_again=10 * rounds)


def _finish(process: Process, messages: int) -> None:
    """Let a last command consume what is left, and stop it."""
    command = process.start()
    wait_until(lambda: len(set(process.finished())) == messages, 60)
    command.wait_for("consuming from")
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0, command.logged()
