"""Tests of the variables that set keys of the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmconsume.config_checks import DEFAULTS
from fmconsume.environment import Given, is_on, merge, read_environment
from fmconsume.exceptions import ExitCode

#: As Kubernetes sets them for services "fmconsume" and "fmconsume-monitoring".
KUBERNETES = {
    "FMCONSUME_SERVICE_HOST": "10.96.0.7",
    "FMCONSUME_SERVICE_PORT": "8080",
    "FMCONSUME_SERVICE_PORT_HTTP": "8080",
    "FMCONSUME_PORT": "tcp://10.96.0.7:8080",
    "FMCONSUME_PORT_8080_TCP": "tcp://10.96.0.7:8080",
    "FMCONSUME_PORT_8080_TCP_PROTO": "tcp",
    "FMCONSUME_PORT_8080_TCP_PORT": "8080",
    "FMCONSUME_PORT_8080_TCP_ADDR": "10.96.0.7",
    "FMCONSUME_MONITORING_SERVICE_HOST": "10.96.0.8",
    "FMCONSUME_MONITORING_PORT": "udp://10.96.0.8:8070",
    "FMCONSUME_MONITORING_PORT_8070_UDP_ADDR": "10.96.0.8",
}


def read(**environ: str) -> Given:
    """Read variables, given without the prefix that all have."""
    return read_environment({f"FMCONSUME_{name}": text for name, text in environ.items()}, DEFAULTS)


def read_value(text: str) -> Any:
    """Read one variable that has no problem."""
    (variable,) = read(TOPIC_PREFIX=text).variables
    return variable.value


def read_problem(**environ: str) -> str:
    """Read variables that have one problem, and return that."""
    (problem,) = read(**environ).problems
    return problem


# -- names


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("AMQP_URL", ("amqp_url",)),
        ("QOS__PREFETCH_COUNT", ("qos", "prefetch_count")),
        ("FAILURES__DELAY__MAX", ("failures", "delay", "max")),
        ("CONSUMER_CONFIG__Path", ("consumer_config", "path")),
        ("QUEUES__my.queue__DURABLE", ("queues", "my.queue", "durable")),
        ("QUEUES___A", ("queues", "_a")),
        ("WROKERS", ("wrokers",)),
        ("PORT", ("port",)),
    ],
)
def test_read_path(name: str, path: tuple[str, ...]) -> None:
    """The name is the path of the key, in lower case; two underscores enter a table."""
    (variable,) = read(**{name: "1"}).variables
    assert (variable.name, variable.path) == (f"FMCONSUME_{name}", path)


@pytest.mark.parametrize("name", ["", "__X", "QUEUES__", "QUEUES____DURABLE", "QOS___FILE"])
def test_read_empty_key(name: str) -> None:
    """A name that leaves out a key is a problem that shows how to write one."""
    told = "found an empty key, expected FMCONSUME_KEY or FMCONSUME_TABLE__KEY"
    assert read_problem(**{name: "1"}) == f"$FMCONSUME_{name}: {told}"


@pytest.mark.parametrize("environ", [{"CONF": "/a.toml"}, {"WORKERS": ""}, {"AMQP_URL_FILE": ""}])
def test_read_nothing(environ: Mapping[str, str]) -> None:
    """What names the file is no key, and an empty variable counts as unset."""
    assert read(**environ) == Given((), {})


def test_read_others() -> None:
    """Variables of Kubernetes and of other programs are none of ours."""
    others = {"FMCONSUMER_X": "1", "fmconsume_WORKERS": "2", "WORKERS": "3"}
    assert read_environment({**KUBERNETES, **others}, DEFAULTS) == Given((), {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "8080"),
        ("SERVICE", "tcp://h:1"),
        ("SERVICE_HOST_NAME", "h"),
        ("PORT_HTTP", "tcp://h:1"),
        ("CONSUMER_CONFIG__DB_SERVICE_HOST", "h"),
        ("CONSUMER_CONFIG__DB_PORT", "tcp://h:1"),
    ],
)
def test_read_is_not_of_kubernetes(name: str, text: str) -> None:
    """A mistake that only resembles such a variable is not lost, nor is a key of the callback's."""
    assert len(read(**{name: text}).variables) == 1


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"AMQP_URL": "amqp://", "AMQP_URL_FILE": "/nowhere"},
            "$FMCONSUME_AMQP_URL_FILE: found beside $FMCONSUME_AMQP_URL, expected one of them",
        ),
        (
            {"WORKERS": "1", "workers": "1"},
            "$FMCONSUME_workers: found beside $FMCONSUME_WORKERS, expected one of them",
        ),
    ],
)
def test_read_same_key_twice(environ: Mapping[str, str], problem: str) -> None:
    """Two variables for one key are a problem that names both, even if one has no file."""
    found = read(**environ)
    assert found.problems == {problem: ExitCode.USAGE}


