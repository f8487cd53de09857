"""Tests of the opener: whenever it is abandoned, its session is closed exactly once."""

from __future__ import annotations

import itertools
import threading
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Callable

import pytest

from fmconsume.broker.errors import SessionLost
from fmconsume.broker.opener import SessionOpener
from fmconsume.exceptions import BadDeclaration

from .fakes import TIMEOUT, wait_soon

#: Where another thread may come between two steps of an opener.
POINTS = ("start", "connect", "declare", "consume", "close", "put", "did put", "done", "end")


class FakeSession:
    """A session without a broker, which tells where it is."""

    def __init__(self, at: Callable[[str], None], fails_at: str = "") -> None:
        self._at = at
        self._fails_at = fails_at
        self.closed = 0
        self.steps: list[str] = []

    def _step(self, name: str) -> None:
        self._at(name)
        self.steps.append(name)
        if name == self._fails_at:
            raise SessionLost(f"cannot {name}")

    def open(self) -> FakeSession:
        """Pretend to open it; what fails on the way is closed, as `open_session` does."""
        try:
            self._step("connect")
            self._step("declare")
        except BaseException:
            self.discard()
            raise
        return self

    def consume(self, prefetch_count: int | None = None) -> None:
        """Pretend to consume."""
        self._step("consume")

    def discard(self) -> None:
        """Count the closes."""
        self._at("close")
        self.closed += 1


def make_opener(session: FakeSession, call_when_done: Callable[[], None]) -> SessionOpener:
    """Make an opener of a session."""
    return SessionOpener(session.open, 3, call_when_done)  # type: ignore[arg-type]


def test_get_success() -> None:
    """A session is handed over open, and whoever waits is called."""
    session, done = FakeSession(lambda name: None), Event()
    opener = make_opener(session, done.set)
    with pytest.raises(Empty):
        opener.get()
    opener.start()
    wait_soon(done)
    assert opener.get() is session
    opener.join(TIMEOUT)
    assert session.steps == ["connect", "declare", "consume"]
    assert session.closed == 0


@pytest.mark.parametrize("step", ["connect", "declare", "consume"])
def test_get_failure(step: str) -> None:
    """What goes wrong is raised by get, after the session was closed."""
    session, done = FakeSession(lambda name: None, fails_at=step), Event()
    opener = make_opener(session, done.set)
    opener.start()
    wait_soon(done)
    with pytest.raises(SessionLost, match=f"cannot {step}"):
        opener.get()
    assert session.closed == 1


def test_get_unexpected_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception reaches get: a refusal, or a bug."""
    for error in (BadDeclaration("queue", "q", "no"), KeyError("q")):
        session = FakeSession(lambda name: None)
        monkeypatch.setattr(session, "consume", lambda count, error=error: raise_error(error))
        opener = make_opener(session, lambda: None)
        opener.run()
        with pytest.raises(type(error)):
            opener.get()
        assert session.closed == 1


def raise_error(error: Exception) -> None:
    """Raise it."""
    raise error


def test_abandon_while_connecting() -> None:
    """Abandoning waits for nothing; the session is closed once it is open, and never consumes."""
    reached, go_on, done = Event(), Event(), Event()

    def at(name: str) -> None:
        if name == "connect":
            reached.set()
            wait_soon(go_on)

    session = FakeSession(at)
    opener = make_opener(session, done.set)
    opener.start()
    wait_soon(reached)
    opener.abandon()
    assert session.closed == 0
    go_on.set()
    wait_soon(done)
    assert session.steps == ["connect", "declare"]
    assert session.closed == 1
    with pytest.raises(Empty):
        opener.get()


def test_start_is_named_daemon() -> None:
    """The thread has a name, and does not keep the process."""
    opener = make_opener(FakeSession(lambda name: None), lambda: None)
    assert (opener.name, opener.daemon) == ("fmconsume-opener", True)


class WatchedResult:
    """A SimpleQueue that tells where its users are."""

    def __init__(self, at: Callable[[str], None]) -> None:
        self._at = at
        self._queue: SimpleQueue[Any] = SimpleQueue()

    def put(self, item: Any) -> None:
        """Put, and tell before and after."""
        self._at("put")
        self._queue.put(item)
        self._at("did put")

    def get_nowait(self) -> Any:
        """Get, and tell before."""
        self._at("get")
        return self._queue.get_nowait()


class Interleaving:
    """Abandons an opener in two steps, each at a chosen point of the opener's run."""

    def __init__(self, flag_at: str, get_at: str, fails_at: str) -> None:
        self._flag_at, self._get_at = flag_at, get_at
        self._may_get, self._reached_get = Event(), Event()
        self._abandoner: threading.Thread | None = None
        self.calls_when_done = 0
        self.session = FakeSession(self._at, fails_at)
        self.opener = make_opener(self.session, self._on_done)
        self.opener._result = WatchedResult(self._at)  # type: ignore[assignment]

    def run(self) -> None:
        """Run opener and abandonment; points that a run does not pass count as its end."""
        self._at("start")
        self.opener.run()
        for point in (self._flag_at, self._get_at, "end"):
            self._at(point)
        assert self._abandoner is not None
        self._abandoner.join(TIMEOUT)

    def _on_done(self) -> None:
        self.calls_when_done += 1
        self._at("done")

    def _at(self, point: str) -> None:
        if threading.current_thread() is self._abandoner:
            if point == "get":
                self._reached_get.set()
                wait_soon(self._may_get)
            return
        if point == self._flag_at and self._abandoner is None:
            self._abandoner = threading.Thread(target=self.opener.abandon)
            self._abandoner.start()
            wait_soon(self._reached_get)
        if point == self._get_at and self._abandoner is not None and not self._may_get.is_set():
            self._may_get.set()
            self._abandoner.join(TIMEOUT)


@pytest.mark.parametrize("fails_at", ["", "connect", "declare", "consume"])
@pytest.mark.parametrize(
    ("flag_at", "get_at"), list(itertools.combinations_with_replacement(POINTS, 2))
)
def test_abandon_any_interleaving(flag_at: str, get_at: str, fails_at: str) -> None:
    """Wherever the two steps of abandon fall into the opener's run, the session is closed once."""
    interleaving = Interleaving(flag_at, get_at, fails_at)
    interleaving.run()
    assert interleaving.session.closed == 1
    assert interleaving.calls_when_done == 1
    with pytest.raises(Empty):
        interleaving.opener.get()
