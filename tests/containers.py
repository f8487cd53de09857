"""Builds an image from the Containerfile, and runs it, where there is no container engine.

Every stage gets a root of its own below a folder, and /usr of this machine stands for the base
image: what apt would install there has to be here. Commands run in namespaces of their own, as
process 1. Root gives them the user id that OpenShift would give; for others it stays their own.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import psutil
from dockerfile_parse import DockerfileParser

HOUSE = Path(__file__).parents[1]
#: As OpenShift gives them: a large number, and the group root.
USER, GROUP = 1000680000, 0

#: A volume that holds nothing yet.
EMPTY = "-"

_IS_ROOT = os.getuid() == 0
_BASE = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
#: Of this machine, so that the registry can be reached.
_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "PIP_CERT", "PIP_INDEX_URL")
#: Takes the root, "ro" or "rw", then the source and the target of each volume up to "--".
_ENTER = """
set -e
umask 022
root=$1; mode=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for name in usr dev; do mount --rbind /$name "$root/$name"; done
while [ "$1" != -- ]; do
    if [ "$1" = - ]; then mount -t tmpfs -o mode=0777 tmpfs "$root$2"
    else mount --rbind "$1" "$root$2"; fi
    shift 2
done
shift
mount -o "remount,bind,$mode" "$root"
exec chroot "$root" "$@"
"""
_CONFINED = ["--clear-groups", "--no-new-privs", "--inh-caps", "-all", "--bounding-set", "-all"]


class Stage:
    """One stage of a Containerfile: a root, and what it says of the commands that run there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: What apt would install.
        self.packages: set[str] = set()
        self.arguments: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.folder = "/"
        self.user = ""
        self.entrypoint: list[str] = []
        self.default: list[str] = []
        for name in ("usr", "proc", "dev", "etc", "tmp"):
            (root / name).mkdir(parents=True)
        for name in filter(os.path.islink, _BASE):
            (root / name[1:]).symlink_to(os.readlink(name))

    def place(self, path: str) -> Path:
        """Give the place of a path of the image."""
        return self.root / os.path.join(self.folder, path).lstrip("/")

    def build(self, command: str) -> None:
        """Run a command of the Containerfile's as root."""
        ours = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        enter = self._enter({"/etc": "/etc", "/tmp": EMPTY}, "rw")
        variables = _assigned({"PATH": os.defpath, **ours, **self.arguments, **self.environment})
        inside = [*enter, "env", "-i", "-C", self.folder, *variables, "sh", "-c", command]
        done = subprocess.run(inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout

    def start(self, *command: str, volumes: dict[str, str], **popen: Any) -> subprocess.Popen[str]:
        """Start a command as OpenShift does, with a root that is only read; `stop` stops it.

        Args:
            volumes: The folder that is mounted, or EMPTY, by where.
        """
        identity = ["setpriv", "--reuid", str(USER), "--regid", str(GROUP), *_CONFINED]
        enter = [*self._enter(volumes, "ro"), *(identity if _IS_ROOT else [])]
        inside = [*enter, "env", "-i", "-C", self.folder, *_assigned(self.environment), *command]
        return subprocess.Popen(inside, text=True, **popen)

    def _enter(self, volumes: dict[str, str], mode: str) -> list[str]:
        for target in volumes:
            self.place(target).mkdir(parents=True, exist_ok=True)
        mounts = [word for target, source in volumes.items() for word in (source, target)]
        user = [] if _IS_ROOT else ["--user", "--map-root-user"]
        unshare = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child"]
        return [*unshare, "sh", "-c", _ENTER, "sh", str(self.root), mode, *mounts, "--"]


def stop(container: subprocess.Popen[str]) -> None:
    """Send SIGTERM to process 1."""
    (first,) = psutil.Process(container.pid).children()
    first.terminate()


def _assigned(variables: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


class Image:
    """What the Containerfile makes; `final` is the stage that is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages: dict[str, Stage] = {}
        text = io.BytesIO((HOUSE / "Containerfile").read_bytes())
        for each in DockerfileParser(fileobj=text).structure:
            if each["instruction"] != "COMMENT":
                getattr(self, f"_{each['instruction'].lower()}")(each["value"])

    @property
    def final(self) -> Stage:
        """The last stage."""
        return next(reversed(self._stages.values()))

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it with arguments, or with its own; options as `Stage.start` takes them."""
        words = list(arguments) or self.final.default
        return self.final.start(*self.final.entrypoint, *words, **options)

    def _from(self, value: str) -> None:
        name = value.partition(" AS ")[2] or "final"
        self._stages[name] = Stage(self._folder / name)

    def _arg(self, value: str) -> None:
        name, _, default = value.partition("=")
        self.final.arguments[name] = default

    def _env(self, value: str) -> None:
        self.final.environment.update(word.split("=", 1) for word in shlex.split(value))

    def _run(self, value: str) -> None:
        if "apt-get install" in value:
            words = shlex.split(value.partition("apt-get install")[2].partition("&&")[0])
            self.final.packages.update(word for word in words if not word.startswith("-"))
        else:
            self.final.build(value)

    def _copy(self, value: str) -> None:
        *sources, target = value.split()
        root = HOUSE
        if sources[0].startswith("--from="):
            root = self._stages[sources.pop(0).partition("=")[2]].root
        for source in sources:
            place = self.final.place(target + (source if target.endswith("/") else ""))
            place.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", root / source.lstrip("/"), place], check=True)

    def _workdir(self, value: str) -> None:
        self.final.folder = value
        self.final.place(".").mkdir(parents=True, exist_ok=True)

    def _user(self, value: str) -> None:
        self.final.user = value

    def _entrypoint(self, value: str) -> None:
        self.final.entrypoint = json.loads(value)

    def _cmd(self, value: str) -> None:
        self.final.default = json.loads(value)
