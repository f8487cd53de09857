"""Tests of the processor: what each kind of callback and message leads to."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from fmconsume import config
from fmconsume.delivery import ACK, DROP, FAIL, NACK, REJECT, SET_ASIDE, Delivery, Outcome, Verdict
from fmconsume.engine import processor as processor_module
from fmconsume.engine.failures import FailurePolicy
from fmconsume.engine.processor import Processor
from fmconsume.exceptions import (
    ConfigurationException,
    Drop,
    HaltConsumer,
    Nack,
    UndecodableError,
    ValidationError,
)

from .fakes import make_delivery


def decode_body(delivery: Delivery) -> Any:
    """Make a message of a delivery."""
    return SimpleNamespace(body=delivery.body)


class FakeRunner:
    """Stands in for the loop."""

    def __init__(self, wait_for: Callable[[Any], Any]) -> None:
        self.wait_for = wait_for


def refuse_to_wait(awaitable: Any) -> None:
    """Stand in for the loop where nothing is to be awaited."""
    raise AssertionError(f"{awaitable!r} was awaited")


def work(
    callback: Callable[[Any], Any],
    *deliveries: Delivery,
    decode: Callable[[Delivery], Any] = decode_body,
    wait_for: Callable[[Any], Any] = refuse_to_wait,
) -> list[Outcome]:
    """Let a processor run the deliveries."""
    processor = Processor(callback, decode, coroutines=FakeRunner(wait_for))  # type: ignore[arg-type]
    outcomes = [processor.process(delivery) for delivery in deliveries or (make_delivery(),)]
    assert processor.awaited is None
    return outcomes


def raising(error: Any) -> Callable[[Any], None]:
    """Make a callback that raises."""

    def callback(message: Any) -> None:
        raise error

    return callback


def test_process_callback_gets_message() -> None:
    """The callback gets what decoding made of the delivery."""
    seen: list[Any] = []
    work(lambda message: seen.append(message.body), make_delivery(body=b"ripe"))
    assert seen == [b"ripe"]


@pytest.mark.parametrize("result", [None, 0, False, "text", Nack, NACK])
def test_process_callback_returns(result: Any) -> None:
    """Whatever a callback returns, its message is acknowledged."""
    (outcome,) = work(lambda message: result)
    assert (outcome.verdict, outcome.error) == (ACK, None)


@pytest.mark.parametrize("error", [Nack, Nack(), Nack("busy", 3), Nack(make_delivery())])
def test_process_callback_raises_nack(error: Any) -> None:
    """A Nack in any shape requeues the message, and is no error."""
    outcomes = work(raising(error), make_delivery(tag=1), make_delivery(tag=2))
    assert [(o.delivery.tag, o.verdict, o.error) for o in outcomes] == [
        (1, NACK, None),
        (2, NACK, None),
    ]


@pytest.mark.parametrize("error", [Drop, Drop(), Drop("bad", 3), Drop(make_delivery())])
def test_process_callback_raises_drop(error: Any) -> None:
    """A Drop in any shape drops the message, and is no error."""
    outcomes = work(raising(error), make_delivery(tag=1), make_delivery(tag=2))
    assert [(o.verdict, o.error) for o in outcomes] == [(DROP, None), (DROP, None)]


@pytest.mark.parametrize(
    ("error", "verdict", "exit_code"),
    [
        (HaltConsumer, ACK, 0),
        (HaltConsumer(), ACK, 0),
        (HaltConsumer(3), ACK, 3),
        (HaltConsumer(3, "enough"), ACK, 3),
        (HaltConsumer(make_delivery()), ACK, 1),
        (HaltConsumer(4, requeue=True), NACK, 4),
    ],
)
def test_process_callback_halts(error: Any, verdict: Verdict, exit_code: int) -> None:
    """HaltConsumer acknowledges or requeues its message, and is reported."""
    (outcome,) = work(raising(error))
    assert outcome.verdict is verdict
    assert isinstance(outcome.error, HaltConsumer)
    assert outcome.error.exit_code == exit_code


class BareHalt(HaltConsumer):
    """A user's own subclass, whose constructor does not call ours."""

    def __init__(self, cause: str) -> None:
        self.cause = cause


