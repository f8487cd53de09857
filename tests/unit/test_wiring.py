"""Tests of what the configuration means to a consumer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

import pytest

from fmconsume import config, config_file
from fmconsume.broker.addresses import Address
from fmconsume.config import DEFAULTS, LazyConfig
from fmconsume.delivery import DROP
from fmconsume.engine.supervisor import Options
from fmconsume.exceptions import ConfigurationException
from fmconsume.wiring import (
    addresses,
    failure_policy,
    list_exposures,
    open_notes,
    options,
    select,
    state_folder,
    topology,
)

from .fakes import restored_configuration


@pytest.fixture(autouse=True)
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LazyConfig]:
    """Use the defaults."""
    monkeypatch.setattr(config_file, "_DEFAULT_PATH", str(tmp_path / "absent.toml"))
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
    queue: str | None = None,
    exchange: str | None = None,
    routing_keys: list[str] | None = None,
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


def test_select_other_queue_than_several(two_queues: LazyConfig) -> None:
    """Another queue has every configured binding where no queue is unnamed."""
    queues, bindings = select_short("nuts")
    assert queues == {"nuts": DEFAULTS["queues"][""]}
    assert bindings == [("nuts", "market", "a"), ("nuts", "market", "b", "c")]


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


def test_select_with_some_bindings(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """An argument binds also the queues that have no configured binding."""
    conf.load_config(write("three.toml", f"{TWO_QUEUES}[queues.nuts]"))
    assert select_short(exchange="fair")[1] == [
        ("fruit", "fair", "a"),
        ("veg", "fair", "b", "c"),
        ("nuts", "fair", "#"),
    ]


def test_select_leaves_configuration(two_queues: LazyConfig) -> None:
    """Selecting does not change the configuration."""
    before = [dict(binding) for binding in two_queues["bindings"]]
    select_short("fruit", "fair", ["x"])
    assert two_queues["bindings"] == before
    assert set(two_queues["queues"]) == {"fruit", "veg"}


# -- topology --------------------------------------------------------------------------


def test_topology_configured(two_queues: LazyConfig) -> None:
    """Without arguments the topology is the configured one."""
    found = topology()
    assert found.queues == two_queues["queues"]
    assert found.bindings == two_queues["bindings"]
    assert (found.passive, found.prefetch_count, found.prefetch_size) == (False, 10, 0)


def test_topology_of_a_queue(two_queues: LazyConfig) -> None:
    """A queue that is given keeps its configured bindings, and those of others are left out."""
    found = topology(queues={"veg": {}})
    assert [binding["routing_keys"] for binding in found.bindings] == [["b", "c"]]


def test_topology_changed_by_program(conf: LazyConfig) -> None:
    """What a program has put into the configuration is checked like an argument."""
    conf["queues"] = {"nuts": {"durable": 1}}
    with pytest.raises(ValueError, match=r"queues\.nuts\.durable: found 1"):
        topology()


# -- options ---------------------------------------------------------------------------


def test_options_configured(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """Each option comes from its key."""
    text = (
        "workers = 3\nremember = 7\ncallback_timeout = 9\nfailures.delay = {initial = 2, max = 5}"
    )
    conf.load_config(write("options.toml", text))
    assert options(None, None, False) == Options(3, 2, 5, 7, None, False, 9, True)


def test_options_arguments(conf: LazyConfig) -> None:
    """Arguments go before the configuration; without a file the engine's own defaults hold."""
    assert options(2, 4, True) == Options(workers=2, limit=4, drain=True, is_guarded=True)


@pytest.mark.parametrize("url", ["amqp://a.example/", ["amqp://a.example/", "amqp://b.example/"]])
def test_addresses_given(conf: LazyConfig, url: Any) -> None:
    """A program may name the brokers itself."""
    conf["amqp_url"] = "amqp://configured.example/"
    urls = [url] if isinstance(url, str) else url
    assert [each.name.partition("@")[2][:9] for each in addresses(url)] == [
        each[7:16] for each in urls
    ]


