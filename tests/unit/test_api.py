"""Tests of consume and Consumer, with a supervisor that does what the test says."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Callable

import pytest

from fmconsume import api, config_file, watch
from fmconsume.api import Consumer, consume
from fmconsume.config import DEFAULTS, LazyConfig
from fmconsume.engine import processor as processor_module
from fmconsume.engine.coroutines import CoroutineRunner
from fmconsume.engine.states import End, Phase, State, Stats
from fmconsume.exceptions import (
    ConfigurationException,
    ExitCode,
    HaltConsumer,
    StopTimeout,
    UnavailableException,
)
from fmconsume.wakeup import WakeupQueue

from .fakes import TIMEOUT, get_soon, make_delivery, restored_configuration

DONE = End(None, 0)


def handle(number: int) -> None:
    """Call the handler of a signal."""
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


class FakeSupervisor:
    """WakeupQueue what is asked of it, and answers as the stage says."""

    name = "fmconsume-supervisor"

    def __init__(
        self,
        stage: Stage,
        *,
        addresses: Any,
        topology: Any,
        options: Any,
        open_session: Any,
        make_pool: Any,
        report: Any,
        observers: Any,
        notes: Any,
    ) -> None:
        self.addresses, self.topology, self.options = addresses, topology, options
        self.make_pool, self.report, self.notes = make_pool, report, notes
        self.observers = observers
        self._stage = stage
        self.workers: list[Any] = []
        self.stats = Stats(received=3)
        self.state = State(Phase.CONSUMING, "consuming from nowhere")
        self.calls: SimpleQueue[Any] = SimpleQueue()

    @property
    def callback(self) -> Any:
        """The callback that the workers would have."""
        return self.make_pool.args[0]._callback

    def start(self) -> None:
        self.calls.put("start")
        self._stage.on_start(self)

    def stop(self) -> None:
        self.calls.put("stop")
        self._stage.on_stop(self)

    def abandon(self, end: End) -> None:
        self.calls.put(end)
        self._stage.on_abandon(self, end)

    def join(self, timeout: float) -> None:
        self.calls.put("join")

    def is_alive(self) -> bool:
        return False


class Stage:
    """Makes supervisors, and says how they behave."""

    def __init__(self) -> None:
        self.made: list[FakeSupervisor] = []
        self.on_start: Callable[[FakeSupervisor], None] = lambda supervisor: None
        self.on_stop: Callable[[FakeSupervisor], None] = lambda supervisor: supervisor.report(DONE)
        self.on_abandon: Callable[[FakeSupervisor, End], None] = lambda supervisor, end: (
            supervisor.report(end)
        )

    def make(self, **kwargs: Any) -> FakeSupervisor:
        """Stand in for the class Supervisor."""
        self.made.append(FakeSupervisor(self, **kwargs))
        return self.made[-1]

    @property
    def supervisor(self) -> FakeSupervisor:
        """The only one made."""
        (supervisor,) = self.made
        return supervisor

    def report_at_once(self, end: End = DONE) -> None:
        """Let the supervisor end as soon as it is started."""
        self.on_start = lambda supervisor: supervisor.report(end)

    def signal_at_start(self, *numbers: int) -> None:
        """Handle signals one after the other, each once the last has arrived."""

        def send(supervisor: FakeSupervisor) -> None:
            assert get_soon(supervisor.calls) == "start"
            for number in numbers:
                handle(number)
                arrived.append(get_soon(supervisor.calls))

        def start(supervisor: FakeSupervisor) -> None:
            self.sender = threading.Thread(target=send, args=(supervisor,), daemon=True)
            self.sender.start()

        arrived: list[Any] = []
        self.arrived = arrived
        self.on_start = start


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Put a stage in place of the engine."""
    result = Stage()
    monkeypatch.setattr(api, "Supervisor", result.make)
    monkeypatch.setattr(watch, "_ECHO", 0.0)
    return result


