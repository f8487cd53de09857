"""Tests of the manual: readers accept its pages, and they tell of every option, key and name."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli

import fmconsume
from fmconsume import Consumer, Message
from fmconsume.cli import parser
from fmconsume.config import DEFAULTS, check_bindings, check_queues
from fmconsume.config_checks import check_config
from fmconsume.exceptions import ConfigurationException, ExitCode
from tests.manual import MAN, Entry, entries, samples, section, subsections, unescape
from tests.waiting import PATIENCE

HOUSE = Path(__file__).parents[2]

COMMAND, FILE, CALLBACKS = "fmconsume.1", "fmconsume.toml.5", "fmconsume-callbacks.7"
PAGES = (COMMAND, FILE, CALLBACKS)
#: Page 1 is made of this one and of the command's options.
SOURCE_NAMES = ("fmconsume.ext", FILE, CALLBACKS)

#: Tables whose keys are names of the user's choosing, or Python's, and keys that are filled in.
OPEN_TABLES = {"exchanges", "queues", "bindings", "log_config"}
RESERVED = {"client_properties.product", "client_properties.information"}

#: A value that no key accepts.
BAD = object()


def run(*command: object, **environment: str) -> str:
    """Return what a command prints; it must not complain."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=HOUSE,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages as they are built for a release, in a copy of the project."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("setup.py", "setup.cfg", "pyproject.toml"):
        shutil.copy(HOUSE / name, folder)
    for name in ("fmconsume", "man", "packaging"):
        shutil.copytree(HOUSE / name, folder / name)
    (folder / "README.md").touch()
    command = [sys.executable, "setup.py", "--quiet", "build_manpages"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=PATIENCE)
    return folder / "man"


@pytest.fixture(scope="module")
def shown(built: Path) -> dict[str, str]:
    """The pages as a terminal of 80 columns shows them, without bold and the like.

    groff indents by 7 columns, and from 1.24 on by 5: then a page is shown that much narrower,
    and moved to where it would be.
    """
    return {name: _show_indented(built / name) for name in PAGES}


def _show_indented(page: Path) -> str:
    (indent,) = re.findall(r"^NAME\n( +)", _show(page, 80), re.MULTILINE)
    narrower = 7 - len(indent)
    shown = _show(page, 80 - narrower)
    return re.sub(rf"^{indent}", indent + " " * narrower, shown, flags=re.MULTILINE)


def _show(page: Path, width: int) -> str:
    plain = {"MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""}
    text = run("man", "--no-justification", "-l", page, MANWIDTH=str(width), **plain)
    return re.sub(r".\x08|\x1b\[[\d;]*m", "", text)


def tags(text: str) -> list[str]:
    """List the words that stand out in a part of a page's source, without their parentheses."""
    lines = [tag for entry in entries(text) for tag in entry.tags]
    return [word.split("(")[0] for line in lines for word in line.split(", ")]


# -- all pages


@pytest.mark.parametrize("name", PAGES)
def test_page_mandoc(built: Path, name: str) -> None:
    """BSD's reader finds nothing to complain about."""
    assert run("mandoc", "-T", "lint", built / name) == ""


@pytest.mark.parametrize("name", PAGES)
def test_page_man(built: Path, name: str) -> None:
    """Nor does groff."""
    plain = {"MANWIDTH": "80", "MANPAGER": "cat"}
    run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", built / name, **plain)


@pytest.mark.parametrize("name", PAGES)
def test_page_fits(shown: dict[str, str], name: str) -> None:
    """No line is longer than a terminal is wide."""
    assert [line for line in shown[name].splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        (
            COMMAND,
            "NAME, SYNOPSIS, DESCRIPTION, OPTIONS, IN PLACE OF THE CONFIGURATION, RECORDING, "
            "KEPT MESSAGES, SIGNALS, EXIT STATUS, ENVIRONMENT, FILES, EXAMPLES, SEE ALSO, AUTHOR",
        ),
        (
            FILE,
            "NAME, DESCRIPTION, THE BROKER, WHAT IS CONSUMED, THE CALLBACK, FAILURES, PUBLISHING, "
            "THE SERVICE, FILES, EXAMPLES, SEE ALSO",
        ),
        (
            CALLBACKS,
            "NAME, SYNOPSIS, DESCRIPTION, THE CALLBACK, THE MESSAGE, PUBLISHING, FAILING, "
            "WHEN THE CONNECTION FAILS, EXACTLY ONCE, TESTING, IN A PROGRAM, DEPLOYING, "
            "MONITORING, LOGS AND TRACES, COMING FROM FEDORA-MESSAGING, NAMES, SEE ALSO",
        ),
    ],
)
def test_page_sections(shown: dict[str, str], name: str, titles: str) -> None:
    """A page has the sections that its readers look for, in their usual order."""
    headings = re.findall("^[A-Z][A-Z -]+$", shown[name], re.MULTILINE)
    assert headings == titles.split(", ")


