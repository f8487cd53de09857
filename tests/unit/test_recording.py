"""Tests of messages in files: recorded, kept when they fail, replayed."""

from __future__ import annotations

import datetime
import decimal
import fcntl
import io
import json
import math
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fmconsume import Drop, HaltConsumer, Message, Nack
from fmconsume.engine.processor import Processor
from fmconsume.exceptions import ConfigurationException, UnavailableException
from fmconsume.message import decode
from fmconsume.recording import FailedMessages, Recorder, replay

from .fakes import make_delivery


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that does not exist yet."""
    return tmp_path / "recorded"


def record(path: Path, *messages: Message) -> None:
    """Record messages in a file."""
    recorder = Recorder(str(path))
    for message in messages:
        recorder(message)


def numbered(*numbers: int) -> list[Message]:
    """Make messages that carry numbers."""
    return [Message(topic="fruit", body={"n": number}) for number in numbers]


# -- Recorder --------------------------------------------------------------------------


def test_record_is_replayed(path: Path) -> None:
    """What is replayed is what was recorded: topic, queue, id, priority, headers and body."""
    message = Message(
        topic="fruit.ripe", body={"text": "\u00e4\ud800\u2028"}, headers={"color": "red"}
    )
    message.queue, message.priority = "basket", 3
    record(path, message)
    seen: list[Message] = []
    assert replay(str(path), seen.append) == 0
    assert seen == [message]
    assert (seen[0].id, seen[0].queue, seen[0].priority) == (message.id, "basket", 3)


@pytest.mark.parametrize(
    ("body_mode", "body"),
    [("json", [1, None]), ("json", None), ("bytes", b"\xff\n"), ("bytes", b"{}")],
)
def test_record_other_bodies(path: Path, body_mode: str, body: Any) -> None:
    """Bodies that are not objects come back as they were."""
    message = Message()
    message.body = body
    record(path, message)
    seen: list[Any] = []
    assert replay(str(path), lambda each: seen.append(each.body), body_mode) == 0
    assert seen == [body]


def test_record_at_once(path: Path) -> None:
    """A message is in the file when the callback returns, one line of ASCII for each."""
    recorder = Recorder(str(path))
    recorder(Message(body={"text": "\u00e4\n"}))
    recorder(Message())
    first, second = path.read_bytes().decode("ascii").splitlines()
    assert json.loads(first)["body"] == {"text": "\u00e4\n"}
    assert json.loads(second)["body"] == {}


def test_record_adds(path: Path) -> None:
    """What is in the file stays."""
    record(path, Message(topic="one"))
    record(path, Message(topic="two"))
    assert [json.loads(line)["topic"] for line in path.read_text().splitlines()] == ["one", "two"]


def test_record_after_torn_line(path: Path) -> None:
    """Half a line, left behind by a crash, spoils no other."""
    path.write_bytes(b'{"topic": "to')
    record(path, Message(topic="whole"))
    torn, whole = path.read_text().splitlines()
    assert torn == '{"topic": "to'
    assert json.loads(whole)["topic"] == "whole"


def test_record_many_threads(path: Path) -> None:
    """Several workers do not mix their lines up."""
    recorder = Recorder(str(path))
    text = "x" * 20_000

    def run() -> None:
        for _ in range(20):
            recorder(Message(body={"text": text}))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["body"]["text"] == text for line in lines] == [True] * 160


def test_record_cannot_open(tmp_path: Path) -> None:
    """A file that cannot be written is named, with the reason, before anything is consumed."""
    with pytest.raises(ConfigurationException, match=r"cannot record to '.*': Is a directory"):
        Recorder(str(tmp_path))


class Terminal(io.StringIO):
    """A standard error that people see."""

    def isatty(self) -> bool:
        return True


def test_record_progress(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar grows from message to message up to the limit."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    recorder = Recorder(str(path), limit=4)
    for message in numbered(1, 2, 3, 4):
        recorder(message)
    shown = terminal.getvalue().split("\r")[1:]
    assert [line.strip().split()[-1] for line in shown] == ["1/4", "2/4", "3/4", "4/4"]
    assert [line.count("#") for line in shown] == [10, 20, 30, 40]
    assert shown[-1].endswith("\n")


def test_record_without_standard_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose standard error is closed records as well."""
    monkeypatch.setattr(sys, "stderr", None)
    Recorder(str(path), limit=2)(Message())
    assert path.read_bytes()


