"""What is measured: each function is one measure, and returns figures with their targets."""

from __future__ import annotations

import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Callable, NamedTuple

import sqlalchemy

from fmconsume.inbox import Inbox
from tests.integration.databases import SERVERS

from .runner import (
    BATCHED,
    CLIENTS,
    HANDED,
    ONCE,
    OURS,
    PIKA,
    THREADED,
    Bench,
    Run,
    environment,
    finish,
    switches,
    time_of,
)

__all__ = ["MEASURES", "Figure", "Target", "run_each"]

#: Seconds that the idle measure watches, and the longest that pika's poller sleeps.
IDLE = 60
POLL = 5
#: RabbitMQ's heartbeat timeout; either side sends one at half of it.
HEARTBEAT = 60


class Target(NamedTuple):
    """What a ratio has to be."""

    sign: str
    value: float

    def is_met_by(self, ratio: float) -> bool:
        """Tell whether the ratio is good enough."""
        return ratio >= self.value if self.sign == ">=" else ratio <= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


class Figure(NamedTuple):
    """One row of the table.

    Attributes:
        ours: What fmconsume did, and `theirs` what it is compared to, in `unit`: medians.
        ratios: Of ours to theirs, one for each round.
        note: What else there is to know.
    """

    name: str
    ours: float
    theirs: float
    unit: str
    ratios: Sequence[float]
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return self.target.is_met_by(self.ratio) if self.target else None


def at_least(value: float) -> Target:
    """Make a target that a ratio must reach."""
    return Target(">=", value)


def at_most(value: float) -> Target:
    """Make a target that a ratio must not exceed."""
    return Target("<=", value)


def compare(
    name: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    target: Target | None = None,
    note: str = "",
) -> Figure:
    """Make a figure of two series, whose members belong together round by round."""
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    medians = statistics.median(ours), statistics.median(theirs)
    return Figure(name, *medians, unit, ratios, target, note)


def alternate(
    bench: Bench,
    count: int,
    *measured: Callable[[str], Run],
    sizes_bytes: Sequence[int] | None = None,
) -> list[list[Run]]:
    """Run all in turn, round after round, forwards and backwards; return the runs of each.

    In each round each gets a queue with messages that are numbered from 0 up to the count.

    Args:
        sizes_bytes: Of the bodies for each; None is the settings' for all.
    """
    runs: list[list[Run]] = [[] for _ in measured]
    sizes_bytes = sizes_bytes or [bench.settings.size_bytes] * len(measured)
    for number in range(bench.settings.rounds):
        with bench.queues(sizes_bytes, range(count)) as queues:
            order = list(zip(measured, queues, runs))
            for measure, queue, results in order if number % 2 == 0 else order[::-1]:
                results.append(measure(queue))
    return runs


def rates(runs: Sequence[Run]) -> list[float]:
    """Messages a second of each run."""
    return [run.rate for run in runs]


# -- measures --------------------------------------------------------------------------


@cache
def run_each(bench: Bench) -> dict[str, list[Run]]:
    """Let every client consume at prefetch 100; three measures use the same runs."""
    clients = [client for client in CLIENTS if bench.has(client)]
    if bench.settings.peers is None:
        clients = [OURS, PIKA, BATCHED, HANDED]
    count = bench.settings.count
    runs = alternate(bench, count, *(_consumer(bench, name, count) for name in clients))
    return dict(zip(clients, runs))


_THROUGHPUT = {PIKA: 2.0, "kombu": 2.5, "fedora_messaging": 15.0, "rabbitmq_c": 0.5}


def throughput(bench: Bench) -> list[Figure]:
    """Messages a second, one worker, prefetch 100."""
    runs = dict(run_each(bench))
    ours = rates(runs.pop(OURS))
    return [
        compare(
            f"throughput vs {CLIENTS[client]}",
            *("/s", ours, rates(theirs)),
            at_least(_THROUGHPUT[client]) if client in _THROUGHPUT else None,
        )
        for client, theirs in runs.items()
    ]


def cpu(bench: Bench) -> list[Figure]:
    """Processor time for a message, in the same runs as throughput."""
    runs = dict(run_each(bench))
    ours = [run.cpu_us for run in runs.pop(OURS)]
    return [
        compare(
            f"CPU for a message vs {CLIENTS[client]}",
            *(" us", ours, [run.cpu_us for run in theirs]),
            at_most(0.55) if client == PIKA else None,
        )
        for client, theirs in runs.items()
    ]


