"""Tests of the command: usage, what its options select, and how it ends."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from fmconsume import cli, config, config_file, requeueing
from fmconsume.cli import main
from fmconsume.config import LazyConfig
from fmconsume.exceptions import (
    BadDeclaration,
    ConnectionException,
    ConsumerCanceled,
    ExitCode,
    HaltConsumer,
    UnavailableException,
)
from fmconsume.version import __version__

from .fakes import restored_configuration


class FakeConsumer:
    """Notes how it was made, and ends as the test says."""

    made: list[FakeConsumer]
    end: Callable[[], None]

    def __init__(self, callback: Any, bindings: Any, queues: Any, **options: Any) -> None:
        self.callback, self.bindings, self.queues, self.options = (
            callback,
            bindings,
            queues,
            options,
        )
        self.exit_code = 0
        self.made.append(self)

    def run(self) -> None:
        type(self).end()


@pytest.fixture(autouse=True)
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LazyConfig]:
    """Stand in an empty folder, without a configuration, and leave no trace in the process."""
    monkeypatch.setattr(config_file, "_DEFAULT_PATH", str(tmp_path / "absent.toml"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with restored_configuration() as conf:
        monkeypatch.setattr(conf, "setup_logging", lambda: None)
        yield conf.load_config()
    for name in set(sys.modules) - before:
        if name.startswith("orchard"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Write a file into the current folder."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


@pytest.fixture
def consumers(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[str, str], str]
) -> list[FakeConsumer]:
    """Let the command make consumers that do nothing, with a callback at orchard:pick."""
    write("orchard.py", "def pick(message): pass\n")
    FakeConsumer.made = []
    FakeConsumer.end = staticmethod(lambda: None)  # type: ignore[assignment]
    monkeypatch.setattr(cli, "Consumer", FakeConsumer)
    return FakeConsumer.made


CALLBACK = ["--callback", "orchard:pick"]


ORCHARD = """
SIZE = 7
def pick(message): pass
def generate(message): yield
def lonely(): pass
"""


# -- usage ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no callback: give --callback module:object, or set callback in the configuration"),
        (["--callback", "orchard"], "found 'orchard', expected 'package.module:object'"),
        (["--callback", "meadow:pick"], "no module named 'meadow'"),
        (["--callback", "orchard:plant"], "orchard has no 'plant'"),
        (["--callback", "broken:pick"], "importing broken failed: SyntaxError"),
        (["--callback", "lacking:pick"], "lacking failed: ModuleNotFoundError"),
        (["--callback", "orchard:generate"], "callback: generate contains a yield"),
        (["--callback", "orchard:lonely"], "callback: lonely cannot be called with one argument"),
        ([*CALLBACK, "--config", "deep.toml"], "deep.toml cannot be used: it is nested too deep"),
        ([*CALLBACK, "--replay", "absent.jsonl"], "cannot replay 'absent.jsonl': No such file"),
        (["--record", "absent/file"], "cannot record to 'absent/file': No such file"),
        (["--callback", "orchard:SIZE"], "callback: found 7, expected a function"),
        (["--callback-file", "absent.py:pick"], "'absent.py' does not exist"),
        ([*CALLBACK, "--workers", "0"], "workers: found 0, expected a number of at least 1"),
        ([*CALLBACK, "--limit", "-1"], "limit: found -1, expected a number of at least 1"),
        ([*CALLBACK, "--config", "absent.toml"], "cannot read the configuration file absent.toml"),
        ([*CALLBACK, "--config", "broken.toml"], "broken.toml is not valid TOML"),
    ],
)
def test_main_usage(
    write: Callable[[str, str], str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    """Each mistake ends with exit code 2 and one line on standard error."""
    write("orchard.py", ORCHARD)
    write("broken.py", "def pick(:\n")
    write("lacking.py", "import meadow\n")
    write("broken.toml", "workers = \n")
    write("deep.toml", f"[consumer_config.{'.'.join(['a'] * 900)}]\n")
    # Where recursion is at its limit, a finalizer of another test's garbage would fail and say so.
    gc.collect()
    gc.disable()
    try:
        assert main(arguments) == 2
    finally:
        gc.enable()
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("fmconsume: ")
    assert text in line
    assert output.out == ""


def test_main_bad_configuration(
    write: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All problems of a configuration are told at once, a line each."""
    write("my.toml", "workers = 0\nremember = -1\n")
    assert main(["--config", "my.toml"]) == 2
    title, *problems = capsys.readouterr().err.splitlines()
    assert title == "fmconsume: my.toml cannot be used:"
    assert [problem.partition(":")[0] for problem in sorted(problems)] == ["remember", "workers"]