@pytest.mark.parametrize("name", PAGES)
def test_page_see_also(built: Path, name: str) -> None:
    """A page names both others under SEE ALSO."""
    others = section((built / name).read_text(encoding="utf-8"), "SEE ALSO")
    named = re.findall(r"^\.BR (fmconsume\S*) \((\d)\)", others, re.MULTILINE)
    found = {f"{unescape(page)}.{number}" for page, number in named}
    assert found == set(PAGES) - {name}


SOURCES = "\n".join((MAN / name).read_text(encoding="utf-8") for name in SOURCE_NAMES)


@pytest.mark.parametrize(
    ("title", "page", "number"),
    re.findall(r"\b([A-Z]{3}[A-Z ]*) in\n\.BR (\S+) \((\d)\)", SOURCES),
)
def test_page_references(built: Path, title: str, page: str, number: str) -> None:
    """Where a page names a section of another one, it is there."""
    other = (built / f"{unescape(page)}.{number}").read_text(encoding="utf-8")
    assert f"\n.SH {title}\n" in other


# -- the command


def test_page_name(shown: dict[str, str]) -> None:
    """The page of the command begins with what the command does."""
    assert "fmconsume - consume messages from RabbitMQ queues\n" in shown[COMMAND]
    assert "\n       fmconsume connects to a broker" in shown[COMMAND]


@pytest.mark.parametrize(
    "option",
    [
        word
        for action in parser()._actions
        for word in action.option_strings
        if action.dest != "help"
    ],
)
def test_page_option(shown: dict[str, str], option: str) -> None:
    """Each option has its entry."""
    assert re.search(rf"^ {{7}}(\S+ \S+, )?{option}\b", shown[COMMAND], re.MULTILINE)


def test_page_exit_statuses(built: Path) -> None:
    """Each exit status has its entry, and no other."""
    listed = tags(section((built / COMMAND).read_text(encoding="utf-8"), "EXIT STATUS"))
    assert listed == [*(str(int(code)) for code in ExitCode), "128+n"]


@pytest.mark.parametrize("code", ExitCode)
def test_page_exit_status(shown: dict[str, str], code: ExitCode) -> None:
    """Each exit status is explained."""
    assert re.search(rf"^ {{7}}{int(code)} {{4,6}}\S", shown[COMMAND], re.MULTILINE)


@pytest.mark.parametrize("name", ["FMCONSUME_CONF", "FEDORA_MESSAGING_CONF", "SIGTERM", "SIGINT"])
def test_page_names(shown: dict[str, str], name: str) -> None:
    """Variables and signals have their entries."""
    assert re.search(rf"^ {{7}}(\w+, )?{name}", shown[COMMAND], re.MULTILINE)


# -- the configuration