def test_process_callback_halts_by_careless_subclass() -> None:
    """A subclass of HaltConsumer that skips our constructor still ends the consumer."""
    (outcome,) = work(raising(BareHalt("enough")))
    assert isinstance(outcome.error, BareHalt)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), SystemExit(0), GeneratorExit(), MemoryError()],
    ids=repr,
)
def test_process_callback_fails(error: BaseException) -> None:
    """Any other exception requeues the message, and is reported itself."""
    (outcome,) = work(raising(error))
    assert (outcome.delivery.tag, outcome.verdict) == (1, FAIL)
    assert outcome.error is error


def test_process_message_invalid() -> None:
    """A message that does not validate is rejected unseen, which is no error."""

    def decode(delivery: Delivery) -> Any:
        if delivery.tag == 1:
            raise ValidationError("the body is a list")
        return decode_body(delivery)

    seen: list[Any] = []
    outcomes = work(seen.append, make_delivery(tag=1), make_delivery(tag=2), decode=decode)
    assert [(o.verdict, o.error) for o in outcomes] == [(REJECT, None), (ACK, None)]
    assert len(seen) == 1


@pytest.mark.parametrize(
    "error",
    [ConfigurationException("no schema"), MemoryError(), SystemExit(3), GeneratorExit()],
    ids=repr,
)
def test_process_decoding_fails(error: BaseException) -> None:
    """When decoding fails for another reason, the message goes back and the consumer ends."""

    def decode(delivery: Delivery) -> Any:
        raise error

    (outcome,) = work(refuse_to_wait, decode=decode)
    assert (outcome.delivery.tag, outcome.verdict) == (1, FAIL)
    assert outcome.error is error


def generate(message: Any) -> Iterator[int]:
    """Do nothing, as nobody asks for the first value."""
    yield 1


async def generate_async(message: Any) -> AsyncIterator[int]:
    """Do nothing either."""
    yield 1


@pytest.mark.parametrize(
    "callback", [generate, generate_async, contextlib.contextmanager(generate)]
)
def test_process_callback_returns_generator(callback: Callable[[Any], Any]) -> None:
    """What a callback returns must not be code that nobody runs: that is a failure."""
    (outcome,) = work(lambda message: callback(message))
    assert outcome.verdict is FAIL
    assert isinstance(outcome.error, TypeError)
    assert "whose code never runs" in str(outcome.error)


class Promise:
    """Something awaitable."""

    def __await__(self) -> Any:
        raise AssertionError("only the loop awaits")


def test_process_callback_returns_awaitable() -> None:
    """What a callback returns is awaited, if it can be, before the message is acknowledged."""
    promise, awaited = Promise(), []
    (outcome,) = work(lambda message: promise, wait_for=awaited.append)
    assert awaited == [promise]
    assert outcome.verdict is ACK


@pytest.mark.parametrize(
    ("error", "verdict"), [(Nack, NACK), (Drop("bad"), DROP), (HaltConsumer(requeue=True), NACK)]
)
def test_process_awaitable_raises(error: Any, verdict: Verdict) -> None:
    """What an awaitable raises counts as raised by the callback."""
    (outcome,) = work(lambda message: Promise(), wait_for=raising(error))
    assert outcome.verdict is verdict