def test_main_secret_may_come_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of a variable that is not there is told in two lines, and the exit code is 1."""
    monkeypatch.setenv("FMCONSUME_AMQP_URL_FILE", "/nowhere/url")
    assert main([*CALLBACK, "--check"]) == ExitCode.TEMPORARY
    assert capsys.readouterr().err.splitlines() == [
        "fmconsume: the environment cannot be used:",
        "$FMCONSUME_AMQP_URL_FILE: cannot read /nowhere/url: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("arguments", "variable", "key", "is_installed"),
    [
        ([], "", "false", False),
        ([], "", "true", True),
        ([], "yes", "false", True),
        ([], "0", "true", False),
        (["--as-fedora-messaging"], "0", "false", True),
        (["-m", "orchard_program"], "1", "false", True),
        (["-m", "orchard_program"], "0", "true", False),
    ],
)
def test_main_as_fedora_messaging(
    write: Callable[[str, str], str],
    consumers: list[FakeConsumer],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str,
    key: str,
    is_installed: bool,
) -> None:
    """The option goes before the variable, that before the key; a program needs one of the two."""
    installed: list[bool] = []
    monkeypatch.setattr(cli.compat, "install", lambda: installed.append(True))
    monkeypatch.setenv("FMCONSUME_AS_FEDORA_MESSAGING", variable)
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    write("orchard_program.py", "")
    path = write("my.toml", f"as_fedora_messaging = {key}")
    chosen = arguments if "-m" in arguments else [*CALLBACK, *arguments]
    assert main(["--config", path, *chosen]) == 0
    assert bool(installed) is is_installed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--call"], "ambiguous option"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["extra"], "unrecognized arguments: extra"),
        (["--workers", "two"], "--workers: invalid int value: 'two'"),
        (["--log-level", "loud"], "--log-level: invalid choice: 'loud'"),
        (["-v", "-q"], "-q: not allowed with argument -v"),
        (["consume"], "unrecognized arguments: consume; fedora-messaging's consume is python -m"),
        ([*CALLBACK, "--callback-file", "a.py:b"], "not allowed with argument --callback"),
        (["--failed", "--requeue", "a"], "--requeue: not allowed with argument --failed"),
        (["--failed", "--check"], "--check: not allowed with argument --failed"),
        (["--requeue", "a", "--drain"], "--drain: not allowed with argument --requeue"),
        (["--requeue", "a", "--replay", "b"], "--replay: not allowed with argument --requeue"),
        ([*CALLBACK, "--peek"], "--peek: expected --record, too"),
        (["--record", "a", "--peek", "--drain"], "--drain: not allowed with argument --peek"),
        (["--reload", "--check"], "--check: not allowed with argument --reload"),
        (["--reload", "--record", "a"], "--record: not allowed with argument --reload"),
        (["--app-dir", "absent"], "--app-dir: found 'absent', expected a folder that exists"),
        (["--app-dir", ""], "--app-dir: found '', expected a folder that exists"),
        (["--failed", "--peek"], "--peek: not allowed with argument --failed"),
        (["--failed", ""], "--failed: found an empty value"),
    ],
)
def test_main_wrong_options(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    """Options that are wrong end with exit code 2; the last line says why."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fmconsume: error: ")
    assert text in last


def test_main_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version tells it and ends well."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fmconsume {__version__}\n"


# -- options --------------------------------------------------------------------


def test_main_callback(consumers: list[FakeConsumer]) -> None:
    """--callback is found in the current folder; without other options nothing is overridden."""
    assert main(CALLBACK) == 0
    (consumer,) = consumers
    assert consumer.callback.__name__ == "pick"
    assert consumer.queues == config.DEFAULTS["queues"]
    assert consumer.bindings == config.DEFAULTS["bindings"]
    assert consumer.options["workers"] is None
    assert consumer.options["limit"] is None


