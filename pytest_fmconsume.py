"""The fixtures of fmconsume for pytest; outside the package, so that it is imported only when used.

The thread that runs the tests calls them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Callable

import pytest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fmconsume.message import Message
    from fmconsume.testing import DeliverResult

__all__ = ["deliver", "mock_sends"]


class _Finder:
    """Imports fmconsume when a test imports fedora_messaging, and no earlier."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Give what the finder of fmconsume gives, which comes behind this one."""
        if fullname != "fedora_messaging":
            return None
        from fmconsume.compat import LastFinder

        return LastFinder().find_spec(fullname, path, target)


sys.meta_path.append(_Finder())


@pytest.fixture
def deliver() -> Callable[..., DeliverResult]:
    """Give messages to a callback as a consumer does: see fmconsume.testing.deliver."""
    from fmconsume.testing import deliver

    return deliver


@pytest.fixture
def mock_sends() -> Callable[..., AbstractContextManager[list[Message]]]:
    """Catch what is published and compare it: see fmconsume.testing.mock_sends."""
    from fmconsume.testing import mock_sends

    return mock_sends