@pytest.mark.parametrize("url", ["http://u:secret@a.example", "", [], 7, ["x"]])
def test_addresses_given_wrong(conf: LazyConfig, url: Any) -> None:
    """What is no URL is refused, and its password is not shown."""
    with pytest.raises(ValueError, match=r"amqp_url(\[0\])?: found") as raised:
        addresses(url)
    assert "secret" not in str(raised.value)


def test_addresses_client_properties(conf: LazyConfig) -> None:
    """What AMQP cannot carry is refused before anything connects, and not tried for ever."""
    conf["client_properties"] = {"app": "a", "d": 1.5}
    with pytest.raises(
        ConfigurationException, match=r"^client_properties.d: found 1.5, which AMQP"
    ):
        addresses()


def test_options_guarded(conf: LazyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to be careful with what does not decode where it is kept, or as there."""
    conf["failures"] = {**DEFAULTS["failures"], "keep_in": "folder"}
    assert not options(None, None, False).is_guarded
    conf["failures"] = DEFAULTS["failures"]
    monkeypatch.setattr(config, "is_fedora_messaging", True)
    assert not options(None, None, False).is_guarded


def test_state_folder(conf: LazyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is configured, or else systemd's; there is none where nothing is remembered."""
    assert state_folder() is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")
    assert state_folder() == Path("/var/lib/a/state")
    conf["state"] = "here"
    assert state_folder() == Path.cwd() / "here"
    conf["remember"] = 0
    assert state_folder() is None


def test_open_notes(conf: LazyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be used is a warning, and no state."""
    assert open_notes() is None
    conf["state"] = str(tmp_path / "state")
    notes = open_notes()
    assert str(notes) == f"state '{tmp_path}/state' holds 0 notes"
    (tmp_path / "file").touch()
    conf["state"] = str(tmp_path / "file")
    assert open_notes() is None
    (warning,) = caplog.records
    assert "FileExistsError: [Errno 17]" in warning.getMessage()


class Overloaded(Exception):
    """Raised by nobody; it has a name."""


def test_failure_policy_configured(conf: LazyConfig) -> None:
    """Each part comes from its key; classes are imported by their names."""
    conf["failures"] = {
        **DEFAULTS["failures"],
        "on_exception": "drop",
        "nack_on": [f"{__name__}.Overloaded", "TimeoutError"],
        "drop_on": ["json.JSONDecodeError"],
        "max_attempts": 5,
    }
    expected = (DROP, (Overloaded, TimeoutError), (json.JSONDecodeError,), 5)
    assert failure_policy() == expected


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.Error", "cannot import 'nowhere.Error': ModuleNotFoundError"),
        ("json.Error", "cannot import 'json.Error': AttributeError"),
        ("Error", "cannot import 'Error': AttributeError"),
        ("json.dumps", "'json.dumps' is no class of exceptions"),
        ("json.JSONDecoder", "'json.JSONDecoder' is no class of exceptions"),
    ],
)
def test_failure_policy_wrong(conf: LazyConfig, name: str, told: str) -> None:
    """A name that means no class of exceptions is told at the start, with its key."""
    conf["failures"] = {**DEFAULTS["failures"], "nack_on": [name]}
    with pytest.raises(ConfigurationException, match=f"^failures.nack_on: {re.escape(told)}"):
        failure_policy()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("name", ["workers", "limit"])
def test_options_wrong(conf: LazyConfig, name: str, value: Any) -> None:
    """A number that is none, or below 1, is a ValueError that names it."""
    arguments = {"workers": None, "limit": None, "drain": False, name: value}
    with pytest.raises(ValueError, match=f"^{name}: found {value!r}, expected a number"):
        options(**arguments)


# -- addresses -------------------------------------------------------------------------

BROKERS = 'amqp_url = ["amqp://ann:{password}@one/v", "amqp://bob:{password}@two/v"]'


def passwords(brokers: list[Address]) -> list[str]:
    """Give the passwords with which connections would be made now."""
    return [address.parameters().credentials.password for address in brokers]


def test_addresses_password_changed(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """A password that has changed in the file counts for the next connection."""
    conf.load_config(write("a.toml", BROKERS.format(password="old")))
    brokers = addresses()
    assert passwords(brokers) == ["old", "old"]
    for password in ("renewed", "newer"):
        write("a.toml", BROKERS.format(password=password))
        assert passwords(brokers) == [password, password]
    assert passwords(addresses()) == ["newer", "newer"]
    assert conf["amqp_url"][0] == "amqp://ann:old@one/v"


def test_addresses_tls_changed(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """So do other certificates; the address tells what is wrong with them."""
    conf.load_config(write("a.toml", 'amqp_url = "amqps://a:b@one"'))
    (address,) = addresses()
    assert address.parameters().ssl_options
    write("a.toml", 'amqp_url = "amqps://a:b@one"\n[tls]\nca_cert = "/nowhere/ca.pem"')
    with pytest.raises(ValueError, match=r"tls.ca_cert: cannot use /nowhere/ca.pem"):
        address.parameters()


def test_addresses_of_changed_file(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """Who comes after the change, as a first publish may, has nothing to do with the old paths."""
    gone = '[tls]\nca_cert = "/nowhere/ca.pem"'
    conf.load_config(write("a.toml", f'amqp_url = "amqps://a:b@one"\n{gone}'))
    write("a.toml", 'amqp_url = "amqps://a:renewed@one"')
    assert passwords(addresses()) == ["renewed"]


@pytest.mark.parametrize(
    "text",
    [
        'amqp_url = "amqp://ann:renewed@elsewhere/v"',
        'amqp_url = "amqp://carl:renewed@one/v"',
        'amqp_url = "amqp://ann:renewed@one/w"',
        'amqp_url = "amqps://ann:renewed@one/v"',
        'amqp_url = "amqp://ann:renewed@one:1/v"',
    ],
)
def test_addresses_other_broker(
    write: Callable[[str, str], str], conf: LazyConfig, text: str
) -> None:
    """Another user or another broker in the file is not what the consumer was started with."""
    conf.load_config(write("a.toml", BROKERS.format(password="old")))
    brokers = addresses()
    write("a.toml", text)
    assert passwords(brokers) == ["old", "old"]


@pytest.mark.parametrize("text", ["amqp_url = ", "amqp_url = 5", "", "amqp_url = 'amqp://h'"])
def test_addresses_file_unusable(
    write: Callable[[str, str], str],
    conf: LazyConfig,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    """While the file cannot be used the known password does, with a warning; then it is read."""
    path = write("a.toml", BROKERS.format(password="old"))
    conf.load_config(path)
    brokers = addresses()
    write("a.toml", text)
    assert passwords(brokers) == ["old", "old"]
    assert "going on with the amqp_url and [tls] of before" in caplog.text
    assert path in caplog.text
    write("a.toml", BROKERS.format(password="renewed"))
    assert passwords(brokers) == ["renewed", "renewed"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: None])
def test_addresses_file_is_none(
    write: Callable[[str, str], str], conf: LazyConfig, make: Callable[[str], None]
) -> None:
    """What is in place of the file, and could block, is not opened: the known password does."""
    path = write("a.toml", BROKERS.format(password="old"))
    conf.load_config(path)
    brokers = addresses()
    os.unlink(path)
    make(path)
    assert passwords(brokers) == ["old", "old"]


def test_addresses_tls_set_by_program(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """So does what it has changed inside [tls]."""
    conf.load_config(write("a.toml", BROKERS.format(password="old")))
    conf["tls"]["ca_cert"] = "/program/own.pem"
    brokers = addresses()
    write("a.toml", BROKERS.format(password="renewed"))
    assert passwords(brokers) == ["old", "old"]


def test_addresses_set_by_program(write: Callable[[str, str], str], conf: LazyConfig) -> None:
    """What a program has put in place of the file's values stays, whatever the file says."""
    conf.load_config(write("a.toml", BROKERS.format(password="old")))
    conf["amqp_url"] = "amqp://ann:mine@one/v"
    brokers = addresses()
    write("a.toml", BROKERS.format(password="renewed"))
    assert passwords(brokers) == ["mine"]


def test_addresses_secret_changed(
    conf: LazyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    """So does a password in the file of a variable; while that cannot be used, the known one."""
    secret = tmp_path / "secret"
    secret.write_text("amqp://ann:old@one/v\n")
    monkeypatch.setenv("FMCONSUME_AMQP_URL_FILE", str(secret))
    conf.load_config()
    brokers = addresses()
    assert passwords(brokers) == ["old"]
    secret.write_text("")
    assert passwords(brokers) == ["old"]
    assert f"$FMCONSUME_AMQP_URL_FILE: {secret} is empty" in caplog.text
    secret.write_text("amqp://ann:new@elsewhere/v")
    assert passwords(brokers) == ["old"]
    assert "$FMCONSUME_AMQP_URL_FILE has another amqp_url now" in caplog.text
    secret.write_text("amqp://ann:new@one/v")
    assert passwords(brokers) == ["new"]
    assert "old@" not in caplog.text
    assert "new@" not in caplog.text


def test_addresses_environment_over_changed_file(
    write: Callable[[str, str], str], conf: LazyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes does not undo what the environment sets."""
    monkeypatch.setenv("FMCONSUME_AMQP_URL", "amqp://ann:mine@one/v")
    conf.load_config(write("a.toml", BROKERS.format(password="old")))
    brokers = addresses()
    write("a.toml", BROKERS.format(password="renewed"))
    assert passwords(brokers) == ["mine"]
    monkeypatch.setenv("FMCONSUME_AMQP_URL", "amqp://ann:other@one/v")
    assert passwords(brokers) == ["other"]


# -- a password that others may read -----------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike those of other tests."""
    with TemporaryDirectory(prefix="fmconsume-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize(
    ("url", "mode", "count"),
    [
        ('"amqp://ann:secret@one"', 0o644, 1),
        ('["amqp://one", "amqps://ann:secret@two"]', 0o604, 1),
        ('"amqp://ann:secret@one"', 0o640, 0),
        ('"amqp://guest:guest@one"', 0o644, 0),
        ('"amqp://one"', 0o644, 0),
    ],
)
def test_list_exposures(
    conf: LazyConfig, open_folder: Path, url: str, mode: int, count: int
) -> None:
    """A line names the file with a password that everybody may read, and what to do."""
    path = open_folder / "a.toml"
    path.write_text(f"amqp_url = {url}")
    path.chmod(mode)
    conf.load_config(str(path))
    lines = list(list_exposures())
    assert len(lines) == count
    for line in lines:
        assert line.startswith(f"{path} holds a password, in amqp_url, and every user")
        assert line.endswith("chmod 640")
    open_folder.chmod(0o700)
    assert list(list_exposures()) == []


def test_list_exposures_none(
    conf: LazyConfig, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No password in the file is exposed by it, and a file that is gone exposes nothing."""
    monkeypatch.setenv("FMCONSUME_AMQP_URL", "amqp://ann:secret@one")
    path = open_folder / "a.toml"
    for value in ("'amqp://ann:[@'", "5"):
        path.write_text(f"amqp_url = {value}")
        conf.load_config(str(path))
        assert list(list_exposures()) == []
    path.write_text("amqp_url = 'amqp://ann:secret@one'")
    conf.load_config(str(path))
    path.unlink()
    assert list(list_exposures()) == []


def test_addresses_directory_changed(
    write: Callable[[str, str], str],
    conf: LazyConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The file is found again when the process has changed its directory meanwhile."""
    write("a.toml", BROKERS.format(password="old"))
    monkeypatch.chdir(tmp_path)
    conf.load_config("a.toml")
    brokers = addresses()
    monkeypatch.chdir("/")
    write("a.toml", BROKERS.format(password="renewed"))
    assert passwords(brokers) == ["renewed", "renewed"]