def test_main_app_dir(consumers: list[FakeConsumer], write: Callable[[str, str], str]) -> None:
    """--app-dir is searched for the callback, whoever names it, and for what a file imports."""
    os.mkdir("src")
    write("src/orchard3.py", "def mow(message): pass\n")
    write("my.toml", 'callback = "orchard3:mow"\n')
    write("barn.py", "from orchard3 import mow\n")
    assert main(["--app-dir", "src", "--callback", "orchard3:mow"]) == 0
    assert main(["--app-dir", "src", "--config", "my.toml"]) == 0
    assert main(["--app-dir", "src", "--callback-file", "barn.py:mow"]) == 0
    assert [consumer.callback.__name__ for consumer in consumers] == ["mow"] * 3
    assert sys.path[0] == os.path.abspath("src")


def test_main_record_searches(consumers: list[FakeConsumer]) -> None:
    """With --record, too, the exceptions of [failures] are found in the current directory."""
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
    assert main(["--record", "messages"]) == 0
    assert sys.path[0] == os.getcwd()


def test_main_reload_without_watchfiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--reload says in a line how to install what it needs."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert main(["--reload", *CALLBACK]) == 2
    assert capsys.readouterr().err == (
        "fmconsume: argument --reload: needs the 'dev' extra: pip install 'fmconsume[dev]'\n"
    )


def test_main_callback_file(consumers: list[FakeConsumer]) -> None:
    """--callback-file takes it of a file."""
    assert main(["--callback-file", "orchard.py:pick"]) == 0
    assert consumers[0].callback.__name__ == "pick"


def test_main_callback_configured(
    consumers: list[FakeConsumer], write: Callable[[str, str], str]
) -> None:
    """Without --callback the configuration's is taken; with it, the option's."""
    write("my.toml", 'callback = "orchard:pick"\n')
    write("orchard2.py", "def plant(message): pass\n")
    assert main(["--config", "my.toml"]) == 0
    assert main(["--conf", "my.toml", "--callback", "orchard2:plant"]) == 0
    assert [consumer.callback.__name__ for consumer in consumers] == ["pick", "plant"]


def test_main_numbers(consumers: list[FakeConsumer]) -> None:
    """--workers and --limit are passed on."""
    assert main([*CALLBACK, "--workers", "4", "--limit", "9"]) == 0
    assert consumers[0].options["workers"] == 4
    assert consumers[0].options["limit"] == 9


def test_main_app_name(consumers: list[FakeConsumer], conf: LazyConfig) -> None:
    """--app-name is shown to the broker, and does not stay for the next consumer."""
    assert main([*CALLBACK, "--app-name", "picker"]) == 0
    assert conf["client_properties"]["app"] == "picker"
    assert main(CALLBACK) == 0
    assert conf["client_properties"]["app"] == "Unknown"


@pytest.mark.parametrize(
    ("options", "level"),
    [
        (["--log-level", "debug"], logging.DEBUG),
        (["--log-level", "ERROR"], logging.ERROR),
        (["-v"], logging.DEBUG),
        (["-q"], logging.WARNING),
    ],
)
def test_main_log_level(consumers: list[FakeConsumer], options: list[str], level: int) -> None:
    """An option goes before the configured levels, of the root and of ours."""
    loggers = [logging.getLogger(), logging.getLogger("fmconsume")]
    before = [logger.level for logger in loggers]
    try:
        assert main([*CALLBACK, *options]) == 0
        assert [logger.level for logger in loggers] == [level, level]
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def test_main_selects(consumers: list[FakeConsumer]) -> None:
    """--queue-name, --exchange and --routing-key, even repeated, go before the configuration."""
    options = ["--queue-name", "nuts", "--exchange", "fair", "--routing-key", "a"]
    assert main([*CALLBACK, *options, "--routing-key", "b.#"]) == 0
    assert list(consumers[0].queues) == ["nuts"]
    binding = {"queue": "nuts", "exchange": "fair", "routing_keys": ["a", "b.#"]}
    assert [dict(each) for each in consumers[0].bindings] == [binding]


