"""Runs all tests in other releases of Debian: each has a RabbitMQ and a Python of its own.

Each release has a folder that debootstrap fills once. It is kept, with what the tests installed
there; to remove it is enough to begin anew. Only Python's standard library is needed.

"free-threaded" is forky with a CPython that has no GIL. Debian has no package of it, so it is
built from Debian's source, once, too. As that takes minutes, it runs only where it is named.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

#: Oldest first.
RELEASES = ("bullseye", "bookworm", "trixie", "forky")
_HOUSE = Path(__file__).parents[1]
_PACKAGES = "ca-certificates,gcc,git,libc6-dev,make,procps,python3,python3-dev,python3-venv"
_MADE = "debootstrap-was-here"
#: Of this machine, so that the same registries can be reached from a release.
_FILES = ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt")
_VARIABLES = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_CERT",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_INDEX_URL",
)
_USER, _HOME = "tester", "/home/tester"
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Of 3.13, since the mirror lacks the source of forky's 3.14. Without PGO and LTO, which take long.
_BUILD = """
sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends xz-utils \
    libbz2-dev libffi-dev liblzma-dev libsqlite3-dev libssl-dev libzstd-dev zlib1g-dev
mkdir /tmp/python && cd /tmp/python
apt-get source -q --tar-only python3.13
tar --extract --strip-components=1 --file=$(echo *.orig.tar.xz)
./configure -q --disable-gil --prefix=/usr/local
make -s -j$(nproc)
make -s install
rm -rf /tmp/python
"""
#: What imports cryptography or pydantic, which no longer support a free-threaded 3.13.
_LEFT_OUT = (
    "--ignore=tests/integration/test_tls.py",
    *(f"--ignore=tests/unit/test_{name}.py" for name in ("addresses", "certificate", "checking")),
    "--ignore=tests/unit/test_errors.py",
    "--deselect=tests/unit/test_openshift.py::test_keda_schema",
)
#: What is more than a release.
VARIANTS = {
    "free-threaded": {
        "suite": "forky",
        "build": _BUILD,
        # An extension module that does not know of free threading would turn the GIL on.
        "variables": "PYTHON_GIL=0 PIP_PREFER_BINARY=1 EXTRAS=test",
        "arguments": " ".join(_LEFT_OUT),
    },
}
#: In namespaces of its own, so that nothing stays mounted, and no process stays. After a chroot no
#: user could make a namespace, as the tests of the container do.
_ENTER = """
mount --bind {root} {root} && cd {root} &&
mount -t proc proc proc && mount --rbind /dev dev && mount --rbind /sys sys &&
pivot_root . . && umount -l . && cd / && exec "$@"
"""


class Release:
    """One release of Debian in a folder.

    Args:
        name: Of the row, and of the folder.
        folder: Of all releases.
        suite: As debootstrap knows it; default: the name.
        build: A shell script that completes the folder, by root.
        variables: Of the tests' environment, as a shell takes them.
        arguments: For pytest.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        suite: str = "",
        build: str = "",
        variables: str = "",
        arguments: str = "",
    ) -> None:
        self.name = name
        self.suite = suite or name
        self.build = build
        self.variables = variables
        self.arguments = arguments
        self.root = folder / name
        self.log = folder / f"{name}.log"

    def make(self, mirror: str) -> None:
        """Make the folder unless it is there."""
        self.log.unlink(missing_ok=True)
        if (self.root / _MADE).exists():
            return
        shutil.rmtree(self.root, ignore_errors=True)
        options = ["--variant=minbase", f"--include={_PACKAGES}"]
        self._call(["debootstrap", *options, self.suite, str(self.root), mirror])
        # A mirror may stand still, and its lists expire.
        apt = self.root / "etc/apt/apt.conf.d/matrix"
        apt.write_text('Acquire::Check-Valid-Until "false";\n')
        self._run(["useradd", "--create-home", _USER])
        self._copy_files()
        self._run(["sh", "-ec", self.build])
        (self.root / _MADE).touch()

    def test(self, arguments: str) -> str:
        """Run the tests as an ordinary user; give what pytest says last, or what went wrong."""
        self._copy_files()
        target = self.root / _HOME[1:] / "fmconsume"
        shutil.rmtree(target, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=_HOUSE, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_HOUSE / name, target / name)
        self._run(["chown", "-R", _USER, _HOME])
        make = f"make --directory={_HOME}/fmconsume VENV={_HOME}/venv"
        self._run(["sh", "-c", f"{make} tools"])
        arguments = f"{self.arguments} {arguments}".strip()
        command = f"{self.variables} {make} test ARGS={shlex.quote(arguments)}"
        done = self._run(["runuser", "-u", _USER, "--", "sh", "-c", command], is_checked=False)
        last = re.findall(r"=+ (.*\bin [\d.]+s.*?) =+", self.log.read_text(errors="replace"))
        said = last[-1] if last else "no test has run"
        return said if done == 0 or "failed" in said else f"{said}, but make ended with {done}"

    def versions(self) -> list[str]:
        """Give the versions of Python, RabbitMQ and pika."""
        commands = (
            "python3 -c 'import platform, sys; print(platform.python_version() + sys.abiflags)'",
            "dpkg-query --show --showformat='${Version}' rabbitmq-server",
            f"{_HOME}/venv/bin/python -c 'import pika; print(pika.__version__)'",
        )
        return [self._ask(command) for command in commands]

    def _copy_files(self) -> None:
        """Give the release what this machine needs to reach a mirror."""
        for name in _FILES:
            if (source := Path("/") / name).exists():
                shutil.copy(source, self.root / name)

    def _ask(self, command: str) -> str:
        done = subprocess.run(
            ["chroot", self.root, "sh", "-c", command], capture_output=True, text=True
        )
        return done.stdout.strip() or "none"

    def _run(self, command: list[str], *, is_checked: bool = True) -> int:
        """Run a command inside the release."""
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        inside = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": _HOME}
        script = _ENTER.format(root=shlex.quote(str(self.root)))
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return self._call(
            [*unshare, "sh", "-c", script, "sh", *command],
            {**environment, **inside},
            is_checked=is_checked,
        )

    def _call(
        self,
        command: list[str],
        environment: dict[str, str] | None = None,
        *,
        is_checked: bool = True,
    ) -> int:
        with self.log.open("ab") as log:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        if is_checked and done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: see {self.log}")
        return done.returncode