# -- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        (" 1.5 ", 1.5),
        ("true", True),
        ('"20"', "20"),
        ("''", ""),
        ('["a", "b"]', ["a", "b"]),
        ("[\n 1, # one\n 2,\n]", [1, 2]),
        ('{"my.queue" = {durable = true}}', {"my.queue": {"durable": True}}),
    ],
)
def test_read_toml(text: str, value: object) -> None:
    """A value of TOML is that value."""
    found = read_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "amqp://u:p@h/%2F",
        "True",
        "5#5",
        "5 # five",
        "1,",
        "1, 2",
        "1, other = 2",
        "1}\nother = {value = 2",
        " ",
        "\u00e4pfel",
        "[" * 100_000,
        "2026-13-45",
    ],
)
def test_read_text(text: str) -> None:
    """Anything else is text, to the last character."""
    assert read_value(text) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_read_any_text(text: str) -> None:
    """Whatever a variable holds, it has no problem; a text is as it stands unless it is quoted."""
    variables, problems = read(CONSUMER_CONFIG__X=text)
    assert not problems
    assert len(variables) == bool(text)
    for variable in variables:
        is_other_text = isinstance(variable.value, str) and variable.value != text
        assert not is_other_text or text.strip()[0] in "\"'"


def test_read_not_utf8() -> None:
    """Bytes that are no UTF-8 are a problem, not a text that nobody can print."""
    text = os.fsdecode(b"\xff")
    told = "found bytes that are not UTF-8"
    assert read_problem(TOPIC_PREFIX=text) == f"$FMCONSUME_TOPIC_PREFIX: {told}"
    assert read_problem(**{os.fsdecode(b"X\xff\x1b__"): "1"}).startswith("$FMCONSUME_X\\udcff\\x1b")


@pytest.mark.parametrize(("text", "flaw"), [("{a = b}", "Invalid value"), ("amqp://", "")])
def test_read_flaw(text: str, flaw: str) -> None:
    """Text that begins like a table or a list bears the reason why it is none."""
    (variable,) = read(BINDINGS=text).variables
    assert (variable.value, variable.flaw) == (text, flaw)
    assert variable.hidden == (flaw and "text that is not valid TOML (Invalid value)")


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("yes", True), ("0", False), ("No", False), ("false", False)]
)
def test_read_as_fedora_messaging(text: str, value: bool) -> None:
    """This one has always been freer than TOML."""
    (variable,) = read(AS_FEDORA_MESSAGING=text).variables
    assert variable.value is value
    assert is_on(text) is value
    assert not is_on("")


