"""Tests that the broker in memory has the interface of the real one."""

from __future__ import annotations

import inspect

import pytest

from fmconsume.broker.session import Session, open_session

from .memory_broker import MemoryBroker, MemorySession

PUBLIC = [name for name in vars(Session) if not name.startswith("_")]


@pytest.mark.parametrize("name", PUBLIC)
def test_session_interface(name: str) -> None:
    """Whatever the real session offers, the one in memory offers in the same way."""
    real = inspect.getattr_static(Session, name)
    if not callable(real):
        assert hasattr(MemoryBroker().open_session(None, None, print), name)  # type: ignore[arg-type]
        return
    pretended = inspect.getattr_static(MemorySession, name)
    parameters = [list(inspect.signature(each).parameters) for each in (real, pretended)]
    assert parameters[0] == parameters[1]


def test_open_session_interface() -> None:
    """A session is opened in the same way, too."""
    real, pretended = (
        [(each.name, each.default) for each in inspect.signature(function).parameters.values()]
        for function in (open_session, MemoryBroker().open_session)
    )
    assert real == pretended