@pytest.fixture(autouse=True)
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LazyConfig]:
    """Use the defaults."""
    monkeypatch.setattr(config_file, "_DEFAULT_PATH", str(tmp_path / "absent.toml"))
    with restored_configuration() as conf:
        yield conf.load_config()


@pytest.fixture(autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give the main thread an event loop of its own, as a program with asyncio has one."""
    result = asyncio.new_event_loop()
    asyncio.set_event_loop(result)
    yield result
    asyncio.set_event_loop(None)
    result.close()


def callback(message: Any) -> None:
    """Take a message."""


def test_consumer_warns_of_exposed_password(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A password that everybody may read is one warning, and the consumer is made."""
    monkeypatch.setattr(api, "list_exposures", lambda: ["a.toml holds a password"])
    Consumer(callback)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "a.toml holds a password")


# -- arguments ------------------------------------------------------------------

QUEUES = {"fruit": {"durable": True}}


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"callback": None}, "callback"),
        ({"callback": "package.module:object"}, "callback"),
        ({"bindings": 7}, "bindings"),
        ({"bindings": [{"exchange": "market"}]}, "bindings[0].routing_keys"),
        ({"bindings": {"queue": "veg", "exchange": "x", "routing_keys": []}}, "bindings[0].queue"),
        ({"queues": {}}, "queues"),
        ({"queues": {"fruit": {"durably": True}}}, "queues.fruit.durably"),
        ({"queues": ["fruit"]}, "queues"),
        ({"workers": 0}, "workers"),
        ({"workers": True}, "workers"),
        ({"workers": "2"}, "workers"),
    ],
)
def test_consume_bad_argument(stage: Stage, arguments: dict[str, Any], key: str) -> None:
    """An argument that cannot be used is a ValueError that names the key; nothing is started."""
    with pytest.raises(ValueError, match=r".") as caught:
        consume(**{"callback": callback, **arguments})
    assert f"{key}: found " in str(caught.value)
    assert not stage.made


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_consumer_bad_limit(stage: Stage, limit: Any) -> None:
    """A limit below 1 or of another type is a ValueError that names it."""
    with pytest.raises(ValueError, match=r"^limit: found "):
        Consumer(callback, limit=limit)
    assert not stage.made


def test_consumer_bad_address(stage: Stage, conf: LazyConfig) -> None:
    """A certificate that is not there is told with the broker, without the password."""
    conf["amqp_url"] = "amqps://ann:s3cret@rabbit.example"
    conf["tls"]["ca_cert"] = "/nowhere/ca.pem"
    with pytest.raises(ConfigurationException, match=r"amqp_url .*rabbit\.example") as caught:
        Consumer(callback)
    assert "s3cret" not in str(caught.value)
    assert "No such file" in str(caught.value)


def test_consumer_configured(stage: Stage, conf: LazyConfig) -> None:
    """Without arguments the configuration is used."""
    conf["amqp_url"] = ["amqp://a:b@far", "amqp://a:b@near"]
    conf["workers"] = 3
    conf["failures"] = {**DEFAULTS["failures"], "delay": {"initial": 2.0, "max": 9.0}}
    Consumer(callback)
    supervisor = stage.supervisor
    assert [address.parameters().host for address in supervisor.addresses] == ["far", "near"]
    assert supervisor.topology.queues == conf["queues"]
    assert supervisor.topology.bindings == conf["bindings"]
    assert supervisor.topology.prefetch_count == 10
    assert supervisor.options.workers == 3
    assert (supervisor.options.nack_initial, supervisor.options.nack_maximum) == (2.0, 9.0)
    assert supervisor.options.limit is None


def test_consumer_arguments(stage: Stage) -> None:
    """Arguments go before the configuration, with defaults filled in."""
    binding = {"queue": "fruit", "exchange": "market", "routing_keys": ["a.#"]}
    Consumer(callback, binding, QUEUES, workers=2, limit=5)
    supervisor = stage.supervisor
    assert supervisor.topology.queues["fruit"]["durable"] is True
    assert supervisor.topology.queues["fruit"]["auto_delete"] is False
    assert [dict(each) for each in supervisor.topology.bindings] == [binding]
    assert (supervisor.options.workers, supervisor.options.limit) == (2, 5)


