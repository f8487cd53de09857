"""Install what `make install` has made, where the target's Python looks for packages.

All that is written, but bytecode, is in the RECORD of the package: `uninstall.py` goes by it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import installer
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile
from uninstall import FOLDERS, INSTALLER, now, options, remove

_QUESTION = """
import json, site, sys
print(json.dumps([sys.executable, sys.version_info[:2], site.getsitepackages()]))
"""


class Made(WheelFile):
    """A wheel, with the files of a folder that belong below the prefix."""

    #: Set once it is open.
    data: Path

    def get_contents(self) -> Iterator[Any]:
        """Give the wheel's files, then the folder's."""
        yield from super().get_contents()
        for path in sorted(filter(Path.is_file, self.data.rglob("*"))):
            with path.open("rb") as stream:
                name = f"{self.data_dir}/data/{path.relative_to(self.data)}"
                yield (name, "", ""), stream, False


class Destination(SchemeDictionaryDestination):
    """Folders, where what stands in the way is replaced."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Folders that were not there.
        self.folders: set[Path] = set()

    def write_to_fs(self, scheme: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        """Write one file."""
        target = now(self.destdir or "", self.scheme_dict[scheme]) / path
        target.unlink(missing_ok=True)
        self.folders.update(folder for folder in target.parents if not folder.exists())
        return super().write_to_fs(scheme, path, *args, **kwargs)

    def finalize_installation(self, scheme: Any, record_file_path: str, records: Any) -> None:
        """Write the list of folders, and the RECORD."""
        packages = now(self.destdir or "", self.scheme_dict[scheme])
        text = "".join(f"{os.path.relpath(folder, packages)}\n" for folder in self.folders)
        path = record_file_path.replace("RECORD", FOLDERS)
        entry = self.write_file(scheme, path, io.BytesIO(text.encode()), False)
        super().finalize_installation(scheme, record_file_path, [*records, (scheme, entry)])


def library(prefix: str, version: list[int], folders: list[str]) -> str:
    """Give the folder for packages below a prefix.

    Args:
        prefix: Such as "/usr".
        version: Of the target's Python, major and minor.
        folders: Where it looks for packages. Debian's looks into folders of its own, and only it
            knows which of them is below which prefix.
    """
    usual = f"{prefix}/lib/python{version[0]}.{version[1]}/site-packages"
    return next((folder for folder in folders if folder.startswith(f"{prefix}/lib/")), usual)


def install(made: Path, python: str, destdir: str, prefix: str) -> None:
    """Install the wheel and the folder "data" that `made` holds, instead of what was there."""
    answer = subprocess.run([python, "-c", _QUESTION], check=True, stdout=subprocess.PIPE)
    python, version, folders = json.loads(answer.stdout)
    packages = library(prefix, version, folders)
    places = {"purelib": packages, "scripts": f"{prefix}/bin", "data": prefix}
    if not remove(now(destdir, prefix)):
        sys.exit(1)
    (wheel,) = made.glob("*.whl")
    with Made.open(wheel) as source:
        source.data = made / "data"
        destination = Destination(places, python, "posix", destdir=destdir or None)
        installer.install(source, destination, {"INSTALLER": f"{INSTALLER}\n".encode()})
    _compile(python, destdir, now(destdir, packages))
    print(f"Installed {wheel.name.partition('-py')[0]} in {now(destdir, packages)}")
    if not destdir:
        _try(python, folders)


def _compile(python: str, destdir: str, packages: Path) -> None:
    names = [packages / "fmconsume", packages / "pytest_fmconsume.py"]
    later = ["-s", os.path.abspath(destdir), "-p", "/"] if destdir else []
    subprocess.run([python, "-m", "compileall", "-q", *later, *names], check=True)


def _try(python: str, folders: list[str]) -> None:
    done = subprocess.run(
        [python, "-c", "import fmconsume.cli"], cwd="/", stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        print(f"It cannot run yet: {reason} ({python} looks into {', '.join(folders)})")


if __name__ == "__main__":
    parser = options()
    parser.add_argument("--python", required=True, help="that is going to run it")
    parser.add_argument("made", type=Path, help="a folder with a wheel, and a folder for PREFIX")
    arguments = parser.parse_args()
    os.umask(0o022)
    prefix = os.path.normpath(arguments.prefix)
    try:
        install(arguments.made, arguments.python, arguments.destdir, prefix)
    except OSError as exc:
        sys.exit(f"It is not installed: {exc}")