def test_main_failed(
    write: Callable[[str, str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--failed looks into the folder that it names, else into the configured one."""
    write("my.toml", "failures.keep_in = 'configured'\n")
    assert main(["--failed"]) == 0
    assert main(["--config", "my.toml", "--failed"]) == 0
    assert main(["--config", "my.toml", "--failed", "named"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["set", "configured", "named"]


@pytest.mark.parametrize("arguments", [[], ["--limit", "3"], ["--limit", "3", "--check"]])
def test_main_requeue(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """--requeue needs no callback, and knows --limit and --check."""
    calls: list[Any] = []

    def requeue(place: str, limit: int | None, *, is_dry: bool) -> int:
        calls.append((place, limit, is_dry))
        return 1

    monkeypatch.setattr(requeueing, "requeue", requeue)
    assert main(["--requeue", "folder", *arguments]) == 1
    assert calls == [("folder", 3 if arguments else None, "--check" in arguments)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--requeue", "absent"], "cannot read 'absent': No such file or directory"),
        (["--requeue", ".", "--limit", "0"], "limit: found 0, expected a number of at least 1"),
        (
            ["--record", "a", "--peek", "--limit", "-1"],
            "limit: found -1, expected a number of at least 1",
        ),
        (["--record", "a", "--peek"], "--peek: found a queue without a name: give --queue-name"),
    ],
)
def test_main_requeue_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    """What --requeue and --peek cannot do ends with exit code 2 and one line on standard error."""
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"fmconsume: {text}\n"


# -- how it ends ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "exit_code", "expected", "line"),
    [
        (None, 0, 0, ""),
        (HaltConsumer(), 0, 0, ""),
        (HaltConsumer(7, "enough"), 7, 7, "the callback halted the consumer: enough"),
        (HaltConsumer("enough"), 1, 1, "the callback halted the consumer: enough"),
        (HaltConsumer("two\nlines"), 1, 1, "the callback halted the consumer: two lines"),
        (HaltConsumer(-1, "enough"), -1, 255, "the callback halted the consumer: enough"),
        (HaltConsumer(256, "enough"), 256, 1, "the callback halted the consumer: enough"),
        (ConsumerCanceled("the broker cancelled"), 12, 12, "the broker cancelled"),
        (KeyError("apple"), 13, 13, "the callback failed: KeyError: 'apple'"),
        (ValueError("a\nb\x1b[2J"), 13, 13, r"the callback failed: ValueError: a b\x1b[2J"),
        (HaltConsumer(7, "a\nb\x9b"), 7, 7, r"the callback halted the consumer: a b\x9b"),
        (BadDeclaration("queue", "a", "b\nc"), 10, 10, r"cannot declare queue 'a': b\nc"),
        (SystemExit(0), 13, 13, "the callback failed: SystemExit: 0"),
        (KeyError("two\nlines"), 13, 13, "the callback failed: KeyError: 'two\\nlines'"),
        (UnavailableException("port 1 is taken"), 1, 1, "port 1 is taken"),
        (HaltConsumer(), "seven", 1, ""),
        (KeyError("a bug"), 11, 11, "unexpected error, please report it: KeyError: 'a bug'"),
    ],
)
def test_main_exit_code(
    consumers: list[FakeConsumer],
    capsys: pytest.CaptureFixture[str],
    error: Any,
    exit_code: int,
    expected: int,
    line: str,
) -> None:
    """The end of the consumer becomes an exit code, and one line unless all is well."""

    def end() -> None:
        consumers[0].exit_code = exit_code
        if error is not None:
            raise error

    FakeConsumer.end = staticmethod(end)  # type: ignore[assignment]
    assert main(CALLBACK) == expected
    assert capsys.readouterr().err == (f"fmconsume: {line}\n" if line else "")


MISFORTUNES = """
import os, sys
def trouble():
    raise ConnectionRefusedError("the database is away")
class Picker:
    def __init__(self): trouble()
    def __call__(self, message): pass
class Valued(Picker):
    def __init__(self): raise ValueError("too early")
class Leaving(Picker):
    def __init__(self): sys.exit(0)
class AsyncPicker(Picker):
    async def __call__(self, message): pass
if os.environ.get("TROUBLE"):
    trouble()
"""


@pytest.mark.parametrize(
    ("arguments", "trouble", "text"),
    [
        (["--callback", "orchard:Picker"], "1", "ConnectionRefusedError: the database is away"),
        (["--callback-file", "orchard.py:Picker"], "1", "ConnectionRefusedError"),
        (["--callback", "orchard:Picker"], "", "ConnectionRefusedError: the database is away"),
        (["--callback", "orchard:AsyncPicker"], "", "ConnectionRefusedError"),
        (["--callback", "orchard:Valued"], "", "ValueError: too early (orchard.py, line 9)"),
        (["--callback", "orchard:Leaving"], "", "SystemExit: 0 (orchard.py, line 11)"),
        (["--callback", "orchard:Picker", "--check"], "", "ConnectionRefusedError"),
        (["--callback", "orchard:Picker", "--replay", "messages"], "", "ConnectionRefusedError"),
    ],
)
def test_main_callback_may_come_up_later(
    write: Callable[[str, str], str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    trouble: str,
    text: str,
) -> None:
    """What the user's code raises before the first message is logged once; the exit code is 1."""
    monkeypatch.setenv("TROUBLE", trouble)
    write("orchard.py", MISFORTUNES)
    write("messages", "")
    assert main(arguments) == ExitCode.TEMPORARY
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fmconsume: the callback failed before the first message: ")
    assert text in line
    (record,) = caplog.records
    assert (record.levelno, bool(record.exc_info)) == (logging.ERROR, True)


def test_main_interrupted_import(write: Callable[[str, str], str]) -> None:
    """Ctrl-C while the callback is imported ends the command as it ends any."""
    write("orchard.py", "raise KeyboardInterrupt\n")
    assert main(CALLBACK) == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RuntimeError("can't start new thread"), 1, "no thread can be started now"),
        (OSError(24, "Too many open files"), 1, "no file can be opened now"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (MemoryError(), 1, "there is no memory left"),
        (UnavailableException("no folder"), 1, "no folder"),
        (ConnectionException("expired"), 14, "expired"),
        (ValueError("workers: found 0"), 2, "workers: found 0"),
        (KeyError("a bug"), 11, "unexpected error, please report it: KeyError: 'a bug'"),
        (RecursionError("too deep"), 11, "unexpected error, please report it: RecursionError"),
    ],
    ids=repr,
)
def test_main_cannot_start(
    consumers: list[FakeConsumer],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    text: str,
) -> None:
    """Whatever keeps a consumer from being made is one line; only a bug's traceback is logged."""

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "Consumer", fail)
    assert main(CALLBACK) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fmconsume: {text}")
    assert [record.levelname for record in caplog.records] == ["CRITICAL"] * (status == 11)