def test_consumer_queues_without_bindings(stage: Stage) -> None:
    """Bindings of the configuration that mean other queues are left out."""
    Consumer(callback, queues=QUEUES)
    assert list(stage.supervisor.topology.queues) == ["fruit"]
    assert stage.supervisor.topology.bindings == []


# -- running --------------------------------------------------------------------


def test_consume_returns(stage: Stage) -> None:
    """When asked to stop, consume returns."""
    stage.report_at_once()
    consume(callback)
    assert get_soon(stage.supervisor.calls) == "start"
    assert get_soon(stage.supervisor.calls) == "join"


@pytest.mark.parametrize(
    ("error", "exit_code"), [(HaltConsumer(7), 7), (RuntimeError("no"), 13), (SystemExit(3), 13)]
)
def test_run_raises(stage: Stage, error: BaseException, exit_code: int) -> None:
    """What ended consuming is raised itself, and the exit code is kept."""
    stage.report_at_once(End(error, exit_code))
    consumer = Consumer(callback)
    with pytest.raises(type(error)) as caught:
        consumer.run()
    assert caught.value is error
    assert consumer.exit_code == exit_code


def test_stop_from_other_thread(stage: Stage) -> None:
    """stop() is passed on to the supervisor, from whatever thread, and however often."""
    consumer = Consumer(callback)

    def stop(supervisor: FakeSupervisor) -> None:
        for _ in range(3):
            thread = threading.Thread(target=consumer.stop)
            thread.start()
            thread.join()

    stage.on_start = stop
    consumer.run()
    assert get_soon(stage.supervisor.calls) == "start"
    assert get_soon(stage.supervisor.calls) == "stop"


def test_stop_before_run(stage: Stage) -> None:
    """A stop that comes early is not lost."""
    consumer = Consumer(callback)
    consumer.stop()
    consumer.run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_first_signal(stage: Stage, number: int) -> None:
    """The first signal stops gracefully: consume returns."""
    stage.signal_at_start(number)
    consume(callback)
    stage.sender.join(TIMEOUT)
    assert stage.arrived == ["stop"]


def test_run_signal_does_not_interrupt_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is noticed even if it does not interrupt the main thread's wait.

    It does not when it arrives just before the wait begins, or when the kernel hands it
    to another thread, as here.
    """
    is_waiting = threading.Event()

    class Announced(WakeupQueue):
        def get(self, timeout: float | None) -> Any:
            is_waiting.set()
            return super().get(timeout)

    monkeypatch.setattr(api, "WakeupQueue", Announced)
    arrived: list[Any] = []
    consumer = Consumer(callback)

    def send(supervisor: FakeSupervisor) -> None:
        assert get_soon(supervisor.calls) == "start"
        is_waiting.wait(0.5)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        with suppress(Empty):
            arrived.append(supervisor.calls.get(timeout=2))
        supervisor.report(DONE)

    def start(supervisor: FakeSupervisor) -> None:
        threading.Thread(target=send, args=(supervisor,)).start()

    stage.on_start = start
    stage.on_stop = lambda supervisor: None
    consumer.run()
    assert arrived == ["stop"]


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
def test_run_second_signal(stage: Stage, first: int, second: int) -> None:
    """The second signal does not wait for callbacks; it is KeyboardInterrupt, and 128 + n."""
    stage.on_stop = lambda supervisor: None
    stage.signal_at_start(first, second)
    consumer = Consumer(callback)
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(second).name):
        consumer.run()
    assert consumer.exit_code == 128 + second


def test_run_same_signal_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same signal counts once within a moment, and another one counts at once."""
    monkeypatch.setattr(watch, "_ECHO", 1000.0)
    stage.on_stop = lambda supervisor: [handle(signal.SIGTERM), handle(signal.SIGINT)]
    stage.signal_at_start(signal.SIGTERM)
    consumer = Consumer(callback)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        consumer.run()
    assert consumer.exit_code == 128 + signal.SIGINT