def stream(bench: Bench) -> list[Figure]:
    """The same bytes from a peer that is no broker, and has no moods; one worker, prefetch 100."""
    clients = (OURS, PIKA, BATCHED)
    runs: dict[str, list[Run]] = {client: [] for client in clients}
    for number in range(bench.settings.rounds):
        for client in clients if number % 2 == 0 else clients[::-1]:
            runs[client].append(bench.consume_stream(client, bench.settings.count))
    figures = []
    for client in clients[1:]:
        name, both = f"stream vs {CLIENTS[client]}", (runs[OURS], runs[client])
        figures.append(compare(name, "/s", *map(rates, both)))
        cpu_us = ([run.cpu_us for run in each] for each in both)
        figures.append(compare(f"CPU, {name}", " us", *cpu_us))
    return figures


def prefetch(bench: Bench) -> list[Figure]:
    """Messages a second with the default prefetch."""
    count = _half(bench)
    clients = (OURS, PIKA, HANDED)
    ours, theirs, handed = alternate(
        bench, count, *(_consumer(bench, name, count, prefetch=10) for name in clients)
    )
    name = f"prefetch 10 vs {CLIENTS[PIKA]}"
    return [
        compare(name, "/s", rates(ours), rates(theirs), at_least(1.2)),
        compare(
            f"CPU, {name}",
            *(" us", [run.cpu_us for run in ours], [run.cpu_us for run in theirs]),
        ),
        compare(f"prefetch 10 vs {CLIENTS[HANDED]}", "/s", rates(ours), rates(handed)),
    ]


def latency(bench: Bench) -> list[Figure]:
    """From publishing to the callback, at 200 messages a second."""
    ours, theirs = alternate(
        bench, 0, *(partial(_consume_live, bench, name, 200) for name in (OURS, THREADED))
    )
    return [
        compare(
            f"latency, {name}, vs {CLIENTS[THREADED]}",
            " us",
            [run.latency_us(percent) for run in ours],
            [run.latency_us(percent) for run in theirs],
            at_most(limit),
        )
        for name, percent, limit in (("median", 50, 1.15), ("99th percentile", 99, 1.0))
    ]


def _consumer(
    bench: Bench, client: str, count: int, *options: str, prefetch: int = 100
) -> Callable[[str], Run]:
    """Make what lets a client take so many messages from a queue."""
    return lambda queue: bench.consume(client, queue, count, *options, prefetch=prefetch)


def _consume_live(bench: Bench, client: str, rate: float, queue: str, seconds: int = 5) -> Run:
    """Consume at the rate of a publisher, so that hardly any message waits."""
    count = int(rate * seconds)
    with bench.started(client, queue, count, prefetch=100) as process:
        bench.wait_for_consumer(client, queue, process)
        with bench.flow(queue, count, rate):
            run = finish(client, process, count)
        bench.check_depth(client, queue, 0)
    return run


def workers(bench: Bench) -> list[Figure]:
    """64 workers whose callbacks wait 10 ms."""
    count, options = _half(bench), ("--workers=64", "--wait=0.01")
    (runs,) = alternate(bench, count, _consumer(bench, OURS, count, *options, prefetch=256))
    ideal = 64 / 0.01
    limits = [min(ideal, 1e6 / run.cpu_us) for run in runs]
    bound = "the workers" if statistics.median(limits) == ideal else "the CPU"
    note = f"ideal {ideal:.0f}/s; the lower limit is {bound}"
    return [
        compare("64 workers waiting 10 ms vs limit", "/s", rates(runs), limits, at_least(0.9), note)
    ]


def computing(bench: Bench) -> list[Figure]:
    """Workers whose callbacks compute some 2 ms: they run at once where Python has no GIL."""
    count = bench.settings.count // 20
    numbers = (1, 2, 4)
    options = [(f"--workers={number}", "--steps=50000") for number in numbers]
    runs = alternate(bench, count, *(_consumer(bench, OURS, count, *each) for each in options))
    one, *more = map(rates, runs)
    return [
        compare(f"{number} workers computing vs 1", "/s", each, one)
        for number, each in zip(numbers[1:], more)
    ]


