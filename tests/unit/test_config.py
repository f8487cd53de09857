"""Tests of the configuration; nothing here needs a broker."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from unittest import mock

import pika
import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmconsume import config, config_file
from fmconsume.config import DEFAULTS, LazyConfig
from fmconsume.exceptions import ConfigurationException, ExitCode, UnavailableException
from fmconsume.version import __version__

from .fakes import CONFIG_KEYS, CONFIG_VALUES

ETC = Path(__file__).parents[2] / "etc"
EXAMPLE = ETC / "fmconsume.toml.example"

Load = Callable[[str], LazyConfig]


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the tests from the configuration of the machine they run on."""
    for variable in ("FMCONSUME_CONF", "FEDORA_MESSAGING_CONF"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(config_file, "_DEFAULT_PATH", str(tmp_path / "default.toml"))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration from its text."""

    def load(text: str) -> LazyConfig:
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return LazyConfig().load_config(str(path))

    return load


@pytest.fixture
def loggers() -> Iterator[None]:
    """Put the loggers back that a test configures."""
    names = ["", "fmconsume", "fmconsume.engine", "fedora_messaging", "pika", "other"]
    found = [logging.getLogger(name) for name in names]
    before = [(log.level, log.handlers[:], log.propagate, log.disabled) for log in found]
    yield
    for log, (level, handlers, propagate, disabled) in zip(found, before):
        log.setLevel(level)
        log.handlers[:], log.propagate, log.disabled = handlers, propagate, disabled


def with_version(defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults as they are once loaded."""
    loaded = copy.deepcopy(defaults)
    version = f"fmconsume-{__version__} with pika-{pika.__version__}"
    loaded["client_properties"]["version"] = version
    return loaded


# -- the lazy dict


ACCESSES: dict[str, Callable[[LazyConfig], object]] = {
    "getitem": lambda it: it["qos"],
    "get": lambda it: it.get("qos"),
    "iter": lambda it: next(iter(it)),
    "reversed": lambda it: next(reversed(it)),
    "keys": lambda it: it.keys(),
    "items": lambda it: it.items(),
    "values": lambda it: it.values(),
    "len": len,
    "bool": lambda it: bool(it) or pytest.fail("empty"),
    "in": lambda it: "qos" in it or pytest.fail("no qos"),
    "copy": lambda it: it.copy(),
    "update": lambda it: it.update(callback="a:b"),
    "eq": lambda it: it == {},
    "ne": lambda it: it != {},
    "lt": lambda it: it.__lt__({}),
    "or": lambda it: it | {},
    "ror": lambda it: ({} | it)["qos"],
    "ior": lambda it: it.__ior__({"callback": "a:b"}),
    "setdefault": lambda it: it.setdefault("qos", {}),
    "setitem": lambda it: it.__setitem__("callback", "a:b"),
    "delitem": lambda it: it.__delitem__("qos"),
    "pop": lambda it: it.pop("qos"),
    "popitem": lambda it: it.popitem(),
    "sizeof": sys.getsizeof,
    "repr": repr,
    "dict": lambda it: dict(it)["qos"],
    "unpacking": lambda it: {**it}["qos"],
    "copy.copy": lambda it: copy.copy(it)["qos"],
    "copy.deepcopy": lambda it: copy.deepcopy(it)["qos"],
    "pickle": lambda it: pickle.loads(pickle.dumps(it))["qos"],
    "setup_logging": lambda it: it.setup_logging(),
    "validate": lambda it: it.validate(),
}


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES.keys())
def test_lazy_config_loads_on_any_access(access: Callable[[LazyConfig], object]) -> None:
    """Whatever is done to the dict first, it is loaded before."""
    lazy = LazyConfig()
    assert not lazy.loaded
    access(lazy)
    assert lazy.loaded
    assert lazy["workers"] == 1


def test_lazy_config_covers_every_method() -> None:
    """Each method of this Python's dict loads first, but the two that run before any use."""
    kinds = (types.MethodDescriptorType, types.WrapperDescriptorType)
    methods = {name: method for name, method in vars(dict).items() if isinstance(method, kinds)}
    wrapped = {name: getattr(vars(LazyConfig).get(name), "__wrapped__", None) for name in methods}
    uncovered = {name for name, method in methods.items() if wrapped[name] is not method}
    # From Python 3.14 on dict has no __getattribute__ of its own.
    assert uncovered - {"__getattribute__"} == {"__init__"}