def test_record_no_progress(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit, or where nobody looks, nothing is shown."""
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    Recorder(str(path))(Message())
    monkeypatch.setattr(sys, "stderr", file)
    Recorder(str(path), limit=2)(Message())
    assert terminal.getvalue() == file.getvalue() == ""


# -- FailedMessages --------------------------------------------------------------------


def fail(text: str = "out of order") -> RuntimeError:
    """Make an error that has a traceback."""
    try:
        raise RuntimeError(text)
    except RuntimeError as exc:
        return exc


def read_only_file(folder: Path) -> dict[str, Any]:
    """Read the one file there is."""
    (file,) = folder.iterdir()
    line: dict[str, Any] = json.loads(file.read_text())
    return line


def test_keep_whole_message(tmp_path: Path) -> None:
    """Body, headers, routing key, id, queue and traceback are kept, for the owner's eyes only."""
    folder = tmp_path / "some" / "where"
    delivery = make_delivery(body=b'{"n": 1}', headers={"color": "red"})
    FailedMessages(str(folder), 10).keep(delivery, fail())
    line = read_only_file(folder)
    assert (line["body"], line["headers"], line["topic"]) == (
        {"n": 1},
        {"color": "red"},
        "fruit.ripe",
    )
    assert (line["id"], line["queue"]) == ("apple", "fruit")
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("RuntimeError: out of order\n")
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("body_mode", "body", "expected"),
    [
        ("object", b'{"n": 1}', {"n": 1}),
        ("json", b"[1]", [1]),
        ("json", b"null", None),
        ("bytes", b"\xff{", b"\xff{"),
    ],
)
def test_keep_is_replayed(tmp_path: Path, body_mode: str, body: bytes, expected: Any) -> None:
    """A file that was kept can be replayed."""
    FailedMessages(str(tmp_path), 10, body_mode).keep(make_delivery(body=body), fail())
    (file,) = tmp_path.iterdir()
    seen: list[Any] = []
    assert replay(str(file), lambda message: seen.append(message.body), body_mode) == 0
    assert seen == [expected]


def test_keep_same_message_once(tmp_path: Path) -> None:
    """A message that fails again and again is kept once, with its last traceback."""
    failed = FailedMessages(str(tmp_path), 10)
    for text in ("first", "last"):
        failed.keep(make_delivery(redelivered=text == "last"), fail(text))
    assert "last" in read_only_file(tmp_path)["traceback"]


def test_keep_different_messages(tmp_path: Path) -> None:
    """Messages that differ in anything are kept apart, with or without an id."""
    failed = FailedMessages(str(tmp_path), 10)
    for delivery in (
        make_delivery(),
        make_delivery(message_id="pear"),
        make_delivery(message_id=None),
        make_delivery(message_id=None, body=b'{"n": 1}'),
        make_delivery(queue="nuts"),
    ):
        failed.keep(delivery, fail())
    assert len(list(tmp_path.iterdir())) == 5


def test_keep_bounded(tmp_path: Path) -> None:
    """Beyond the limit the oldest goes."""
    failed = FailedMessages(str(tmp_path), 3)
    for number in range(5):
        failed.keep(make_delivery(message_id=str(number)), fail())
        for file in tmp_path.iterdir():
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
    kept = [json.loads(file.read_text())["id"] for file in tmp_path.iterdir()]
    assert sorted(kept) == ["2", "3", "4"]


