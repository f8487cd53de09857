"""Private database servers: started by a test, on a free port, and gone with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.exc import OperationalError

from tests.waiting import wait_until

from .broker import free_port

__all__ = ["SERVERS", "mariadb", "postgresql", "sqlite"]

#: For whom root starts a server, since PostgreSQL refuses to run as root.
_NOBODY = "nobody"


def _find(name: str, *patterns: str) -> str:
    """Find a program, which need not be on the search path."""
    for pattern in patterns:
        for path in sorted(Path("/").glob(pattern), reverse=True):
            return str(path)
    found = shutil.which(name)
    assert found, f"{name} is not installed: run `make test`, which installs it"
    return found


@contextmanager
def _folder() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Make a folder for a server; gives it and what starts a process that may write there."""
    folder = Path(tempfile.mkdtemp(prefix="fmconsume-"))
    popen: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL}
    if os.getuid() == 0:
        shutil.chown(folder, _NOBODY)
        popen["user"] = _NOBODY
    with (folder / "log").open("wb") as log:
        try:
            yield folder, {**popen, "stdout": log, "stderr": subprocess.STDOUT}
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(command: list[str], url: str, folder: Path, popen: dict[str, Any]) -> Iterator[str]:
    """Run a server until the block ends; gives the URL once it answers."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text(errors="replace")
        try:
            engine.connect().close()
        except OperationalError:
            return False
        return True

    with subprocess.Popen(command, **popen) as server:
        try:
            wait_until(answers)
            yield url
        finally:
            server.kill()


@contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL; gives the URL of a database."""
    patterns = [f"usr/lib/postgresql/*/bin/{name}" for name in ("initdb", "postgres")]
    initdb, postgres = _find("initdb", patterns[0]), _find("postgres", patterns[1])
    with _folder() as (folder, popen):
        data, port = folder / "data", free_port()
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-U", "fm", "-E", "UTF8", "--no-sync"],
            check=True,
            **popen,
        )
        command = [postgres, "-D", str(data), "-p", str(port), "-k", str(folder), "-F"]
        url = f"postgresql+psycopg://fm@127.0.0.1:{port}/postgres"
        with _serving([*command, "-h", "127.0.0.1"], url, folder, popen):
            yield url


@contextmanager
def mariadb() -> Iterator[str]:
    """Run MariaDB; gives the URL of a database."""
    with _folder() as (folder, popen):
        data, port = f"--datadir={folder / 'data'}", free_port()
        install = _find("mariadb-install-db")
        options = ["--auth-root-authentication-method=normal", "--skip-name-resolve"]
        subprocess.run([install, "--no-defaults", data, *options], check=True, **popen)
        command = [
            *(
                _find("mariadbd", "usr/sbin/mariadbd", "usr/libexec/mariadbd"),
                "--no-defaults",
                data,
            ),
            *(f"--port={port}", f"--socket={folder / 'socket'}", "--bind-address=127.0.0.1"),
            "--innodb-flush-log-at-trx-commit=0",
        ]
        url = f"mysql+pymysql://root@127.0.0.1:{port}/test?charset=utf8mb4"
        with _serving(command, url, folder, popen):
            yield url


@contextmanager
def sqlite() -> Iterator[str]:
    """Give the URL of a database in a file."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/work.db"


#: By name, what gives the URL of a database.
SERVERS = {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mariadb}
