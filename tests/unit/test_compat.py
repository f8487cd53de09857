"""Tests of fmconsume under the name of fedora_messaging."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

import fmconsume
from fmconsume import (
    api,
    compat,
    config,
    example,
    exceptions,
    message,
    message_classes,
    schema_utils,
    testing,
)
from fmconsume.exceptions import ConfigurationException, FmconsumeError

from .fakes import restored_configuration


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which fedora_messaging was never imported; what a test does is undone."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(config, "is_fedora_messaging", False)
    with ExitStack() as stack:
        changed = config.DEFAULTS["client_properties"], message_classes._schema_name_to_package
        for each in (sys.modules, *changed):
            stack.enter_context(mock.patch.dict(each))
        for name in [each for each in sys.modules if each.partition(".")[0] == "fedora_messaging"]:
            del sys.modules[name]
        yield


@pytest.fixture
def alias(clean: None) -> Any:
    """The package fedora_messaging, just installed."""
    compat.install()
    return importlib.import_module("fedora_messaging")


def test_install_submodules_by_attribute(alias: Any) -> None:
    """After a plain import every module is an attribute, as consumers use them."""
    assert alias.api.Message is message.Message
    assert alias.config.conf is config.conf
    assert alias.exceptions.Nack is exceptions.Nack
    assert alias.message.get_class is message.get_class
    assert alias.schema_utils.user_avatar_url is schema_utils.user_avatar_url
    assert alias.testing.mock_sends is testing.mock_sends
    assert alias.example.printer is example.printer
    assert alias.__version__ == fmconsume.__version__


@pytest.mark.parametrize(
    "statement",
    [
        "import fedora_messaging.api as found",
        "from fedora_messaging import api as found",
        "import fedora_messaging; found = fedora_messaging.api",
        "import sys; found = sys.modules['fedora_messaging.api']",
    ],
)
def test_install_one_module_by_every_spelling(alias: Any, statement: str) -> None:
    """However a module is imported, it is the same one."""
    namespace: dict[str, Any] = {}
    exec(statement, namespace)
    assert namespace["found"] is alias.api


@pytest.mark.parametrize("name", ["consume", "Message", "dumps", "loads", "SEVERITIES"])
def test_install_api(alias: Any, name: str) -> None:
    """The API is fmconsume's."""
    assert getattr(alias.api, name) is getattr(api, name)


def test_install_private_names(alias: Any) -> None:
    """Message packages find the registry that some of them look into."""
    names = importlib.import_module("fedora_messaging.message")
    assert names._class_to_schema_name is vars(message)["_class_to_schema_name"]
    assert names.DEBUG == 10


def test_install_exceptions(alias: Any) -> None:
    """The root and the name that only fedora-messaging has are there."""
    assert alias.exceptions.BaseException is FmconsumeError
    assert issubclass(alias.exceptions.NoFreeChannels, alias.exceptions.BaseException)
    assert issubclass(alias.exceptions.PublishReturned, alias.exceptions.PublishException)


def test_install_star(alias: Any) -> None:
    """A star import of the API brings what `__all__` names."""
    namespace: dict[str, Any] = {}
    exec("from fedora_messaging.api import *", namespace)
    assert set(api.__all__) <= set(namespace)


def test_install_patched(alias: Any) -> None:
    """Tests of consumers may patch by the old names, and what they patched comes back."""
    before = alias.api.publish
    with mock.patch("fedora_messaging.api.publish") as publish:
        assert alias.api.publish is publish
    assert alias.api.publish is before
    with restored_configuration() as conf:
        conf.loaded = True
        with mock.patch.dict("fedora_messaging.config.conf", {"topic_prefix": "patched"}):
            assert config.conf["topic_prefix"] == "patched"


def test_install_publish(alias: Any) -> None:
    """Publishing goes through the names that tests replace, and through mock_sends."""
    sent = message.Message(body={"n": 1})
    with mock.patch("fedora_messaging.api._twisted_publish_wrapper") as wrapper:
        alias.api.publish(sent, "amq.fanout", timeout=3)
    wrapper.assert_called_once_with(sent, "amq.fanout")
    wrapper.return_value.wait.assert_called_once_with(timeout=3)
    with restored_configuration() as conf, alias.testing.mock_sends(sent):
        conf.loaded = True
        conf.update(publish_exchange="amq.topic", topic_prefix="")
        alias.api.publish(sent)
    assert alias.api._twisted_service is None


def test_install_configuration(alias: Any) -> None:
    """The configuration has the names and the defaults that programs look for."""
    assert alias.config.DEFAULTS["client_properties"]["version"].startswith("fmconsume-")
    queue: config.QueueConfig = {"durable": True}
    binding: config.BindingConfig = {"exchange": "amq.topic", "routing_keys": ["#"]}
    assert isinstance(queue, alias.config.QueueConfig.__base__)
    assert isinstance(binding, alias.config.BindingConfig.__base__)


