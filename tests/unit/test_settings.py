"""Tests of what the configuration means to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from fmconsume import config
from fmconsume.config import LazyConfig
from fmconsume.settings import select

from .fakes import restored_configuration


@pytest.fixture(autouse=True)
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LazyConfig]:
    """Use the defaults."""
    monkeypatch.setattr(config, "_DEFAULT_PATH", str(tmp_path / "absent.toml"))
    with restored_configuration() as conf:
        yield conf.load_config()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Write a configuration file."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


TWO_QUEUES = """
[queues.fruit]
durable = true
[queues.veg]
durable = true
[[bindings]]
queue = "fruit"
exchange = "market"
routing_keys = ["a"]
[[bindings]]
queue = "veg"
exchange = "market"
routing_keys = ["b", "c"]
"""


def select_short(
    queue: Optional[str] = None,
    exchange: Optional[str] = None,
    routing_keys: Optional[list[str]] = None,
) -> tuple[Any, list[Any]]:
    """Give the queues, and the bindings as queue, exchange and keys."""
    bindings, queues = select(queue, exchange, routing_keys)
    return queues, [(b["queue"], b["exchange"], *b["routing_keys"]) for b in bindings]


@pytest.fixture
def two_queues(write: Callable[[str, str], str], conf: LazyConfig) -> LazyConfig:
    """Configure two queues, each with a binding."""
    return conf.load_config(write("two.toml", TWO_QUEUES))


def test_select_nothing(two_queues: LazyConfig) -> None:
    """Without arguments all is as configured."""
    queues, bindings = select_short()
    assert queues == two_queues["queues"]
    assert bindings == [("fruit", "market", "a"), ("veg", "market", "b", "c")]


def test_select_configured_queue(two_queues: LazyConfig) -> None:
    """A configured queue leaves only that queue and its bindings."""
    queues, bindings = select_short("veg")
    assert queues == {"veg": two_queues["queues"]["veg"]}
    assert bindings == [("veg", "market", "b", "c")]


def test_select_other_queue(conf: LazyConfig) -> None:
    """Another queue takes the settings and bindings of the configured unnamed one."""
    queues, bindings = select_short("nuts")
    assert queues == {"nuts": conf["queues"][""]}
    assert bindings == [("nuts", "amq.topic", "#")]


def test_select_exchange(two_queues: LazyConfig) -> None:
    """An exchange is bound instead of the configured exchanges."""
    _, bindings = select_short(exchange="fair")
    assert bindings == [("fruit", "fair", "a"), ("veg", "fair", "b", "c")]


def test_select_routing_keys(two_queues: LazyConfig) -> None:
    """Routing keys replace the configured ones."""
    _, bindings = select_short(routing_keys=["x", "y.#"])
    assert bindings == [("fruit", "market", "x", "y.#"), ("veg", "market", "x", "y.#")]


def test_select_all(two_queues: LazyConfig) -> None:
    """All three go together."""
    assert select_short("fruit", "fair", ["x"])[1] == [("fruit", "fair", "x")]


@pytest.mark.parametrize("name", ["fruit", "nuts"])
def test_select_without_bindings(
    write: Callable[[str, str], str], conf: LazyConfig, name: str
) -> None:
    """A queue without configured bindings is bound as the arguments say."""
    conf.load_config(write("one.toml", "[queues.fruit]\ndurable = true\n"))
    assert select_short(name, "fair", ["x"])[1] == [(name, "fair", "x")]


def test_select_leaves_configuration(two_queues: LazyConfig) -> None:
    """Selecting does not change the configuration."""
    before = [dict(binding) for binding in two_queues["bindings"]]
    select_short("fruit", "fair", ["x"])
    assert two_queues["bindings"] == before
    assert set(two_queues["queues"]) == {"fruit", "veg"}
