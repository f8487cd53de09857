"""The functions that users call: `consume`, which blocks until consuming ends, and `publish`.

`Consumer`, on which `consume` is built, is for programs that embed it. Any thread may call;
signals are handled only when it is the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Protocol, Union

from . import config
from .broker.session import open_session
from .engine.failures import Keep
from .engine.pool import make_pool
from .engine.processor import make_processor
from .engine.states import End, Observer, State, Stats
from .engine.supervisor import Supervisor
from .engine.workers import Worker
from .exceptions import ExitCode, FmconsumeError
from .identity import Identity, identify
from .log import get_logger, quieten_pika
from .message import SERIALIZED_MESSAGE_SCHEMA, SEVERITIES, Message, dumps, loads
from .publisher import count_published, publish
from .service.systemd import Notifier
from .service.tracing import trace
from .shortage import shortage
from .wakeup import WakeupQueue
from .watch import STOP, StopTeller, Watch
from .wiring import (
    addresses,
    failure_policy,
    list_exposures,
    list_losses,
    open_notes,
    options,
    topology,
)

if TYPE_CHECKING:
    from .service.history import History
    from .service.monitoring import Monitoring

__all__ = [
    "SERIALIZED_MESSAGE_SCHEMA",
    "SEVERITIES",
    "Callback",
    "Consumer",
    "Message",
    "consume",
    "dumps",
    "loads",
    "publish",
]

_log = get_logger(__name__)


class _Handler(Protocol):
    """Takes a message; an awaitable result is awaited, any other is ignored."""

    def __call__(self, message: Message, /) -> object: ...


#: A function or an object that takes a message, coroutine or not, or a class that makes one.
Callback = Union[_Handler, type[_Handler]]

#: Seconds that each thread gets after the end.
_DEADLINE = 5.0


class Consumer:
    """Consumes messages with a callback; for programs that embed a consumer.

    A consumer runs once. The configuration is read when it is made.

    Args:
        callback: Takes a Message. A class is instantiated here, without
            arguments; a coroutine is awaited.
        bindings: One mapping or several, each with "exchange", "routing_keys"
            and perhaps "queue"; None takes the configuration's.
        queues: Queue name to its settings; None takes the configuration's.
        workers: Callbacks that run at the same time; None takes the
            configuration's.
        limit: Stop after so many messages; None is no limit.
        drain: Stop once the queues hold no messages but those that the callback sent back.
        amqp_url: Of the broker, or of several; None takes the configuration's.

    Raises:
        ValueError: An argument cannot be used; the message names the key.
        ConfigurationException: The configuration cannot be used.
        ConnectionException: The client certificate has expired, or is not valid yet.
        UnavailableException: The folder for failed messages cannot be made.
        Exception: Whatever the constructor of a callback class raises.
    """

    def __init__(
        self,
        callback: Callback,
        bindings: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        queues: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        workers: int | None = None,
        limit: int | None = None,
        drain: bool = False,
        amqp_url: str | Sequence[str] | None = None,
    ) -> None:
        #: What a Watch waits for; filled by signal handlers and any thread.
        self._events = WakeupQueue()
        self._has_run = False
        #: Exit status for a command; set when `run` ends.
        self.exit_code: int = ExitCode.UNEXPECTED
        brokers, wanted = addresses(amqp_url), topology(bindings, queues)
        engine_options = options(workers, limit, drain)
        notes = open_notes()
        more = failure_policy(), notes, engine_options.workers, trace
        processor = make_processor(callback, config.conf["body"], _make_keep, *more)
        self._coroutines = processor.coroutines
        self._stop_timeout: float | None = config.conf["stop_timeout"]
        identity = identify()
        make_history = partial(self._make_history, wanted.queues, identity)
        monitoring = _make_monitoring(make_history)
        for text in (*list_exposures(), *list_losses(wanted)):
            _log.warning("%s", text)
        #: The monitoring server, or nothing; `run` enters it.
        self._monitoring: AbstractContextManager[Any] = monitoring or nullcontext()
        self._supervisor = Supervisor(
            addresses=brokers,
            topology=wanted,
            options=engine_options,
            open_session=partial(open_session, identity=identity),
            make_pool=partial(make_pool, processor, engine_options.workers),
            report=self._events.put,
            observers=self._list_observers(monitoring, make_history),
            notes=notes,
        )

    def _make_history(self, queues: Iterable[str], identity: Identity) -> History:
        from .service.history import History  # Most consumers need none.

        return History(lambda: self.stats, lambda: self._supervisor.runs, queues, identity)

    def _list_observers(
        self, monitoring: Monitoring | None, make_history: Callable[[], History]
    ) -> list[Observer]:
        """List whoever has something to observe: most consumers have no such thing."""
        observers: list[Observer] = []
        if os.environ.get("NOTIFY_SOCKET"):
            observers.append(Notifier(os.environ))
        if monitoring is not None:
            observers.append(monitoring.history)
        if "opentelemetry.metrics" in sys.modules:  # Whoever sets up meters has imported it.
            from .service.metering import list_observers

            observers += list_observers(monitoring.history if monitoring else None, make_history)
        if self._stop_timeout is not None:
            observers.append(StopTeller(self._events))
        return observers

    @property
    def stats(self) -> Stats:
        """Counts so far, as a copy. Thread: any."""
        return replace(self._supervisor.stats)

    @property
    def state(self) -> State:
        """Why messages flow, or why they do not. Thread: any."""
        return self._supervisor.state

    def stop(self) -> None:
        """Stop as at a first SIGTERM: running callbacks finish and are settled. Thread: any."""
        self._events.put(STOP)

    def run(self) -> None:
        """Consume until stopped.

        Raises:
            UnavailableException: The monitoring server cannot listen, this machine is short of
                threads, files or memory, or a drain holds too many messages that were sent back.
            ConfigurationException: The address for monitoring is malformed.
            HaltConsumer: The callback raised it.
            ConsumerCanceled: The broker cancelled the consumer, and the queue is gone.
            BadDeclaration, PermissionException, ConnectionException: The broker refuses.
            KeyboardInterrupt: A second signal came before the callbacks had finished.
            StopTimeout: They had not finished `stop_timeout` after the stop.
            Exception: Whatever else the callback raised, also as it was entered or left.
        """
        if self._has_run:
            raise RuntimeError("a Consumer runs once: make another one to consume again")
        self._has_run = True
        quieten_pika()
        with ExitStack() as stack:
            self._start(stack)
            try:
                end = Watch(self._events, self._supervisor, self._stop_timeout).wait()
            except BaseException as exc:  # A signal handler of the program's own raised it.
                self._supervisor.abandon(End(exc, ExitCode.UNEXPECTED))
                self._join()
                raise
            self.exit_code = end.exit_code
            self._join()
        if end.error is not None:
            raise end.error

    def _start(self, stack: ExitStack) -> None:
        """Start monitoring, signal handling and the supervisor.

        A failure sets the exit code: TEMPORARY if this machine lacks something now, as a port.
        """
        try:
            stack.enter_context(self._monitoring)
            stack.enter_context(self._events.open())
            self._supervisor.start()
        except Exception as exc:
            self._coroutines.close(0)
            reason = shortage(exc) or exc
            if isinstance(reason, FmconsumeError):
                self.exit_code = reason.exit_code
            elif isinstance(reason, OSError):
                self.exit_code = ExitCode.TEMPORARY
            if reason is exc:
                raise
            raise reason from exc

    def _join(self) -> None:
        """Join the threads, and log the name of each that does not end."""
        self._supervisor.join(_DEADLINE)
        # Before the workers: one that waits for an abandoned coroutine ends when that is cancelled.
        self._coroutines.close(_DEADLINE)
        threads: list[Supervisor | Worker] = [self._supervisor, *self._supervisor.workers]
        for thread in threads:
            # A callback that still runs was abandoned: nobody waits for it.
            is_busy = isinstance(thread, Worker) and thread.is_busy
            if thread.is_alive():  # One that could not be started cannot be joined.
                thread.join(0 if is_busy else _DEADLINE)
            if thread.is_alive():
                _log.warning("thread %s did not end and is left behind", thread.name)


def consume(
    callback: Callback,
    bindings: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    queues: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    workers: int | None = None,
    amqp_url: str | Sequence[str] | None = None,
) -> None:
    """Consume messages until a signal, the callback or the broker ends it.

    The first SIGTERM or SIGINT lets running callbacks finish, a second one does
    not wait for them. Both are handled only in the main thread, and only where the
    program has no handler of its own.

    Args:
        callback: As for Consumer.
        bindings: As for Consumer.
        queues: As for Consumer.
        workers: As for Consumer.
        amqp_url: As for Consumer.

    Raises:
        ValueError: An argument cannot be used; nothing was connected.
        Exception: Whatever the constructor of a callback class raises.
        HaltConsumer: The callback raised it; and see Consumer.run.
    """
    Consumer(callback, bindings, queues, workers=workers, amqp_url=amqp_url).run()


def _make_keep() -> Keep | None:
    """Return the function that keeps failed messages; None if none is configured."""
    failures = config.conf["failures"]
    folder = failures["keep_in"]
    if not folder:
        return None
    from .kept import KeptMessages  # Most consumers keep none.

    return KeptMessages(folder, failures["keep"], config.conf["body"]).keep


def _make_monitoring(make_history: Callable[[], History]) -> Monitoring | None:
    """Make the monitoring server; None if none is configured."""
    if not config.conf["monitoring"]:
        return None
    from .service.monitoring import Monitoring  # Most consumers need no HTTP.

    address, port = config.conf["monitoring"]["address"], config.conf["monitoring"]["port"]
    if address is None:
        # Where fedora-messaging listens, and where its users' probes ask.
        address = "" if config.is_fedora_messaging else "localhost"
    return Monitoring(make_history(), address, port, count_published)