def coroutines(bench: Bench) -> list[Figure]:
    """Async callbacks against plain ones."""
    options = {
        "plain": (),
        "async": ("--coroutine",),
        "100 plain": ("--workers=100", "--wait=0.01"),
        "100 async": ("--workers=100", "--wait=0.01", "--coroutine"),
    }
    count = _half(bench)
    runs = alternate(
        bench,
        count,
        *(_consumer(bench, OURS, count, *opts, prefetch=200) for opts in options.values()),
    )
    plain, coroutine, plain_100, coroutine_100 = map(rates, runs)
    peak = min(run.peak for run in runs[-1])
    return [
        compare("async callbacks vs plain", "/s", coroutine, plain, at_least(0.5)),
        compare(
            "100 at once, waiting 10 ms: async vs plain",
            *("/s", coroutine_100, plain_100, at_least(0.5), f"{peak} ran at once"),
        ),
    ]


def idle(bench: Bench) -> list[Figure]:
    """Wake-ups of all threads while there is nothing to do; all clients at once, as all sleep."""
    clients = [name for name in (OURS, PIKA, "fedora_messaging") if bench.has(name)]
    with ExitStack() as stack:
        pids = {}
        for name in clients:
            queue = stack.enter_context(bench.queue())
            process = stack.enter_context(bench.started(name, queue, 1, prefetch=10))
            bench.wait_for_consumer(name, queue, process)
            pids[name] = process.pid
        time.sleep(2)  # what starting up has left behind
        before = {name: switches(pid) for name, pid in pids.items()}
        time.sleep(IDLE)
        woken = {name: switches(pid) - before[name] for name, pid in pids.items()}
    # One heartbeat each way at half the timeout, and pika's look at them.
    limit = IDLE / POLL + 4 * IDLE / HEARTBEAT + 1
    note = ", ".join(f"{CLIENTS[name]} {n}" for name, n in woken.items() if name != OURS)
    name = f"idle: wake-ups in {IDLE} s vs allowed"
    return [compare(name, "", [woken[OURS]], [limit], at_most(1.0), note)]


#: Slow to import, and not needed to start. (asyncio is, as pika imports it.)
_OPTIONAL = ("http.server", "importlib.metadata", "jsonschema_rs", "prometheus_client")


def start(bench: Bench) -> list[Figure]:
    """`fmconsume --version` against importing pika."""
    script = str(Path(sys.executable).with_name("fmconsume"))
    ours, theirs = [], []
    for _ in range(bench.settings.rounds * 4):
        ours.append(1000 * time_of(script, "--version"))
        theirs.append(1000 * time_of(sys.executable, "-c", "import pika"))
    note = _describe_imports()
    return [compare("start: --version vs import pika", " ms", ours, theirs, at_most(1.6), note)]


def _describe_imports() -> str:
    """Name what takes longest to import, and the optional modules that were imported."""
    code = "from fmconsume.cli import main; main(['--version'])"
    command = [sys.executable, "-X", "importtime", "-c", code]
    errors = subprocess.run(command, capture_output=True, text=True, env=environment()).stderr
    own_us: dict[str, int] = {}
    found = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", errors)
    for duration, module in found:
        package = module.partition(".")[0]
        own_us[package] = own_us.get(package, 0) + int(duration)
    slowest = sorted(own_us, key=own_us.__getitem__, reverse=True)[:5]
    times = ", ".join(f"{name} {own_us[name] / 1000:.0f}" for name in slowest)
    imported = {module for _, module in found}
    optional = ", ".join(name for name in _OPTIONAL if name in imported) or "none"
    return f"slowest imports, ms: {times}; optional ones: {optional}"


def memory(bench: Bench) -> list[Figure]:
    """Resident memory, in the same runs as throughput; and after a million messages."""
    runs = run_each(bench)
    counts = {bench.settings.count: (runs[OURS], runs[PIKA])}
    if bench.settings.is_long:
        million = 1_000_000
        both = [[bench.consume_all(name, million)] for name in (OURS, PIKA)]
        counts[million] = (both[0], both[1])
    return [
        compare(
            f"memory after {count:,} vs {CLIENTS[PIKA]}",
            " MB",
            [run.rss_kb / 1024 for run in ours],
            [run.rss_kb / 1024 for run in theirs],
            at_most(1.2),
        )
        for count, (ours, theirs) in counts.items()
    ]


def growth(bench: Bench) -> list[Figure]:
    """Larger bodies, more queues, more and fewer messages waiting."""
    return [_grow_bodies(bench), *_grow_queues_and_backlog(bench), _shrink_backlog(bench)]


