"""Tests of writing for a person to streams that fail, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE

HEAD = "import os, sys\nfrom fmconsume import console\nconsole.prepare()\n"
#: More than any buffer holds.
TALK = "for _ in range(3000): console.say('x' * 99); console.complain('y' * 99)\n"


def run(code: str, redirection: str = "", **environment: str) -> tuple[int, str, str]:
    """Run Python code with a shell's redirection; return its status, output and error output."""
    # So that Python buffers, unless the test wants otherwise.
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, HEAD + code],
        env={**ours, **environment},
        capture_output=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full", ">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_say_to_broken_stream(redirection: str, environment: dict[str, str]) -> None:
    """A stream that is full or closed changes no exit status, and no other stream tells of it."""
    status, out, err = run(f"{TALK}sys.exit(3)", redirection, **environment)
    assert status == 3
    assert set(out) <= {"x", "\n"}
    assert set(err) <= set("fmconsume: y\n")


@pytest.mark.parametrize("number", [1, 2])
def test_say_to_closed_pipe(number: int) -> None:
    """A pipe that nobody reads any more changes no exit status."""
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    streams["stdout" if number == 1 else "stderr"] = writer
    command = [sys.executable, "-c", f"{HEAD}{TALK}sys.exit(3)"]
    done = subprocess.run(command, timeout=PATIENCE, **streams)
    os.close(writer)
    assert done.returncode == 3
    assert b"Traceback" not in (done.stdout or b"") + (done.stderr or b"")


def test_flush_at_exit_comes_after_a_callbacks_own() -> None:
    """What a callback prints as the process exits is cared for too."""
    code = "import atexit; atexit.register(print, 'x'); sys.exit(3)"
    assert run(code, ">/dev/full") == (3, "", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_say_what_the_encoding_lacks(encoding: str) -> None:
    """What a stream cannot encode is shown as an escape."""
    code = "console.say('\\u03b2 \\ud800'); console.complain('\\u03b2 \\ud800')"
    status, out, err = run(code, PYTHONIOENCODING=encoding)
    beta = "\u03b2" if encoding == "utf-8" else "\\u03b2"
    assert (status, out, err) == (0, f"{beta} \\ud800\n", f"fmconsume: {beta} \\ud800\n")


def test_prepare_keeps_descriptors_free_of_connections() -> None:
    """What is opened after a start with closed descriptors gets none of their numbers."""
    code = "number = os.dup(os.open('/', 0)); sys.exit(number)"
    assert run(code, "<&- >&- 2>&-")[0] > 2


def test_prepare_stands_in_for_closed_streams() -> None:
    """A program may print although its streams are closed, also with flush()."""
    code = "print('x'); sys.stdout.flush(); sys.stderr.write('y'); sys.exit(3)"
    assert run(code, ">&- 2>&-") == (3, "", "")


def test_say_on_a_stream_of_the_programs_own() -> None:
    """A stream that a program has closed or replaced fails nothing either."""
    code = "sys.stdout.close(); sys.stderr = None; console.say('x'); console.complain('y')"
    assert run(code)[0] == 0


def test_complain_to_full_pipe() -> None:
    """A pipe that is full, and that nobody reads, is not waited for, at the end neither."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"z" * 4096)
    os.set_blocking(writer, True)
    code = f"{HEAD}console.complain('y')\nsys.exit(3)"
    done = subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=PATIENCE)
    os.close(reader)
    os.close(writer)
    assert done.returncode == 3


_STUCK = """
import logging
from fmconsume.cli import main
def callback(message): ...
logging.getLogger("fmconsume").addHandler(logging.StreamHandler())
sys.argv = ["fmconsume", "--config", sys.argv[1]]
from fmconsume import log, cli
cli._dispatch = lambda args: [log.get_logger("fmconsume.x").error("e" * 100_000), 7][1]
sys.exit(main())
"""


def test_end_while_the_log_is_stuck(tmp_path: Path) -> None:
    """A log handler that blocks for ever keeps the command from nothing, its status neither."""
    (tmp_path / "config.toml").touch()
    reader, writer = os.pipe()
    command = [sys.executable, "-c", HEAD + _STUCK, str(tmp_path / "config.toml")]
    done = subprocess.run(command, stderr=writer, timeout=PATIENCE)
    os.close(reader)
    os.close(writer)
    assert done.returncode == 7