def test_lazy_config_keeps_a_key_set_first() -> None:
    """A key set before anything was loaded is not overwritten by the load."""
    lazy = LazyConfig()
    lazy["callback"] = "a:b"
    assert lazy["callback"] == "a:b"
    assert lazy["workers"] == 1


def test_lazy_config_tries_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed load leaves the dict unloaded, so the next access fails as clearly."""
    monkeypatch.setenv("FMCONSUME_CONF", "/nowhere.toml")
    lazy = LazyConfig()
    for _ in range(2):
        with pytest.raises(ConfigurationException, match=r"\$FMCONSUME_CONF"):
            lazy["qos"]


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_lazy_config_with_patch_dict(loaded: bool, clear: bool) -> None:
    """mock.patch.dict patches and restores it, whether loaded before or not."""
    lazy = LazyConfig()
    if loaded:
        lazy.load_config()
    with mock.patch.dict(lazy, {"callback": "a:b"}, clear=clear):
        assert lazy["callback"] == "a:b"
        assert ("qos" in lazy) is not clear
    assert lazy == with_version(DEFAULTS)


def test_conf_is_unloaded_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing conf reads no file, so a bad one does not make the import fail."""
    monkeypatch.setenv("FMCONSUME_CONF", "/nowhere.toml")
    code = "from fmconsume.config import conf; print(isinstance(conf, dict), conf.loaded)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_load_config_without_a_file() -> None:
    """Without any file the defaults hold, and DEFAULTS itself is never handed out."""
    lazy = LazyConfig().load_config()
    assert lazy == with_version(DEFAULTS)
    lazy["queues"][""]["durable"] = True
    lazy["log_config"]["loggers"].clear()
    assert LazyConfig() == with_version(DEFAULTS)


def test_load_config_again(load: Load, tmp_path: Path) -> None:
    """A second file replaces the first as a whole."""
    lazy = load("workers = 3\nremember = 0")
    second = tmp_path / "second.toml"
    second.write_text("workers = 2")
    assert lazy.load_config(str(second)) is lazy
    assert (lazy["workers"], lazy["remember"], lazy.path) == (2, 20_000, str(second))


def test_load_config_failure_changes_nothing(load: Load) -> None:
    """A file that cannot be used leaves what was loaded before."""
    lazy = load("workers = 3")
    with pytest.raises(ConfigurationException):
        lazy.load_config("/nowhere.toml")
    assert lazy["workers"] == 3


# -- finding and reading


def test_load_config_search_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path given comes first, then each variable, then the default file."""
    paths = [tmp_path / f"{name}.toml" for name in ("default", "theirs", "ours", "explicit")]
    for workers, path in enumerate(paths, start=1):
        path.write_text(f"workers = {workers}")
    default, theirs, ours, explicit = map(str, paths)
    assert LazyConfig().load_config().path == default
    monkeypatch.setenv("FEDORA_MESSAGING_CONF", theirs)
    assert LazyConfig()["workers"] == 2
    monkeypatch.setenv("FMCONSUME_CONF", ours)
    assert LazyConfig()["workers"] == 3
    assert LazyConfig().load_config(explicit)["workers"] == 4


def test_load_config_empty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable set to nothing counts as unset."""
    monkeypatch.setenv("FMCONSUME_CONF", "")
    assert LazyConfig()["workers"] == 1


