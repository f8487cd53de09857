"""`make parity`: run fedora-messaging and fmconsume side by side, on one broker, and compare them.

A row is alike, or it differs on purpose, for the reason that stands in it. The exit status is 1 if
a row that should be alike differs. `--python` names a Python that has fedora-messaging.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.request import urlopen

from .integration.broker import Broker, free_port
from .integration.running import to_toml
from .waiting import PATIENCE, wait_until

_CALLBACKS = """
from fedora_messaging import api, config, exceptions

def judge(message):
    print("seen", message.body, flush=True)
    verdict = message.body.get("verdict")
    if verdict == "nack":
        message.body.pop("verdict")
        raise exceptions.Nack
    if verdict == "drop":
        raise exceptions.Drop
    if verdict == "halt":
        raise exceptions.HaltConsumer(exit_code=message.body["code"], reason="enough")
    if verdict == "fail":
        raise RuntimeError("a line\\nand another")

async def coroutine(message):
    judge(message)

class Looping:
    def __init__(self):
        import asyncio
        self.loop = asyncio.new_event_loop()
    def __call__(self, message):
        async def work():
            judge(message)
        self.loop.run_until_complete(work())

class Reactive:
    def __init__(self):
        from twisted.internet import reactor
        self.reactor = reactor
    def __call__(self, message):
        self.reactor.callFromThread(print, "the reactor runs", flush=True)
        judge(message)
"""
_CLASS = """
import jsonschema
from fedora_messaging import api, message
def validate(schema, body):
    cls = type("Made", (message.Message,), {"body_schema": schema})
    message._schema_name_to_class["made"] = cls
    message._class_to_schema_name[cls] = "made"
    try:
        cls(body=body).validate()
    except jsonschema.ValidationError:
        return "refused"
    except Exception as exc:
        return "the schema is refused"
    return "valid"
"""


class Side(NamedTuple):
    """One of the two: how to run it, and where."""

    name: str
    python: str
    command: tuple[str, ...]
    prefix: str
    folder: Path
    broker: Broker
    twisted: str

    def run_code(self, code: str, **settings: Any) -> str:
        """Run a program, and return the last line that it prints, or its last error."""
        source = self.prefix + textwrap.dedent(code)
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", source],
            **self._options(settings),
        )
        lines = done.stdout.splitlines() or done.stderr.splitlines() or ["nothing"]
        return lines[-1]

    def run_command(self, *args: str, stdin: str = "", **settings: Any) -> Any:
        """Run the command line until it ends."""
        return subprocess.run([*self.command, *args], input=stdin, **self._options(settings))

    def start_command(self, *args: str, **settings: Any) -> Any:
        """Start the command line; what it writes goes to the files out and err."""
        options = self._options(settings)
        for name in ("capture_output", "text", "timeout"):
            del options[name]
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            return subprocess.Popen([*self.command, *args], stdout=out, stderr=err, **options)

    def consume(self, *messages: Any, callback: str = "judge", **settings: Any) -> Any:
        """Consume these messages from a queue of one's own, and give status, output and depth."""
        queue = f"parity-{uuid.uuid4().hex[:8]}"
        self.broker.declare(queue)
        self.broker.publish(queue, [*messages, {"verdict": "halt", "code": 7}])
        queues = {queue: {"durable": True, "auto_delete": False, "exclusive": False}}
        queues[queue]["arguments"] = {}
        done = self.run_command(
            *("consume", "--callback", f"callbacks:{callback}"),
            **{"queues": queues, "bindings": [], **settings},
        )
        done.queue = queue
        done.left = self.broker.ready(queue)
        done.lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
        return done

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        (self.folder / "callbacks.py").write_text(_CALLBACKS)
        path = [str(self.folder), *filter(None, [settings.pop("path", "")])]
        config = {"amqp_url": self.broker.url(), **settings}
        text = "".join(f"{key} = {to_toml(value)}\n" for key, value in config.items())
        (self.folder / "config.toml").write_text(text)
        return {
            "cwd": self.folder,
            "env": {
                **os.environ,
                "FEDORA_MESSAGING_CONF": str(self.folder / "config.toml"),
                "PYTHONPATH": ":".join(path),
                "PYTHONUNBUFFERED": "1",
            },
            "capture_output": True,
            "text": True,
            "timeout": PATIENCE,
        }