def test_run_second_signal_after_stop(stage: Stage) -> None:
    """A signal after stop() is the first signal."""
    stage.on_stop = lambda supervisor: None
    consumer = Consumer(callback)

    def stop_and_signal(supervisor: FakeSupervisor) -> None:
        consumer.stop()
        consumer.stop()
        threading.Thread(target=send, args=(supervisor,)).start()

    def send(supervisor: FakeSupervisor) -> None:
        assert [get_soon(supervisor.calls) for _ in range(3)] == ["start", "stop", "stop"]
        stage.on_stop = lambda supervisor: supervisor.report(DONE)
        handle(signal.SIGTERM)

    stage.on_start = stop_and_signal
    consumer.run()


def test_run_stop_after_second_signal(stage: Stage) -> None:
    """stop() after a second signal changes nothing."""
    stage.on_stop = lambda supervisor: None

    def abandon(supervisor: FakeSupervisor, end: End) -> None:
        consumer.stop()
        supervisor.report(end)

    stage.on_abandon = abandon
    stage.signal_at_start(signal.SIGTERM, signal.SIGTERM)
    consumer = Consumer(callback)
    with pytest.raises(KeyboardInterrupt):
        consumer.run()
    assert consumer.exit_code == 128 + signal.SIGTERM


def test_run_supervisor_hangs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that hangs on a dead line does not keep a forced stop waiting."""
    monkeypatch.setattr(watch, "_DEADLINE", 0.05)
    stage.on_stop = lambda supervisor: None
    stage.on_abandon = lambda supervisor, end: None
    stage.signal_at_start(signal.SIGTERM, signal.SIGTERM)
    consumer = Consumer(callback)
    with pytest.raises(KeyboardInterrupt):
        consumer.run()
    assert consumer.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize("does_report", [True, False])
def test_run_stop_timeout(
    stage: Stage, conf: LazyConfig, monkeypatch: pytest.MonkeyPatch, does_report: bool
) -> None:
    """Callbacks that still run stop_timeout after the stop are abandoned, with exit code 17."""
    monkeypatch.setattr(watch, "_DEADLINE", 0.05)
    conf["stop_timeout"] = 0.05
    stage.on_stop = lambda supervisor: None
    if not does_report:
        stage.on_abandon = lambda supervisor, end: None
    stage.signal_at_start(signal.SIGTERM)
    consumer = Consumer(callback)
    with pytest.raises(StopTimeout, match=r"the stop has taken 0\.05 s"):
        consumer.run()
    assert consumer.exit_code == ExitCode.STOP_TIMEOUT


def test_run_stop_timeout_of_other_end(stage: Stage, conf: LazyConfig) -> None:
    """The time counts from the moment the supervisor begins to stop, for whatever reason."""
    conf["stop_timeout"] = 0.05
    stage.on_start = lambda supervisor: [
        observer.on_state(State(Phase.STOPPING, "stopping")) for observer in supervisor.observers
    ]
    consumer = Consumer(callback)
    with pytest.raises(StopTimeout):
        consumer.run()
    assert get_soon(stage.supervisor.calls) == "start"
    assert isinstance(get_soon(stage.supervisor.calls), End)


def ignore_signal(number: int, frame: Any) -> None:
    """Handle a signal."""


@pytest.mark.parametrize("before", [ignore_signal, signal.SIG_IGN, signal.SIG_DFL])
@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_run_restores_signals(stage: Stage, before: Any, error: Any) -> None:
    """However it ends, the signal handlers from before are back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stage.report_at_once(End(error, 0))
    try:
        for number in kept:
            signal.signal(number, before)
        try:
            consume(callback)
        except RuntimeError as exc:
            assert exc is error  # noqa: PT017
        assert [signal.getsignal(number) for number in kept] == [before, before]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_run_supervisor_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that is gone without a word ends the consumer."""
    monkeypatch.setattr(watch, "_LOOK", 0.01)
    consumer = Consumer(print)
    with pytest.raises(RuntimeError, match="the supervisor is gone"):
        consumer.run()
    assert consumer.exit_code == ExitCode.UNEXPECTED


def test_run_no_thread(stage: Stage) -> None:
    """Where no thread can be started the consumer may be tried again, with exit code 1."""

    def fail(supervisor: FakeSupervisor) -> None:
        raise RuntimeError("can't start new thread")

    stage.on_start = fail
    consumer = Consumer(callback)
    with pytest.raises(UnavailableException, match="no thread can be started now") as caught:
        consumer.run()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert consumer.exit_code == ExitCode.TEMPORARY


def test_run_port_in_use(stage: Stage, conf: LazyConfig) -> None:
    """A port that is taken may be free later: exit code 1, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        conf["monitoring"] = {"address": "127.0.0.1", "port": other.getsockname()[1]}
        consumer = Consumer(callback)
        with pytest.raises(UnavailableException, match="Address already in use"):
            consumer.run()
    assert consumer.exit_code == ExitCode.TEMPORARY
    assert stage.supervisor.calls.empty()