@pytest.mark.parametrize("variable", ["FMCONSUME_CONF", "FEDORA_MESSAGING_CONF"])
def test_load_config_missing_file_named_by_a_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A missing file that a variable names is an error that names both."""
    monkeypatch.setenv(variable, "/nowhere.toml")
    with pytest.raises(ConfigurationException) as caught:
        LazyConfig().load_config()
    assert str(caught.value) == (
        f"cannot read the configuration file /nowhere.toml (${variable}): No such file or directory"
    )


@pytest.mark.parametrize("path", ["/nowhere.toml", ""])
def test_load_config_missing_file(path: str) -> None:
    """A missing file named explicitly is an error."""
    with pytest.raises(ConfigurationException, match=f"file {path}: No such file"):
        LazyConfig().load_config(path)


def test_load_config_directory(tmp_path: Path) -> None:
    """A directory is an error in one line, even at the default path."""
    (tmp_path / "default.toml").mkdir()
    with pytest.raises(ConfigurationException, match=r"default\.toml: Is a directory$"):
        LazyConfig().load_config()


def test_load_config_unreadable() -> None:
    """A file that may not be read is an error in one line."""
    refuse = mock.patch("builtins.open", side_effect=PermissionError(13, "Permission denied"))
    with refuse, pytest.raises(ConfigurationException, match=r": Permission denied$"):
        LazyConfig().load_config()


def test_load_config_invalid_toml(load: Load, tmp_path: Path) -> None:
    """A syntax error is reported with file, line and column."""
    with pytest.raises(ConfigurationException) as caught:
        load("workers = 1\nbody = nonsense\n")
    assert str(tmp_path / "my.toml") in str(caught.value)
    assert "line 2, column 8" in str(caught.value)


@pytest.mark.parametrize("content", [b"a = '\xff'", b"a = " + b"[" * 100_000, b"\0"])
def test_load_config_garbage(tmp_path: Path, content: bytes) -> None:
    """What is not UTF-8 or nests without end is a configuration error too."""
    path = tmp_path / "garbage.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationException, match=r"garbage\.toml is not valid TOML: "):
        LazyConfig().load_config(str(path))


# -- checking


def test_load_config_lowers_top_level_keys(load: Load) -> None:
    """Top-level keys may be written in any case."""
    assert load("Workers = 2\n[QOS]\nprefetch_count = 3")["qos"]["prefetch_count"] == 3


def test_load_config_reports_all_problems(load: Load, tmp_path: Path) -> None:
    """All problems come at once, under a line that names the file."""
    with pytest.raises(ConfigurationException) as caught:
        load("workers = 0\nqeues = 1\nqos.prefetch_count = 'x'\nqueues.q.durable = 1\nbody = 1")
    title, *lines = caught.value.message.splitlines()
    assert title == f"{tmp_path / 'my.toml'} cannot be used:"
    assert [line.split(":")[0] for line in lines] == [
        "qeues",
        "queues.q.durable",
        "qos.prefetch_count",
        "body",
        "workers",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(CONFIG_KEYS, CONFIG_VALUES, max_size=6))
def test_load_config_never_raises_anything_else(content: dict[str, Any]) -> None:
    """Whatever a file holds, it loads or raises ConfigurationException."""
    lazy = LazyConfig()
    with mock.patch.object(config, "read_file", return_value=content):
        try:
            lazy.load_config()
        except ConfigurationException:
            return
    assert lazy.keys() == DEFAULTS.keys()
    lazy.validate()


def test_validate_after_a_change(load: Load) -> None:
    """A value changed after the load is found on request."""
    lazy = load("")
    lazy.validate()
    lazy["workers"] = 0
    with pytest.raises(ConfigurationException, match="workers: found 0"):
        lazy.validate()


# -- the environment


def test_load_config_environment(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable goes before the file, and the file before the default."""
    monkeypatch.setenv("FMCONSUME_QOS__PREFETCH_COUNT", "30")
    lazy = load("workers = 2\n[qos]\nprefetch_count = 20\nprefetch_size = 7")
    assert lazy["qos"] == {"prefetch_count": 30, "prefetch_size": 7}
    assert lazy.in_file["qos"] == {"prefetch_count": 20, "prefetch_size": 7}
    assert (lazy["workers"], lazy["remember"]) == (2, 20_000)
    assert lazy.source("qos") == "$FMCONSUME_QOS__PREFETCH_COUNT"
    assert lazy.source("workers") == lazy.path


