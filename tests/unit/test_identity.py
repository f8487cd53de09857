"""Tests of who consumes."""

from __future__ import annotations

import os
import socket

import pytest

from fmconsume import config
from fmconsume.identity import Identity, identify


def test_identify(conf: config.LazyConfig) -> None:
    """It is the program that the configuration names, on this machine, in this process."""
    conf["client_properties"] = {"app": "sample\n"}
    assert identify() == (r"sample\n", socket.gethostname(), os.getpid())
    assert str(identify()).startswith(r"sample\n on ")


@pytest.mark.parametrize(("app", "name"), [(7, "7"), (None, "None"), ("", "")])
def test_identify_odd_app(conf: config.LazyConfig, app: object, name: str) -> None:
    """Any value will do for a name."""
    conf["client_properties"] = {"app": app}
    assert identify().app == name


def test_identify_no_app(conf: config.LazyConfig) -> None:
    """A program may have removed its name."""
    conf["client_properties"] = {}
    assert identify().app == ""


def test_tag() -> None:
    """A consumer tag tells the consumers of a session, a process and a machine apart."""
    assert Identity("sample", "far.example", 4711).tag(2) == "fmconsume.sample.far.example.4711.2"


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u20ac", "\U0001f34e"])
def test_tag_is_short(letter: str) -> None:
    """AMQP's limit of 255 bytes is kept, in letters of any size, and the numbers stay."""
    tag = Identity(letter * 300, letter * 300, 4194304).tag(2**64)
    assert len(tag.encode()) <= 255
    assert set(tag.split(".")[1]) == set(tag.split(".")[2]) == {letter}
    assert tag.endswith(f".4194304.{2**64}")