def test_main_folder_deleted(
    consumers: list[FakeConsumer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A current folder that was deleted matters only to those who want something from there."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["--callback-file", f"{tmp_path}/orchard.py:pick"]) == 0
    assert main(["--callback", "fmconsume.example:printer"]) == 0
    assert main(["--callback", "orchard_gone:pick"]) == 2
    assert main(["--callback-file", "orchard.py:pick"]) == 2


@pytest.mark.parametrize(("exit_code", "status"), [(7, 7), (256, 1), (-1, 255), ("text", 1)])
def test_main_replay_halts(write: Callable[[str, str], str], exit_code: Any, status: int) -> None:
    """What a callback halts --replay with is an exit status, or 1."""
    write(
        "halting.py",
        f"from fmconsume import HaltConsumer\n"
        f"def pick(message): raise HaltConsumer({exit_code!r})\n",
    )
    write("messages", '{"topic": "fruit", "body": {}}\n')
    assert main(["--callback-file", "halting.py:pick", "--replay", "messages"]) == status


def test_main_replay_exit_fails(
    write: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """At the end of --replay, too, what __exit__ raises is the callback's failure."""
    text = (
        "class Kept:\n"
        "    def __enter__(self): pass\n"
        "    def __exit__(self, *exc_info): raise OSError('not flushed')\n"
        "    def __call__(self, message): pass\n"
    )
    write("kept.py", text)
    write("messages", "")
    assert main(["--callback-file", "kept.py:Kept", "--replay", "messages"]) == 13
    assert capsys.readouterr().err == "fmconsume: the callback failed: OSError: not flushed\n"


def test_main_forced(
    consumers: list[FakeConsumer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a second signal the process ends at once, though a callback hangs."""
    codes: list[int] = []

    def end() -> None:
        consumers[0].exit_code = 143
        raise KeyboardInterrupt("SIGTERM")

    FakeConsumer.end = staticmethod(end)  # type: ignore[assignment]
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    main(CALLBACK)
    assert codes == [143]
    assert "SIGTERM: stopped without waiting for the callback" in capsys.readouterr().err


def test_main_callback_raises_keyboard_interrupt(
    consumers: list[FakeConsumer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A KeyboardInterrupt of the callback itself is told as a failure of the callback."""

    def end() -> None:
        consumers[0].exit_code = 13
        raise KeyboardInterrupt

    FakeConsumer.end = staticmethod(end)  # type: ignore[assignment]
    monkeypatch.setattr(os, "_exit", lambda code: None)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    assert main(CALLBACK) == 13
    assert "the callback failed: KeyboardInterrupt" in capsys.readouterr().err
