"""Run every fault at length and print the table: `make faults`."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

from tests.integration.broker import Broker
from tests.integration.databases import SERVERS

from . import endings, in_process, poison, processes, soak
from .scene import Row

__all__ = ["main"]


class Fault(NamedTuple):
    """One line of the table still to be run."""

    name: str
    run: Callable[[], Row]


def faults(folder: Path, broker: Broker, scale: float, rng: random.Random) -> Iterator[Fault]:
    """List the faults, each with 1 and 8 workers; `scale` multiplies their rounds."""

    def times(rounds: int) -> int:
        return max(1, round(rounds * scale))

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    for workers in (1, 8):
        both = (workers, rng)
        for kind in ("classic", "quorum"):
            yield Fault(
                f"crash-{kind}",
                lambda w=workers, k=kind: in_process.crash(broker, times(20), w, rng, k),
            )
        yield Fault("reset", lambda b=both: in_process.reset(broker, times(100), *b))
        yield Fault("equal", lambda b=both: in_process.reset_equal(broker, times(20), *b))
        yield Fault("republished", lambda b=both: in_process.republished(broker, times(20), *b))
        for cause in poison.KINDS:
            for kind in ("classic", "quorum"):
                yield Fault(
                    "poison",
                    lambda w=workers, c=cause, k=kind: poison.poison(
                        broker, fresh(), c, times(10), w, rng, k
                    ),
                )
            for kind in ("classic", "quorum"):
                yield Fault(
                    "poison-killed",
                    lambda w=workers, c=cause, k=kind: poison.poison_and_kill(
                        broker, fresh(), c, times(5), w, rng, k
                    ),
                )
        yield Fault("silent", lambda b=both: in_process.stall(broker, times(5), *b))
        yield Fault("slow", lambda b=both: in_process.slow(broker, times(5), *b))
        yield Fault(
            "administrator", lambda b=both: in_process.close_connection(broker, times(20), *b)
        )
        for kind in ("classic", "quorum"):
            yield Fault(
                f"timeout-{kind}",
                lambda w=workers, k=kind: endings.acknowledgement_timeout(
                    broker, times(5), w, rng, k
                ),
            )
        yield Fault("deleted", lambda b=both: endings.queue_deleted(broker, *b))
        for refusal in endings.REFUSALS:
            yield Fault("refused", lambda b=both, r=refusal: endings.user_refused(broker, r, *b))
        yield Fault("contradicts", lambda b=both: endings.queue_contradicts(broker, *b))
        yield Fault("alarm", lambda b=both: endings.memory_alarm(broker, *b))
        yield Fault(
            "killed", lambda b=both: processes.consumer_killed(broker, fresh(), times(20), *b)
        )
        yield Fault(
            "killed-state",
            lambda b=both: processes.consumer_killed(
                broker, fresh(), times(200), *b, has_state=True
            ),
        )
        yield Fault("both", lambda b=both: processes.both_killed(broker, fresh(), times(10), *b))
        for kind in ("classic", "quorum"):
            yield Fault(
                "deadly", lambda b=both, k=kind: processes.kills_itself(broker, fresh(), *b, k)
            )
        for kind in SERVERS:
            yield Fault(
                f"inbox-{kind}",
                lambda b=both, k=kind: processes.inbox_killed(broker, fresh(), k, times(200), *b),
            )
        yield Fault(
            "terminated", lambda b=both: processes.terminated(broker, fresh(), times(100), *b)
        )
        yield Fault(
            "shared", lambda b=both: processes.consumers_share(broker, fresh(), times(10), *b)
        )
        for name, fault, count in (
            ("cluster", endings.node_killed, times(5)),
            ("home", endings.home_node_down, times(3)),
        ):
            yield Fault(
                name, lambda b=both, f=fault, n=count: endings.in_cluster(fresh(), f, n, *b)
            )
        yield Fault("cpu", lambda b=both: in_process.hold_cpu(broker, times(2), *b))
        yield Fault("hostile", lambda b=both: soak.hostile_input(broker, times(100_000), *b))
    yield Fault("leaks", lambda: soak.many_reconnections(broker, times(300), 1, rng))
    yield Fault("memory", lambda: soak.many_messages(broker, times(1_000_000), 1, rng))


def main() -> int:
    """Run the faults that were asked for; the exit status is 1 when a promise was broken."""
    args = _parser().parse_args()
    logging.disable(logging.CRITICAL)
    seed = args.seed if args.seed is not None else random.randrange(2**32)
    print(f"seed {seed}; again with: make faults ARGS='--seed {seed}'\n")
    print(
        f"{'fault':<48} {'workers':>7} {'runs':>5} {'messages':>8} {'lost':>4} {'again':>5}"
        f" {'s':>5}"
    )
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shared").mkdir()
        with Broker(Path(folder) / "shared") as broker:
            for fault in faults(Path(folder), broker, args.scale, random.Random(seed)):
                if not args.names or fault.name in args.names:
                    failures += not _run(fault)
                    broker.start()  # A fault that failed may have left it down.
    print(f"\n{failures} failed" if failures else "\nnothing lost, nothing finished run again")
    return 1 if failures else 0


def _run(fault: Fault) -> bool:
    began = time.monotonic()
    try:
        row = fault.run()
    except Exception:
        traceback.print_exc()
        print(f"{fault.name:<48} FAILED", flush=True)
        return False
    print(
        f"{row.fault:<48} {row.workers:>7} {row.runs:>5} {row.messages:>8} {row.lost:>4} "
        f"{row.rerun:>5} {time.monotonic() - began:>5.0f}  {_last(row)}",
        flush=True,
    )
    return row.is_good


def _last(row: Row) -> str:
    return row.notes[-1] if row.notes else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these, such as crash-classic or reset")
    parser.add_argument("--seed", type=int, help="for the random moments; default: a new one")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the rounds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