class Row(NamedTuple):
    """A case, and the reason if the two differ in it on purpose."""

    point: str
    case: str
    show: Callable[[Side], object]
    purpose: str = ""


def _verdicts(side: Side) -> str:
    done = side.consume({"n": 1}, {"verdict": "drop"}, {"n": 2})
    return f"status {done.returncode}, {done.stdout.count('seen')} seen, {done.left} left"


def _fails(side: Side) -> str:
    done = side.consume({"verdict": "fail"})
    return f"status {done.returncode}, {done.left} left"


def _coroutine(side: Side) -> str:
    done = side.consume({"n": 1}, callback="coroutine")
    return f"status {done.returncode}, {done.stdout.count('seen')} seen"


def _looping(side: Side) -> str:
    done = side.consume({"n": 1}, callback="Looping")
    return f"status {done.returncode}, {done.stdout.count('seen')} seen"


def _reactive(side: Side) -> str:
    # Twisted is where fedora-messaging is; there fmconsume stands in for it.
    done = side.consume({"n": 1}, callback="Reactive", path=side.twisted)
    return f"status {done.returncode}, {done.stdout.count('reactor runs')} done by the reactor"


def _no_callback(side: Side) -> str:
    statuses = [
        side.run_command("consume", "--callback", name).returncode
        for name in ("no.such:thing", "nonsense", "callbacks:missing")
    ]
    return f"statuses {statuses}"


def _usage(side: Side) -> str:
    arguments = (["consume", "--no-such"], ["nonsense"], ["publish"], ["record", "x", "--limit=0"])
    return f"statuses {[side.run_command(*each).returncode for each in arguments]}"


def _bad_configuration(side: Side) -> str:
    (side.folder / "bad.toml").write_text("nonsense = 1\n")
    paths = ("/no/such/file", str(side.folder / "bad.toml"))
    statuses = [side.run_command("--conf", each, "consume").returncode for each in paths]
    return f"statuses {statuses}"


def _publish(side: Side) -> str:
    line = json.dumps({"topic": "t", "body": {}, "headers": {}, "id": "1", "queue": None})
    good = side.run_command("publish", "-", stdin=f"{line}\n")
    bad = side.run_command("publish", "-", stdin="[]\n")
    return f"{good.stdout.splitlines()[0]!r}, statuses {[good.returncode, bad.returncode]}"


def _publish_nowhere(side: Side) -> str:
    line = json.dumps({"topic": "t", "body": {}, "headers": {}, "id": "1", "queue": None})
    began = time.monotonic()
    done = side.run_command("publish", "--exchange", "no.such", "-", stdin=f"{line}\n")
    return f"status {done.returncode}, {'at once' if time.monotonic() - began < 15 else 'late'}"


def _record(side: Side) -> str:
    queue = f"parity-{uuid.uuid4().hex[:8]}"
    side.broker.declare(queue)
    side.broker.publish(queue, [{"n": 1}, {"n": 2}, {"n": 3}])
    settings = {"queues": {queue: {"durable": True, "auto_delete": False, "exclusive": False}}}
    settings["queues"][queue]["arguments"] = {}
    done = side.run_command("record", "recorded", "--limit", "2", bindings=[], **settings)
    lines = (side.folder / "recorded").read_text().splitlines()
    bodies = [json.loads(line)["body"] for line in lines]
    return f"status {done.returncode}, {bodies}, {side.broker.ready(queue)} left"


def _import(side: Side) -> str:
    return side.run_code("import fedora_messaging.api\nprint('imported')")


def _validate(schema: str, body: str) -> Callable[[Side], str]:
    return lambda side: side.run_code(f"{_CLASS}\nprint(validate({schema}, {body}))")


def _nan(side: Side) -> str:
    done = side.consume(b'{"n": NaN}')
    return f"{done.stdout.count('nan')} delivered"


def _forbidden_exchange(side: Side) -> str:
    user = f"parity-{uuid.uuid4().hex[:8]}"
    side.broker.ctl("add_user", user, "secret")
    side.broker.ctl("set_permissions", user, "^parity-.*", ".*", ".*")
    done = side.consume(amqp_url=side.broker.url(user=user, password="secret"))
    return f"status {done.returncode}"