def test_install_replaced_configuration(alias: Any) -> None:
    """A program may put another mapping in the place of the configuration."""
    conf = {"topic_prefix": "replaced", "publish_priority": None}
    with mock.patch("fedora_messaging.config.conf", conf):
        assert alias.api.Message(topic="a")._encoded_routing_key == "replaced.a"


def test_install_schema_package(alias: Any) -> None:
    """A message without a class of its own names the package, as there."""
    with restored_configuration() as conf:
        conf.loaded = True
        conf.update(publish_priority=None)
        headers = alias.api.Message().headers
    assert headers["fedora_messaging_schema_package"] == "fedora_messaging"


def test_install_unregistered_class(alias: Any) -> None:
    """A class that is no entry point names the group where fedora-messaging looks."""
    with pytest.raises(TypeError, match=r"entry point in the group 'fedora\.messages'"):
        type("Unregistered", (alias.api.Message,), {})()


def test_offer(clean: None, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing is called fedora_messaging, importing it gives fmconsume, said once."""
    ours = ("fmconsume.compat", "pytest_fmconsume")
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ not in ours]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fedora_messaging")
    compat.offer()
    compat.offer()
    assert importlib.util.find_spec("fedora_messaging") is not None
    assert "fedora_messaging" not in sys.modules
    assert not config.is_fedora_messaging
    with caplog.at_level("INFO"):
        assert importlib.import_module("fedora_messaging.api").Message is message.Message
        importlib.import_module("fedora_messaging")
    assert config.is_fedora_messaging
    text = "fedora_messaging is not installed: fmconsume stands in for it"
    assert caplog.messages == [text]
    with pytest.raises(ImportError, match="runs without Twisted"):
        importlib.import_module("fedora_messaging.twisted")


def test_offer_beside_the_real_one(clean: None, monkeypatch: Any, tmp_path: Any) -> None:
    """An installed fedora_messaging is not replaced."""
    (tmp_path / "fedora_messaging.py").write_text("is_real = True")
    monkeypatch.syspath_prepend(tmp_path)
    compat.offer()
    assert importlib.import_module("fedora_messaging").is_real
    assert not config.is_fedora_messaging


def test_install_find_spec(alias: Any) -> None:
    """Those who ask whether it is there get an answer."""
    assert importlib.util.find_spec("fedora_messaging") is not None
    assert importlib.util.find_spec("fedora_messaging.api") is not None
    assert importlib.util.find_spec("fedora_messaging.signals") is not None
    assert importlib.util.find_spec("fedora_messaging.nothing") is None


def test_install_twice(alias: Any) -> None:
    """A second call changes nothing."""
    before = dict(sys.modules), list(sys.meta_path)
    compat.install()
    assert (dict(sys.modules), sys.meta_path) == before


def test_install_too_late(clean: None) -> None:
    """The real fedora_messaging, once imported, is not replaced: the error says where it is."""
    real = ModuleType("fedora_messaging")
    real.__file__ = "/usr/lib/fedora_messaging/__init__.py"
    sys.modules["fedora_messaging"] = real
    with pytest.raises(ConfigurationException, match=r"/usr/lib/fedora_messaging.* before"):
        compat.install()
    assert sys.modules["fedora_messaging"] is real


@pytest.mark.parametrize("name", ["twisted", "twisted.service", "twisted.protocol"])
def test_install_twisted_module(alias: Any, name: str) -> None:
    """Importing what needs Twisted says what to do instead."""
    with pytest.raises(ImportError, match=r"without Twisted: consume with .*api\.consume"):
        importlib.import_module(f"fedora_messaging.{name}")


@pytest.mark.parametrize("name", ["twisted_consume", "twisted_publish"])
def test_install_twisted_function(alias: Any, name: str) -> None:
    """So does a function that needs Twisted, imported or used as an attribute."""
    with pytest.raises(ImportError, match=f"api.{name} does not exist here: .*without Twisted"):
        exec(f"from fedora_messaging.api import {name}")
    with pytest.raises(ImportError, match="without Twisted"):
        getattr(alias.api, name)


@pytest.mark.parametrize(
    "statement",
    ["from fedora_messaging.api import publish_signal", "import fedora_messaging.signals"],
)
def test_install_signals(alias: Any, statement: str) -> None:
    """There are no signals, and the error says what to do without."""
    with pytest.raises(ImportError, match="sends no signals: do what the receiver does"):
        exec(statement)


def test_install_unknown_names(alias: Any) -> None:
    """A name that neither has is missing in the usual way."""
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'fedora_messaging\.nothing'"):
        importlib.import_module("fedora_messaging.nothing")
    assert not hasattr(alias.api, "nothing")
    assert not hasattr(alias, "nothing")


def test_install_annotations_of_all_modules(alias: Any) -> None:
    """Tools that look into every loaded module are not troubled."""
    for module in list(sys.modules.values()):
        getattr(module, "__warningregistry__", None)
        hasattr(module, "__file__")