def _grow_bodies(bench: Bench) -> Figure:
    """Compare 8 KB with 1 KB, plus what the same growth costs pika by hand in bandwidth."""
    count = _half(bench)
    ours, theirs = (_consumer(bench, client, count) for client in (OURS, PIKA))
    sizes_bytes = (1024, 8192, 1024, 8192)
    runs = alternate(bench, count, ours, ours, theirs, theirs, sizes_bytes=sizes_bytes)
    small, large, pika_small, pika_large = map(rates, runs)
    expected = [
        1 / (1 / one + 1 / eight_by_hand - 1 / one_by_hand)
        for one, one_by_hand, eight_by_hand in zip(small, pika_small, pika_large)
    ]
    note = "expected: the time at 1 KB and what pika by hand takes longer at 8 KB"
    return compare("8 KB bodies vs expected", "/s", large, expected, at_least(0.9), note)


def _grow_queues_and_backlog(bench: Bench) -> list[Figure]:
    """Compare ten queues, and one with a long backlog, with one queue."""
    count = _half(bench)
    backlog = 1_000_000 if bench.settings.is_long else 100_000
    # Each round takes its part, numbered from 0.
    numbers = [*range(count)] * max(backlog // count, bench.settings.rounds)
    with bench.queue(numbers) as deep:
        one, ten, long = alternate(
            bench,
            0,
            lambda _: bench.consume_all(OURS, count),
            lambda _: _consume_ten(bench, count),
            lambda _: bench.consume(OURS, deep, count),
        )
    return [
        compare("10 queues vs 1", "/s", rates(ten), rates(one), at_least(0.9)),
        compare(
            f"backlog of {backlog:,} vs {count:,}", "/s", rates(long), rates(one), at_least(0.9)
        ),
    ]


def _consume_ten(bench: Bench, count: int) -> Run:
    with ExitStack() as stack:
        names = [stack.enter_context(bench.queue(range(first, count, 10))) for first in range(10)]
        return bench.consume(OURS, ",".join(names), count)


def _shrink_backlog(bench: Bench) -> Figure:
    """Let messages come at a steady rate, so that a handful wait."""
    rate = 2000.0
    (runs,) = alternate(bench, 0, partial(_consume_live, bench, OURS, rate, seconds=3))
    pace = [rate] * len(runs)
    note = f"CPU {statistics.median(run.cpu_us for run in runs):.0f} us a message"
    return compare(
        "no backlog: consumed vs published", "/s", rates(runs), pace, at_least(0.9), note
    )


def once(bench: Bench) -> list[Figure]:
    """What it costs that no message runs twice: a state, and an inbox beside the same work."""
    count = bench.settings.count
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def with_state(queue: str) -> Run:
            state = f"{folder}/state-{next(numbers)}"
            return bench.consume(OURS, queue, count, "--state", state)

        runs = alternate(bench, count, with_state, _consumer(bench, OURS, count))
    figures = _compare_both("a state vs none", *runs)
    for kind, serve in SERVERS.items():
        with serve() as url:
            engine = sqlalchemy.create_engine(url)
            Inbox(engine).create()
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE TABLE work (n INTEGER)"))
            engine.dispose()
            few, options = count // 10, ("--database", url)
            runs = alternate(
                *(bench, few),
                lambda queue, o=options, c=few: bench.consume(ONCE, queue, c, *o, "--inbox"),
                lambda queue, o=options, c=few: bench.consume(ONCE, queue, c, *o),
            )
        figures += _compare_both(f"an inbox vs none, a row in {kind}", *runs)
    return figures


def _compare_both(name: str, ours: Sequence[Run], theirs: Sequence[Run]) -> list[Figure]:
    """Compare both the rate and the processor time."""
    cpu_us = ([run.cpu_us for run in each] for each in (ours, theirs))
    return [
        compare(name, "/s", rates(ours), rates(theirs)),
        compare(f"CPU, {name}", " us", *cpu_us),
    ]


def _half(bench: Bench) -> int:
    return bench.settings.count // 2


#: By the names that the command line takes.
MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "throughput": throughput,
    "cpu": cpu,
    "stream": stream,
    "prefetch": prefetch,
    "latency": latency,
    "workers": workers,
    "computing": computing,
    "async": coroutines,
    "idle": idle,
    "start": start,
    "memory": memory,
    "growth": growth,
    "once": once,
}
