"""Remove what `make install` put below a prefix: what its RECORD names, and nothing else.

Only Python's standard library is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

#: pip, rpm and dpkg write other names, and remove what is theirs.
INSTALLER = "make"
#: Lists the folders that were not there before, beside the RECORD and in its form.
FOLDERS = "FOLDERS"


def options() -> argparse.ArgumentParser:
    """Give the options that say where."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--destdir", default="", help="a folder that stands for /")
    parser.add_argument("--prefix", required=True, help="such as /usr/local")
    return parser


def now(destdir: str, path: str) -> Path:
    """Give the place to write to for a path that holds once DESTDIR is /."""
    if not path.startswith("/"):
        sys.exit(f"PREFIX has to begin with a slash: {path}")
    return Path(os.path.abspath(destdir or "/"), path.lstrip("/"))


def remove(prefix: Path) -> bool:
    """Remove every version below the prefix.

    Returns:
        Whether none is left, because all there were came from `make install`.
    """
    is_clean = True
    for info in sorted(prefix.glob("lib/python3*/*-packages/fmconsume-*.dist-info")):
        installer = _installer(info)
        if installer == INSTALLER:
            _remove_files(info)
            print(f"Removed {info.stem} from {prefix}")
        else:
            is_clean = False
            print(f"{info} was installed by {installer}: use that to remove it", file=sys.stderr)
    return is_clean


def _installer(info: Path) -> str:
    with contextlib.suppress(OSError):
        return (info / "INSTALLER").read_text(encoding="utf-8").strip()
    return "another program"


def _remove_files(info: Path) -> None:
    files = _listed(info / "RECORD")
    folders = {*_listed(info / FOLDERS), *(path.parent / "__pycache__" for path in files)}
    # The lists go last: where this ends half-way, it can be run again.
    for path in sorted(files, key=lambda path: path.parent == info):
        for each in (path, *_compiled(path)):
            each.unlink(missing_ok=True)
    for folder in sorted(folders, reverse=True):
        # Others may use it meanwhile.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _listed(path: Path) -> list[Path]:
    """Give the paths in a list, which are relative to the folder for packages."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Path(os.path.normpath(path.parents[1] / row[0])) for row in csv.reader(file)]


def _compiled(path: Path) -> Iterator[Path]:
    if path.suffix == ".py":
        yield from (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")


if __name__ == "__main__":
    arguments = options().parse_args()
    try:
        sys.exit(not remove(now(arguments.destdir, arguments.prefix)))
    except OSError as exc:
        sys.exit(f"It is not removed: {exc}")