def list_keys(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """List each key with its default."""
    for key, value in table.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and name not in OPEN_TABLES:
            yield from list_keys(value, f"{name}.")
        elif name not in RESERVED:
            yield name, value


def list_inner_keys() -> Iterator[tuple[str, str]]:
    """List each key of a queue, an exchange and a binding with its default, as the page does."""
    exchanges = check_config({"exchanges": {"name": {}}}, "")["exchanges"]
    (binding,) = check_bindings({"exchange": "", "routing_keys": []}, {"": {}})
    required = dict.fromkeys(("exchange", "routing_keys"), "required")
    for path, defaults in {
        "queues.name": check_queues({"name": {}})["name"],
        "exchanges.name": exchanges["name"],
        "bindings": binding,
    }.items():
        known = expected_of(f"{path}.none_such").split(", ")
        texts = required if path == "bindings" else {}
        for key in known:
            yield f"{path}.{key}", texts.get(key) or write_toml(defaults.get(key))


def list_documented() -> dict[str, str]:
    """Give what the page has to list: each key, with its default as the page writes it."""
    keys = {
        "queues.name": "",
        "exchanges.name": "",
        "[[bindings]]": "",
        "log_config": "",
        "monitoring.port": "unset",
        "monitoring.address": '"localhost"',
    }
    for key, default in list_keys(DEFAULTS):
        if key not in OPEN_TABLES | {"monitoring"}:
            keys[key] = write_toml(default)
    return {**keys, **dict(list_inner_keys())}


def write_toml(value: Any) -> str:
    """Write a default as the page does."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def make_config(key: str, value: object) -> dict[str, Any]:
    """Make a configuration that has only this key."""
    first, _, rest = key.strip("[]").partition(".")
    if first == "bindings" and rest:
        return {first: [{rest: value}]}
    return {first: make_config(rest, value) if rest else value}


def expected_of(key: str) -> str:
    """Tell what fmconsume expects of a key, as it says when it finds something else there."""
    with pytest.raises(ConfigurationException) as caught:
        check_config(make_config(key, BAD), "")
    place = re.compile(rf".*\b{key.strip('[]').rpartition('.')[2]}: found .+, expected (.+)")
    (expected,) = filter(None, map(place.fullmatch, str(caught.value).splitlines()))
    return expected[1].replace("user:***@", "user:password@")


TEXT = (MAN / FILE).read_text(encoding="utf-8")
KEYS = [
    entry
    for title in re.findall(r"^\.SH (.+)$", TEXT, re.MULTILINE)
    if title != "FILES"
    for entry in entries(section(TEXT, title))
]
#: Each key that the page has, and its entry.
BY_KEY = {tag.partition(" (")[0]: entry for entry in KEYS for tag in entry.tags}
FORM = re.compile(
    r"(?P<meaning>.+)"
    r"^\.br\n\.IR Type :\n(?P<type>.+)"
    r'^\.br\n\.IR "Change it" :\n(?P<cause>.+)'
    r"^\.br\n\.IR Example :\n(?P<example>.+)",
    re.MULTILINE | re.DOTALL,
)


def read_form(entry: Entry) -> dict[str, str]:
    """Give the parts of an entry, which has the form of all entries."""
    found = FORM.fullmatch(entry.body)
    assert found, f"{entry.tags[0]} has another form"
    return found.groupdict()


def test_file_page_keys() -> None:
    """Each key of the configuration has one entry, with the default that holds, and no other."""
    listed = [tag.partition(" (") for entry in KEYS for tag in entry.tags]
    assert len(listed) == len(BY_KEY)
    assert {key: default.rpartition(")")[0] for key, _, default in listed} == list_documented()


@pytest.mark.parametrize("key", BY_KEY)
def test_file_page_types(key: str) -> None:
    """What an entry calls its type begins with what fmconsume says it expects there."""
    if key != "client_properties.app":  # It may be anything.
        shown = re.sub(r"^\.[A-Z]+ ", "", read_form(BY_KEY[key])["type"], flags=re.MULTILINE)
        assert unescape(shown).startswith(expected_of(key))


@pytest.mark.parametrize("key", BY_KEY)
def test_file_page_examples(key: str) -> None:
    """The example of an entry is a configuration that fmconsume accepts, and has the key."""
    example = read_form(BY_KEY[key])["example"]
    text = "".join(samples(example)) or unescape(example[len(".B ") :])
    config = tomli.loads(text)
    check_config(config, "")
    found: Any = config
    for part in key.strip("[]").split("."):
        if isinstance(found, list):
            (found,) = found
        found = next(iter(found.values())) if part == "name" else found[part]
    assert found is not None


def test_file_page_samples() -> None:
    """The longer samples are configurations that fmconsume accepts."""
    longer = samples(section(TEXT, "DESCRIPTION")) + samples(section(TEXT, "EXAMPLES"))
    assert len(longer) == 2
    for sample in longer:
        check_config(tomli.loads(sample), "")


# -- callbacks


CALLBACKS_TEXT = (MAN / CALLBACKS).read_text(encoding="utf-8")


def public(thing: object) -> list[str]:
    """Give the names that an object has for its users, sorted."""
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_callbacks_page_message() -> None:
    """Each attribute of a message has its entry, and no other."""
    assert sorted(tags(section(CALLBACKS_TEXT, "THE MESSAGE"))) == public(Message())


def test_callbacks_page_consumer() -> None:
    """Each attribute of a consumer and each of its counts is there, and no other."""
    consumer = Consumer(print)
    listed = {
        entry.tags[0]: entry.body for entry in entries(section(CALLBACKS_TEXT, "IN A PROGRAM"))
    }
    assert sorted(name.split("(")[0] for name in listed) == public(consumer)
    assert re.findall(r"^\.BR? (\w+)", listed["stats"], re.MULTILINE) == list(vars(consumer.stats))


NAMES = subsections(section(CALLBACKS_TEXT, "NAMES"))


@pytest.mark.parametrize("module", NAMES)
def test_callbacks_page_names(module: str) -> None:
    """Each public name of a module has its entry, or is told of in one, and no other."""
    public_names = set(importlib.import_module(module).__all__)
    listed = tags(NAMES[module])
    assert len(listed) == len(set(listed))
    assert set(listed) <= public_names
    told = set(listed) | set(re.findall(r"^\.BR (\w+) ,$", NAMES[module], re.MULTILINE))
    assert told == public_names


def test_callbacks_page_modules() -> None:
    """The modules that the package offers are there, and those for tests, logs and databases."""
    offered = [name for name in fmconsume.__all__ if inspect.ismodule(getattr(fmconsume, name))]
    more = ["fmconsume", "fmconsume.context", "fmconsume.inbox", "fmconsume.testing"]
    assert sorted(NAMES) == sorted([*more, *(f"fmconsume.{name}" for name in offered)])


# -- the web pages


@pytest.fixture(scope="module")
def web(built: Path) -> Path:
    """The folder of the manual as web pages."""
    folder = built.parent / "web"
    run(sys.executable, built.parent / "packaging" / "manual.py", folder)
    return folder


class Links(HTMLParser):
    """What a web page refers to, the places in it that can be referred to, and its samples."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places = {""}
        self.samples: list[str] = []
        self._is_sample = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.targets += filter(None, [values.get("href")])
        self.places.add(values.get("id") or "")
        if tag == "pre":
            self._is_sample = True
            self.samples.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_sample = self._is_sample and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._is_sample:
            self.samples[-1] += data


def test_web_links(web: Path) -> None:
    """There are an index and the three pages, and each link leads to a page and a place in it."""
    pages = {path.name: Links(path) for path in web.glob("*.html")}
    assert set(pages) == {"index.html", *(f"{name}.html" for name in PAGES)}
    for name, page in pages.items():
        assert {f"{other}.html" for other in PAGES} <= set(page.targets)
        for target in page.targets:
            other, _, place = target.partition("#")
            assert (web / (other or name)).is_file()
            assert not place or place in pages[other or name].places
    assert "fmconsume-callbacks.7.html#FAILING" in pages[f"{FILE}.html"].targets


@pytest.mark.parametrize("name", [FILE, CALLBACKS])
def test_web_samples(web: Path, name: str) -> None:
    """A sample on a web page is as it is in the source, empty lines and indentation included."""
    source = (MAN / name).read_text(encoding="utf-8")
    # A browser ignores the line end that older versions of mandoc put first.
    shown = [f"{sample}\n".removeprefix("\n") for sample in Links(web / f"{name}.html").samples]
    assert shown == samples(source)


def test_web_fits(web: Path, tmp_path: Path) -> None:
    """No page is wider than a telephone."""
    pages = [path.as_uri() for path in web.glob("*.html")]
    frames = "".join(f'<iframe width=390 frameborder=0 src="{page}"></iframe>' for page in pages)
    measure = "Array.from(frames, each => each.document.documentElement.scrollWidth)"
    page = tmp_path / "frames.html"
    page.write_text(f"{frames}<p><script>onload = () => document.title = {measure}</script>")
    (widths,) = re.findall("<title>(.*)</title>", run_browser(tmp_path, page.as_uri()))
    assert widths.split(",") == ["390"] * 4


def run_browser(folder: Path, address: str) -> str:
    """Open a page that may look into other files, and return what it is then."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "chromium is not installed: run `make test`, which installs it"
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder}", "--allow-file-access-from-files", "--hide-scrollbars"),
        *("--dump-dom", address),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout
