"""One bad message never stops the good ones: what the broker holds afterwards."""

from __future__ import annotations

import threading

import pytest

from fmconsume.exceptions import BodiesUnreadable, Nack
from tests.waiting import PATIENCE, wait_until

from .broker import Depth
from .running import durable, failures, numbered

KINDS = ["classic", "quorum"]


@pytest.fixture(params=KINDS)
def arguments(request):
    """The arguments of a queue of each kind, without a delivery limit."""
    quorum = {"x_queue_type": "quorum", "x_delivery_limit": 1_000_000}
    return quorum if request.param == "quorum" else {}


@pytest.fixture
def dead_letters(new_queue):
    """A queue that gets what is rejected from the one below."""
    return new_queue()


@pytest.fixture
def dying(new_queue, dead_letters, arguments):
    """A queue of each kind with a dead-letter exchange, as `run_consumer` takes it."""
    more = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": dead_letters, **arguments}
    return durable(new_queue(**more), **more)


class Judge:
    """Returns what is bad, and notes what is good."""

    def __init__(self, error=Nack):
        self.error = error
        self.good = []
        self.attempts = []

    def __call__(self, message):
        if message.body.get("bad"):
            self.attempts.append(message.attempt)
            raise self.error
        self.good.append(message.body["n"])


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("bad", [10, 100, 900])
def test_good_behind_bad(broker, new_queue, run_consumer, arguments, workers, bad):
    """Messages that are returned for ever hold nobody up, with the default prefetch of ten."""
    queue = new_queue(**arguments)
    broker.publish(queue, [{"bad": True, "n": n} for n in range(bad)])
    broker.publish(queue, numbered(500))
    judge = Judge()
    running = run_consumer(judge, durable(queue, **arguments), workers=workers)
    wait_until(lambda: len(judge.good) >= 500)
    assert sorted(judge.good) == list(range(500))
    wait_until(lambda: "messages are held back, the next until" in running.consumer.state.text)
    running.stop()
    wait_until(lambda: broker.depth(queue) == Depth(bad, 0))


@pytest.mark.parametrize(("prefetch", "every", "total"), [(10, 10, 3000), (1, 2, 600)])
def test_good_among_bad(broker, new_queue, run_consumer, arguments, prefetch, every, total):
    """Nobody is held up either where each few messages have a bad one among them."""
    queue = new_queue(**arguments)
    broker.publish(queue, [{"bad": n % every == 0, "n": n} for n in range(total)])
    judge = Judge()
    run_consumer(
        *(judge, durable(queue, **arguments)),
        qos={"prefetch_count": prefetch, "prefetch_size": 0},
        failures=failures(delay={"initial": 600.0, "max": 600.0}),
    )
    good = total - total // every
    wait_until(lambda: len(judge.good) == good)
    wait_until(lambda: broker.depth(queue) == Depth(0, total - good))


@pytest.mark.parametrize("workers", [1, 8])
def test_several_queues_with_bad(broker, new_queue, run_consumer, arguments, workers):
    """What comes from one queue while another one asks for more is not lost, nor out of order."""
    queues = [new_queue(**arguments) for _ in range(4)]
    seen = {queue: [] for queue in queues}

    def callback(message):
        if message.body.get("bad"):
            raise Nack
        seen[message.queue].append(message.body["n"])

    running = run_consumer(
        callback,
        durable(*queues, **arguments),
        workers=workers,
        failures=failures(delay={"initial": 600.0, "max": 600.0}),
    )
    messages = [{"n": n, "bad": n % 3 == 0} for n in range(90)]
    for begin in range(0, 90, 15):
        for queue in queues:
            broker.publish(queue, messages[begin : begin + 15])
    good = [message["n"] for message in messages if not message["bad"]]
    wait_until(lambda: sum(map(len, seen.values())) == 4 * len(good) or not running.is_alive())
    for numbers in seen.values():
        assert (numbers if workers == 1 else sorted(numbers)) == good
    assert running.consumer.stats.received == 4 * 90
    running.stop()
    wait_until(lambda: [broker.depth(queue) for queue in queues] == [Depth(30, 0)] * 4)


def test_good_among_bad_with_few_channels(broker, queue, run_consumer):
    """A client whose connection may have few channels makes do with them."""
    broker.publish(queue, [{"bad": n % 2 == 0, "n": n} for n in range(400)])
    judge = Judge()
    running = run_consumer(judge, queue, url=broker.url() + "?channel_max=4")
    wait_until(lambda: len(judge.good) == 200)
    assert running.consumer.stats.reconnections == 0


def test_max_attempts_of_equal_messages(broker, queue, run_consumer):
    """Each of several equal messages gets all of its attempts."""
    broker.publish(queue, [{"bad": True}] * 20, message_id=None)
    judge = Judge()
    running = run_consumer(
        judge, queue, failures=failures(max_attempts=3, delay={"initial": 0.05, "max": 0.05})
    )
    wait_until(lambda: running.consumer.stats.set_aside == 20)
    assert sorted(judge.attempts) == [*[1] * 20, *[2] * 20, *[3] * 20]


def test_slow_start(broker, new_queue, run_consumer, gate, arguments):
    """A session has as many messages as workers, until a callback has come to its end."""
    queue = new_queue(**arguments)
    broker.publish(queue, numbered(30))
    run_consumer(gate, durable(queue, **arguments), workers=2)
    assert gate.entered.wait(PATIENCE)
    wait_until(lambda: len(gate.seen) == 2)
    assert broker.depth(queue) == Depth(28, 2)
    gate.open.set()
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    assert sorted(gate.seen) == list(range(30))


