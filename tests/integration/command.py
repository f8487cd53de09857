"""The installed `fmconsume` script as a child process of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE, wait_until

__all__ = ["Command"]

# What the machine of whoever runs the tests may have set, and a test must not see.
_FOREIGN = ("FMCONSUME_", "FEDORA_MESSAGING_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM")


class Command(subprocess.Popen):
    """`fmconsume` with `args`, its output kept in files so that it can never block on them.

    Args:
        module: Runs this module of Python's instead.
    """

    def __init__(
        self, folder: Path, *args: object, env: dict[str, str], module: str = "", **popen: Any
    ) -> None:
        script = Path(sys.executable).with_name("fmconsume")
        if not script.exists():
            raise FileNotFoundError(f"{script}: install the project with `make test`")
        command = [sys.executable, "-m", module] if module else [str(script)]
        self._out, self._err = folder / "stdout", folder / "stderr"
        ours = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            super().__init__(
                [*command, *map(str, args)],
                stdout=out,
                stderr=err,
                env={**ours, "PYTHONUNBUFFERED": "1", **env},
                **{"stdin": subprocess.DEVNULL, **popen},
            )

    def insist(self, number: int) -> int:
        """Send a second signal, and return the exit status.

        The same signal counts once within a moment, so it is sent until it has ended the command.
        """

        def has_ended() -> bool:
            if "without waiting" not in self.logged():  # It may be at its very end.
                self.send_signal(number)
            return self.poll() is not None

        wait_until(has_ended, every=0.1)
        return int(self.returncode)

    def printed(self) -> str:
        """Return what it has written to standard output so far."""
        return self._out.read_text(errors="replace")

    def logged(self) -> str:
        """Return what it has written to standard error so far."""
        return self._err.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = PATIENCE) -> str:
        """Wait until `text` is on standard error, and return all of it.

        Raises:
            AssertionError: The command ended, or time is up, without it; shows what it wrote.
        """

        def has_come() -> bool:
            ended = self.poll() is not None  # before reading: it may write and end in between
            return text in self.logged() or ended

        with suppress(TimeoutError):
            wait_until(has_come, timeout)
        assert text in self.logged(), f"{text!r} not in:\n{self.logged()}"
        return self.logged()
