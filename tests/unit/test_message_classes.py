"""Tests of message classes: declared by packages, found by name, imported when needed."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fmconsume import message as module
from fmconsume.exceptions import ValidationError
from fmconsume.message import WARNING, Message, decode
from fmconsume.message_classes import get_class, get_name, load_message_classes

from .messages import UPDATE, Install, deliver, named

pytestmark = pytest.mark.usefixtures("conf", "fresh_registry")


def test_decode_class(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A message is of the class that its header names, checked by its schema."""
    name = install(UPDATE, "update.v1 = {}:Update")
    message = decode(deliver(b'{"id": 3}', named("update.v1")))
    assert type(message) is sys.modules[name].Update
    assert (message.summary, message.topic, message.severity) == ("Update 3", "a.topic", WARNING)
    with pytest.raises(ValidationError, match=r"Update body: \$: \"id\" is a required property"):
        decode(deliver(b"{}", named("update.v1")))
    assert caplog.messages == []


def test_decode_imports_only_what_is_named(install: Install) -> None:
    """Only the class that a message names is imported, and only then."""
    used = install(UPDATE, "used.v1 = {}:Update")
    unused = install(UPDATE, "unused.v1 = {}:Update")
    decode(deliver())
    assert used not in sys.modules
    decode(deliver(b'{"id": 3}', named("used.v1")))
    assert used in sys.modules
    assert unused not in sys.modules


def test_decode_looks_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed packages are looked at once, and a class is loaded once."""
    name = install("loaded = []\n" + UPDATE, "update.v1 = {}:Update")
    decode(deliver(b'{"id": 3}', named("update.v1")))
    monkeypatch.setattr("importlib.metadata.distributions", None)
    monkeypatch.setitem(sys.modules, name, None)
    for schema_name in ("update.v1", "missing.v1", "missing.v2"):
        decode(deliver(b'{"id": 3}', named(schema_name)))


def test_decode_missing_class(caplog: pytest.LogCaptureFixture) -> None:
    """A message of a class that is not installed is a Message; one warning says what to do."""
    headers = named("bodhi.v1", fedora_messaging_schema_package="bodhi_messages")
    for _ in range(3):
        assert type(decode(deliver(headers=headers))) is Message
    (warning,) = caplog.messages
    assert "'bodhi.v1'" in warning
    assert "install 'bodhi_messages'" in warning
    assert type(decode(deliver(headers=named("other.v1")))) is Message
    assert "install the package that defines it" in caplog.messages[1]


@pytest.mark.parametrize("name", ["", "\0", "..", "x" * 1_000_000, "%s", "\ud800"])
def test_decode_hostile_name(name: str) -> None:
    """A schema name of any content is merely unknown."""
    assert type(decode(deliver(headers=named(name)))) is Message


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import missing_module", "No module named 'missing_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("", "has no attribute 'Update'"),
        ("Update = 5", "not a subclass of fmconsume.message.Message; if it is made for"),
        ("class Update: pass", "run with --as-fedora-messaging"),
        ("import fedora_messaging.message", "run with --as-fedora-messaging"),
    ],
)
def test_decode_broken_class(
    source: str,
    reason: str,
    install: Install,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class that cannot be used is one error in the log and harms no other."""
    if "fedora" in source:
        source = "raise ModuleNotFoundError(\"No\", name='fedora_messaging.message')"
    install(source, "broken.v1 = {}:Update", package="broken")
    install(UPDATE, "update.v1 = {}:Update")
    for _ in range(3):
        assert type(decode(deliver(headers=named("broken.v1")))) is Message
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "broken.v1 = messages_" in record.message
    assert "of package broken " in record.message
    assert reason in record.message
    assert decode(deliver(b'{"id": 3}', named("update.v1"))).summary == "Update 3"


def test_decode_broken_package(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A package whose entry points cannot be read harms no other."""
    broken = install(UPDATE, "broken.v1 = {}:Update")
    (tmp_path / f"{broken}-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff")
    install(UPDATE, "update.v1 = {}:Update")
    assert decode(deliver(b'{"id": 3}', named("update.v1"))).summary == "Update 3"
    assert "the entry points of a package cannot be read" in caplog.text


def test_decode_concurrently(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Workers that meet a class at the same time get the same one."""
    install("import time; time.sleep(0.1)\n" + UPDATE, "update.v1 = {}:Update")
    start = threading.Barrier(4)
    classes = []

    def work() -> None:
        start.wait()
        classes.append(type(decode(deliver(b'{"id": 3}', named("update.v1")))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(classes) == 4
    assert len(set(classes)) == 1
    assert caplog.messages == []


def test_get_class(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A name gives its class; an unknown one gives Message and a warning."""
    name = install(UPDATE, "update.v1 = {}:Update")
    assert get_class("update.v1") is sys.modules[name].Update
    assert get_class("base.message") is Message
    assert get_class("unknown.v1") is Message
    assert len(caplog.messages) == 1


def test_get_class_own_base(install: Install) -> None:
    """The name base.message is ours, whoever else declares it."""
    name = install("", "base.message = {}:Message")
    load_message_classes()
    assert get_class("base.message") is Message
    assert name not in sys.modules


def test_get_class_groups(install: Install) -> None:
    """Our own group goes before fedora-messaging's."""
    install(UPDATE, "update.v1 = {}:Update")
    ours = install(UPDATE, "update.v1 = {}:Update", group="fmconsume.messages")
    install(UPDATE, "update.v1 = {}:Update")
    assert get_class("update.v1").__module__ == ours


def test_get_name(install: Install) -> None:
    """A class gives its name, also under the names that schema packages' tests use."""
    name = install(UPDATE, "update.v1 = {}:Update", "named.v1 = {}:Named")
    update = __import__(name).Update
    assert get_name(Message) == "base.message"
    assert get_name(update) == "update.v1"
    assert module._class_to_schema_name[update] == "update.v1"
    assert module._schema_name_to_class["named.v1"] is sys.modules[name].Named


def test_import_is_light() -> None:
    """Importing fmconsume looks at no package for message classes."""
    code = (
        "from importlib import metadata; metadata.distributions = metadata.entry_points = None\n"
        "from fmconsume import Message, message_classes as m; Message()\n"
        "assert not m._declarations.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