def test_slow_start_keeps_the_order(broker, queue, run_consumer):
    """One worker gets the messages in their order, from the first on."""
    broker.publish(queue, numbered(300))
    judge = Judge()
    run_consumer(judge, queue)
    wait_until(lambda: len(judge.good) == 300)
    assert judge.good == list(range(300))


@pytest.mark.parametrize("error", [Nack, ValueError])
def test_set_aside(broker, dying, dead_letters, run_consumer, tmp_path, error):
    """After its last attempt a message is kept, and the dead-letter exchange gets it."""
    (queue,) = dying
    broker.publish(queue, [{"bad": True}], message_id="poison")
    broker.publish(queue, numbered(3))
    judge = Judge(error)
    running = run_consumer(
        judge,
        dying,
        failures=failures(
            max_attempts=3,
            on_exception="nack",
            keep_in=str(tmp_path / "kept"),
            delay={"initial": 0.01, "max": 0.01},
        ),
    )
    wait_until(lambda: running.consumer.stats.set_aside == 1)
    assert judge.attempts == [1, 2, 3]
    wait_until(lambda: len(judge.good) == 3)
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    wait_until(lambda: broker.ready(dead_letters) == 1)
    (kept,) = (tmp_path / "kept").iterdir()
    assert "poison" in kept.read_text()


def test_set_aside_without_an_id(broker, dying, dead_letters, run_consumer):
    """A message without an id is counted as well."""
    (queue,) = dying
    broker.publish(queue, [{"bad": True}], message_id=None)
    judge = Judge()
    delay = {"initial": 0.01, "max": 0.01}
    run_consumer(judge, dying, failures=failures(max_attempts=2, delay=delay))
    wait_until(lambda: broker.ready(dead_letters) == 1)
    assert judge.attempts == [1, 2]


def test_last_attempt_halts_nobody(broker, dying, dead_letters, run_consumer):
    """Where an exception ends the consumer, the last attempt does not."""
    (queue,) = dying
    broker.publish(queue, [{"bad": True}])
    for _ in range(1):
        running = run_consumer(Judge(KeyError), dying, failures=failures(max_attempts=1))
        wait_until(lambda running=running: running.consumer.stats.set_aside == 1)
        assert running.is_alive()
    wait_until(lambda: broker.ready(dead_letters) == 1)


def test_attempts_of_another_consumer(broker, new_queue, run_consumer):
    """A quorum queue knows what another consumer has tried."""
    arguments = {"x_queue_type": "quorum", "x_delivery_limit": 1_000_000}
    queue = new_queue(**arguments)
    broker.publish(queue, [{"bad": True}])
    seen = []

    def callback(message):
        seen.append(message.attempt)
        raise KeyError

    for _ in range(3):
        running = run_consumer(callback, durable(queue, **arguments), wait=False)
        with pytest.raises(KeyError):
            running.result()
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("on_exception", "left"), [("nack", 1), ("drop", 0)])
def test_on_exception(broker, queue, run_consumer, on_exception, left):
    """An exception need not end the consumer."""
    broker.publish(queue, [{"bad": True}])
    broker.publish(queue, numbered(3))
    judge = Judge(KeyError)
    running = run_consumer(judge, queue, failures=failures(on_exception=on_exception))
    wait_until(lambda: len(judge.good) == 3)
    assert running.is_alive()
    running.stop()
    wait_until(lambda: broker.depth(queue) == Depth(left, 0))


def test_nack_on(broker, queue, run_consumer):
    """An exception that is named counts as Nack."""
    broker.publish(queue, [{"bad": True}])
    judge = Judge(ConnectionResetError)
    delay = {"initial": 0.01, "max": 0.01}
    running = run_consumer(judge, queue, failures=failures(nack_on=["OSError"], delay=delay))
    wait_until(lambda: running.consumer.stats.requeued >= 3)
    assert running.is_alive()


def test_bodies_unreadable(broker, queue, run_consumer):
    """A wrong `body` does not empty a queue."""
    broker.publish(queue, [b"plain text"] * 500)
    running = run_consumer(lambda message: None, queue, wait=False)
    with pytest.raises(BodiesUnreadable, match=r"none of the first 10 .* body = "):
        running.result()
    assert running.consumer.exit_code == 16
    wait_until(lambda: broker.depth(queue) == Depth(500, 0))


def test_bodies_unreadable_but_one(broker, queue, run_consumer):
    """Where one message decodes the setting is right, and the others are rejected."""
    broker.publish(queue, [b"plain text"] * 9)
    running = run_consumer(lambda message: None, queue)
    wait_until(lambda: broker.depth(queue) == Depth(0, 9))
    broker.publish(queue, numbered(1))
    wait_until(lambda: broker.depth(queue) == Depth(0, 0))
    assert running.consumer.stats.rejected == 9


def test_bodies_kept(broker, queue, run_consumer, tmp_path):
    """With a folder everything that does not decode is kept, and nothing stops."""
    broker.publish(queue, [b"plain text %d" % number for number in range(30)])
    broker.publish(queue, numbered(1))
    done = threading.Event()
    settings = failures(keep_in=str(tmp_path / "kept"))
    running = run_consumer(lambda message: done.set(), queue, failures=settings)
    assert done.wait(PATIENCE)
    wait_until(lambda: running.consumer.stats.rejected == 30)
    assert len(list((tmp_path / "kept").iterdir())) == 30
