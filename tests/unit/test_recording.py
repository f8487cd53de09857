"""Tests of messages in files: recorded and replayed."""

from __future__ import annotations

import io
import json
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fmconsume import Drop, HaltConsumer, Message, Nack
from fmconsume.exceptions import ConfigurationException, ExitCode
from fmconsume.recording import Recorder, replay


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


def test_record_disk_full() -> None:
    """What cannot be recorded goes back, and the recorder ends, whatever [failures] says."""
    with pytest.raises(HaltConsumer) as caught:
        Recorder("/dev/full")(Message())
    assert (caught.value.exit_code, caught.value.requeue) == (ExitCode.TEMPORARY, True)
    assert caught.value.reason == "cannot record to '/dev/full': No space left on device"


def test_record_disk_full_leaves_no_torn_line(path: Path) -> None:
    """A line that cannot be written whole is taken back, and the next one stands alone."""
    record(path, *numbered(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = Recorder(str(path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(HaltConsumer, match="File too large"):
            recorder(*numbered(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recorder(*numbered(3))
    assert [json.loads(line)["body"]["n"] for line in path.read_text().splitlines()] == [1, 3]


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
    """A callback that only its own thread may use, as if it had a connection to SQLite."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def __call__(self, message: Message) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError("only that same thread may write")


def test_replay_other_thread(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a constructor binds to its thread fails in a replay as it would in a consumer."""
    record(path, *numbered(0, 0))
    assert replay(str(path), Diary) == 1
    assert "only that same thread may write" in capsys.readouterr().out


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