def test_load_config_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any file the environment changes the defaults; a table of names replaces them."""
    queues, bindings = '{"my.queue" = {durable = true}}', "[{queue = 'my.queue', exchange = 'x'}]"
    monkeypatch.setenv("FMCONSUME_QUEUES", queues)
    monkeypatch.setenv("FMCONSUME_BINDINGS", bindings.replace("}", ", routing_keys = ['a']}"))
    lazy = LazyConfig()
    assert list(lazy["queues"]) == ["my.queue"]
    assert lazy["bindings"] == [{"queue": "my.queue", "exchange": "x", "routing_keys": ["a"]}]


@pytest.mark.usefixtures("loggers")
def test_load_config_environment_log_level(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level changes the default, which keeps its handlers; but not what a file has instead."""
    monkeypatch.setenv("FMCONSUME_LOG_CONFIG__ROOT__LEVEL", "DEBUG")
    lazy = load("")
    assert lazy["log_config"]["root"] == {"level": "DEBUG", "handlers": ["stderr"]}
    assert DEFAULTS["log_config"]["root"]["level"] == "INFO"
    lazy.setup_logging()
    lazy = load("[log_config.root]\nlevel = 'INFO'")
    assert lazy["log_config"] == {"version": 1, "root": {"level": "DEBUG"}}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("QOS__PREFETCH_COUNT", "many", ": found 'many', expected an integer from 0 to 65535"),
        ("QOS", "5", ": found 5, expected a table"),
        (
            *("QOS__PREFETCH_COUNT__X", "1"),
            ": qos.prefetch_count: found a table, expected an integer from 0 to 65535",
        ),
        (
            *("QUEUES", '{"my.queue" = {durable = 1}}'),
            ": queues.'my.queue'.durable: found 1, expected true or false",
        ),
        (
            *("MONITORING__ADDRESS", "localhost"),
            ": monitoring.port: found nothing, expected an integer from 1 to 65535",
        ),
        (
            *("TLS__CERTFILE", "/a.pem"),
            ": tls: found a table, expected certfile and keyfile together, or neither",
        ),
        ("BODY", "jsn", ": found 'jsn', expected 'object' or 'json' or 'bytes'; did you mean "),
        (
            *("CONSUMER_CONFIG", "{token = hunter2}"),
            ": found text that is not valid TOML (Invalid value), expected a table",
        ),
        ("QUEUES__Q", "{x = 1}", ": queues.q.x: found an unknown key, expected dur"),
        ("QUEUES__Q__DURABEL", "true", "did you mean $FMCONSUME_QUEUES__Q__DURABLE?"),
        ("QUEUES__Q", "{durabel = true}", "; did you mean 'durable'?"),
        ("WROKERS", "2", "; did you mean $FMCONSUME_WORKERS?"),
        ("QOS_PREFETCH_COUNT", "2", "; did you mean $FMCONSUME_QOS__PREFETCH_COUNT?"),
        ("QSO__PREFETCH_COUNT", "2", "; did you mean $FMCONSUME_QOS__PREFETCH_COUNT?"),
        ("AMPQ_URL_FILE", str(EXAMPLE), "; did you mean $FMCONSUME_AMQP_URL_FILE?"),
        ("CONFIG", "/a.toml", "; did you mean $FMCONSUME_CONF?"),
        ("ZZZ", "hunter2", ": found an unknown key, expected amqp_url, "),
    ],
)
def test_load_config_environment_problem(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, problem: str
) -> None:
    """A problem names the variable, and a hint is one at a variable."""
    monkeypatch.setenv(f"FMCONSUME_{name}", text)
    with pytest.raises(ConfigurationException) as caught:
        LazyConfig().load_config()
    title, line = caught.value.message.splitlines()
    assert title == "the environment cannot be used:"
    assert line.startswith(f"$FMCONSUME_{name}: ")
    assert problem in line
    assert caught.value.exit_code == ExitCode.USAGE
    assert "hunter2" not in str(caught.value)


