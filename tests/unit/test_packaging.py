"""Tests of what is installed beside the package: unit, drop-in, completions, RPM spec."""

from __future__ import annotations

import configparser
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import trove_classifiers

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
    said = run("systemd-analyze", "verify", "--man=no", installed)
    # The example says which systemd knows credentials.
    is_too_old = "=%d/" in line and "--offline" not in run("systemd-analyze", "--help")
    assert ("Failed to resolve unit specifiers" in said) if is_too_old else said == ""


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


# -- make install, make uninstall

PYTHONS = sorted(filter(Path.exists, {Path(sys.executable), Path("/usr/bin/python3")}))
#: Stands for the package: the command says how it was called.
WHEEL = {
    "fmconsume/__init__.py": "",
    "fmconsume/cli.py": "def command():\n    import sys\n    print(*sys.argv[1:])\n",
    "fmconsume/state/__init__.py": "",
    "pytest_fmconsume.py": "",
    "fmconsume-1.2.data/data/share/man/man1/fmconsume.1": "",
    "fmconsume-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: fmconsume\nVersion: 1.2\n",
    "fmconsume-1.2.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
    "fmconsume-1.2.dist-info/entry_points.txt": (
        "[console_scripts]\nfmconsume = fmconsume.cli:command\n"
    ),
    "fmconsume-1.2.dist-info/RECORD": "",
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `make install` has made before it installs."""
    # Only a Python that is free-threaded starts with it.
    monkeypatch.delenv("PYTHON_GIL", raising=False)
    folder = tmp_path / "made"
    (folder / "data/lib/systemd/system").mkdir(parents=True)
    (folder / "data/lib/systemd/system" / UNIT.name).touch()
    with zipfile.ZipFile(folder / "fmconsume-1.2-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
    return folder


def listed(folder: Path) -> list[Path]:
    """Give all that is there, folders too."""
    return sorted(folder.rglob("*"))


def looked_into(python: Path) -> list[str]:
    """Give the folders where a Python looks for packages."""
    return run(python, "-c", "import site; print(*site.getsitepackages(), sep='\\n')").split()


def install(made: Path, python: Path, prefix: str) -> str:
    """Install into the folder "root" beside what was made."""
    script = HOUSE / "packaging" / "install.py"
    where = ["--destdir", made.with_name("root"), "--prefix", prefix]
    return run(sys.executable, script, "--python", python, *where, made)


def uninstall(made: Path, python: Path, prefix: str) -> str:
    """Remove it again."""
    script = HOUSE / "packaging" / "uninstall.py"
    return run(python, script, "--destdir", made.with_name("root"), "--prefix", prefix)


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr", "/usr/", "/opt/our own"])
@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_install(made: Path, python: Path, prefix: str) -> None:
    """The command runs from any prefix, and uninstalling leaves what was there before."""
    root = made.with_name("root")
    (root / prefix[1:] / "share").mkdir(parents=True)
    before = listed(root)
    for _ in range(2):
        last = install(made, python, prefix).splitlines()[-1]
        packages = Path(last.partition(" in ")[2])
        command = root / prefix[1:] / "bin/fmconsume"
        assert command.read_text().startswith(f"#!{python}\n")
        run("env", f"PYTHONPATH={packages}", command, "--check")
    assert (root / prefix[1:] / "lib/systemd/system" / UNIT.name).exists()
    assert (root / prefix[1:] / "share/man/man1/fmconsume.1").exists()
    uninstall(made, python, prefix)
    assert listed(root) == before


@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_install_where_python_looks(made: Path, python: Path) -> None:
    """A Python finds the package below each prefix that is its own."""
    folders = looked_into(python)
    for prefix in {folder.partition("/lib/")[0] for folder in folders}:
        last = install(made, python, prefix).splitlines()[-1]
        assert last.partition(str(made.with_name("root")))[2] in folders


FOLDERS = {
    "Debian": [
        "/usr/local/lib/python3.13/dist-packages",
        "/usr/lib/python3/dist-packages",
        "/usr/lib/python3.13/dist-packages",
    ],
    "Fedora": [
        "/usr/local/lib64/python3.13/site-packages",
        "/usr/local/lib/python3.13/site-packages",
        "/usr/lib64/python3.13/site-packages",
        "/usr/lib/python3.13/site-packages",
    ],
    "Fedora while it builds packages": [
        "/usr/lib64/python3.13/site-packages",
        "/usr/lib/python3.13/site-packages",
    ],
    "a Python of one's own": ["/home/me/python/lib/python3.13/site-packages"],
}


@pytest.mark.parametrize(
    ("system", "prefix", "expected"),
    [
        ("Debian", "/usr/local", "/usr/local/lib/python3.13/dist-packages"),
        ("Debian", "/usr", "/usr/lib/python3/dist-packages"),
        ("Debian", "/opt/x", "/opt/x/lib/python3.13/site-packages"),
        ("Fedora", "/usr/local", "/usr/local/lib/python3.13/site-packages"),
        ("Fedora", "/usr", "/usr/lib/python3.13/site-packages"),
        (
            "Fedora while it builds packages",
            "/usr/local",
            "/usr/local/lib/python3.13/site-packages",
        ),
        ("a Python of one's own", "/usr/local", "/usr/local/lib/python3.13/site-packages"),
        (
            "a Python of one's own",
            "/home/me/python",
            "/home/me/python/lib/python3.13/site-packages",
        ),
    ],
)
def test_library(monkeypatch: pytest.MonkeyPatch, system: str, prefix: str, expected: str) -> None:
    """Packages go where the system has those of this prefix."""
    monkeypatch.syspath_prepend(HOUSE / "packaging")
    library = runpy.run_path(str(HOUSE / "packaging" / "install.py"))["library"]
    assert library(prefix, [3, 13], FOLDERS[system]) == expected


def test_install_leaves_others(made: Path) -> None:
    """What pip installed is pip's to remove, and nothing is installed over it."""
    python = Path(sys.executable)
    install(made, python, "/usr/local")
    root = made.with_name("root")
    (installer,) = root.rglob("INSTALLER")
    installer.write_text("pip\n")
    before = listed(root)
    for action in (install, uninstall):
        with pytest.raises(AssertionError, match="was installed by pip: use that to remove it"):
            action(made, python, "/usr/local")
    assert listed(root) == before


def test_uninstall_keeps_what_others_put_there(made: Path) -> None:
    """Folders that others use meanwhile stay, with all that is theirs."""
    python = Path(sys.executable)
    install(made, python, "/usr/local")
    root = made.with_name("root")
    (unit,) = root.rglob(UNIT.name)
    theirs = unit.with_name("their.service")
    theirs.touch()
    uninstall(made, python, "/usr/local")
    assert [path for path in listed(root) if path.is_file()] == [theirs]


def test_uninstall_without_install(made: Path) -> None:
    """Where nothing is installed, nothing is removed, and that is no failure."""
    assert uninstall(made, Path(sys.executable), "/usr/local") == ""


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


def setup_cfg() -> configparser.SectionProxy:
    """Give what PyPI is told."""
    parsed = configparser.ConfigParser()
    parsed.read(HOUSE / "setup.cfg", encoding="utf-8")
    return parsed["metadata"]


def test_classifiers() -> None:
    """PyPI knows each classifier, and the Pythons are those that the README calls tested."""
    named = setup_cfg()["classifiers"].split("\n")[1:]
    assert not set(named) - trove_classifiers.classifiers
    assert not set(named) & set(trove_classifiers.deprecated_classifiers)
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    (tested,) = re.findall("The tests run on Debian's Pythons (.*) with", readme)
    assert re.findall(r":: (3\.\d+)$", "\n".join(named), re.MULTILINE) == re.findall(
        r"3\.\d+", tested
    )


def test_urls() -> None:
    """The one address that is named is that of the page which an upload makes."""
    metadata = setup_cfg()
    spec = (HOUSE / "packaging" / "fmconsume.spec").read_text(encoding="utf-8")
    page = f"https://pypi.org/project/{metadata['name']}/"
    assert metadata["url"] == page
    assert "project_urls" not in metadata
    assert re.findall("^URL: *(.*)$", spec, re.MULTILINE) == [page]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of what a release looks at, with an entry for this version, all of it committed."""
    folder = tmp_path / "clone"
    for name in ("packaging/release.py", "fmconsume/version.py"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(HOUSE / name, folder / name)
    (folder / "CHANGELOG.md").write_text(f"## [Unreleased]\n\n## [{__version__}] - 2026-11-26\n")
    run("git", "-C", folder, "init", "--quiet")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    """Commit all that is there."""
    git = ["git", "-C", folder, "-c", "user.name=Me", "-c", "user.email=me@example.com"]
    run(*git, "add", "--all")
    run(*git, "commit", "--quiet", "--message", "All of it")


def check_release(folder: Path) -> str:
    """Ask whether this can be released."""
    return run(sys.executable, "-B", folder / "packaging" / "release.py", "check")


def test_release(clone: Path) -> None:
    """What is committed and told of can be released."""
    assert check_release(clone) == ""


def test_release_of_what_is_not_committed(clone: Path) -> None:
    """A file that git does not have would be in no release that others can make."""
    (clone / "forgotten.py").touch()
    with pytest.raises(AssertionError, match=r"remove them\s+\?\? forgotten\.py"):
        check_release(clone)


@pytest.mark.parametrize("entry", ["", f"## [{__version__}]", f"## [{__version__}0] - 2026-11-26"])
def test_release_without_entry(clone: Path, entry: str) -> None:
    """A version that CHANGELOG.md does not tell of is refused, whatever else is wrong."""
    (clone / "CHANGELOG.md").write_text(f"## [Unreleased]\n\n{entry}\n")
    changed = r"M CHANGELOG\.md\s+- CHANGELOG\.md has no entry"
    with pytest.raises(AssertionError, match=changed):
        check_release(clone)


def test_release_without_git(clone: Path) -> None:
    """What was unpacked from an archive is not released again."""
    shutil.rmtree(clone / ".git")
    with pytest.raises(AssertionError, match="this is no clone"):
        check_release(clone)
