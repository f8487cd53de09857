"""Tests of the folder of kept messages: what is in a file, what goes, and what can be read."""

from __future__ import annotations

import base64
import datetime
import decimal
import errno
import fcntl
import json
import logging
import math
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fmconsume import Message
from fmconsume.broker.wire import Properties
from fmconsume.delivery import Delivery
from fmconsume.exceptions import ConfigurationException, UnavailableException, ValidationError
from fmconsume.kept import KeptMessages, find_kept, lock_folder, parse_kept
from fmconsume.recording import replay

from .fakes import make_delivery

# -- what is kept ----------------------------------------------------------------------


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
    KeptMessages(str(folder), 10).keep(delivery, fail(), is_set_aside=False)
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
    KeptMessages(str(tmp_path), 10, body_mode).keep(
        make_delivery(body=body), fail(), is_set_aside=False
    )
    (file,) = tmp_path.iterdir()
    seen: list[Any] = []
    assert replay(str(file), lambda message: seen.append(message.body), body_mode) == 0
    assert seen == [expected]


def test_keep_same_message_once(tmp_path: Path) -> None:
    """A message that fails again and again is kept once, with its last traceback."""
    failed = KeptMessages(str(tmp_path), 10)
    for text in ("first", "last"):
        failed.keep(make_delivery(redelivered=text == "last"), fail(text), is_set_aside=False)
    assert "last" in read_only_file(tmp_path)["traceback"]


def test_keep_different_messages(tmp_path: Path) -> None:
    """Messages that differ in anything are kept apart, with or without an id."""
    failed = KeptMessages(str(tmp_path), 10)
    for delivery in (
        make_delivery(),
        make_delivery(message_id="pear"),
        make_delivery(message_id=None),
        make_delivery(message_id=None, body=b'{"n": 1}'),
        make_delivery(queue="nuts"),
    ):
        failed.keep(delivery, fail(), is_set_aside=False)
    assert len(list(tmp_path.iterdir())) == 5


def test_keep_bounded(tmp_path: Path) -> None:
    """Beyond the limit the oldest goes."""
    failed = KeptMessages(str(tmp_path), 3)
    for number in range(5):
        failed.keep(make_delivery(message_id=str(number)), fail(), is_set_aside=False)
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
    KeptMessages(str(folder), 3).keep(delivery, fail(), is_set_aside=False)
    (file,) = folder.iterdir()
    assert file.name.isprintable()
    assert list(tmp_path.iterdir()) == [folder]


def test_keep_newest(tmp_path: Path) -> None:
    """Two messages that fail at the same time do not look equally old."""
    failed = KeptMessages(str(tmp_path), 1)
    for number in range(100):
        failed.keep(make_delivery(message_id=str(number)), fail(), is_set_aside=False)
        assert read_only_file(tmp_path)["id"] == str(number)


def test_keep_touches_its_own_files_only(tmp_path: Path) -> None:
    """What it did not name itself stays, though the callback keeps its state in the folder."""
    others = {"state.json", "fruit-0123456789abcdef.json", "a.fmconsume.json", "x.part", ".a.json"}
    for name in others:
        (tmp_path / name).touch()
    failed = KeptMessages(str(tmp_path), 1)
    for number in range(3):
        failed.keep(make_delivery(message_id=str(number)), fail(), is_set_aside=False)
    names = {file.name for file in tmp_path.iterdir()}
    assert others < names
    assert len(names - others) == 1


def test_keep_many_threads(tmp_path: Path) -> None:
    """Several workers that keep messages at the same time do not disturb each other."""
    failed = KeptMessages(str(tmp_path), 2)
    errors: list[Exception] = []

    def run(worker: int) -> None:
        try:
            for number in range(100):
                failed.keep(
                    make_delivery(message_id=f"{worker} {number}"), fail(), is_set_aside=False
                )
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
    KeptMessages(str(tmp_path), 10).keep(delivery, fail(), is_set_aside=False)
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
    KeptMessages(str(tmp_path), 10).keep(make_delivery(headers=headers), fail(), is_set_aside=False)
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
    KeptMessages(str(tmp_path), 10).keep(
        make_delivery(headers=headers, body=body), fail(), is_set_aside=False
    )
    line = read_only_file(tmp_path)
    assert line["id"] == "apple"
    assert "body" in line