def test_run_twice(stage: Stage) -> None:
    """A second run is refused, and does nothing to the first."""
    refused: list[str] = []

    def run_again(supervisor: FakeSupervisor) -> None:
        with pytest.raises(RuntimeError, match="a Consumer runs once") as caught:
            consumer.run()
        refused.append(str(caught.value))
        raise OSError("away")

    stage.on_start = run_again
    consumer = Consumer(callback)
    with pytest.raises(OSError, match="away"):
        consumer.run()
    assert len(refused) == 1
    assert consumer.exit_code == ExitCode.TEMPORARY


def test_run_cannot_start(stage: Stage) -> None:
    """What is no shortage of the machine's stays a bug of the program's."""

    def fail(supervisor: FakeSupervisor) -> None:
        raise RuntimeError("threads can only be started once")

    stage.on_start = fail
    consumer = Consumer(callback)
    with pytest.raises(RuntimeError, match="only be started once"):
        consumer.run()
    assert consumer.exit_code == ExitCode.UNEXPECTED


def test_consumer_no_folder(stage: Stage, conf: LazyConfig, tmp_path: Path) -> None:
    """A folder for failed messages that is not to be had may be there later."""
    (tmp_path / "file").touch()
    conf["failures"] = {**DEFAULTS["failures"], "keep_in": str(tmp_path / "file" / "failed")}
    with pytest.raises(UnavailableException, match=r"failures.keep_in .*Not a directory"):
        Consumer(callback)
    with pytest.raises(ValueError, match="expected a function"):
        Consumer(17)  # type: ignore[arg-type]


def test_run_outside_main_thread(stage: Stage) -> None:
    """In another thread signals are left alone, and consuming works all the same."""
    before = signal.getsignal(signal.SIGTERM)
    during: list[Any] = []
    errors: list[BaseException] = []

    def start(supervisor: FakeSupervisor) -> None:
        during.append(signal.getsignal(signal.SIGTERM))
        supervisor.report(End(HaltConsumer(7), 7))

    def run() -> None:
        try:
            consume(callback)
        except BaseException as exc:
            errors.append(exc)

    stage.on_start = start
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(TIMEOUT)
    assert during == [before]
    assert [type(error) for error in errors] == [HaltConsumer]


