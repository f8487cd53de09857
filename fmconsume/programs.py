"""Runs a program that consumes by itself, as `python -m` does, and tells how it ended.

The main thread calls it.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec

from . import console
from .callbacks import locate, search, searched
from .exceptions import ConfigurationException, ExitCode, FmconsumeError
from .log import get_logger

__all__ = ["run_program"]

_log = get_logger(__name__)


def run_program(name: str, *arguments: str, app_dir: str | None = None) -> int:
    """Run a module as a program.

    Args:
        name: Of the module, or of a package with a `__main__`.
        arguments: Its sys.argv holds them.
        app_dir: The folder that is searched for it first; None is the current directory.

    Returns:
        Its exit status, or that of the exception that ended it, which is printed in a line.

    Raises:
        ConfigurationException: There is no such module.
    """
    search(app_dir)
    if not _exists(name):
        raise ConfigurationException(f"argument -m: no module named {name!r}; {searched()}")
    sys.argv[:] = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or ExitCode.OK  # It has said why, if there was a reason.
        console.complain(str(exc))
        return ExitCode.TEMPORARY
    except FmconsumeError as exc:
        if exc.exit_code:
            console.complain(str(exc))
        return exc.exit_code
    except Exception as exc:
        _log.error("the module failed", exc_info=exc)
        console.complain(f"the module failed: {locate(exc)}")
        return ExitCode.TEMPORARY
    return ExitCode.OK


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # There is no such package, or that is no name.
        return False