def test_load_config_environment_all_problems(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Problems of the file and of the environment come together, and the gravest counts."""
    monkeypatch.setenv("FMCONSUME_AMQP_URL_FILE", "/nowhere")
    monkeypatch.setenv("FMCONSUME_WORKERS", "0")
    with pytest.raises(ConfigurationException) as caught:
        load("body = 1")
    assert caught.value.message.splitlines() == [
        f"{tmp_path / 'my.toml'} with the environment cannot be used:",
        "$FMCONSUME_AMQP_URL_FILE: cannot read /nowhere: No such file or directory",
        "body: found 1, expected 'object' or 'json' or 'bytes'",
        "$FMCONSUME_WORKERS: found 0, expected an integer of 1 or more",
    ]
    assert caught.value.exit_code == ExitCode.USAGE


def test_load_config_environment_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of very many tables is a problem of the environment."""
    monkeypatch.setenv(f"FMCONSUME_CONSUMER_CONFIG{'__A' * 2000}", "1")
    told = "^the environment cannot be used: it is nested too deep$"
    with pytest.raises(ConfigurationException, match=told):
        LazyConfig().load_config()


def test_load_config_environment_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is not there may come later."""
    monkeypatch.setenv("FMCONSUME_AMQP_URL_FILE", "/nowhere")
    with pytest.raises(ConfigurationException) as caught:
        LazyConfig().load_config()
    assert caught.value.exit_code == ExitCode.TEMPORARY


@pytest.mark.parametrize("content", ["http://u:hunter2@h", "hunter2", "[hunter2", '["hunter2"]'])
def test_load_config_environment_file_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    """What is wrong in a file of a secret is not shown."""
    (tmp_path / "secret").write_text(content)
    for name in ("AMQP_URL", "WORKERS", "BODY", "QUEUES", "TLS"):
        monkeypatch.setenv(f"FMCONSUME_{name}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigurationException) as caught:
        LazyConfig().load_config()
    assert caught.value.message.count("\n$FMCONSUME_") >= 5
    assert "hunter2" not in str(caught.value)


def test_load_config_environment_patched(load: Load) -> None:
    """mock.patch.dict sets a variable for a while; what was loaded stays, until it is loaded."""
    with mock.patch.dict(os.environ, {"FMCONSUME_WORKERS": "3"}):
        lazy = load("workers = 2")
        assert not lazy.is_outdated
    assert lazy["workers"] == 3
    assert lazy.is_outdated
    assert lazy.reloaded()["workers"] == 2


def test_reloaded_file(load: Load, tmp_path: Path) -> None:
    """The file counts as it is now, but for one that cannot be read again."""
    lazy = load("workers = 2")
    (tmp_path / "my.toml").write_text("workers = 33")
    assert lazy.is_outdated
    again = lazy.reloaded()
    assert (again["workers"], again.path, again.is_outdated) == (33, lazy.path, False)
    (tmp_path / "my.toml").unlink()
    assert not again.is_outdated
    last = again.reloaded()
    assert (last["workers"], last.is_outdated) == (33, False)
    (tmp_path / "my.toml").write_text("workers = 4")
    assert last.is_outdated


def test_reloaded_file_of_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret is seen to change, even where there is no configuration file."""
    secret = tmp_path / "secret"
    secret.write_text("amqp://u:old@h")
    monkeypatch.setenv("FMCONSUME_AMQP_URL_FILE", str(secret))
    lazy = LazyConfig().load_config()
    assert not lazy.is_outdated
    secret.write_text("amqp://u:new@h\n")
    assert lazy.is_outdated
    assert lazy.reloaded()["amqp_url"] == "amqp://u:new@h"


# -- logging


@pytest.mark.usefixtures("loggers")
def test_setup_logging_by_default(load: Load) -> None:
    """Everything is logged to standard error from info, but pika hardly ever."""
    with mock.patch("sys.stderr", io.StringIO()) as stderr:
        load("").setup_logging()
        for name in ("fmconsume.engine", "other", "pika"):
            for level in (logging.INFO, logging.ERROR):
                logging.getLogger(name).log(level, "%s", logging.getLevelName(level).lower())
    assert [line.split(" ", 1)[1] for line in stderr.getvalue().splitlines()] == [
        "[fmconsume.engine INFO] info",
        "[fmconsume.engine ERROR] error",
        "[other INFO] info",
        "[other ERROR] error",
    ]


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(
    "log_config",
    [
        "",
        """
        [log_config]
        formatters.line = {class="fmconsume.service.journal.Formatter", format="%(message)s"}
        handlers.stderr = {class="logging.StreamHandler", formatter="line"}
        root = {level="INFO", handlers=["stderr"]}
        """,
    ],
)
def test_setup_logging_json(load: Load, log_config: str) -> None:
    """The default formatter writes JSON if it is told to, and so does one of its class."""
    with mock.patch("sys.stderr", io.StringIO()) as stderr:
        load(f'log_format = "json"\n{log_config}').setup_logging()
        logging.getLogger("fmconsume").info("news")
    (line,) = stderr.getvalue().splitlines()
    assert json.loads(line)["message"] == "news"


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(
    ("named", "level"),
    [
        ("", logging.WARNING),
        ("loggers.fedora_messaging.level = 'DEBUG'", logging.DEBUG),
        ("loggers = {fmconsume.level='ERROR', fedora_messaging.level='DEBUG'}", logging.ERROR),
    ],
)
def test_setup_logging_for_fedora_messaging(load: Load, named: str, level: int) -> None:
    """A log_config written for fedora-messaging does not silence us."""
    ours = logging.getLogger("fmconsume.engine")
    general = "version = 1\ndisable_existing_loggers = true\nroot.level = 'WARNING'"
    lazy = load(f"[log_config]\n{general}\n{named}")
    before = copy.deepcopy(lazy["log_config"])
    lazy.setup_logging()
    assert ours.getEffectiveLevel() == level
    assert not ours.disabled
    assert not logging.getLogger("fmconsume").disabled
    assert logging.getLogger("pika").level == logging.CRITICAL
    assert lazy["log_config"] == before


@pytest.mark.usefixtures("loggers")
def test_setup_logging_leaves_pika_as_configured(load: Load) -> None:
    """A log_config that names pika decides about it."""
    load("[log_config]\nversion = 1\nloggers.pika.level = 'INFO'").setup_logging()
    assert logging.getLogger("pika").level == logging.INFO


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loggers = 1", ""),
        ("root.handlers = ['nowhere']", "nowhere"),
        ("handlers.h.class = 'no.such.Class'", "no"),
        ("root.level = 'LOUD'", "LOUD"),
    ],
)
def test_setup_logging_with_a_problem(load: Load, text: str, reason: str) -> None:
    """What logging does not accept is an error with the reason, down to its cause."""
    lazy = load(f"[log_config]\nversion = 1\n{text}")
    with pytest.raises(ConfigurationException, match=f"^log_config cannot be used: .*{reason}"):
        lazy.setup_logging()


