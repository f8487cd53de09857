"""What most users call: `consume`, which blocks until consuming ends, and the Consumer under it.

Any thread may call; signals are handled only when it is the main thread.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, Callable

from .broker.session import open_session
from .config import conf
from .engine.pool import make_pool
from .engine.processor import Keep, make_processor
from .engine.states import End, Observer, State, Stats
from .engine.supervisor import Supervisor
from .engine.workers import Worker
from .exceptions import ExitCode, FmconsumeError
from .log import get_logger, quieten_pika
from .message import SERIALIZED_MESSAGE_SCHEMA, SEVERITIES, Message, dumps, loads
from .publisher import publish
from .service.systemd import Notifier
from .shortage import shortage
from .wakeup import WakeupQueue
from .wiring import addresses, options, topology

if TYPE_CHECKING:
    from .service.monitoring import Monitoring

__all__ = [
    "SERIALIZED_MESSAGE_SCHEMA",
    "SEVERITIES",
    "Consumer",
    "Message",
    "consume",
    "dumps",
    "loads",
    "publish",
]

_log = get_logger(__name__)

#: Seconds that threads get to end once there is nothing to wait for.
_DEADLINE = 5.0
#: Seconds between two looks whether the supervisor is there; it reports its end itself.
_LOOK = 60.0
#: The event that asks to stop; signals come as their numbers.
_STOP = "stop"


class Consumer:
    """Consumes messages with a callback; for those who embed it.

    A consumer runs once. The configuration is read when it is made.

    Args:
        callback: Takes a Message. A class is instantiated here, without
            arguments; what a coroutine function returns is awaited.
        bindings: One mapping or several, each with "exchange", "routing_keys"
            and perhaps "queue"; None takes the configuration's.
        queues: Queue name to its settings; None takes the configuration's.
        workers: Callbacks that run at the same time; None takes the
            configuration's.
        limit: Stop after so many messages; None is no limit.
        drain: Stop once the queues are empty but for what the callback returned.

    Raises:
        ValueError: An argument cannot be used; the message names the key.
        ConfigurationException: The configuration cannot be used.
        UnavailableException: The folder for failed messages is not to be had.
        Exception: Whatever the constructor of a callback class raises.
    """

    def __init__(
        self,
        callback: Callable[..., Any],
        bindings: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        queues: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        workers: int | None = None,
        limit: int | None = None,
        drain: bool = False,
    ) -> None:
        #: Signal numbers, `_STOP` and the End; filled by signal handlers and any thread.
        self._events = WakeupQueue()
        #: Exit status for a command; set when `run` ends.
        self.exit_code: int = ExitCode.UNEXPECTED
        brokers, wanted = addresses(), topology(bindings, queues)
        engine_options = options(workers, limit, drain)
        processor = make_processor(callback, conf["body"], _make_keep())
        self._coroutines = processor.coroutines
        monitoring = _make_monitoring(lambda: self.stats)
        #: Serves while the consumer runs.
        self._monitoring: AbstractContextManager[Any] = monitoring or nullcontext()
        self._supervisor = Supervisor(
            addresses=brokers,
            topology=wanted,
            options=engine_options,
            open_session=open_session,
            make_pool=partial(make_pool, processor, engine_options.workers),
            report=self._events.put,
            observers=_list_observers(monitoring),
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
            UnavailableException: The port for monitoring is in use, or no thread can be started.
            ConfigurationException: The address for monitoring is none.
            HaltConsumer: The callback raised it.
            ConsumerCanceled: The broker cancelled the consumer, and the queue is gone.
            BadDeclaration, PermissionException, ConnectionException: The broker refuses.
            KeyboardInterrupt: A second signal came before the callbacks had finished.
            Exception: Whatever else the callback raised.
        """
        quieten_pika()
        with ExitStack() as stack:
            self._start(stack)
            end = self._wait()
            self.exit_code = end.exit_code
            self._join()
        if end.error is not None:
            raise end.error

    def _start(self, stack: ExitStack) -> None:
        """Start what consumes; what this machine does not give now it may give later."""
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
        """Pass on what comes until the supervisor reports the end, or is gone without a word."""
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
                # It reports before it ends, perhaps after the wait was over.
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
        """Give the end that is among the events, or raise queue.Empty."""
        while True:
            event = self._events.get(0)
            if isinstance(event, End):
                return event

    def _join(self) -> None:
        """Let the threads end, and name those that do not."""
        self._supervisor.join(_DEADLINE)
        # Before the workers: what an abandoned coroutine holds up ends with it.
        self._coroutines.close(_DEADLINE)
        threads: list[Supervisor | Worker] = [self._supervisor, *self._supervisor.workers]
        for thread in threads:
            # Nobody waits for an abandoned callback.
            is_busy = isinstance(thread, Worker) and thread.current is not None
            if thread.is_alive():  # One that could not be started cannot be joined.
                thread.join(0 if is_busy else _DEADLINE)
            if thread.is_alive():
                _log.warning("thread %s did not end and is left behind", thread.name)


def consume(
    callback: Callable[..., Any],
    bindings: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    queues: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    workers: int | None = None,
) -> None:
    """Consume messages until a signal or the callback ends it.

    The first SIGTERM or SIGINT lets running callbacks finish, a second one does
    not wait for them. Both are handled only in the main thread.

    Args:
        callback: As for Consumer.
        bindings: As for Consumer.
        queues: As for Consumer.
        workers: As for Consumer.

    Raises:
        ValueError: An argument cannot be used; nothing was connected.
        Exception: Whatever the constructor of a callback class raises.
        HaltConsumer: The callback raised it; and see Consumer.run.
    """
    Consumer(callback, bindings, queues, workers=workers).run()


def _make_keep() -> Keep | None:
    """Make what keeps failed messages, where the configuration wants that."""
    folder = conf["failed_messages"]
    if not folder:
        return None
    from .recording import FailedMessages  # Most consumers keep none.

    return FailedMessages(folder, conf["failed_messages_limit"], conf["body"]).keep


def _make_monitoring(stats: Callable[[], Stats]) -> Monitoring | None:
    """Make the monitoring server, where the configuration wants one."""
    if not conf["monitoring"]:
        return None
    from .service.monitoring import Monitoring  # Most consumers need no HTTP.

    return Monitoring(stats, **conf["monitoring"])


def _list_observers(monitoring: Monitoring | None) -> list[Observer]:
    """List those that systemd and the configuration want."""
    observers: list[Observer] = []
    if os.environ.get("NOTIFY_SOCKET"):
        observers.append(Notifier(os.environ))
    if monitoring is not None:
        observers.append(monitoring.history)
    return observers
