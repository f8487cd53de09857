"""Tests of `make install`, `make uninstall` and the end of `make release` as they are typed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmconsume.version import __version__
from tests.waiting import PATIENCE

pytestmark = pytest.mark.long
HOUSE = Path(__file__).parents[2]
MADE_ELSEWHERE = (".*", "*.egg-info", "__pycache__", "build", "dist", "fmconsume.1")


def run(*command: object, cwd: Path) -> str:
    """Return all that a command prints; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def make(target: str, house: Path) -> None:
    """Run make, for a DESTDIR inside the project."""
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    run("make", target, f"PYTHON={python}", "VENV=venv", "DESTDIR=root", cwd=house)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project as it is unpacked, and installed: nothing is built where other tests read."""
    house = tmp_path_factory.mktemp("project") / "fmconsume"
    shutil.copytree(HOUSE, house, ignore=shutil.ignore_patterns(*MADE_ELSEWHERE))
    make("install", house)
    yield house
    shutil.rmtree(house)


def test_make_install(house: Path) -> None:
    """It installs all that there is, without the tools of the tests, and takes all of it away."""
    root = house / "root"
    assert not (house / "venv").exists()
    names = {path.name for path in root.rglob("*")}
    renamed = {"fmconsume.sysusers": "fmconsume.conf"}
    assert names >= {renamed.get(path.name, path.name) for path in (house / "etc").iterdir()}
    assert names >= {"fmconsume", "fmconsume.1", "_fmconsume", "fmconsume.fish", "py.typed"}
    make("uninstall", house)
    assert not root.exists()


def test_make_release(house: Path) -> None:
    """What was built runs where it alone is installed, and the last words say how to upload it."""
    dist = house / "dist"
    dist.mkdir()
    (wheel,) = house.glob("venv-build/made/*.whl")
    shutil.copy(wheel, dist)
    archive = dist / f"fmconsume-{__version__}.tar.gz"
    archive.touch()
    run("git", "init", "--quiet", cwd=house)
    git = ["git", "-c", "user.name=Me", "-c", "user.email=me@example.com"]
    run(*git, "commit", "--quiet", "--allow-empty", "--message", "Nothing", cwd=house)
    said = run(sys.executable, "packaging/release.py", "tell", cwd=house)
    assert f"fmconsume {__version__} is built, checked, installed and started" in said
    assert f"-m twine upload dist/{wheel.name} dist/{archive.name}\n" in said
    assert f"git tag --annotate v{__version__} " in said


def test_description(house: Path) -> None:
    """The page on PyPI has no links to files that are not there."""
    (metadata,) = house.glob("*.egg-info/PKG-INFO")
    link, ours = re.compile(r"\]\(([^)]*)\)"), (HOUSE / "README.md").read_text(encoding="utf-8")
    assert "](CONTRIBUTING.md)" in ours
    shown = metadata.read_text(encoding="utf-8")
    assert "CONTRIBUTING.md | how fmconsume works inside" in shown
    assert all(each.startswith(("https://", "#")) for each in link.findall(shown))