def _forbidden_queue(side: Side) -> str:
    user = f"parity-{uuid.uuid4().hex[:8]}"
    side.broker.ctl("add_user", user, "secret")
    side.broker.ctl("set_permissions", user, "^$", ".*", ".*")
    url = side.broker.url(user=user, password="secret")
    done = side.consume(amqp_url=url)
    caught = """
        from fedora_messaging import api, exceptions
        try:
            api.consume(print)
        except exceptions.BadDeclaration as exc:
            print("BadDeclaration", exc.obj_type, exc.reason.args[0])
        """
    return f"status {done.returncode}; {side.run_code(caught, amqp_url=url)}"


def _forbidden_publish(side: Side) -> str:
    user = f"parity-{uuid.uuid4().hex[:8]}"
    side.broker.ctl("add_user", user, "secret")
    side.broker.ctl("set_permissions", user, ".*", "^$", ".*")
    caught = """
        import logging
        logging.disable()
        from fedora_messaging import api, exceptions
        try:
            api.publish(api.Message())
        except exceptions.PublishForbidden as exc:
            print("PublishForbidden", exc.reason.args[0])
        import os; os._exit(0)
        """
    return side.run_code(caught, amqp_url=side.broker.url(user=user, password="secret"))


def _monitoring(side: Side) -> str:
    port = free_port()
    queues = {"": {"durable": False, "auto_delete": True, "exclusive": True, "arguments": {}}}
    process = side.start_command(
        *("consume", "--callback", "callbacks:judge"), queues=queues, monitoring={"port": port}
    )
    answer: dict[str, Any] = {}

    def is_ready() -> bool:
        with suppress(OSError):
            # An address of this machine that only a server on all interfaces listens at.
            answer.update(json.load(urlopen(f"http://127.0.0.2:{port}/ready")))
        return bool(answer.get("consuming"))

    try:
        wait_until(is_ready)
    finally:
        process.terminate()
        process.wait(PATIENCE)
    keys = sorted(answer.keys() & {"consuming", "consumed", "published"})
    return f"on all interfaces, {keys}, {sorted(answer['consumed'])}"


def _log_config(side: Side) -> str:
    done = side.consume({"n": 1}, log_config={"root": {"level": "INFO"}})
    return f"status {done.returncode}"


def _lines_for_each_message(side: Side) -> str:
    done = side.consume({"n": 1})
    told = [line for line in done.lines if "INFO]" in line and done.queue in line]
    return f"at least {min(2, len(told))} lines at info"


def _queue_by_option(side: Side) -> str:
    queue, key = (f"parity-{uuid.uuid4().hex[:8]}" for _ in range(2))
    process = side.start_command(
        *("consume", "--callback", "callbacks:judge", "--queue-name", queue),
        bindings=[{"queue": queue, "exchange": "amq.topic", "routing_keys": [key]}],
    )
    try:
        wait_until(lambda: key in side.broker.ctl("list_bindings", "routing_key"))
        side.broker.publish(key, [{"verdict": "halt", "code": 5}], "amq.topic")
        return f"status {process.wait(PATIENCE)}"
    finally:
        process.kill()