@pytest.mark.parametrize(
    "name",
    [
        *("../../escape", "/etc/passwd", "\x1b[2J", "a\nb", "\ud800", ".", ""),
        *("a" * 255, "\u0436" * 127, "\u674e" * 85, "\U0001f350" * 63, "\U00020bb7" * 63),
    ],
)
def test_keep_hostile_name(tmp_path: Path, name: str) -> None:
    """Whatever a publisher calls a message, in whatever script, its file is in the folder."""
    folder = tmp_path / "failed"
    delivery = make_delivery(routing_key=name, message_id=name, body=b"{}")
    FailedMessages(str(folder), 3).keep(delivery, fail())
    (file,) = folder.iterdir()
    assert file.name.isprintable()
    assert list(tmp_path.iterdir()) == [folder]


def test_keep_newest(tmp_path: Path) -> None:
    """Two messages that fail at the same time do not look equally old."""
    failed = FailedMessages(str(tmp_path), 1)
    for number in range(100):
        failed.keep(make_delivery(message_id=str(number)), fail())
        assert read_only_file(tmp_path)["id"] == str(number)


def test_keep_touches_its_own_files_only(tmp_path: Path) -> None:
    """What it did not name itself stays, though the callback keeps its state in the folder."""
    others = {"state.json", "fruit-0123456789abcdef.json", "a.fmconsume.json", "x.part", ".a.json"}
    for name in others:
        (tmp_path / name).touch()
    failed = FailedMessages(str(tmp_path), 1)
    for number in range(3):
        failed.keep(make_delivery(message_id=str(number)), fail())
    names = {file.name for file in tmp_path.iterdir()}
    assert others < names
    assert len(names - others) == 1


def test_keep_many_threads(tmp_path: Path) -> None:
    """Several workers that keep messages at the same time do not disturb each other."""
    failed = FailedMessages(str(tmp_path), 2)
    errors: list[Exception] = []

    def run(worker: int) -> None:
        try:
            for number in range(100):
                failed.keep(make_delivery(message_id=f"{worker} {number}"), fail())
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"\xff{", None), (b"no json", None), (b'{"n": NaN}', None), (b"{}", "klingon"), (b"", None)],
)
def test_keep_body_that_does_not_decode(tmp_path: Path, body: bytes, encoding: Any) -> None:
    """A body that is not JSON is kept as it came, and replays so."""
    delivery = make_delivery(body=body)
    delivery.properties.content_encoding = encoding
    FailedMessages(str(tmp_path), 10).keep(delivery, fail())
    (file,) = tmp_path.iterdir()
    seen: list[Any] = []
    assert replay(str(file), lambda message: seen.append(message.body), "bytes") == 0
    assert seen == [body]


def refuse(constant: str) -> None:
    """Find a constant that JSON does not have."""
    raise AssertionError(f"{constant} is not JSON")


def test_keep_headers_without_json(tmp_path: Path) -> None:
    """Header values that JSON does not have are kept as text."""
    headers = {
        "when": datetime.datetime(2024, 5, 6, tzinfo=datetime.timezone.utc),
        "raw": b"\xff",
        "price": decimal.Decimal("1.50"),
        "nan": [math.nan, -math.inf],
        "half": "\ud800",
    }
    FailedMessages(str(tmp_path), 10).keep(make_delivery(headers=headers), fail())
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text(), parse_constant=refuse)["headers"] == {
        "when": "2024-05-06T00:00:00+00:00",
        "raw": r"\xff",
        "price": "1.50",
        "nan": ["NaN", "-Infinity"],
        "half": "\ud800",
    }


@pytest.mark.parametrize("depth", [10, 300, 900, 5000])
def test_keep_nested(tmp_path: Path, depth: int) -> None:
    """However deep headers and body are nested, the message is kept."""
    headers: dict[str, Any] = {}
    for _ in range(depth):
        headers = {"a": headers}
    body = b'{"a":' * depth + b"1" + b"}" * depth
    FailedMessages(str(tmp_path), 10).keep(make_delivery(headers=headers, body=body), fail())
    line = read_only_file(tmp_path)
    assert line["id"] == "apple"
    assert "body" in line


def test_keep_headers_that_hold_themselves(tmp_path: Path) -> None:
    """A callback that ties its headers into a knot does not prevent it either."""
    headers: dict[str, Any] = {"color": "red"}
    headers["self"] = headers
    FailedMessages(str(tmp_path), 10).keep(make_delivery(headers=headers), fail())
    line = read_only_file(tmp_path)
    assert "'color': 'red'" in line["unreadable_headers"]
    assert (line["id"], line["queue"], line["headers"]) == ("apple", "fruit", {})


