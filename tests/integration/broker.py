"""A private RabbitMQ on a free loopback port, for tests, the demo and the benchmarks.

Everything it writes is in one folder, its Erlang port mapper (epmd) is its own, and nothing
listens outside loopback, so that it disturbs no other RabbitMQ on the machine. Its methods are
for one thread, the test's.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Union
from urllib.parse import quote, urlencode

import pika
import psutil
from mirakuru.base import ENV_UUID
from mirakuru.exceptions import ExecutorError, ProcessExitedWithError
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError
from pytest_rabbitmq.factories.executor import RabbitMqExecutor

from tests.waiting import wait_until

from . import ctl

__all__ = ["Broker", "BrokerMissing", "Depth", "Received", "free_port"]

Body = Union[bytes, str, dict]

LOOPBACK = "127.0.0.1"

# Below the ports that the kernel hands to clients: none can take ours while the broker is down.
_PORTS = range(20000, 32000)
_claims: list[socket.socket] = []

# Distributions put wrappers in /usr/sbin that insist on one user; these are what they wrap.
_SERVERS = (
    "usr/lib/rabbitmq/bin/rabbitmq-server",
    "usr/lib*/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server",
)

# Asked of the queue itself: what rabbitmqctl lists of a quorum queue is seconds old.
_DEPTH = """
{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)),
list_to_tuple(case amqqueue:get_type(Q) of
    rabbit_quorum_queue ->
        Id = amqqueue:get_pid(Q),
        [begin {{ok, {{_, N}}, _}} = ra:leader_query(Id, {{rabbit_fifo, F, []}}), N end
         || F <- [query_messages_ready, query_messages_checked_out]];
    _ ->
        [N || {{_, N}} <- rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged])]
end).
"""


_CLOSE = """
[rabbit_networking:close_connection(Pid, "test")
 || Pid <- rabbit_networking:connections(),
    rabbit_reader:info(Pid, [user]) =:= [{{user, <<"{user}">>}}]].
"""


class BrokerMissing(Exception):
    """Raised when no rabbitmq-server is installed."""


class Depth(NamedTuple):
    """How many messages a queue holds."""

    ready: int
    unacked: int


class Received(NamedTuple):
    """One message taken from a queue by the test itself."""

    method: pika.spec.Basic.GetOk
    properties: pika.BasicProperties
    body: bytes


def free_port() -> int:
    """Return a loopback port that nobody has, and that no process gets from here until we end."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        # Nobody else can bind the same name, also while the broker with this port is down.
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            claim.bind(f"\0fmconsume-port-{port}")
            _claims.append(claim)
            return port
        claim.close()


def find_server() -> Path:
    """Return the path of the real rabbitmq-server script, or the one that $RABBITMQ_SERVER names.

    rabbitmqctl is expected beside it.
    """
    if os.environ.get("RABBITMQ_SERVER"):
        return Path(os.environ["RABBITMQ_SERVER"])
    for pattern in _SERVERS:
        for server in sorted(Path("/").glob(pattern)):
            return server
    raise BrokerMissing(
        "rabbitmq-server is not installed: run `make test`, which installs it, "
        "or install the package rabbitmq-server with apt-get or dnf"
    )


class _Node(RabbitMqExecutor):
    """The server process; `output` takes what it prints, `environment` is added to ours."""

    def __init__(self, *args: Any, output: IO[bytes], environment: dict[str, str]) -> None:
        super().__init__(*args)
        self._stdout = self._stderr = output
        self._envvars.update(environment)

    @property
    def envvars(self) -> dict[str, str]:
        # Under systemd the server would report to whoever waits for the tests.
        return {k: v for k, v in super().envvars.items() if k != "NOTIFY_SOCKET"}

    def after_start_check(self) -> bool:
        # The script ends with 0 where the server could not start.
        if not self.running():
            raise ProcessExitedWithError(self, self.process.returncode)
        return super().after_start_check()


