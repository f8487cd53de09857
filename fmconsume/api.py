"""The functions that users call: `consume`, which blocks until consuming ends, and `publish`.

`Consumer`, on which `consume` is built, is for programs that embed it. Any thread may call;
signals are handled only when it is the main thread.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from queue import Empty
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
from .log import get_logger, quieten_pika
from .message import SERIALIZED_MESSAGE_SCHEMA, SEVERITIES, Message, dumps, loads
from .publisher import count_published, publish
from .service.systemd import Notifier
from .shortage import shortage
from .wakeup import WakeupQueue
from .wiring import addresses, failure_policy, list_losses, open_notes, options, topology

if TYPE_CHECKING:
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

#: Seconds that the supervisor gets after a second signal, and each thread after the end.
_DEADLINE = 5.0
#: Seconds between two checks that the supervisor is alive; normally it reports its end itself.
_LOOK = 60.0
#: The event that asks to stop; signals come as their numbers.
_STOP = "stop"


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
        #: Signal numbers, `_STOP` and the End; filled by signal handlers and any thread.
        self._events = WakeupQueue()
        self._has_run = False
        #: Exit status for a command; set when `run` ends.
        self.exit_code: int = ExitCode.UNEXPECTED
        brokers, wanted = addresses(amqp_url), topology(bindings, queues)
        engine_options = options(workers, limit, drain)
        notes = open_notes()
        body_mode = config.conf["body"]
        more = failure_policy(), notes, engine_options.workers
        processor = make_processor(callback, body_mode, _make_keep, *more)
        self._coroutines = processor.coroutines
        monitoring = _make_monitoring(lambda: self.stats)
        for text in list_losses(wanted):
            _log.warning("%s", text)
        #: The monitoring server, or nothing; `run` enters it.
        self._monitoring: AbstractContextManager[Any] = monitoring or nullcontext()
        self._supervisor = Supervisor(
            addresses=brokers,
            topology=wanted,
            options=engine_options,
            open_session=open_session,
            make_pool=partial(make_pool, processor, engine_options.workers),
            report=self._events.put,
            observers=_list_observers(monitoring),
            notes=notes,
        )

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
        self._events.put(_STOP)

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
            Exception: Whatever else the callback raised.
        """
        if self._has_run:
            raise RuntimeError("a Consumer runs once: make another one to consume again")
        self._has_run = True
        quieten_pika()
        with ExitStack() as stack:
            self._start(stack)
            try:
                end = self._wait()
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

    def _wait(self) -> End:
        """Pass stops and signals to the supervisor until it reports the End, or dies without."""
        signals = 0
        end = None
        while True:
            try:
                # A supervisor that hangs on a dead line must not keep a forced stop waiting.
                event = self._events.get(_DEADLINE if end else _LOOK)
            except Empty:
                if end is not None:
                    return end
                if self._supervisor.is_alive():
                    continue
                # It may have reported and ended after the wait was over.
                with suppress(Empty):
                    return self._last_word()
                return End(RuntimeError("the supervisor is gone"), ExitCode.UNEXPECTED)
            if isinstance(event, End):
                return event
            if event is _STOP or not signals:
                self._supervisor.stop()
            else:
                end = End(KeyboardInterrupt(signal.Signals(event).name), 128 + event)
                self._supervisor.abandon(end)
            signals += event is not _STOP

    def _last_word(self) -> End:
        """Return the End that is among the events; raise queue.Empty if there is none."""
        while True:
            event = self._events.get(0)
            if isinstance(event, End):
                return event

    def _join(self) -> None:
        """Join the threads, and log the name of each that does not end."""
        self._supervisor.join(_DEADLINE)
        # Before the workers: one that waits for an abandoned coroutine ends when that is cancelled.
        self._coroutines.close(_DEADLINE)
        threads: list[Supervisor | Worker] = [self._supervisor, *self._supervisor.workers]
        for thread in threads:
            # A callback that still runs was abandoned: nobody waits for it.
            is_busy = isinstance(thread, Worker) and thread.current is not None
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


def _make_monitoring(stats: Callable[[], Stats]) -> Monitoring | None:
    """Make the monitoring server; None if none is configured."""
    if not config.conf["monitoring"]:
        return None
    from .service.monitoring import Monitoring  # Most consumers need no HTTP.

    address, port = config.conf["monitoring"]["address"], config.conf["monitoring"]["port"]
    if address is None:
        # Where fedora-messaging listens, and where its users' probes ask.
        address = "" if config.is_fedora_messaging else "localhost"
    return Monitoring(stats, address, port, count_published)


def _list_observers(monitoring: Monitoring | None) -> list[Observer]:
    """List the observers: one for systemd if it listens, one for monitoring if it is configured."""
    observers: list[Observer] = []
    if os.environ.get("NOTIFY_SOCKET"):
        observers.append(Notifier(os.environ))
    if monitoring is not None:
        observers.append(monitoring.history)
    return observers