def test_keep_folder_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without its folder each message costs one line that names it, and the worker its patience."""
    folder = tmp_path / "failed"
    failed = FailedMessages(str(folder), 3)
    folder.rmdir()
    outcomes: list[Any] = []
    for message_id in ("apple", "pear"):
        delivery = make_delivery(message_id=message_id, body=b'{"n": 3}')
        outcomes.append(Processor(by_number, decode, failed.keep).process(delivery))
    lines = [text for _, _, text in caplog.record_tuples if "could not be kept" in text]
    assert [line.partition(" from ")[0] for line in lines] == ["message apple", "message pear"]
    assert all(f"No such file or directory: '{folder}" in line for line in lines)
    assert [type(outcome.error) for outcome in outcomes] == [KeyError] * 2


def test_leftovers_are_removed(tmp_path: Path) -> None:
    """What a killed process left is removed at the next start; what one still writes is not."""
    dead, busy, other = tmp_path / ".fmconsume-a.part", tmp_path / ".fmconsume-b.part", ".part"
    for path in (dead, busy, tmp_path / other):
        path.touch()
        os.utime(path, (0, 0))
    with open(busy, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        FailedMessages(str(tmp_path), 3)
        assert {path.name for path in tmp_path.iterdir()} == {busy.name, other}
    busy.touch()
    FailedMessages(str(tmp_path), 3)
    assert busy.exists(), "it may be about to be locked"
    os.utime(busy, (0, 0))
    FailedMessages(str(tmp_path), 3)
    assert [path.name for path in tmp_path.iterdir()] == [other]


def test_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    """A process that dies while it writes leaves what the next start knows as a leftover."""
    code = (
        "import os, sys\n"
        "from fmconsume.recording import FailedMessages\n"
        "from tests.unit.fakes import make_delivery\n"
        "failed = FailedMessages(sys.argv[1], 3)\n"
        "os.replace = lambda *args: os._exit(9)\n"
        "failed.keep(make_delivery(), ValueError())\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    FailedMessages(str(tmp_path), 3)
    assert list(tmp_path.iterdir()) == []


def test_keep_old_one_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That the oldest stays is one line; the message itself is kept."""
    failed = FailedMessages(str(tmp_path), 1)
    stuck = tmp_path / "a-0123456789abcdef.fmconsume.json"
    stuck.mkdir()
    os.utime(stuck, (0, 0))
    failed.keep(make_delivery(), fail())
    assert len(list(tmp_path.iterdir())) == 2
    (text,) = (text for _, _, text in caplog.record_tuples)
    assert text.startswith("failed_messages: an old one cannot be removed: ")
    assert str(stuck) in text


def test_replay_files_of_earlier_versions(tmp_path: Path) -> None:
    """What an earlier version kept under its shorter name is replayed as well."""
    failed = FailedMessages(str(tmp_path), 3)
    failed.keep(make_delivery(body=b'{"n": 1}'), fail())
    (file,) = tmp_path.iterdir()
    old = file.rename(tmp_path / "fruit.ripe-0123456789abcdef.json")
    seen: list[Message] = []
    assert replay(str(old), seen.append) == 0
    assert seen[0].body == {"n": 1}


def test_keep_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written whole leaves nothing behind."""

    def fail_to_replace(*args: Any) -> None:
        raise OSError("no space left")

    failed = FailedMessages(str(tmp_path), 3)
    monkeypatch.setattr(os, "replace", fail_to_replace)
    with pytest.raises(OSError, match="no space left"):
        failed.keep(make_delivery(), fail())
    assert not list(tmp_path.iterdir())


def test_keep_cannot_make_folder(tmp_path: Path) -> None:
    """A folder that is not to be had is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableException, match=r"failed_messages '.*/file': File exists"):
        FailedMessages(str(tmp_path / "file"), 3)


# -- replay ----------------------------------------------------------------------------


