"""What tests of messages need: a configuration, an empty registry, and packages to install."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from fmconsume import config, log, message_classes, schema
from fmconsume.message import Message

from .messages import Install


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch) -> config.LazyConfig:
    """Replace the configuration of the machine."""
    conf = config.LazyConfig()
    conf.loaded = True
    conf.update(publish_priority=None, topic_prefix="")
    monkeypatch.setattr(config, "conf", conf)
    return conf


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a test the message classes, the warnings and the schemas of a new process."""
    registry = (
        (message_classes._schema_name_to_class, {"base.message": Message}),
        (message_classes._class_to_schema_name, {Message: "base.message"}),
        (message_classes._schema_name_to_package, {}),
    )
    monkeypatch.setattr(log, "_warned", {})
    monkeypatch.setattr(schema, "_compiled", {})
    message_classes._declarations.cache_clear()
    with ExitStack() as stack:
        for known, at_first in registry:
            stack.enter_context(mock.patch.dict(known, at_first, clear=True))
        yield
    message_classes._declarations.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of one module, with its entry points; returns the module's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(
        source: str,
        *entry_points: str,
        group: str = "fedora.messages",
        package: str = "Update.messages",
    ) -> str:
        name = f"messages_{uuid.uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{line.format(name)}\n" for line in entry_points]
        (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
        return name

    return install
