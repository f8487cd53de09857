"""Show fmconsume at work on a RabbitMQ of its own: `make demo`."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.integration.broker import Broker, BrokerMissing
from tests.waiting import PATIENCE

TOPIC = "org.example.buildsys.build.finished"
QUEUE = "demo"
BUILDS = (
    ("bash", "5.3.9-1.fc44", "successful"),
    ("curl", "8.18.0-2.fc44", "successful"),
    ("firefox", "146.0-1.fc44", "failed"),
    ("gcc", "15.2.1-4.fc44", "successful"),
    ("git", "2.52.0-1.fc44", "successful"),
    ("kernel", "6.18.1-300.fc44", "successful"),
    ("openssl", "3.5.4-2.fc44", "successful"),
    ("python3.14", "3.14.2-1.fc44", "successful"),
    ("rabbitmq-server", "4.2.1-1.fc44", "failed"),
    ("systemd", "259-1.fc44", "successful"),
)

CONFIG = """\
amqp_url = "{url}"
callback = "fmconsume.example:printer"

[queues.{queue}]
durable = true
auto_delete = false
exclusive = false
arguments = {{}}

[[bindings]]
queue = "{queue}"
exchange = "amq.topic"
routing_keys = ["org.example.buildsys.#"]
"""


def main() -> int:
    """Run the demonstration and return an exit status."""
    # `kill` ends what was started just as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="fmconsume-demo-") as folder:
            show(Path(folder))
    except (BrokerMissing, DemoFailed, RuntimeError, subprocess.TimeoutExpired) as exc:
        print(f"\ndemo: {exc}", file=sys.stderr)
        print("demo: try `make clean demo`; `make test` tells more", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class DemoFailed(Exception):
    """Raised when the command did not do what it should."""


def show(folder: Path) -> None:
    """Consume ten messages with the installed command."""
    say("Starting a private RabbitMQ")
    with Broker(folder) as broker:
        say(f"Publishing {len(BUILDS)} messages to its queue {QUEUE!r}")
        broker.declare(QUEUE)
        broker.bind(QUEUE, "amq.topic", "org.example.buildsys.#")
        broker.publish(TOPIC, map(message, BUILDS), exchange="amq.topic")

        config = folder / "demo.toml"
        config.write_text(CONFIG.format(url=broker.url(), queue=QUEUE))
        say(f"The configuration, {config}")
        print(config.read_text())
        consume(config)

        if (depth := broker.depth(QUEUE)) != (0, 0):
            raise DemoFailed(f"messages are left in the queue: {depth}")
        say("Every message was consumed and acknowledged; nothing is left in the queue")


def message(build: tuple[str, str, str]) -> dict:
    """Return the body of one message."""
    package, version, state = build
    return {"package": package, "version": version, "state": state, "owner": "releng"}


def consume(config: Path) -> None:
    """Run the command until it has seen every message."""
    command = ["fmconsume", "--config", str(config)]
    command += ["--callback", "fmconsume.example:printer", "--limit", str(len(BUILDS))]
    say(f"$ {' '.join(command)}")
    script = Path(sys.executable).with_name(command[0])
    status = subprocess.run(
        [script, *command[1:]], stdin=subprocess.DEVNULL, timeout=PATIENCE
    ).returncode
    if status:
        raise DemoFailed(f"fmconsume ended with exit status {status}; it says why above")


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