def _broker_down(side: Side) -> str:
    logging = {
        "version": 1,
        "handlers": {"all": {"class": "logging.StreamHandler"}},
        "loggers": {"pika": {"level": "WARNING"}},
        "root": {"level": "INFO", "handlers": ["all"]},
    }
    url = f"amqp://127.0.0.1:{free_port()}"
    process = side.start_command("consume", "--callback", "callbacks:judge", amqp_url=url)
    process.kill()
    process.wait()
    process = side.start_command(
        *("consume", "--callback", "callbacks:judge"), amqp_url=url, log_config=logging
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(12)
    process.kill()
    process.wait()
    lines = (side.folder / "err").read_text().splitlines()
    return f"{'at most' if len(lines) <= 12 else 'more than'} 12 lines in 12 s"


def _names(side: Side) -> str:
    return side.run_code(
        """
        from fedora_messaging import api, config, exceptions
        config.QueueConfig, config.BindingConfig, config.DEFAULTS["client_properties"]["version"]
        assert api._twisted_service is None
        halt = exceptions.HaltConsumer(3, "why", True)
        print(halt.exit_code, halt.reason, halt.requeue, "all there")
        """
    )


def _package_header(side: Side) -> str:
    return side.run_code(
        """
        from fedora_messaging import api
        print(api.Message()._properties.headers["fedora_messaging_schema_package"])
        """
    )


def _patched(side: Side) -> str:
    return side.run_code(
        """
        from unittest import mock
        from fedora_messaging import api
        with mock.patch("fedora_messaging.api._twisted_publish_wrapper") as wrapper:
            api.publish(api.Message())
        print(wrapper.call_count, "caught")
        import os; os._exit(0)
        """
    )


def _reserved(side: Side) -> str:
    properties = {"app": "mine", "product": "another"}
    return f"status {side.consume(client_properties=properties).returncode}"


_NO_REACTOR = "nobody runs a reactor here, so its work would be lost in silence"
_ROWS = [
    Row("1", "verdicts, HaltConsumer(7)", _verdicts),
    Row("1", "a callback that raises", _fails),
    Row("1", "callbacks that are not there", _no_callback),
    Row("1", "wrong options", _usage),
    Row("1", "wrong configurations", _bad_configuration),
    Row("1", "publish -", _publish),
    Row(
        "1", "publish to no exchange", _publish_nowhere, "the broker has answered: no need to wait"
    ),
    Row("1", "record FILE --limit 2", _record),
    Row("2", "import fedora_messaging", _import),
    Row("3", "draft without $schema", _validate("{'const': 1}", "{}")),
    Row(
        "3",
        r"pattern (?i), \Z, (?P<n>)",
        _validate(r"{'properties': {'a': {'pattern': r'(?i)^X(?P<n>y)\Z'}}}", "{'a': 'xY'}"),
    ),
    Row("3", "unknown $schema", _validate("{'$schema': 'http://example.com/x'}", "{}")),
    Row("4", "except jsonschema.ValidationError", _validate("{'required': ['a']}", "{}")),
    Row("5", "a body with NaN", _nan),
    Row("6", "may not configure amq.topic", _forbidden_exchange),
    Row("7", "may not declare the queue", _forbidden_queue),
    Row("7", "may not publish", _forbidden_publish),
    Row("8", "[monitoring] port", _monitoring),
    Row("9", "log_config without version", _log_config, "version can only be 1"),
    Row("9", "[[bindings]] of --queue-name", _queue_by_option),
    Row("9", "lines for each message", _lines_for_each_message),
    Row("9, 12", "names and HaltConsumer", _names),
    Row("10", "broker down, pika at WARNING", _broker_down),
    Row("11", "a coroutine function", _coroutine),
    Row("11", "an event loop of its own", _looping),
    Row("11", "Twisted's reactor", _reactive, _NO_REACTOR),
    Row("11", "_twisted_publish_wrapper", _patched),
    Row("12", "schema package header", _package_header),
    Row("12", "reserved client_properties", _reserved, "no reason not to start: a warning"),
]


def main() -> int:
    """Print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("only", nargs="*", help="points to compare")
    args = parser.parse_args()
    # Not resolved: the Python of a virtual environment is a link.
    python = str(Path(args.python).absolute())
    script = str(Path(python).with_name("fedora-messaging"))
    find = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    twisted = subprocess.check_output(find, text=True).strip()
    has_failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = [folder / each for each in ("broker", "theirs", "ours")]
        for each in folders:
            each.mkdir()
        with Broker(folders[0]) as broker:
            ours = (sys.executable, "-m", "fmconsume.compat")
            sides = [
                Side("fedora-messaging", python, (script,), "", folders[1], broker, twisted),
                Side("fmconsume", ours[0], ours, "import fmconsume\n", folders[2], broker, twisted),
            ]
            for row in _ROWS:
                if args.only and row.point not in args.only:
                    continue
                shown = [str(row.show(side)) for side in sides]
                is_bad = shown[0] != shown[1] and not row.purpose
                has_failed |= is_bad
                print(f"{'!' if is_bad else ' '} {row.point:6} {row.case}")
                for side, text in zip(sides, shown):
                    print(f"           {side.name:16} {text}")
                if shown[0] != shown[1] and row.purpose:
                    print(f"           {'on purpose:':16} {row.purpose}", flush=True)
    return int(has_failed)


if __name__ == "__main__":
    raise SystemExit(main())
