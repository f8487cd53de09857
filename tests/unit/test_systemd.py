"""Tests of what systemd is told, on real datagram sockets."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmconsume.engine.states import Phase, Snapshot, State, Stats
from fmconsume.service import systemd
from fmconsume.service.systemd import Notifier

CONNECTING = State(Phase.CONNECTING, "connecting to far")
CONSUMING = State(Phase.CONSUMING, "consuming from fruit")
STOPPING = State(Phase.STOPPING, "stopping: 1 deliveries in hand")


class Manager:
    """A service manager that listens at an address as NOTIFY_SOCKET has it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address.replace("@", "\0", 1))

    def heard(self) -> list[list[str]]:
        """Return the lines of each datagram that has come."""
        datagrams = []
        try:
            while True:
                datagrams.append(self.socket.recv(65536).decode().split("\n"))
        except BlockingIOError:
            return datagrams


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens."""
    name = f"fmconsume-test-{uuid.uuid4().hex}"
    manager = Manager(str(tmp_path / "notify") if request.param == "file" else f"@{name}")
    with manager.socket:
        yield manager


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the notifier believes it is; the test moves them."""
    now = [1000.0]
    monkeypatch.setattr(systemd, "monotonic", lambda: now[0])
    return now


def notifier(address: str, **environment: object) -> Notifier:
    """Make a notifier for an address, with more of the environment."""
    rest = {name: str(value) for name, value in environment.items()}
    return Notifier({"NOTIFY_SOCKET": address, **rest})


def snapshot(
    state: State = CONSUMING,
    received: int = 0,
    overdue: int = 0,
    dead_workers: int = 0,
    longest: str = "",
) -> Snapshot:
    """Make a look at the engine."""
    return Snapshot(
        state, Stats(received=received), overdue=overdue, dead_workers=dead_workers, longest=longest
    )


# -- milestones


def test_on_state_ready_once(manager: Manager) -> None:
    """The consumer is ready when it first consumes, not before, and is so once."""
    ours = notifier(manager.address)
    ours.on_state(CONNECTING)
    assert manager.heard() == [["STATUS=connecting to far"]]
    ours.on_state(CONSUMING)
    assert manager.heard() == [["READY=1", "STATUS=consuming from fruit"]]
    ours.on_state(State(Phase.WAITING, "not consuming"))
    ours.on_state(CONSUMING)
    ours.on_tick(snapshot())
    assert all("READY=1" not in lines for lines in manager.heard())


@pytest.mark.parametrize("name", ["blocked", "busy", "prefetch full", "partly stuck"])
def test_on_state_ready_in_any_way(manager: Manager, name: str) -> None:
    """Whatever way it consumes first, it is ready."""
    notifier(manager.address).on_state(State(Phase(name), "text"))
    assert manager.heard() == [["READY=1", "STATUS=text"]]


def test_on_state_stopping_once(manager: Manager) -> None:
    """A stop is announced at once, and once; the last words stay."""
    ours = notifier(manager.address)
    ours.on_state(CONSUMING)
    ours.on_state(STOPPING)
    ours.on_tick(snapshot(STOPPING))
    ours.on_state(State(Phase.STOPPED, "stopped after 3.0 s"))
    assert manager.heard() == [
        ["READY=1", "STATUS=consuming from fruit"],
        ["STOPPING=1", "STATUS=stopping: 1 deliveries in hand"],
        ["STATUS=stopped after 3.0 s"],
    ]


def test_on_state_stopped_at_once(manager: Manager) -> None:
    """A consumer that ends before it stopped in good order still says that it does."""
    notifier(manager.address).on_state(State(Phase.STOPPED, "refused"))
    assert manager.heard() == [["STOPPING=1", "STATUS=refused"]]


def test_on_tick_repeats_what_did_not_get_through(tmp_path: Path) -> None:
    """A manager that listens late hears that the consumer is ready."""
    ours = notifier(str(tmp_path / "late"))
    ours.on_state(CONSUMING)
    late = Manager(str(tmp_path / "late"))
    with late.socket:
        ours.on_tick(snapshot())
        assert late.heard()[0][0] == "READY=1"


# -- status


def test_on_tick_status_when_it_changes(manager: Manager, clock: list[float]) -> None:
    """The status has the counts; it is sent when it is another one, seconds apart."""
    ours = notifier(manager.address)
    ours.on_tick(snapshot(received=1))
    assert manager.heard() == [["READY=1", "STATUS=consuming from fruit; received 1"]]
    clock[0] += 2.9
    ours.on_tick(snapshot(received=2))
    assert manager.heard() == []
    clock[0] += 0.2
    ours.on_tick(snapshot(received=3))
    assert manager.heard() == [["STATUS=consuming from fruit; received 3"]]
    clock[0] += 100
    ours.on_tick(snapshot(received=3))
    assert manager.heard() == []


def test_on_state_phase_at_once(manager: Manager, clock: list[float]) -> None:
    """A new phase is shown at once, and so is the exit from it; a new text waits its turn."""
    ours = notifier(manager.address)
    ours.on_state(CONSUMING)
    ours.on_state(State(Phase.STUCK, "stuck for 1 s"))
    ours.on_state(State(Phase.STUCK, "stuck for 2 s"))
    ours.on_state(CONSUMING)
    assert manager.heard() == [
        ["READY=1", "STATUS=consuming from fruit"],
        ["STATUS=stuck for 1 s"],
        ["STATUS=consuming from fruit"],
    ]


