"""The benchmark's command: starts a private RabbitMQ, measures, prints and writes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.integration.broker import Broker, BrokerMissing

from .measures import MEASURES, Figure, run_each
from .report import table, write
from .runner import Bench, Settings, Void

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return an exit status: 1 if a run was void."""
    args = parser().parse_args(argv)
    if unknown := set(args.measures) - set(MEASURES):
        parser().error(
            f"there is no measure {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}"
        )
    if args.peers and not (args.peers / "bin" / "python").exists():
        parser().error(f"{args.peers} is no virtual environment: run `make bench PEERS=1`")
    # `kill` ends what was started just as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    peers = args.peers and args.peers.absolute()
    settings = Settings(args.count, args.size, args.rounds, peers, args.long)
    try:
        folder = tempfile.TemporaryDirectory(prefix="fmconsume-bench-")
        with folder, Broker(Path(folder.name)) as broker:
            return measure(Bench(broker, settings), args)
    except (BrokerMissing, RuntimeError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = result.add_argument
    add("measures", nargs="*", metavar="MEASURE", help=f"all, or some of {', '.join(MEASURES)}")
    add("--count", type=int, default=Settings().count, help="messages in a run")
    add("--size", type=int, default=Settings().size_bytes, help="bytes of a message's body")
    add("--rounds", type=int, default=Settings().rounds, help="rounds, at least 5 to be quoted")
    add("--peers", type=Path, metavar="VENV", help="environment with the other clients")
    add("--long", action="store_true", help="a million messages too; takes half an hour")
    add("--output", type=Path, metavar="FOLDER", help="default: results, if all is measured")
    return result


def measure(bench: Bench, args: argparse.Namespace) -> int:
    """Do the measures one by one, print as they come, and write the results."""
    names = args.measures or list(MEASURES)
    figures: list[Figure] = []
    voids = 0
    started = time.monotonic()
    for name in names:
        print(f"-- {name}: {MEASURES[name].__doc__}", flush=True)
        try:
            found = MEASURES[name](bench)
        except Void as exc:
            voids += 1
            print(f"VOID: {exc}", file=sys.stderr, flush=True)
        else:
            figures += found
            print(table(found), flush=True)
    if len(names) > 1:
        print(f"\n{table(figures)}")
    print(f"\n{time.monotonic() - started:.0f} s", end="")
    print(f", {voids} of {len(names)} measures void" if voids else "", flush=True)
    output = args.output or (RESULTS if not args.measures and not voids else None)
    if output:
        write(output, figures, run_each(bench) if "throughput" in names else {}, describe(bench))
        print(f"written to {os.path.relpath(output)}")
    return 1 if voids else 0


#: What has a version that matters; fmconsume's own dependency first.
_DISTRIBUTIONS = (
    *("pika", "kombu", "amqp", "amqpstorm", "aio-pika", "faststream", "rabbitpy"),
    "fedora-messaging",
)
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def describe(bench: Bench) -> dict[str, Any]:
    """Say under which circumstances the figures came about."""
    settings = bench.settings
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        "rabbitmq": bench.broker.eval("rabbit_misc:version().").strip('"'),
        "versions": _versions(settings.peers),
        "messages": settings.count,
        "size_bytes": settings.size_bytes,
        "rounds": settings.rounds,
    }


def _versions(peers: Path | None) -> dict[str, str]:
    python = peers / "bin" / "python" if peers else sys.executable
    command = [str(python), "-c", _VERSIONS, *_DISTRIBUTIONS]
    found: dict[str, str] = json.loads(subprocess.check_output(command, text=True))
    return found


if __name__ == "__main__":
    sys.exit(main())
