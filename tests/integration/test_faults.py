"""Each fault of `make faults` once or a few times, with messages flowing and callbacks running."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from tests.faults import endings, in_process, poison, processes, soak
from tests.faults.scene import check

from .broker import Broker

WORKERS = pytest.mark.parametrize("workers", [1, 8])


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random moments, the same ones each time."""
    return random.Random(request.node.name)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_crash(frail_broker: Broker, rng: random.Random, kind: str) -> None:
    """A broker killed with SIGKILL loses nothing, and nothing finished runs again."""
    check(in_process.crash(frail_broker, 1, 8, rng, kind))


@WORKERS
def test_reset(broker: Broker, rng: random.Random, workers: int) -> None:
    """Connections reset while messages flow lose nothing, and nothing finished runs again."""
    check(in_process.reset(broker, 5, workers, rng))


@WORKERS
def test_reset_equal(broker: Broker, rng: random.Random, workers: int) -> None:
    """Of equal messages each runs once, however often the line is cut."""
    check(in_process.reset_equal(broker, 3, workers, rng))


@WORKERS
def test_republished(broker: Broker, rng: random.Random, workers: int) -> None:
    """A message that its callback publishes again is run twice, however often the line is cut."""
    check(in_process.republished(broker, 3, workers, rng))


@WORKERS
def test_stall(broker: Broker, rng: random.Random, workers: int) -> None:
    """A line that goes silent is noticed within two heartbeat intervals."""
    check(in_process.stall(broker, 1, workers, rng))


def test_slow(broker: Broker, rng: random.Random) -> None:
    """A line that passes one byte at a time, late, is good enough."""
    check(in_process.slow(broker, 1, 1, rng))


@WORKERS
def test_close_connection(broker: Broker, rng: random.Random, workers: int) -> None:
    """A connection that an administrator closes is replaced."""
    check(in_process.close_connection(broker, 2, workers, rng))


def test_acknowledgement_timeout(
    broker: Broker, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback past the acknowledgement timeout runs once; the log says what to change."""
    check(endings.acknowledgement_timeout(broker, 1, 1, rng, "quorum"))
    line = next(line for line in caplog.messages if "not consuming" in line)
    assert "from queue 'timeout-" in line
    assert "consumer_timeout" in line
    assert "qos.prefetch_count (1)" in line


@WORKERS
def test_queue_deleted(broker: Broker, rng: random.Random, workers: int) -> None:
    """A queue deleted under the consumer ends it with 12, after the running callback."""
    check(endings.queue_deleted(broker, workers, rng))


@pytest.mark.parametrize("fault", endings.REFUSALS)
def test_user_refused(broker: Broker, rng: random.Random, fault: str) -> None:
    """A user who is no longer welcome ends the consumer with a clear error."""
    check(endings.user_refused(broker, fault, 1, rng))


def test_queue_contradicts(broker: Broker, rng: random.Random) -> None:
    """A queue that exists with other attributes ends the consumer with 10 and names them."""
    check(endings.queue_contradicts(broker, 1, rng))


def test_memory_alarm(broker: Broker, rng: random.Random) -> None:
    """Consuming goes on while a memory alarm stops publishers."""
    check(endings.memory_alarm(broker, 8, rng))


def test_blocked(broker: Broker, rng: random.Random) -> None:
    """A connection that the broker blocks and unblocks shows it in its state."""
    check(endings.blocked(broker, 1, rng))


@WORKERS
def test_consumer_killed(broker: Broker, tmp_path: Path, rng: random.Random, workers: int) -> None:
    """A consumer killed with SIGKILL loses nothing."""
    check(processes.consumer_killed(broker, tmp_path, 2, workers, rng))


@WORKERS
def test_consumer_killed_with_state(
    broker: Broker, tmp_path: Path, rng: random.Random, workers: int
) -> None:
    """With a state, what a killed consumer had finished does not run again."""
    check(processes.consumer_killed(broker, tmp_path, 2, workers, rng, has_state=True))


@pytest.mark.long
def test_both_killed(frail_broker: Broker, tmp_path: Path, rng: random.Random) -> None:
    """With a state, what was finished does not run again, even if the broker has forgotten it."""
    check(processes.both_killed(frail_broker, tmp_path, 1, 8, rng))


def test_poison_and_kill(broker: Broker, tmp_path: Path, rng: random.Random) -> None:
    """Bad messages are kept and dead-lettered, and good ones run once, whoever is killed."""
    check(poison.poison_and_kill(broker, tmp_path, "Nack", 2, 8, rng, "quorum"))


def test_inbox_killed(broker: Broker, tmp_path: Path, rng: random.Random) -> None:
    """With an inbox each message runs once, whoever is killed when."""
    check(processes.inbox_killed(broker, tmp_path, "postgresql", 4, 8, rng))


@WORKERS
def test_kills_itself(broker: Broker, tmp_path: Path, rng: random.Random, workers: int) -> None:
    """A message that kills its consumer is set aside, and the others are not."""
    check(processes.kills_itself(broker, tmp_path, workers, rng))


@WORKERS
def test_terminated(broker: Broker, tmp_path: Path, rng: random.Random, workers: int) -> None:
    """A consumer stopped at a random moment exits with 0, and nothing finished comes again."""
    check(processes.terminated(broker, tmp_path, 4, workers, rng))


def test_consumers_share(broker: Broker, tmp_path: Path, rng: random.Random) -> None:
    """Of three consumers of a queue one is killed and comes back; nothing is lost."""
    check(processes.consumers_share(broker, tmp_path, 1, 1, rng))


@pytest.mark.long
def test_cluster(tmp_path: Path, rng: random.Random) -> None:
    """A node is killed, then the home of a classic queue goes down; nothing is lost."""
    with endings.Cluster(tmp_path) as nodes:  # Its start takes longer than both faults.
        check(endings.node_killed(nodes, 1, 8, rng))
        check(endings.home_node_down(nodes, 1, 1, rng))


@WORKERS
def test_hostile_input(broker: Broker, rng: random.Random, workers: int) -> None:
    """Of garbage of every kind each delivery is settled once, and the consumer lives."""
    # A body nested too deep brings Python to its limit of recursion. If it collected the garbage of
    # other tests there, and a finalizer went deep, Python 3.9 would end the process.
    gc.collect()
    gc.freeze()
    try:
        check(soak.hostile_input(broker, 3000, workers, rng))
    finally:
        gc.unfreeze()


def test_many_reconnections(broker: Broker, rng: random.Random) -> None:
    """Reconnections leave no thread, socket or file descriptor behind."""
    check(soak.many_reconnections(broker, 40, 1, rng))


def test_many_messages(broker: Broker, rng: random.Random) -> None:
    """The resident memory is flat once the memory of finished messages is full."""
    check(soak.many_messages(broker, 45_000, 1, rng))