def by_number(message: Message) -> None:
    """Do with a message what its number stands for."""
    errors: list[Any] = [None, Nack, Drop, KeyError("three"), HaltConsumer(9, "enough")]
    if errors[message.body["n"]] is not None:
        raise errors[message.body["n"]]


def test_replay_tells_each_verdict(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line's verdict is printed, then how many there were of each."""
    record(path, *numbered(0, 1, 2, 3, 0))
    assert replay(str(path), by_number) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    verdicts = [line.partition(":")[0] for line in lines]
    assert verdicts == ["acknowledged", "requeued", "dropped", "failed", "acknowledged"]
    assert lines[3].endswith("KeyError: 'three'")
    assert summary == "5 messages: 2 acknowledged, 1 requeued, 1 dropped, 1 failed"


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"[]",
        b"{}",
        b'{"topic": "t"}',
        b'{"topic": "t", "body": "!", "body_encoding": "base64"}',
        b"\xff",
        b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:20]),
)
def test_replay_broken_line(path: Path, capsys: pytest.CaptureFixture[str], line: bytes) -> None:
    """A broken line is named by its number, and the rest still runs."""
    record(path, *numbered(0))
    path.write_bytes(b"\n" + line + b"\n" + path.read_bytes())
    assert replay(str(path), by_number) == 1
    out = capsys.readouterr().out
    assert "broken: line 2 holds no message: " in out
    assert "acknowledged: line 3" in out
    assert out.endswith("2 messages: 1 broken, 1 acknowledged\n")


def test_replay_hostile_names(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each message is one harmless line, whatever it and its error are called."""
    evil = "x\nacknowledged: line 9\r\x1b[2J\u202e\ud800"

    def fail(message: Message) -> None:
        raise ([HaltConsumer(0, evil), ValueError(evil), Drop()])[message.body["n"]]

    messages = numbered(2, 1, 0)
    for message in messages:
        message.id = message.queue = message.topic = evil
    record(path, *messages)
    replay(str(path), fail)
    lines = capsys.readouterr().out.split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        "dropped",
        "failed",
        "halted",
        "3 messages",
        "",
    ]
    assert all(line.isprintable() for line in lines)


def test_replay_invalid_message(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A message that a consumer would reject fails the replay without reaching the callback."""
    path.write_text('{"topic": "t", "body": [], "headers": {}}\n')
    assert replay(str(path), by_number) == 1
    assert "rejected: line 1" in capsys.readouterr().out


def test_replay_halt(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A callback that halts ends the replay, with its exit code unless something failed."""
    record(path, *numbered(0, 4, 0))
    assert replay(str(path), by_number) == 9
    assert capsys.readouterr().out.endswith("2 messages: 1 acknowledged, 1 halted\n")
    record(path, *numbered(0))
    path.write_bytes(b"broken\n" + path.read_bytes())
    assert replay(str(path), by_number) == 1


class Diary:
    """A callback with a connection that may be used by one thread only."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")

    def __call__(self, message: Message) -> None:
        self.connection.execute("select 1")


def test_replay_other_thread(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a constructor binds to its thread fails in a replay as it would in a consumer."""
    record(path, *numbered(0, 0))
    assert replay(str(path), Diary) == 1
    assert "can only be used in that same thread" in capsys.readouterr().out


def test_replay_limit(path: Path) -> None:
    """A limit ends it early."""
    record(path, *numbered(0, 0, 3))
    assert replay(str(path), by_number, limit=2) == 0


def test_replay_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file is no failure."""
    path.touch()
    assert replay(str(path), by_number) == 0
    assert capsys.readouterr().out == "no messages\n"


def test_replay_missing_file(path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(ConfigurationException, match=r"cannot replay '.*/recorded': No such file"):
        replay(str(path), by_number)


def test_replay_interrupted(path: Path) -> None:
    """Ctrl-C ends the replay, although a consumer would take it for a failure."""
    record(path, *numbered(0, 0))
    seen: list[Message] = []

    def callback(message: Message) -> None:
        seen.append(message)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(str(path), callback)
    assert len(seen) == 1
