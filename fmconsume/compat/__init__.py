"""The name `fedora_messaging` for fmconsume, so that consumers written for it run unchanged.

`import fmconsume` calls `offer`. Call `install` in the main thread, before anything imports
fedora_messaging.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import config
from ..exceptions import ConfigurationException, FmconsumeError
from ..log import get_logger

if TYPE_CHECKING:
    from ..message import Message

__all__ = ["LastFinder", "NoFreeChannels", "install", "offer"]

_log = get_logger(__name__)

_NAME = "fedora_messaging"
_NO_TWISTED = (
    "fmconsume runs without Twisted: consume with fedora_messaging.api.consume(), which may be "
    "called in a thread, and publish with api.publish(); or run this under fedora-messaging"
)
_NO_SIGNALS = "fmconsume sends no signals: do what the receiver does where api.publish() is called"

#: Names that fedora-messaging has and fmconsume has not, each with what to do instead.
_ABSENT = {
    f"{_NAME}.twisted": _NO_TWISTED,
    f"{_NAME}.api.twisted_consume": _NO_TWISTED,
    f"{_NAME}.api.twisted_publish": _NO_TWISTED,
    f"{_NAME}.signals": _NO_SIGNALS,
    f"{_NAME}.api.pre_publish_signal": _NO_SIGNALS,
    f"{_NAME}.api.publish_signal": _NO_SIGNALS,
    f"{_NAME}.api.publish_failed_signal": _NO_SIGNALS,
    f"{_NAME}.cli": "its command is python -m fmconsume.compat",
}


class NoFreeChannels(FmconsumeError):
    """Raised when fedora-messaging runs out of channels, and never by fmconsume."""


def offer() -> None:
    """Let fedora_messaging mean fmconsume where nothing of that name is installed."""
    if not any(isinstance(each, LastFinder) for each in sys.meta_path):
        sys.meta_path.append(LastFinder())


def install() -> None:
    """Make fedora_messaging and its modules mean fmconsume in this process.

    It does not matter whether fedora-messaging is installed. A second call changes nothing.

    Raises:
        ConfigurationException: The real fedora_messaging was imported before.
    """
    present = sys.modules.get(_NAME)
    if isinstance(present, _Alias):
        return
    if present is not None:
        raise ConfigurationException(
            f"fedora_messaging was imported from {present.__file__} before fmconsume could stand "
            "in for it: call fmconsume.compat.install() first, or use --as-fedora-messaging"
        )
    from .. import message_classes, version

    modules = _modules()
    package = _Alias("", version, __path__=[], **modules)
    sys.modules[_NAME] = package
    sys.modules.update({f"{_NAME}.{name}": module for name, module in modules.items()})
    sys.meta_path.insert(0, _Finder())
    config.is_fedora_messaging = True
    message_classes._schema_name_to_package["base.message"] = _NAME
    config.DEFAULTS["client_properties"].update(config.identity())


class _Alias(ModuleType):
    """A module of fedora_messaging: it has the names of another module, and some of its own."""

    def __init__(self, name: str, source: ModuleType, **extra: Any) -> None:
        super().__init__(f"{_NAME}.{name}".rstrip("."), source.__doc__)
        self.__spec__ = ModuleSpec(self.__name__, None, is_package=not name)
        self.__source = source
        vars(self).update(extra)

    def __getattr__(self, name: str) -> Any:
        _refuse(f"{self.__name__}.{name}")
        return getattr(self.__source, name)


class _Finder:
    """Refuses to import an absent module of fedora_messaging, and says what to do instead."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of an absent module, and leave every other to the next finder."""
        return ModuleSpec(fullname, self) if fullname in _ABSENT else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Raise ImportError."""
        _refuse(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is no module."""


class LastFinder:
    """Finds fedora_messaging when all other finders have not, and loads fmconsume for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of fedora_messaging, and leave every other module alone."""
        return ModuleSpec(_NAME, self, is_package=True) if fullname == _NAME else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Install, and give the package."""
        install()
        _log.info("fedora_messaging is not installed: fmconsume stands in for it")
        return sys.modules[_NAME]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the package is complete."""


def _refuse(name: str) -> None:
    if name in _ABSENT:
        raise ImportError(f"{name} does not exist here: {_ABSENT[name]}", name=name)


def _modules() -> dict[str, ModuleType]:
    from .. import api, example, exceptions, message, schema_utils, testing

    return {
        "api": _Alias(
            "api",
            api,
            publish=_publish,
            # Programs look here for a running reactor, and publish the blocking way without.
            _twisted_service=None,
            # Tests replace it, so that nothing is sent.
            _twisted_publish_wrapper=_Publication,
        ),
        "config": config,
        "example": example,
        "exceptions": _Alias(
            "exceptions", exceptions, BaseException=FmconsumeError, NoFreeChannels=NoFreeChannels
        ),
        "message": message,
        "schema_utils": schema_utils,
        "testing": testing,
    }


def _publish(message: Message, exchange: str | None = None, timeout: float = 30.0) -> None:
    """Publish a message and wait until the broker confirms it: see fmconsume.publish."""
    wrapper = sys.modules[f"{_NAME}.api"]._twisted_publish_wrapper
    wrapper(message, exchange).wait(timeout=timeout)


class _Publication:
    """What fedora-messaging's own publish waits for: here waiting is all of the work."""

    def __init__(self, message: Message, exchange: str | None) -> None:
        self._message = message
        self._exchange = exchange

    def wait(self, timeout: float) -> None:
        """Publish the message."""
        from ..api import publish

        publish(self._message, self._exchange, timeout)
