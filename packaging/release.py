"""Refuse what cannot be released; try what was built, and say how to upload it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import runpy
import subprocess
import sys
import tempfile
import venv
from functools import partial
from pathlib import Path

HOUSE = Path(__file__).parents[1]
VERSION: str = runpy.run_path(str(HOUSE / "fmconsume" / "version.py"))["__version__"]

NEXT = """
Nothing has been uploaded. When `make check` and `make matrix` are good at {commit:.12}:

  {python} -m twine upload {files}
  git tag --annotate v{version} --message 'fmconsume {version}' {commit:.12}
  git push origin v{version}

twine asks for a token, which https://pypi.org/manage/account/token/ makes. The upload makes the
page https://pypi.org/project/fmconsume/ and cannot be repeated: a mistake needs a new version.
"""


def problems() -> list[str]:
    """Give every reason not to release what is here."""
    found = []
    if changed := git("status", "--porcelain"):
        found.append(f"these files are not as committed: commit or remove them\n{changed}")
    changelog = (HOUSE / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(
        rf"^## \[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE
    ):
        found.append(
            f'CHANGELOG.md has no entry "## [{VERSION}] - YEAR-MONTH-DAY" for the version that '
            "fmconsume/version.py names: write it"
        )
    return found


def git(*words: str) -> str:
    """Give what git prints."""
    done = subprocess.run(["git", *words], cwd=HOUSE, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("A release is made from git, and this is no clone.")
    return done.stdout.rstrip()


def check() -> None:
    """End with all problems, if there are any."""
    if found := problems():
        sys.exit("\n".join(["There is no release of this:", *(f"- {each}" for each in found)]))


def attempt(wheel: Path) -> None:
    """Install a wheel as a user does, and run the command."""
    # A PYTHONPATH may lead to another fmconsume.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        run = partial(subprocess.run, cwd=folder, env=environment, check=True)
        venv.create(folder)
        pip = [sys.executable, "-m", "pip", "--python", folder, "--disable-pip-version-check", "-q"]
        run([*pip, "install", "--no-input", str(wheel)])
        run([*pip, "check"])
        command = [f"{folder}/bin/fmconsume", "--version"]
        said = run(command, stdout=subprocess.PIPE, text=True)
    if said.stdout != f"fmconsume {VERSION}\n":
        sys.exit(f"{wheel} says it is {said.stdout!r}, and not {VERSION}")


def tell() -> None:
    """Try what is in dist/, and say how to upload it."""
    wheel, archive = (f"dist/fmconsume-{VERSION}{end}" for end in ("-py3-none-any.whl", ".tar.gz"))
    attempt(HOUSE / wheel)
    print(f"\nfmconsume {VERSION} is built, checked, installed and started:\n")
    for name in (wheel, archive):
        print(f"  {hashlib.sha256((HOUSE / name).read_bytes()).hexdigest()}  {name}")
    python = os.path.relpath(sys.executable)
    commit, files = git("rev-parse", "HEAD"), f"{wheel} {archive}"
    print(NEXT.format(python=python, files=files, commit=commit, version=VERSION), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["check", "tell"])
    {"check": check, "tell": tell}[parser.parse_args().step]()