class Broker:
    """One RabbitMQ node; `with Broker(folder) as broker` starts it and ends all of it.

    Args:
        folder: An empty folder that the node has to itself.
        config: The text of rabbitmq.conf.
        advanced: The text of advanced.config, Erlang terms.
        plugins: Names of plugins to enable.
        beside: A running broker that this one is to be clustered with; it shares that one's
            Erlang cookie and port mapper, and must be closed before it.
    """

    def __init__(
        self,
        folder: Path,
        config: str = "",
        *,
        advanced: str = "",
        plugins: Iterable[str] = (),
        beside: Broker | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.name = f"rabbitmq-test-{self.port}@localhost"
        self._home = beside._home if beside else folder
        self._epmd_port = beside._epmd_port if beside else free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._next_look = 0.0  # of `depth`, monotonic seconds
        self._connection: pika.BlockingConnection | None = None
        if config:  # RabbitMQ takes half a second to read even an empty one.
            (folder / "rabbitmq.conf").write_text(config)
        (folder / "advanced.config").write_text(advanced or "[].")
        (folder / "plugins").write_text(f"[{','.join(plugins)}].")
        self._output = (folder / "output").open("ab")
        server = find_server()
        self._node = _Node(
            str(server),
            LOOPBACK,
            self.port,
            free_port(),
            str(server.with_name("rabbitmqctl")),
            folder / "logs",
            folder,
            folder,
            self.name,
            output=self._output,
            environment=self._environment(),
        )

    def _environment(self) -> dict[str, str]:
        loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "HOME": str(self._home),  # the Erlang cookie is kept there
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_CTL_ERL_ARGS": loopback_only,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback_only,
        }

    # The process

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Start RabbitMQ unless it serves, with the data and the ports it had before.

        Returns when it serves.

        Raises:
            RuntimeError: It did not start; the message ends with what it printed first.
        """
        if is_listening(self.port):
            return
        if self._node.running():
            self.eval("ok = rabbit:start().")
            self._wait_until_ready()
            return
        if self._epmd is None and self._home == self.folder:
            self._start_epmd()
        if self._guard is None:
            self._start_guard()
        try:
            self._node.start()
            self._wait_until_ready()
        except (ExecutorError, TimeoutError) as exc:
            printed = Path(self._output.name).read_text(errors="replace")[:2000]
            raise RuntimeError(f"RabbitMQ in {self.folder} did not start: {exc}{printed}") from exc

    def _start_epmd(self) -> None:
        # In the foreground and by us: the one that a node starts would outlive it. Without the
        # executor's mark, by which `kill` finds all that the node started.
        self._epmd = subprocess.Popen(
            ["epmd", "-port", str(self._epmd_port), "-address", LOOPBACK],
            env={k: v for k, v in self._node.envvars.items() if k != ENV_UUID},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )
        wait_until(lambda: is_listening(self._epmd_port))

    def _start_guard(self) -> None:
        # Ends the node also where this process is killed: the guard's input closes with it.
        script = 'read _; kill -9 $(cat "$0") $1'
        epmd = str(self._epmd.pid) if self._epmd else ""
        self._guard = subprocess.Popen(
            ["sh", "-c", script, str(self.folder / "pid"), epmd],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def _wait_until_ready(self) -> None:
        wait_until(self._is_serving)
        # It serves a little before all of it has started; who stops it then, ends the node.
        wait_until(lambda: self.eval("init:get_status().").startswith("{started"))

    def _is_serving(self) -> bool:
        try:
            return self._connect().is_open
        except AMQPError:  # it listens a little before it serves
            return False

    def kill(self) -> None:
        """End the node with SIGKILL, as a crash would."""
        self._drop_connection()
        self._node.kill()  # returns with the shell script's end, a little before the node's
        wait_until(lambda: not is_listening(self.port))

    def stop(self) -> None:
        """Shut RabbitMQ down in good order; `start()` brings it back.

        Its Erlang machine stays, as it does with `rabbitmqctl stop_app`: to start another one takes
        ten times as long as to start RabbitMQ in it, and no client sees a difference.
        """
        self._drop_connection()
        self.eval("ok = rabbit:stop().")
        wait_until(lambda: not is_listening(self.port))

    def close(self) -> None:
        """End everything that was started."""
        if self._guard:
            with self._guard:
                self._guard.kill()
            self._guard = None
        self.kill()
        if self._epmd:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        self._output.close()

    # What an administrator does

    def url(
        self,
        vhost: str = "%2F",
        user: str = "guest",
        password: str = "guest",
        *,
        scheme: str = "amqp",
        port: int | None = None,
        **query: object,
    ) -> str:
        """Return an address of the broker; `vhost` and `query` are as a URL has them."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        tail = f"?{urlencode(query)}" if query else ""
        return f"{scheme}://{login}@{LOOPBACK}:{port or self.port}/{vhost}{tail}"

    def ctl(self, *args: str) -> str:
        """Return what `rabbitmqctl` prints, given `args`; the node itself does what `ctl` knows."""
        if erlang := ctl.expression(*args):
            return ctl.rows(self.eval(f"{erlang}."))
        done = subprocess.run(
            [self._node.rabbit_ctl, "--quiet", *args],
            env=self._node.envvars,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def eval(self, erlang: str) -> str:
        """Return what the node answers to the expressions `erlang`, which end with a full stop."""
        program = shutil.which("erl_call")
        if program is None:
            return self.ctl("eval", erlang)
        # Two hundred times as fast as rabbitmqctl, which starts an Erlang machine.
        cookie = (self._home / ".erlang.cookie").read_text()
        done = subprocess.run(
            [program, "-c", cookie, "-name", self.name, "-e"],
            env=self._node.envvars,
            input=f"{erlang}\n",
            capture_output=True,
            text=True,
        )
        answer = re.fullmatch(r"\{ok, (.*)\}", done.stdout.strip(), re.DOTALL)
        if "failed to connect" in done.stderr:  # It gives up at once where the node is busy.
            return self.ctl("eval", erlang)
        if not answer:
            raise RuntimeError(f"erl_call {erlang}: {done.stdout}{done.stderr}")
        return answer[1]

    def close_connections(self, user: str) -> None:
        """Close every connection of a user, as an administrator may."""
        self.eval(_CLOSE.format(user=user))

    # What a program does

    def _connect(self) -> pika.BlockingConnection:
        """Return the helpers' own connection, a new one if the last was lost."""
        try:
            if self._connection:
                self._connection.process_data_events(0)
                return self._connection
        except AMQPError:
            pass
        self._connection = pika.BlockingConnection(pika.URLParameters(self.url(heartbeat=0)))
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection:
            with suppress(AMQPError):
                self._connection.close()
        self._connection = None

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Give a channel of the helpers' connection for the length of a `with` block."""
        channel = self._connect().channel()
        yield channel
        if channel.is_open:
            channel.close()

    def declare(self, queue: str, **arguments: Any) -> str:
        """Declare a durable queue; write `x_dead_letter_exchange` for x-dead-letter-exchange."""
        with self.channel() as channel:
            channel.queue_declare(
                queue,
                durable=True,
                arguments={name.replace("_", "-"): value for name, value in arguments.items()},
            )
        return queue

    @property
    def version(self) -> tuple[int, ...]:
        """The first two numbers of RabbitMQ's version."""
        return tuple(map(int, re.findall(r"\d+", self.eval("rabbit_misc:version()."))[:2]))

    def bind(self, queue: str, exchange: str, routing_key: str = "#") -> None:
        """Bind a queue to an exchange."""
        with self.channel() as channel:
            channel.queue_bind(queue, exchange, routing_key)

    def cpu_seconds(self) -> float:
        """Return the processor time that the node has used."""
        times = psutil.Process(int((self.folder / "pid").read_text())).cpu_times()
        return float(times.user + times.system)

    @contextmanager
    def fanout(self) -> Iterator[str]:
        """Give an exchange that sends every message to all queues bound to it."""
        name = f"fanout-{uuid.uuid4()}"
        with self.channel() as channel:
            channel.exchange_declare(name, "fanout")
        try:
            yield name
        finally:
            with self.channel() as channel:
                channel.exchange_delete(name)

    def delete(self, queue: str) -> None:
        """Delete a queue; one that does not exist is no error."""
        with self.channel() as channel:
            channel.queue_delete(queue)

    def publish(
        self,
        routing_key: str,
        bodies: Iterable[Body],
        exchange: str = "",
        **properties: Any,
    ) -> None:
        """Publish persistent messages; when it returns, the broker has taken them all.

        A dict goes out as a fedora-messaging publisher would send it: JSON, with headers and a
        message id. Bytes and text go out as they are, with no properties but those given.
        """
        with self.channel() as channel:
            channel.tx_select()  # one round trip for many messages; pika's confirms wait for each
            for number, body in enumerate(bodies, 1):
                usual = _usual_properties() if isinstance(body, dict) else {}
                channel.basic_publish(
                    exchange,
                    routing_key,
                    json.dumps(body) if isinstance(body, dict) else body,
                    pika.BasicProperties(**{"delivery_mode": 2, **usual, **properties}),
                )
                if number % 1000 == 0:
                    channel.tx_commit()
            channel.tx_commit()

    def depth(self, queue: str, vhost: str = "/") -> Depth:
        """Return how many messages are ready and how many unacknowledged.

        It looks ten times a second at most, since each look starts a process.
        """
        time.sleep(max(0.0, self._next_look - time.monotonic()))
        self._next_look = time.monotonic() + 0.1
        answer = self.eval(_DEPTH.format(queue=queue, vhost=vhost))
        return Depth(*map(int, re.findall(r"\d+", answer)))

    def ready(self, queue: str) -> int:
        """Return how many messages are ready; much faster than `depth`."""
        with self.channel() as channel:
            return channel.queue_declare(queue, passive=True).method.message_count

    def drain(self, queue: str) -> list[Received]:
        """Take and return every ready message of a queue, oldest first."""
        received = []
        with self.channel() as channel:
            while (message := Received(*channel.basic_get(queue, auto_ack=True))).method:
                received.append(message)
        return received


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections at a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _usual_properties() -> dict[str, Any]:
    return {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "message_id": str(uuid.uuid4()),
        "headers": {
            "fedora_messaging_schema": "base.message",
            "fedora_messaging_severity": 20,
            "sent-at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    }