def test_process_measures_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome tells how long the callback ran."""
    now = [100.0]
    monkeypatch.setattr(processor_module, "monotonic", lambda: now[0])

    def callback(message: Any) -> None:
        now[0] += 2.5

    (outcome,) = work(callback)
    assert outcome.seconds == 2.5


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (Nack, logging.INFO),
        (Drop, logging.WARNING),
        (HaltConsumer(reason="enough"), logging.INFO),
        (RuntimeError("no"), logging.ERROR),
    ],
)
def test_process_logs_verdict(caplog: pytest.LogCaptureFixture, error: Any, level: int) -> None:
    """One log line tells which message of which queue was not simply acknowledged."""
    caplog.set_level(logging.INFO)
    work(raising(error), make_delivery(message_id="apple", queue="basket"))
    (record,) = caplog.records
    assert record.levelno == level
    assert "apple" in record.getMessage()
    assert "'basket'" in record.getMessage()
    assert bool(record.exc_info) is isinstance(error, RuntimeError)


def test_process_logs_nothing_for_ack(caplog: pytest.LogCaptureFixture) -> None:
    """A message that is simply acknowledged costs no log line."""
    caplog.set_level(logging.INFO)
    work(lambda message: None)
    assert not caplog.records


@pytest.mark.parametrize("is_alias", [False, True])
@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_process_logs_each_message(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_alias: bool,
    level: int,
) -> None:
    """Who stands in for fedora-messaging tells of each message at info, others at debug."""
    monkeypatch.setattr(config, "is_fedora_messaging", is_alias)
    caplog.set_level(level)
    work(lambda message: None, make_delivery(message_id="apple", queue="basket"))
    is_told = is_alias or level == logging.DEBUG
    assert [record.levelno for record in caplog.records] == is_told * 2 * [20 if is_alias else 10]
    for record, words in zip(caplog.records, ("received, topic ", "done")):
        assert f"message apple from queue 'basket' {words}" in record.getMessage()


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ValidationError("it is a list\nand more"), logging.WARNING),
        (ConfigurationException("it is a list"), logging.ERROR),
    ],
)
def test_process_logs_undecodable(
    caplog: pytest.LogCaptureFixture, error: Exception, level: int
) -> None:
    """One log line tells which message did not decode, and the first line of why."""

    def decode(delivery: Delivery) -> Any:
        raise error

    work(refuse_to_wait, make_delivery(message_id="apple", queue="basket"), decode=decode)
    (record,) = caplog.records
    assert record.levelno == level
    assert all(part in record.getMessage() for part in ("apple", "'basket'", "it is a list"))
    assert "and more" not in record.getMessage()


# -- what [failures] says ---------------------------------------------------------------


class Folder:
    """Keeps in memory what a processor keeps, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.kept: list[tuple[Any, Any, bool]] = []

    def keep(self, delivery: Delivery, error: BaseException | str, *, is_set_aside: bool) -> Path:
        """Keep a message."""
        if self.error is not None:
            raise self.error
        self.kept.append((delivery, error, is_set_aside))
        return Path("/kept/apple")


def judge(error: BaseException, folder: Folder | None, attempt: int = 1, **policy: Any) -> Outcome:
    """Run a callback that raises, under a policy."""
    delivery = make_delivery()
    delivery.attempt = attempt
    keep = folder.keep if folder else None
    rules = FailurePolicy(**policy)
    return Processor(raising(error), decode_body, keep, policy=rules).process(delivery)


@pytest.mark.parametrize(
    ("on_exception", "verdict"), [(FAIL, FAIL), (NACK, NACK), (DROP, DROP)], ids=str
)
def test_process_on_exception(on_exception: Verdict, verdict: Verdict) -> None:
    """Only a failure that halts ends the consumer; what halts or is dropped is kept."""
    error, folder = RuntimeError("no"), Folder()
    outcome = judge(error, folder, on_exception=on_exception)
    is_halt = verdict is FAIL
    assert (outcome.verdict, outcome.error) == (verdict, error if is_halt else None)
    kept = [] if verdict is NACK else [(error, verdict is DROP)]
    assert [(each[1], each[2]) for each in folder.kept] == kept