# -- files


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"amqp://u:p@h", "amqp://u:p@h"),
        (b"amqp://u:p@h\n", "amqp://u:p@h"),
        (b"\xef\xbb\xbfamqp://u:p@h\r\n", "amqp://u:p@h"),
        (b" two\nlines \n", " two\nlines "),
        (b"12345", "12345"),
        (b'"quoted"', '"quoted"'),
        (b'["a",\n"b"]\n', ["a", "b"]),
        (b"{a = 1}", {"a": 1}),
        (b"[a", "[a"),
        (b"x" * 1_000_000, "x" * 1_000_000),
    ],
)
def test_read_file(tmp_path: Path, content: bytes, value: object) -> None:
    """The value is the text in the file without the line end, or a list or table in TOML."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    (variable,) = read(CONSUMER_CONFIG__TOKEN_FILE=str(path)).variables
    assert (variable.path, variable.value) == (("consumer_config", "token"), value)
    assert variable.file == str(path)
    assert variable.hidden


@pytest.mark.parametrize(
    ("make", "problem", "exit_code"),
    [
        (lambda path: None, "cannot read {}: No such file or directory", ExitCode.TEMPORARY),
        (Path.touch, "{} is empty", ExitCode.TEMPORARY),
        (lambda path: path.write_text("\n"), "{} is empty", ExitCode.TEMPORARY),
        (lambda path: path.write_bytes(b"\xff"), "{} is not UTF-8", ExitCode.USAGE),
        (Path.mkdir, "{} is no regular file", ExitCode.USAGE),
        (os.mkfifo, "{} is no regular file", ExitCode.USAGE),
        (lambda path: path.symlink_to("/dev/zero"), "{} is no regular file", ExitCode.USAGE),
        (
            lambda path: path.write_bytes(b"x" * 1_000_001),
            "{} has more than 1,000,000 bytes",
            ExitCode.USAGE,
        ),
    ],
)
def test_read_file_unusable(
    tmp_path: Path, make: Callable[[Path], object], problem: str, exit_code: ExitCode
) -> None:
    """What is wrong with the file is told with its name; what may come later is no mistake."""
    path = tmp_path / "secret"
    make(path)
    told = f"$FMCONSUME_AMQP_URL_FILE: {problem.format(path)}"
    assert read(AMQP_URL_FILE=str(path)) == Given((), {told: exit_code})


def test_read_file_not_permitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who may not read a file has to be given the permission: that does not pass by itself."""

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", refuse)
    told = "$FMCONSUME_AMQP_URL_FILE: cannot read /secret: Permission denied"
    assert read(AMQP_URL_FILE="/secret") == Given((), {told: ExitCode.USAGE})


@pytest.mark.parametrize("text", ["hunter2", "amqp://u:hunter2@h", "/x?amqp://u:hunter2@h"])
def test_read_file_is_the_secret(text: str) -> None:
    """A secret that stands where its file should is not shown."""
    assert "hunter2" not in read_problem(AMQP_URL_FILE=text)


# -- merging


def apply(settings: dict[str, Any], **environ: str) -> dict[tuple[object, ...], str]:
    """Merge variables into settings, and return the name of the one that set each path."""
    origins = merge(read(**environ), settings)
    return {path: each.name[len("FMCONSUME_") :] for path, each in origins.items()}


def test_merge_key() -> None:
    """A key replaces that of the file, and leaves those beside it."""
    settings = {"qos": {"prefetch_count": 1, "prefetch_size": 2}}
    origins = apply(settings, QOS__PREFETCH_COUNT="3")
    assert settings == {"qos": {"prefetch_count": 3, "prefetch_size": 2}}
    assert origins == {("qos", "prefetch_count"): "QOS__PREFETCH_COUNT"}


def test_merge_table_then_key() -> None:
    """A table replaces that of the file, and a variable for a key in it counts more."""
    settings: dict[str, Any] = {"qos": {"prefetch_size": 2}}
    found = read(QOS__PREFETCH_COUNT="4", QOS="{prefetch_count = 3, x = 1}")
    merge(found, settings)
    assert settings == {"qos": {"prefetch_count": 4, "x": 1}}
    assert found.variables[0].value == {"prefetch_count": 3, "x": 1}


def test_merge_makes_tables() -> None:
    """Tables that the file lacks are made, and bear the name of the variable."""
    settings: dict[str, Any] = {}
    origins = apply(settings, FAILURES__DELAY__MAX="4")
    assert settings == {"failures": {"delay": {"max": 4}}}
    assert set(origins.values()) == {"FAILURES__DELAY__MAX"}
    assert len(origins) == 3


def test_merge_key_in_no_table() -> None:
    """A variable that says its key is no table is not overruled, so that it is found wrong."""
    settings: dict[str, Any] = {"qos": 1}
    apply(settings, QOS="5", QOS__PREFETCH_COUNT="1")
    assert settings == {"qos": 5}


@pytest.mark.parametrize("suffix", ["", "_FILE"])
def test_rename(suffix: str, tmp_path: Path) -> None:
    """A variable for another key is of the same kind."""
    (tmp_path / "secret").write_text("a")
    (variable,) = read(**{f"BODY{suffix}": str(tmp_path / "secret")}).variables
    name = f"$FMCONSUME_QOS__PREFETCH_COUNT{suffix}"
    assert variable.rename(("qos", "prefetch_count")) == name