@pytest.mark.usefixtures("loggers")
def test_setup_logging_without_its_file(load: Load) -> None:
    """A log file that is not to be had may be there later."""
    handler = "handlers.h = {class='logging.FileHandler', filename='/nowhere/x'}"
    lazy = load(f"[log_config]\nversion = 1\n{handler}")
    with pytest.raises(UnavailableException, match=r"^log_config cannot be used: .*/nowhere/x"):
        lazy.setup_logging()


# -- the files in etc


def key_paths(table: dict[str, Any], path: str = "") -> set[str]:
    """List every key of a table, those of the tables in it included."""
    found: set[str] = set()
    for key, value in table.items():
        inner = value[0] if isinstance(value, list) and value else value
        found.add(f"{path}/{key}")
        if isinstance(inner, dict):
            found |= key_paths(inner, f"{path}/{key}")
    return found


def uncommented() -> str:
    """Return the example with each setting in force that is commented out."""
    return re.sub(r"^#(?! |$)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_example_yields_the_defaults() -> None:
    """The example file changes nothing."""
    assert LazyConfig().load_config(str(EXAMPLE)) == with_version(DEFAULTS)


def test_example_shows_each_key() -> None:
    """Each key, at every level, stands in the example, in force or commented out."""
    reserved = {f"/client_properties/{key}" for key in ("product", "information")}
    shown = key_paths(tomli.loads(uncommented()))
    assert key_paths(DEFAULTS) - reserved <= shown
    assert all(path.rpartition("/")[2] in EXAMPLE.read_text() for path in reserved)
    assert {"/monitoring/port", "/monitoring/address", "/queues//passive"} <= shown


def test_example_suggests_valid_settings(load: Load) -> None:
    """Every setting that is commented out may be put in force as it stands."""
    assert load(uncommented())["monitoring"]["port"] == 8070


def test_demo_consumes_a_durable_queue() -> None:
    """The demo binds one durable queue to everything and prints it."""
    demo = LazyConfig().load_config(str(ETC / "demo.toml"))
    assert demo["callback"] == "fmconsume.example:printer"
    assert demo["queues"]["demo"]["durable"]
    assert demo["bindings"] == [{"queue": "demo", "exchange": "amq.topic", "routing_keys": ["#"]}]