def find_mirror() -> str:
    """Give the mirror of the machine's own apt."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        uri, *words = line.split()
        if words == ["Debian", "Debian"]:
            return uri
    raise RuntimeError("apt has no mirror of Debian: name one with --mirror")


def explain_what_lacks() -> str:
    """Tell what the machine lacks, or give ""."""
    if os.getuid():
        return "debootstrap and chroot want root"
    if shutil.which("apt-get") is None:
        return "this is no Debian: it has no apt-get, whose mirror would be used"
    return "" if shutil.which("debootstrap") else "debootstrap is not installed"


def main() -> int:
    """Run the tests in each release, and print a table; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__.splitlines()[0])
    names = ", ".join([*RELEASES, *VARIANTS])
    parser.add_argument("releases", nargs="*", default=RELEASES, help=names)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/fmconsume-matrix"))
    parser.add_argument("--mirror", help="of Debian's packages; default: that of apt")
    parser.add_argument("--pytest", default="", help="options for pytest")
    args = parser.parse_args()
    lack = explain_what_lacks()
    if lack:
        print(f"The matrix cannot be run: {lack}.", file=sys.stderr)
        return 1
    args.folder.mkdir(parents=True, exist_ok=True)
    mirror = args.mirror or find_mirror()
    print(f"{'Debian':13} {'Python':8} {'RabbitMQ':10} {'pika':7} {'s':>5}  tests", flush=True)
    is_good = True
    for name in args.releases:
        release = Release(name, args.folder, **VARIANTS.get(name, {}))
        began = time.monotonic()
        try:
            release.make(mirror)
            said = release.test(args.pytest)
        except RuntimeError as exc:
            said = f"failed: {exc}"
        is_good = is_good and "passed" in said and not re.search("failed|error|ended", said)
        python, rabbitmq, pika = release.versions()
        seconds = time.monotonic() - began
        print(
            f"{release.name:13} {python:8} {rabbitmq:10} {pika:7} {seconds:5.0f}  {said}",
            flush=True,
        )
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