def test_keep_headers_that_hold_themselves(tmp_path: Path) -> None:
    """A callback that ties its headers into a knot does not prevent it either."""
    headers: dict[str, Any] = {"color": "red"}
    headers["self"] = headers
    KeptMessages(str(tmp_path), 10).keep(make_delivery(headers=headers), fail(), is_set_aside=False)
    line = read_only_file(tmp_path)
    assert "'color': 'red'" in line["unreadable_headers"]
    assert (line["id"], line["queue"], line["headers"]) == ("apple", "fruit", {})


def test_keep_folder_is_gone(tmp_path: Path) -> None:
    """Without its folder a message cannot be kept, which the caller hears."""
    folder = tmp_path / "failed"
    failed = KeptMessages(str(folder), 3)
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{folder}"):
        failed.keep(make_delivery(), fail(), is_set_aside=True)


def test_leftovers_are_removed(tmp_path: Path) -> None:
    """What a killed process left is removed at the next start; what one still writes is not."""
    dead, busy, other = tmp_path / ".fmconsume-a.part", tmp_path / ".fmconsume-b.part", ".part"
    for path in (dead, busy, tmp_path / other):
        path.touch()
        os.utime(path, (0, 0))
    with open(busy, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        KeptMessages(str(tmp_path), 3)
        assert {path.name for path in tmp_path.iterdir()} == {busy.name, other}
    busy.touch()
    KeptMessages(str(tmp_path), 3)
    assert busy.exists(), "it may be about to be locked"
    os.utime(busy, (0, 0))
    KeptMessages(str(tmp_path), 3)
    assert [path.name for path in tmp_path.iterdir()] == [other]


def test_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    """A process that dies while it writes leaves what the next start knows as a leftover."""
    code = (
        "import os, sys\n"
        "from fmconsume.kept import KeptMessages\n"
        "from tests.unit.fakes import make_delivery\n"
        "failed = KeptMessages(sys.argv[1], 3)\n"
        "os.replace = lambda *args: os._exit(9)\n"
        "failed.keep(make_delivery(), ValueError(), is_set_aside=False)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    KeptMessages(str(tmp_path), 3)
    assert list(tmp_path.iterdir()) == []


def test_keep_old_one_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That the oldest stays is one line; the message itself is kept."""
    failed = KeptMessages(str(tmp_path), 1)
    stuck = tmp_path / "a-0123456789abcdef.fmconsume.json"
    stuck.mkdir()
    os.utime(stuck, (0, 0))
    failed.keep(make_delivery(), fail(), is_set_aside=False)
    assert len(list(tmp_path.iterdir())) == 2
    (text,) = (text for _, _, text in caplog.record_tuples)
    assert text.startswith("failures.keep_in: an old one cannot be removed: ")
    assert str(stuck) in text


def test_replay_files_of_earlier_versions(tmp_path: Path) -> None:
    """What an earlier version kept under its shorter name is replayed as well."""
    failed = KeptMessages(str(tmp_path), 3)
    failed.keep(make_delivery(body=b'{"n": 1}'), fail(), is_set_aside=False)
    (file,) = tmp_path.iterdir()
    old = file.rename(tmp_path / "fruit.ripe-0123456789abcdef.json")
    seen: list[Message] = []
    assert replay(str(old), seen.append) == 0
    assert seen[0].body == {"n": 1}


def test_keep_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written whole leaves nothing behind."""

    def fail_to_replace(*args: Any) -> None:
        raise OSError("no space left")

    failed = KeptMessages(str(tmp_path), 3)
    monkeypatch.setattr(os, "replace", fail_to_replace)
    with pytest.raises(OSError, match="no space left"):
        failed.keep(make_delivery(), fail(), is_set_aside=False)
    assert not list(tmp_path.iterdir())


def test_keep_cannot_make_folder(tmp_path: Path) -> None:
    """A folder that is not to be had is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableException, match=r"failures.keep_in '.*/file': File exists"):
        KeptMessages(str(tmp_path / "file"), 3)


# -- what a file tells -----------------------------------------------------------------


def test_keep_tells_history(tmp_path: Path) -> None:
    """The file tells how often and when the message failed, where it came from, and what becomes.

    When it failed first comes from the file that is replaced.
    """
    kept = KeptMessages(str(tmp_path), 10)
    kept.keep(make_delivery(), fail(), is_set_aside=False)
    first = read_only_file(tmp_path)
    (file,) = tmp_path.iterdir()
    early = "2024-05-06T07:08:09.000+00:00"
    file.write_text(json.dumps({**first, "first_failed": early}))
    delivery = make_delivery()
    delivery.attempt = 3
    delivery.published = ("orchard", *delivery.published)
    assert kept.keep(delivery, fail(), is_set_aside=True) == file
    last = read_only_file(tmp_path)
    assert (first["set_aside"], first["attempts"], first["exchange"]) == (False, 1, None)
    assert (last["set_aside"], last["attempts"], last["exchange"]) == (True, 3, "orchard")
    assert (last["first_failed"], last["topic"], last["queue"]) == (early, "fruit.ripe", "fruit")
    moment = datetime.datetime.fromisoformat(last["last_failed"])
    assert moment.utcoffset() == datetime.timedelta(0)
    assert first["first_failed"] == first["last_failed"] <= last["last_failed"]


def test_keep_reason(tmp_path: Path) -> None:
    """A text in place of an exception is kept as the reason."""
    KeptMessages(str(tmp_path), 10).keep(make_delivery(), "no JSON", is_set_aside=True)
    line = read_only_file(tmp_path)
    assert line["reason"] == "no JSON"
    assert "traceback" not in line


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"\xff", b'{"first_failed": 7}'])
def test_keep_replaces_rubbish(tmp_path: Path, rubbish: bytes) -> None:
    """A damaged file is replaced as any other."""
    kept = KeptMessages(str(tmp_path), 10)
    path = kept.keep(make_delivery(), fail(), is_set_aside=True)
    path.write_bytes(rubbish)
    kept.keep(make_delivery(), fail(), is_set_aside=True)
    line = read_only_file(tmp_path)
    assert line["first_failed"] == line["last_failed"]


def make_real(body: bytes = b"{}", **properties: Any) -> Delivery:
    """Make a delivery as the session does, with properties that were on the wire."""
    wire = Properties().decode(b"".join(Properties(**properties).encode()))
    delivery = make_delivery(body=body, message_id=wire.message_id)
    delivery.properties, delivery.published = wire, ("orchard", *wire.published)
    return delivery


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"headers": {"color": "red"}},
        {"content_type": "text/plain", "headers": {"n": 1}, "priority": 3, "app_id": "a"},
        {"content_encoding": "utf-8", "headers": {"n": [1.5, None, {"b": b"\xff"}]}},
        {"content_type": "a", "content_encoding": "b", "headers": {"n": True}, "timestamp": 2**63},
        {"delivery_mode": 2, "message_id": "apple", "expiration": "60000", "type": "t"},
    ],
)
@pytest.mark.parametrize("body", [b"", b"\xff\x00", b'{"n":1}'])
def test_keep_exact(tmp_path: Path, properties: dict[str, Any], body: bytes) -> None:
    """Body and properties are kept to the byte, whatever the callback did to its own copy."""
    delivery = make_real(body, **properties)
    delivery.properties.headers = {"mine": object()}
    path = KeptMessages(str(tmp_path), 10).keep(delivery, fail(), is_set_aside=True)
    found = parse_kept(path.read_bytes())
    assert found.raw_body == body
    assert found.raw_properties == b"".join(Properties(**properties).encode())
    assert json.loads(path.read_bytes())["headers"].keys() == properties.get("headers", {}).keys()


def test_keep_without_counters(tmp_path: Path) -> None:
    """What a quorum queue counts is left out, so that a requeued message begins anew."""
    headers = {"x-delivery-count": 3, "color": "red", "x-acquired-count": 4}
    path = KeptMessages(str(tmp_path), 10).keep(
        make_real(headers=headers), fail(), is_set_aside=True
    )
    raw = parse_kept(path.read_bytes()).raw_properties
    assert raw == b"".join(Properties(headers={"color": "red"}).encode())


def test_keep_unreadable_properties(tmp_path: Path) -> None:
    """Properties that cannot be read are kept as they came, and the file says why."""
    raw = b"\x20\x00\x00\x00\x00\x04\x01a?x"
    delivery = make_delivery()
    delivery.properties = Properties().decode(b"..." + raw, 3)
    delivery.published = ("orchard",)
    path = KeptMessages(str(tmp_path), 10).keep(delivery, "no headers", is_set_aside=True)
    assert parse_kept(path.read_bytes()).raw_properties == raw
    assert "unknown type" in json.loads(path.read_bytes())["flaw"]


def test_keep_headers_that_cannot_be_encoded(tmp_path: Path) -> None:
    """What AMQP does not have is named and left out; the rest is kept."""
    delivery = make_delivery(headers={"odd": object(), "color": "red"})
    delivery.properties.priority = "high"  # type: ignore[assignment]
    path = KeptMessages(str(tmp_path), 10).keep(delivery, fail(), is_set_aside=True)
    found = parse_kept(path.read_bytes())
    assert set(found.lost) == {"odd", "priority"}
    raw = b"".join(Properties(headers={"color": "red"}, message_id="apple").encode())
    assert found.raw_properties == raw


# -- equal messages --------------------------------------------------------------------


@pytest.mark.parametrize("message_id", [None, "apple"])
def test_keep_twins(tmp_path: Path, message_id: str | None) -> None:
    """Equal messages that were set aside have a file each, the others share one."""
    kept = KeptMessages(str(tmp_path), 10)
    for is_set_aside in (False, True, False, True, False, True):
        kept.keep(make_delivery(message_id=message_id), fail(), is_set_aside=is_set_aside)
    states = sorted(parse_kept(path.read_bytes()).is_set_aside for path in tmp_path.iterdir())
    assert states == [False, True, True, True]


def test_keep_same_id_with_other_properties(tmp_path: Path) -> None:
    """A publisher that gives all messages one id loses none."""
    kept = KeptMessages(str(tmp_path), 10)
    for color in ("red", "green", "blue"):
        delivery = make_real(message_id="apple", headers={"color": color})
        kept.keep(delivery, color, is_set_aside=True)
    lines = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert sorted(line["reason"] for line in lines) == ["blue", "green", "red"]
    assert all(line["headers"]["color"] == line["reason"] for line in lines)


# -- the limit -------------------------------------------------------------------------


def keep_numbered(kept: KeptMessages, number: int, *, is_set_aside: bool) -> None:
    """Keep a message that is younger than all before it."""
    path = kept.keep(make_delivery(message_id=str(number)), fail(), is_set_aside=is_set_aside)
    if path.exists():
        os.utime(path, (number, number))


def list_ids(folder: Path) -> list[str]:
    """List the ids of the messages in a folder."""
    return sorted(json.loads(path.read_text())["id"] for path in folder.iterdir())


def test_keep_spares_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the limit the oldest of those go that are in their queue, without a warning."""
    kept = KeptMessages(str(tmp_path), 3)
    for number in range(6):
        keep_numbered(kept, number, is_set_aside=number in (0, 3))
    assert list_ids(tmp_path) == ["0", "3", "5"]
    assert caplog.messages == []


def test_keep_removes_set_aside_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only where all were set aside the oldest of them goes, with a warning that names it."""
    KeptMessages(str(tmp_path), 9)
    for number in range(3):
        keep_numbered(KeptMessages(str(tmp_path), 9), number, is_set_aside=number != 1)
    (oldest,) = [path for path in tmp_path.iterdir() if '"id": "0"' in path.read_text()]
    keep_numbered(KeptMessages(str(tmp_path), 2), 3, is_set_aside=True)
    assert list_ids(tmp_path) == ["2", "3"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"removed the oldest, {oldest}," in record.getMessage()


def test_keep_spares_set_aside_that_was_formatted(tmp_path: Path) -> None:
    """A file that a person formatted anew still counts as set aside."""
    kept = KeptMessages(str(tmp_path), 2)
    path = kept.keep(make_delivery(message_id="old"), fail(), is_set_aside=True)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    os.utime(path, (0, 0))
    for number in range(3):
        keep_numbered(kept, number, is_set_aside=False)
    assert list_ids(tmp_path) == ["2", "old"]


# -- the disk --------------------------------------------------------------------------


def test_keep_order_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is whole on the disk before it has its name, and then its name is."""
    kept = KeptMessages(str(tmp_path), 3)
    done: list[str] = []
    replace = os.replace

    def sync(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").resolve()
        if path != tmp_path:
            assert parse_kept(path.read_bytes()).is_set_aside
        done.append("folder" if path == tmp_path else "file")

    def rename(*paths: Any) -> None:
        done.append("name")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    kept.keep(make_delivery(), fail(), is_set_aside=True)
    assert done == ["file", "name", "folder"]


def test_keep_fails_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk did not take is an error, and the file of before stays."""
    kept = KeptMessages(str(tmp_path), 3)
    kept.keep(make_delivery(), fail("first"), is_set_aside=True)

    def fail_to_sync(number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail_to_sync)
    with pytest.raises(OSError, match="Input/output error"):
        kept.keep(make_delivery(), fail("last"), is_set_aside=True)
    assert "first" in read_only_file(tmp_path)["traceback"]


def test_keep_folder_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which no file can be written is refused at the start."""

    def refuse(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UnavailableException, match=r"failures.keep_in '.*': Permission denied"):
        KeptMessages(str(tmp_path), 3)


def test_keep_disk_full_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is noticed at the start, and leaves nothing behind."""

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(UnavailableException, match="No space left on device"):
        KeptMessages(str(tmp_path), 3)
    assert list(tmp_path.iterdir()) == []


def test_keep_waits_for_lock(tmp_path: Path) -> None:
    """While the folder is locked no file is replaced."""
    kept = KeptMessages(str(tmp_path), 3)
    thread = threading.Thread(
        target=kept.keep, args=(make_delivery(), "reason"), kwargs={"is_set_aside": True}
    )
    with lock_folder(tmp_path):
        thread.start()
        thread.join(0.05)
        assert list(tmp_path.iterdir()) == []
    thread.join()
    assert len(list(tmp_path.iterdir())) == 1


# -- reading ---------------------------------------------------------------------------


def test_find_kept(tmp_path: Path) -> None:
    """A folder gives the kept messages in it, the oldest first; a file gives itself."""
    kept = KeptMessages(str(tmp_path), 9)
    paths = [kept.keep(make_delivery(message_id=text), fail(), is_set_aside=True) for text in "abc"]
    for age, path in zip((2, 1, 3), paths):
        os.utime(path, (age, age))
    (tmp_path / "other.json").touch()
    assert find_kept(str(tmp_path)) == [paths[1], paths[0], paths[2]]
    assert find_kept(str(paths[0])) == [paths[0]]
    with pytest.raises(ConfigurationException, match=r"cannot read '.*absent': No such file"):
        find_kept(str(tmp_path / "absent"))


def test_parse_kept_of_earlier_versions() -> None:
    """A file of an earlier version is read; its message is in its queue."""
    line = (
        b'{"topic": "t", "id": "apple", "queue": "fruit", "traceback": "T\\n  x\\nKeyError: 1\\n"}'
    )
    found = parse_kept(line)
    assert (found.is_set_aside, found.attempts, found.raw_body) == (False, None, None)
    assert (found.queue, found.message_id, found.error) == ("fruit", "apple", "KeyError: 1")


def test_parse_kept_cut(tmp_path: Path) -> None:
    """A file that was cut anywhere is no kept message."""
    path = KeptMessages(str(tmp_path), 3).keep(make_real(), fail(), is_set_aside=True)
    whole = path.read_bytes().rstrip()
    for end in range(len(whole)):
        with pytest.raises(ValidationError, match="holds no kept message"):
            parse_kept(whole[:end])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("set_aside", "yes"), ("queue", 7), ("id", []), ("attempts", "two"), ("lost", {})],
        *[("raw_body", "%"), ("raw_body", "YQ"), ("raw_body", 7), ("raw_properties", "")],
        ("raw_properties", base64.b64encode(b"\x20\x00\x00\x00\x00\x09\x01aV").decode()),
        ("raw_properties", base64.b64encode(b"\x00\x00and more").decode()),
        ("raw_properties", base64.b64encode(b"\x00\x01\x00\x00").decode()),
    ],
)
def test_parse_kept_edited(tmp_path: Path, name: str, value: Any) -> None:
    """A file that was edited so that it makes no sense is refused."""
    path = KeptMessages(str(tmp_path), 3).keep(make_real(), fail(), is_set_aside=True)
    fields = json.loads(path.read_bytes())
    with pytest.raises(ValidationError, match="holds no kept message"):
        parse_kept(json.dumps({**fields, name: value}).encode())
