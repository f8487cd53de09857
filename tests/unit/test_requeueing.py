"""Tests of --requeue and --failed without a broker: what is published, what stays, what is told."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, Callable

import pytest

from fmconsume import requeueing
from fmconsume.broker.request import Request
from fmconsume.broker.wire import Properties
from fmconsume.exceptions import (
    ConfigurationException,
    ConnectionException,
    PublishForbidden,
    PublishReturned,
    PublishTimeout,
)
from fmconsume.kept import KeptMessages
from fmconsume.requeueing import requeue, tell_kept

from .fakes import make_delivery


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What was sent, to a broker that confirms all."""
    requests: list[Request] = []
    monkeypatch.setattr(requeueing, "send", requests.append)
    return requests


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """Keep a message in the test's folder; each is younger than those before."""
    kept = KeptMessages(str(tmp_path), 99)
    ages = iter(range(1, 99))

    def keep(message_id: str | None = "apple", *, is_set_aside: bool = True, **more: Any) -> Path:
        delivery = make_delivery(message_id=message_id, **more)
        path = kept.keep(delivery, KeyError("pear"), is_set_aside=is_set_aside)
        age = next(ages)
        os.utime(path, (age, age))
        return path

    return keep


def say_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Give the lines that were printed, with single spaces."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


# -- requeue ---------------------------------------------------------------------------