def test_run_names_threads_left_behind(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A thread that does not end is named in the log."""

    class Stuck:
        name = "fmconsume-worker-1"

        def join(self, timeout: float) -> None:
            pass

        def is_alive(self) -> bool:
            return True

    stage.report_at_once()
    consumer = Consumer(callback)
    stage.supervisor.workers = [Stuck()]
    consumer.run()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "fmconsume-worker-1" in record.getMessage()


def test_stats_is_copy(stage: Stage) -> None:
    """What stats gives does not change afterwards; state is the supervisor's."""
    consumer = Consumer(callback)
    stats = consumer.stats
    stage.supervisor.stats.received += 1
    assert (stats.received, consumer.stats.received) == (3, 4)
    assert consumer.state == stage.supervisor.state


# -- callbacks ------------------------------------------------------------------


async def coroutine_callback(message: Any) -> None:
    """Take a message."""


class AsyncTaker:
    """Takes messages, asynchronously."""

    async def __call__(self, message: Any) -> None:
        """Take a message."""

    async def method(self, message: Any) -> None:
        """Take a message."""


def list_loops() -> list[str]:
    """List the threads that run loops of ours."""
    return [t.name for t in threading.enumerate() if t.name == "fmconsume-asyncio"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (coroutine_callback, 1),
        (partial(partial(coroutine_callback)), 1),
        (AsyncTaker, 1),
        (AsyncTaker(), 1),
        (AsyncTaker().method, 1),
        (callback, 0),
        (print, 0),
    ],
)
def test_run_starts_loop(stage: Stage, function: Any, expected: int) -> None:
    """The loop runs for the whole life of a coroutine callback, and only for such."""
    during: list[str] = []

    def start(supervisor: FakeSupervisor) -> None:
        inbox, (worker,), *_ = supervisor.make_pool(print)
        worker.start()
        inbox.put(None)
        during.extend(list_loops())
        supervisor.report(DONE)

    stage.on_start = start
    consume(function)
    assert len(during) == expected
    assert not list_loops()


def test_consumer_class_sees_loop(stage: Stage, loop: asyncio.AbstractEventLoop) -> None:
    """In the constructor of a callback class the current loop is the one that awaits."""

    class Taker(AsyncTaker):
        def __init__(self) -> None:
            self.loop = asyncio.get_event_loop()

        async def __call__(self, message: Any) -> None:
            seen.put(asyncio.get_running_loop())

    seen: SimpleQueue[asyncio.AbstractEventLoop] = SimpleQueue()
    stage.report_at_once()
    consumer = Consumer(Taker)
    supervisor = stage.supervisor
    inbox, (worker,), *_ = supervisor.make_pool(print)
    worker.start()
    inbox.put(make_delivery())
    assert get_soon(seen) is supervisor.callback.loop
    inbox.put(None)
    assert asyncio.get_event_loop() is loop
    consumer.run()
    assert supervisor.callback.loop.is_closed()


def test_consumer_class_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a callback class cannot be constructed, no loop is left open."""
    runners: list[CoroutineRunner] = []

    def make() -> CoroutineRunner:
        runners.append(CoroutineRunner())
        return runners[-1]

    class Needy(AsyncTaker):
        def __init__(self, size: int) -> None:
            pass

    monkeypatch.setattr(processor_module, "CoroutineRunner", make)
    with pytest.raises(ValueError, match="Needy could not be constructed"):
        Consumer(Needy)
    is_closed = [runner.loop.is_closed() for runner in runners]
    for runner in runners:
        runner.loop.close()
    assert all(is_closed)


@pytest.mark.parametrize(
    "error", [ValueError("too early"), ConnectionRefusedError("database"), SystemExit(3)], ids=repr
)
@pytest.mark.parametrize("base", [object, AsyncTaker])
def test_consumer_class_raises(stage: Stage, error: BaseException, base: type) -> None:
    """What the constructor of a callback class raises is raised itself."""

    class Failing(base):  # type: ignore[misc]
        def __init__(self) -> None:
            raise error

    with pytest.raises(type(error)) as caught:
        Consumer(Failing)
    assert caught.value is error
    assert not stage.made


def test_consumer_class_made_once(stage: Stage) -> None:
    """A callback class is instantiated once, before anything connects."""
    made: list[Any] = []

    class Taker(AsyncTaker):
        def __init__(self) -> None:
            made.append(len(stage.made))

    stage.report_at_once()
    consume(Taker)
    assert made == [0]
    assert isinstance(stage.supervisor.callback, Taker)