def test_on_tick_status_names_what_runs(manager: Manager, clock: list[float]) -> None:
    """What runs longest is in the status; not twice where the state names it, nor once it ended."""
    ours = notifier(manager.address)
    ours.on_tick(snapshot(longest="apple runs for 9 s"))
    stuck = State(Phase.STUCK, "stuck: apple runs for 10 s")
    ours.on_state(stuck)
    clock[0] += 100
    ours.on_tick(snapshot(stuck, received=2, longest="apple runs for 10 s"))
    ours.on_state(CONSUMING)
    assert manager.heard() == [
        ["READY=1", "STATUS=consuming from fruit; apple runs for 9 s; nothing received"],
        ["STATUS=stuck: apple runs for 10 s; nothing received"],
        ["STATUS=stuck: apple runs for 10 s; received 2"],
        ["STATUS=consuming from fruit; received 2"],
    ]


def test_on_state_status_is_one_line(manager: Manager) -> None:
    """What a publisher puts into a message id is no message to systemd, nor to a terminal."""
    text = "message x\nMAINPID=1\r\x1b[2J\x00 \ud800 from queue 'fruit'"
    notifier(manager.address).on_state(State(Phase.WAITING, text))
    assert manager.heard() == [["STATUS=message x MAINPID=1  [2J    from queue 'fruit'"]]


# -- time to start

EXTEND = ["EXTEND_TIMEOUT_USEC=60000000"]


def test_on_tick_asks_for_time_until_ready(manager: Manager, clock: list[float]) -> None:
    """Each tick asks systemd for another minute while the consumer is not ready, none after."""
    ours = notifier(manager.address)
    for state in (CONNECTING, State(Phase.WAITING, "not consuming")):
        ours.on_tick(snapshot(state))
        assert manager.heard()[-1] == EXTEND
    ours.on_tick(snapshot())
    ours.on_tick(snapshot(State(Phase.WAITING, "not consuming")))
    assert EXTEND not in manager.heard()


def test_on_tick_asks_for_no_time_to_stop(manager: Manager) -> None:
    """A stop before the consumer was ready has the time that the unit gives it."""
    ours = notifier(manager.address)
    ours.on_tick(snapshot(STOPPING))
    ours.on_tick(snapshot(State(Phase.STOPPED, "stopped")))
    assert EXTEND not in manager.heard()


def test_on_tick_asks_for_time_while_ready_is_not_heard(tmp_path: Path) -> None:
    """A READY=1 that did not get through has not ended the start."""
    ours = notifier(str(tmp_path / "late"))
    ours.on_state(CONSUMING)
    late = Manager(str(tmp_path / "late"))
    with late.socket:
        ours.on_tick(snapshot(State(Phase.WAITING, "not consuming")))
        assert EXTEND in late.heard()


# -- signs of life


def test_on_tick_sign_of_life(manager: Manager) -> None:
    """Each look at a sound engine is a sign of life."""
    ours = notifier(manager.address, WATCHDOG_USEC=3_000_000)
    for _ in range(3):
        ours.on_tick(snapshot())
    assert manager.heard().count(["WATCHDOG=1"]) == 3


@pytest.mark.parametrize("trouble", ["overdue", "dead_workers"])
def test_on_tick_withholds_sign_of_life(manager: Manager, trouble: str) -> None:
    """A callback past its time, or a dead worker, is kept from the watchdog until it is over."""
    ours = notifier(manager.address, WATCHDOG_USEC=3_000_000)
    ours.on_tick(snapshot(**{trouble: 1}))  # type: ignore[arg-type]
    assert ["WATCHDOG=1"] not in manager.heard()
    ours.on_tick(snapshot())
    assert ["WATCHDOG=1"] in manager.heard()


@pytest.mark.parametrize(
    ("usec", "interval"), [("3000000", 1.5), ("180000000", 5.0), ("10000000", 5.0), ("1", 5e-7)]
)
def test_interval_half_of_watchdog(usec: str, interval: float) -> None:
    """The engine is looked at in half the time that systemd waits, or sooner."""
    assert notifier("/x", WATCHDOG_USEC=usec).interval == interval
    assert notifier("/x", WATCHDOG_USEC=usec, WATCHDOG_PID=os.getpid()).interval == interval


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "9" * 5000},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": ""},
    ],
)
def test_on_tick_without_watchdog(manager: Manager, environment: dict[str, str]) -> None:
    """Without a usable time, or with one for another process, there is no watchdog."""
    ours = notifier(manager.address, **environment)
    ours.on_tick(snapshot())
    assert ours.interval == 5.0
    assert ["WATCHDOG=1"] not in manager.heard()


# -- no manager


@pytest.mark.parametrize("address", ["/nowhere/notify", "x", "vsock:2:1", "@", "/" + "x" * 200])
def test_on_tick_nobody_there(address: str) -> None:
    """An address where nobody listens, or that is none, is no error."""
    ours = notifier(address, WATCHDOG_USEC=1_000_000)
    ours.on_state(CONSUMING)
    ours.on_tick(snapshot())


def test_on_tick_nobody_reads(manager: Manager) -> None:
    """A manager that listens and never reads delays nothing."""
    ours = notifier(manager.address, WATCHDOG_USEC=1_000_000)
    for _ in range(5000):
        ours.on_tick(snapshot())
    assert len(manager.heard()) < 5000


def test_on_tick_no_file_descriptor_left(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no socket can be had, the notifier waits for better times."""
    ours = notifier(manager.address)

    def fail(*args: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", fail)
        ours.on_state(CONSUMING)
    ours.on_tick(snapshot())
    assert manager.heard()[0][0] == "READY=1"