def test_requeue_file(
    keep: Callable[..., Path], sent: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message goes to its queue as it came, its file goes, and a line tells of it."""
    path = keep(body=b"\xff", headers={"color": "red"}, queue="basket")
    assert requeue(str(path)) == 0
    (request,) = sent
    assert (request.exchange, request.routing_key, request.body) == ("", "basket", b"\xff")
    assert request.mandatory
    expected = Properties(message_id="apple", headers={"color": "red"})
    assert b"".join(request.properties.encode()) == b"".join(expected.encode())
    assert not path.exists()
    assert say_lines(capsys) == [f"{path.name} apple basket requeued", "1 files: 1 requeued"]


def test_requeue_folder(
    keep: Callable[..., Path],
    sent: list[Request],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those that were set aside go, the oldest first; those that are in their queue stay."""
    keep("b")
    returned = keep("c", is_set_aside=False)
    keep("a")
    assert requeue(str(tmp_path)) == 0
    assert [Properties().decode(encode(each)).message_id for each in sent] == ["b", "a"]
    assert list(tmp_path.iterdir()) == [returned]
    *_, skipped, _, last = say_lines(capsys)
    assert skipped.endswith("skipped: it was not set aside: the message is in its queue")
    assert last == "3 files: 2 requeued, 1 skipped"


def encode(request: Request) -> bytes:
    """Give the bytes of a request's properties."""
    return b"".join(request.properties.encode())


def test_requeue_limit(keep: Callable[..., Path], sent: list[Request], tmp_path: Path) -> None:
    """The limit counts what is requeued, not what is skipped."""
    keep("a", is_set_aside=False)
    for name in "bcd":
        keep(name)
    assert requeue(str(tmp_path), 2) == 0
    assert len(sent) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_requeue_dry(
    keep: Callable[..., Path],
    sent: list[Request],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A dry run tells the same, sends nothing and removes nothing."""
    keep("a")
    keep("b")
    assert requeue(str(tmp_path), 1, is_dry=True) == 0
    assert sent == []
    assert len(list(tmp_path.iterdir())) == 2
    assert say_lines(capsys)[-1] == "1 files: 1 would be requeued"


def test_requeue_nothing(
    sent: list[Request], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder is told of, a missing one is an error."""
    assert requeue(str(tmp_path)) == 0
    assert say_lines(capsys) == [f"no kept messages in {tmp_path}"]
    with pytest.raises(ConfigurationException, match="No such file"):
        requeue(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda line: line[:-9], "holds no kept message"),
        (lambda line: b"", "holds no kept message"),
        (lambda line: b"[1]", "holds no kept message"),
        (lambda line: line.replace(b'"raw_body": "', b'"raw_body": "%'), "no kept message"),
        (lambda line: line.replace(b'"raw_properties"', b'"raw"'), "raw_properties is missing"),
        (lambda line: line.replace(b'"queue": "fruit"', b'"queue": ""'), "raw_properties is miss"),
        (lambda line: line.replace(b'"queue": "fruit"', b'"queue": 7'), "queue is 7"),
        (
            lambda line: line.replace(b'"queue": "fruit"', b'"queue": "%s"' % (b"q" * 256)),
            "cannot be encoded",
        ),
    ],
)
def test_requeue_damaged(
    keep: Callable[..., Path],
    sent: list[Request],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[bytes], bytes],
    text: str,
) -> None:
    """A file that was cut or edited is named and left alone; the others are requeued."""
    path = keep("a")
    path.write_bytes(edit(path.read_bytes()))
    keep("b")
    assert requeue(str(tmp_path)) == 1
    assert len(sent) == 1
    assert list(tmp_path.iterdir()) == [path]
    (line,) = [line for line in say_lines(capsys) if " left: " in line]
    assert line.startswith(path.name)
    assert text in line


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_requeue_more_keys(
    keep: Callable[..., Path], sent: list[Request], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that the broker would also route elsewhere is left."""
    path = keep(headers={name: ["nuts"]})
    assert requeue(str(path)) == 1
    assert sent == []
    assert f"its header {name} would send copies" in say_lines(capsys)[0]


def test_requeue_lost_headers(
    keep: Callable[..., Path], sent: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    """What could not be kept is told."""
    assert requeue(str(keep(headers={"odd": object()}))) == 0
    assert say_lines(capsys)[0].endswith("requeued: without odd")


@pytest.mark.parametrize("error", [PublishReturned("no queue"), PublishForbidden("no permission")])
def test_requeue_refused(
    keep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """A message that the broker refuses stays, and the next one is tried."""

    def send(request: Request) -> None:
        if request.routing_key == "gone":
            raise error

    monkeypatch.setattr(requeueing, "send", send)
    path = keep("a", queue="gone")
    keep("b")
    assert requeue(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == [path]
    first, second, _ = say_lines(capsys)
    assert first == f"{path.name} a gone left: queue 'gone': {error}"
    assert second.endswith("requeued")


@pytest.mark.parametrize("error", [PublishTimeout("no answer"), ConnectionException("refused")])
def test_requeue_no_broker(
    keep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """Without a broker one message waits for it; all stay, and are named."""
    tried: list[Request] = []

    def send(request: Request) -> None:
        tried.append(request)
        raise error

    monkeypatch.setattr(requeueing, "send", send)
    for name in "abc":
        keep(name)
    assert requeue(str(tmp_path)) == 1
    assert len(tried) == 1
    assert len(list(tmp_path.iterdir())) == 3
    first, *rest, last = say_lines(capsys)
    assert first.endswith(f"left: {error}")
    assert [line.endswith(f"left: not tried: {error}") for line in rest] == [True, True]
    assert last == "3 files: 3 left"


def test_requeue_fails_again_at_once(
    keep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is set aside again before its old file is removed keeps the new one."""
    path = keep()
    monkeypatch.setattr(requeueing, "send", lambda request: keep())
    assert requeue(str(path)) == 0
    (left,) = tmp_path.iterdir()
    assert left != path
    assert json.loads(left.read_bytes())["set_aside"] is True


def test_requeue_at_the_same_time(
    keep: Callable[..., Path], sent: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that another process requeues is left to it."""
    path = keep()
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert requeue(str(path)) == 0
    assert sent == []
    assert say_lines(capsys)[0].endswith("skipped: another process requeues it")


def test_requeue_gone_meanwhile(
    keep: Callable[..., Path],
    sent: list[Request],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file that another process has requeued since it was found is no failure."""
    first, second = keep("a"), keep("b")
    send = requeueing.send

    def send_beside_another(request: Request) -> None:
        send(request)
        second.unlink()

    monkeypatch.setattr(requeueing, "send", send_beside_another)
    assert requeue(str(tmp_path)) == 0
    assert not first.exists()
    assert "skipped: another process has requeued or kept it" in say_lines(capsys)[1]


def test_requeue_cannot_remove(
    keep: Callable[..., Path],
    sent: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file that cannot be removed is told of, since it would be requeued again."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    path = keep()
    monkeypatch.setattr(Path, "unlink", refuse)
    assert requeue(str(path)) == 1
    assert "requeued, but the file cannot be removed (Permission denied)" in say_lines(capsys)[0]


def test_requeue_folder_not_writable(
    keep: Callable[..., Path], sent: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be removed nothing is sent."""
    path = keep()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert requeue(str(path)) == 1
    assert sent == []


def test_requeue_hostile_names(
    keep: Callable[..., Path], sent: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each message is one harmless line, whatever it is called."""
    path = keep("a\n\x1b[2J", queue="b\nc")
    assert requeue(str(path)) == 0
    assert say_lines(capsys)[0] == rf"{path.name} a\n\x1b[2J b\nc requeued"


# -- what is kept ----------------------------------------------------------------------


def test_tell_kept(
    keep: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of what is kept, the newest first, with the last line of each traceback."""
    old, new = keep("a", queue="basket"), keep("b", is_set_aside=False)
    earlier = tmp_path / "fruit-0123456789abcdef.fmconsume.json"
    earlier.write_text('{"topic": "t", "queue": "q", "traceback": "x\\nOSError: y\\n"}')
    os.utime(earlier, (60, 60))
    damaged = tmp_path / "fruit-fedcba9876543210.fmconsume.json"
    damaged.write_text("{")
    assert tell_kept(str(tmp_path)) == 0
    title, *lines = say_lines(capsys)
    assert title.startswith("last failed (UTC) queue topic attempts message file error")
    assert [line.split(" ", 2)[2] for line in lines[:3]] == [
        f"fruit fruit.ripe 1 returned {new.name} KeyError: 'pear'",
        f"basket fruit.ripe 1 set aside {old.name} KeyError: 'pear'",
        f"q t ? returned {earlier.name} OSError: y",
    ]
    assert lines[2].startswith("1970-01-01 00:01:00 ")
    assert lines[3].startswith(f"? ? ? ? ? {damaged.name} holds no kept message")


def test_tell_kept_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No messages, no folder and no configured folder are each told of."""
    assert tell_kept(str(tmp_path)) == tell_kept(str(tmp_path / "no")) == tell_kept("") == 0
    assert say_lines(capsys) == [
        f"no kept messages in {tmp_path}",
        f"no messages are kept: there is no folder {tmp_path}/no",
        "no messages are kept: failures.keep_in is not set",
    ]


def test_tell_kept_hostile(
    keep: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each message is one harmless line, whatever its topic and its error hold."""
    path = keep(routing_key="a\x1b[2J\n" + "b" * 300)
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps({**fields, "reason": "x\x9b\u2028" * 300, "last_failed": "noon"}))
    assert tell_kept(str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert out.replace("\n", "").isprintable()
