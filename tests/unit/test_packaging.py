"""Tests of what is installed beside the package: unit, drop-in, completions, RPM spec."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from fmconsume.cli import parser
from fmconsume.version import __version__
from tests.waiting import PATIENCE

HOUSE = Path(__file__).parents[2]
UNIT = HOUSE / "etc" / "fm-consumer@.service"
DROP_IN = HOUSE / "etc" / "fm-consumer.conf.example"


def run(*command: object) -> str:
    """Return all that a command prints; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- systemd


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit in a folder where drop-ins have room."""
    return Path(shutil.copy(UNIT, tmp_path))


def test_unit_verify(installed: Path) -> None:
    """systemd has nothing to say about the unit."""
    assert run("systemd-analyze", "verify", "--man=no", installed) == ""


def test_unit_security() -> None:
    """systemd finds the service well confined."""
    if "--offline" not in run("systemd-analyze", "--help"):
        pytest.skip("systemd before 250 cannot look at a file")
    # In tenths.
    run("systemd-analyze", "security", "--offline=true", "--threshold=15", UNIT)


@pytest.mark.parametrize(
    "line", re.findall("^#([A-Z]\\w+=.*)", DROP_IN.read_text(encoding="utf-8"), re.MULTILINE)
)
def test_drop_in_verify(installed: Path, line: str) -> None:
    """Each line of the example may be put in force as it stands."""
    folder = installed.with_name(f"{UNIT.name}.d")
    folder.mkdir()
    (folder / "drop-in.conf").write_text(f"[Service]\n{line}\n", encoding="utf-8")
    assert run("systemd-analyze", "verify", "--man=no", installed) == ""


# -- completions


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as /usr/share with the completions in it."""
    folder = tmp_path_factory.mktemp("share")
    with mock.patch("sys.argv", ["completions.py", str(folder)]):
        runpy.run_path(str(HOUSE / "packaging" / "completions.py"), run_name="__main__")
    return folder


PLACES = {
    "bash": "bash-completion/completions/fmconsume",
    "zsh": "zsh/site-functions/_fmconsume",
    "fish": "fish/vendor_completions.d/fmconsume.fish",
}


@pytest.mark.parametrize("shell", PLACES)
def test_completions(completions: Path, shell: str) -> None:
    """Each shell accepts its file, which knows every option."""
    path = completions / PLACES[shell]
    run(shell, "-n", path)
    text = path.read_text(encoding="utf-8")
    for action in parser()._actions:
        name = action.option_strings[-1]
        assert (f"-l {name[2:]}" if shell == "fish" else name) in text


def test_completions_in_bash(completions: Path, tmp_path: Path) -> None:
    """Bash completes options, choices and files."""
    (tmp_path / "my.toml").touch()
    for words, expected in {
        "--as": "--as-fedora-messaging",
        "--log-level err": "error",
        f"--config {tmp_path}/m": f"{tmp_path}/my.toml",
    }.items():
        typed = ["fmconsume", *words.split()]
        script = (
            f"source {completions / PLACES['bash']}; COMP_WORDS=({' '.join(typed)}); "
            f"COMP_CWORD={len(typed) - 1}; _shtab_fmconsume; echo ${{COMPREPLY[@]}}"
        )
        assert run("bash", "-c", script).strip() == expected


# -- the release


def test_spec_version() -> None:
    """The RPM spec is for this version, and its newest entry in the changelog too."""
    spec = (HOUSE / "packaging" / "fmconsume.spec").read_text(encoding="utf-8")
    version = re.search("^Version: +(.*)$", spec, re.MULTILINE)
    entry = re.search(r"^\* .* - (.*)-\d+$", spec, re.MULTILINE)
    assert version is not None
    assert entry is not None
    assert version[1] == entry[1] == __version__


PAGES = ("man1/fmconsume.1", "man5/fmconsume.toml.5", "man7/fmconsume-callbacks.7")


@pytest.mark.parametrize("page", PAGES)
def test_spec_has_page(page: str) -> None:
    """The RPM spec packs each page of the manual."""
    spec = (HOUSE / "packaging" / "fmconsume.spec").read_text(encoding="utf-8")
    assert f"\n%{{_mandir}}/{page}*\n" in spec


@pytest.mark.parametrize("place", [*PLACES.values(), *(f"man/{page}" for page in PAGES)])
def test_uninstall_takes(place: str) -> None:
    """`make uninstall` removes what `make install` wrote."""
    assert place in (HOUSE / "Makefile").read_text(encoding="utf-8")