@pytest.mark.parametrize(
    ("attempt", "verdict", "told"),
    [
        (2, ACK, "its consumer died once while it ran; it runs again, attempt 2 of 3"),
        (4, SET_ASIDE, "its consumer died once while it ran"),
    ],
)
def test_process_after_a_death(
    caplog: pytest.LogCaptureFixture, attempt: int, verdict: Verdict, told: str
) -> None:
    """A message that has had its attempts is set aside, and the callback does not see it."""
    delivery, folder, seen = make_delivery(), Folder(), []
    delivery.attempt, delivery.returns, delivery.deaths = attempt, attempt - 1, 1
    policy = FailurePolicy(max_attempts=3)
    processor = Processor(seen.append, decode_body, folder.keep, policy=policy)
    assert processor.process(delivery).verdict is verdict
    assert len(seen) == (verdict is ACK)
    assert [(each[1], each[2]) for each in folder.kept] == ([] if seen else [(told, True)])
    (record,) = caplog.records
    assert record.getMessage().endswith(told)
    if verdict is SET_ASIDE:
        folder.error = OSError("full")
        assert processor.process(delivery).verdict is NACK
        assert not seen


def test_process_expected(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is named is no surprise: one line, and no traceback."""
    outcome = judge(ConnectionError("away"), None, nack_on=(OSError,))
    assert (outcome.verdict, outcome.error) == (NACK, None)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("put back: ConnectionError: away")
    assert record.exc_info is None


@pytest.mark.parametrize("error", [Nack(), RuntimeError("no")], ids=repr)
def test_process_last_attempt(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """After the last attempt a message is kept and set aside, and the consumer goes on."""
    folder = Folder()
    assert judge(error, folder, 2, max_attempts=3).verdict in (NACK, FAIL)
    folder.kept.clear()
    caplog.clear()
    outcome = judge(error, folder, 3, max_attempts=3)
    assert (outcome.verdict, outcome.error) == (SET_ASIDE, None)
    assert [(each[1], each[2]) for each in folder.kept] == [(error, True)]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    for part in ("apple", "set aside", "/kept/apple", "attempt 3 of 3"):
        assert part in record.getMessage()


def test_process_last_attempt_without_folder() -> None:
    """Without a folder the dead-letter exchange has to do."""
    assert judge(Nack(), None, 3, max_attempts=3).verdict is SET_ASIDE


def test_process_last_attempt_disk_full(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be kept is not rejected: it goes back to its queue."""
    folder = Folder(OSError(28, "No space left on device"))
    outcome = judge(RuntimeError("no"), folder, 3, max_attempts=3)
    assert (outcome.verdict, outcome.error) == (NACK, None)
    assert "could not be kept, so that it is put back: OSError" in caplog.text


def test_process_halt_is_no_failure() -> None:
    """A callback that halts the consumer did not fail, however often it was tried."""
    outcome = judge(HaltConsumer(3, requeue=True), Folder(), 9, max_attempts=3)
    assert (outcome.verdict, outcome.seconds > 0) == (NACK, True)
    assert isinstance(outcome.error, HaltConsumer)


@pytest.mark.parametrize("error", [UndecodableError("no JSON"), ValidationError("no id")])
def test_process_rejected_is_kept(error: ValidationError) -> None:
    """What the callback never sees is kept before it is rejected; a flaw is told."""

    def decode(delivery: Delivery) -> Any:
        raise error

    folder = Folder()
    outcome = Processor(refuse_to_wait, decode, folder.keep).process(make_delivery())
    assert outcome.verdict is REJECT
    assert outcome.flaw == ("no JSON" if isinstance(error, UndecodableError) else "")
    assert [(each[1], each[2]) for each in folder.kept] == [(str(error), True)]
    folder.error = OSError(28, "No space left on device")
    assert Processor(refuse_to_wait, decode, folder.keep).process(make_delivery()).verdict is NACK
