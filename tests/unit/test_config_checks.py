"""Tests of what the configuration's keys accept."""

from __future__ import annotations

import contextlib
import copy
import re
import ssl
from typing import Any
from unittest import mock

import pika
import pytest
import tomli
from hypothesis import given

from fmconsume.config_checks import DEFAULTS, check_bindings, check_config, check_queues
from fmconsume.exceptions import ConfigurationException
from fmconsume.version import __version__

from .fakes import CONFIG_VALUES


def load(text: str) -> dict[str, Any]:
    """Check a configuration, given as TOML."""
    return check_config(tomli.loads(text), "my.toml")


def problems(text: str) -> list[str]:
    """List what is wrong with a configuration, without the line that names the file."""
    with pytest.raises(ConfigurationException) as caught:
        load(text)
    title, *lines = caught.value.message.splitlines()
    assert title == "my.toml cannot be used:"
    return lines


# -- what the keys mean


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("[qos]\nprefetch_count = 1", "qos", {"prefetch_count": 1, "prefetch_size": 0}),
        (
            "[failures.delay]\ninitial = 0",
            "failures",
            {**DEFAULTS["failures"], "delay": {"initial": 0, "max": 60.0}},
        ),
        (
            "[tls]\nca_cert = 'x'",
            "tls",
            {"ca_cert": "x", "certfile": None, "keyfile": None},
        ),
        (
            "[tls]\nca_cert = ''\ncertfile = ''\nkeyfile = ''",
            "tls",
            {"ca_cert": None, "certfile": None, "keyfile": None},
        ),
        ("callback = ''", "callback", ""),
        ("[monitoring]", "monitoring", {}),
        ("[monitoring]\nport = 80", "monitoring", {"address": None, "port": 80}),
        (
            "[monitoring]\nport = 80\naddress = ''",
            "monitoring",
            {"address": "", "port": 80},
        ),
        ("[exchanges]", "exchanges", {}),
        (
            "[exchanges.e]\ntype = 'fanout'",
            "exchanges",
            {"e": {"type": "fanout", "durable": True, "auto_delete": False, "arguments": {}}},
        ),
        (
            "[queues.q]",
            "queues",
            {"q": {"durable": False, "auto_delete": False, "exclusive": False, "arguments": {}}},
        ),
        ("[queues.q]", "bindings", []),
        ("[queues.'']\ndurable = true", "bindings", DEFAULTS["bindings"]),
        ("amqp_url = ['amqp://', 'amqps://h']", "amqp_url", ["amqp://", "amqps://h"]),
        ("amqp_url = 'AMQPS://fedora:@h/%2Fv'", "amqp_url", "AMQPS://fedora:@h/%2Fv"),
        (
            "amqp_url = \"amqps://h/?ssl_options={'cafile': '/nowhere'}\"",
            "amqp_url",
            "amqps://h/?ssl_options={'cafile': '/nowhere'}",
        ),
        ("[failures]\nkeep_in = ''", "failures", DEFAULTS["failures"]),
        ("callback = 'a.b:C.d'", "callback", "a.b:C.d"),
        ("callback_timeout = 1", "callback_timeout", 1),
        ("publish_priority = 255", "publish_priority", 255),
        ("body = 'bytes'", "body", "bytes"),
        ("[consumer_config.a]\nb = [1979-05-27]", "consumer_config", mock.ANY),
    ],
)
def test_check_config_merges_defaults(text: str, key: str, value: object) -> None:
    """What a table leaves out is filled in, and empty strings for files mean unset."""
    assert load(text)[key] == value


def test_check_config_single_binding() -> None:
    """A single binding may be written as a table; its queue is then the unnamed one."""
    text = "[bindings]\nexchange = 'e'\nrouting_keys = ['k']"
    assert load(text)["bindings"] == [{"queue": "", "exchange": "e", "routing_keys": ["k"]}]


def test_check_config_replaces_reserved_client_properties(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file adds client properties, but not those that identify fmconsume; a line says so."""
    properties = load(
        "[client_properties]\napp_url = 'u'\nproduct = 'x'\ninformation = 'x'\nversion = 'x'"
    )["client_properties"]
    expected = {
        **DEFAULTS["client_properties"],
        "version": f"fmconsume-{__version__} with pika-{pika.__version__}",
        "app_url": "u",
    }
    assert properties == expected
    assert caplog.messages == [
        f"client_properties.{key} in the configuration is ignored, as it is ours"
        for key in ("information", "product", "version")
    ]


# -- what is wrong


WRONG = {
    "wrokers = 1": r"wrokers: found an unknown key, expected .*; did you mean 'workers'\?",
    "prefetch_count = 5": r"prefetch_count: .* did you mean 'qos.prefetch_count'\?",
    "ca_cert = 'a'": r"ca_cert: .* did you mean 'tls.ca_cert'\?",
    "max_attempts = 5": r"max_attempts: .* did you mean 'failures.max_attempts'\?",
    "'a\\nb' = 1": r"'.*': found an unknown key, .*",
    "workers = 0": "workers: found 0, expected an integer of 1 or more",
    "workers = true": "workers: found True, expected an integer of 1 or more",
    "workers = '2'": "workers: found '2', expected an integer of 1 or more",
    "remember = -1": "remember: found -1, expected an integer of 0 or more",
    "passive_declares = 1": "passive_declares: found 1, expected true or false",
    "amqp_url = 5": r"amqp_url: found 5, expected amqp\[s\]://.*",
    "amqp_url = []": "amqp_url: found an empty list, expected amqp.*",
    "amqp_url = ''": "amqp_url: found '', expected amqp.*",
    "amqp_url = 'http://h'": "amqp_url: found 'http://h', expected amqp.*",
    "amqp_url = 'amqp://h:port'": r"amqp_url: found 'amqp://h:\*\*\*', expected amqp.*",
    "amqp_url = 'amqp://user@h'": "amqp_url: found 'amqp://user@h', expected amqp.*",
    "amqp_url = 'amqp://?hearbeat=1'": r"amqp_url: found 'amqp://\?hearbeat=1', expected amqp.*",
    "amqp_url = ['amqp://', 3]": r"amqp_url\[1\]: found 3, expected amqp.*",
    "tls = 1": "tls: found 1, expected a table",
    "tls.ca_cert = 1": "tls.ca_cert: found 1, expected a string",
    "tls.cacert = 'x'": (
        "tls.cacert: found an unknown key, expected ca_cert, certfile, keyfile"
        r"; did you mean 'ca_cert'\?"
    ),
    "tls.certfile = 'x'": "tls: found a table, expected certfile and keyfile together, or neither",
    "tls.keyfile = 'x'": "tls: found a table, expected certfile and keyfile together, or neither",
    "client_properties = []": "client_properties: found an empty list, expected a table",
    "exchanges.e.type = 1": "exchanges.e.type: found 1, expected a string",
    "exchanges.'a.b'.durable = 0": "exchanges.'a.b'.durable: found 0, expected true or false",
    "exchanges.e.durabel = true": (
        r"exchanges.e.durabel: found an unknown key, .*; did you mean 'durable'\?"
    ),
    "exchanges.e = 1": "exchanges.e: found 1, expected a table",
    "queues = {}": "queues: found an empty table, expected the name of at least one queue",
    "queues = 'q'": "queues: found 'q', expected a table",
    "queues.q = 'q'": "queues.q: found 'q', expected a table",
    "queues.q.durable = 'no'": "queues.q.durable: found 'no', expected true or false",
    "queues.q.passive = 1": "queues.q.passive: found 1, expected true or false",
    "queues.q.arguments = 1": "queues.q.arguments: found 1, expected a table",
    "queues.q.autodelete = true": (
        r"queues.q.autodelete: found an unknown key, .*; did you mean 'auto_delete'\?"
    ),
    "bindings = 1": "bindings: found 1, expected a list",
    "bindings = [1]": r"bindings\[0\]: found 1, expected a table",
    "[[bindings]]\nexchange = 'e'": (r"bindings\[0\].routing_keys: found nothing, expected a list"),
    "[[bindings]]\nrouting_keys = []": r"bindings\[0\].exchange: found nothing, expected a string",
    "[[bindings]]\nexchange = 'e'\nrouting_keys = 'k'": (
        r"bindings\[0\].routing_keys: found 'k', expected a list"
    ),
    "[[bindings]]\nexchange = 'e'\nrouting_keys = ['k', 1]": (
        r"bindings\[0\].routing_keys\[1\]: found 1, expected a string"
    ),
    "[[bindings]]\nexchange = 'e'\nrouting_keys = []\nrouting_key = 'k'": (
        r"bindings\[0\].routing_key: found an unknown key, .*; did you mean 'routing_keys'\?"
    ),
    "bindings = {queue = 'dmo', exchange = 'e', routing_keys = []}\nqueues = {demo = {}, x = {}}": (
        r"bindings\[0\].queue: found 'dmo', expected 'demo' or 'x'; did you mean 'demo'\?"
    ),
    "bindings = {exchange = 'e', routing_keys = []}\nqueues.demo = {}": (
        r"bindings\[0\].queue: found '', expected 'demo'"
    ),
    "qos.prefetch_count = 65536": (
        "qos.prefetch_count: found 65536, expected an integer from 0 to 65535"
    ),
    "qos.prefetch_size = -1": "qos.prefetch_size: found -1, expected an integer of 0 or more",
    "qos.prefetch = 1": r"qos.prefetch: found an unknown key, .*; did you mean 'prefetch_size'\?",
    "callback = 'module'": "callback: found 'module', expected \"package.module:object\"",
    "callback = 'a:b c'": "callback: found 'a:b c', expected \"package.module:object\"",
    "callback = {}": 'callback: found an empty table, expected "package.module:object"',
    "consumer_config = 1": "consumer_config: found 1, expected a table",
    "monitoring = true": "monitoring: found True, expected a table",
    "monitoring.address = ''": (
        "monitoring.port: found nothing, expected an integer from 1 to 65535"
    ),
    "monitoring.port = 0": "monitoring.port: found 0, expected an integer from 1 to 65535",
    "monitoring = {port = 1, adress = ''}": (
        r"monitoring.adress: found an unknown key, expected address, port; did you mean 'address'\?"
    ),
    "log_config.version = 2": "log_config: found a table, expected version = 1 in it",
    "log_config = 1979-05-27": "log_config: found a date, expected a table",
    "log_format = 'xml'": "log_format: found 'xml', expected 'text' or 'json'",
    "log_format = 'json'\nlog_config.version = 1": (
        "log_format: found 'json', expected a formatter of class "
        "fmconsume.service.journal.Formatter in log_config"
    ),
    "log_format = 'json'\nlog_config.formatters = {a = 1, b.class = 'c.D'}": (
        "log_format: found 'json', expected a formatter of class "
        "fmconsume.service.journal.Formatter in log_config"
    ),
    "publish_exchange = 1": "publish_exchange: found 1, expected a string",
    "topic_prefix = false": "topic_prefix: found False, expected a string",
    "publish_priority = 256": "publish_priority: found 256, expected an integer from 0 to 255",
    "failures.delay.initial = -1": "failures.delay.initial: found -1, expected a number of seconds",
    "failures.delay.max = inf": "failures.delay.max: found inf, expected a number of seconds",
    "failures.delay.max = nan": "failures.delay.max: found nan, expected a number of seconds",
    "failures.delay.max = true": "failures.delay.max: found True, expected a number of seconds",
    "failures.delay.max = 0.5": "failures.delay: found a table, expected a max not below initial",
    "callback_timeout = 0": "callback_timeout: found 0, expected a number of seconds above 0",
    "callback_timeout = '1'": "callback_timeout: found '1', expected a number of seconds above 0",
    "body = 'jason'": (
        r"body: found 'jason', expected 'object' or 'json' or 'bytes'; did you mean 'json'\?"
    ),
    "body = []": "body: found an empty list, expected 'object' or 'json' or 'bytes'",
    "failures.keep_in = 1": "failures.keep_in: found 1, expected a string",
    "failures.keep = 0": "failures.keep: found 0, expected an integer of 1 or more",
    "failures.max_attempts = -1": (
        "failures.max_attempts: found -1, expected an integer of 0 or more"
    ),
    "failures.on_exception = 'stop'": (
        "failures.on_exception: found 'stop', expected 'halt' or 'nack' or 'drop'"
    ),
    "failures.nack_on = ['1x']": (
        r"failures.nack_on\[0\]: found '1x', expected the name of an exception class, as "
        '"package.Error"'
    ),
}


@pytest.mark.parametrize(("text", "line"), WRONG.items(), ids=WRONG.keys())
def test_check_config_with_a_problem(text: str, line: str) -> None:
    """A value that cannot be used is one line: key, what was found, what is expected."""
    (found,) = problems(text)
    assert re.fullmatch(line, found)


@given(queues=CONFIG_VALUES, bindings=CONFIG_VALUES)
def test_check_arguments_never_raise_anything_else(queues: Any, bindings: Any) -> None:
    """Whatever is passed, the checks return or raise ConfigurationException."""
    for check in (lambda: check_queues(queues), lambda: check_bindings(bindings, queues)):
        with contextlib.suppress(ConfigurationException):
            check()


# -- arguments of consume()


def test_check_queues_fills_in_defaults() -> None:
    """Missing settings are filled in, in a copy; arguments of None are an empty table."""
    given_ = {"q": {"durable": True, "passive": True, "arguments": None}}
    before = copy.deepcopy(given_)
    assert check_queues(given_) == {
        "q": {
            "durable": True,
            "auto_delete": False,
            "exclusive": False,
            "arguments": {},
            "passive": True,
        }
    }
    assert given_ == before


def test_check_queues_shares_nothing() -> None:
    """Changing what comes back changes neither the argument nor the defaults."""
    given_: dict[str, Any] = {"a": {"arguments": {"x": {}}}, "b": {}}
    checked = check_queues(given_)
    checked["a"]["arguments"]["x"]["y"] = checked["b"]["arguments"]["z"] = 1
    assert given_ == {"a": {"arguments": {"x": {}}}, "b": {}}
    assert check_queues({"c": {}})["c"]["arguments"] == {}


@pytest.mark.parametrize("queues", [{}, None, [], "q", {"q": None}, {1: {}}, {"q": {"x": 1}}])
def test_check_queues_with_a_problem(queues: Any) -> None:
    """What is no table of named queues is refused."""
    with pytest.raises(ConfigurationException, match=r"^the queues cannot be used:\nqueues"):
        check_queues(queues)


@pytest.mark.parametrize(
    ("bindings", "queue"),
    [
        ({"exchange": "e", "routing_keys": ("k",)}, ""),
        ([{"exchange": "e", "routing_keys": ["k"]}], ""),
        (({"queue": "q", "exchange": "e", "routing_keys": ["k"]},), "q"),
    ],
)
def test_check_bindings_normalises(bindings: Any, queue: str) -> None:
    """One binding or several become a list of complete ones."""
    expected = [{"queue": queue, "exchange": "e", "routing_keys": ["k"]}]
    assert check_bindings(bindings, {"q": {}, "": {}}) == expected


def test_check_bindings_may_be_empty() -> None:
    """No binding at all is fine: the queue may be bound already."""
    assert check_bindings([], {"q": {}}) == []


def test_check_bindings_unknown_queue() -> None:
    """A binding of a queue that is not consumed names the nearest that is."""
    binding = {"queue": "demmo", "exchange": "e", "routing_keys": []}
    with pytest.raises(ConfigurationException, match="did you mean 'demo'"):
        check_bindings(binding, {"demo": {}})


# -- passwords


@pytest.mark.parametrize(
    "text",
    [
        "amqp_url = 'amqp://u:secret@h:port'",
        "amqp_url = 'amqp:u:secret'",
        "amqp_url = 'amqp://u:secret'",
        "amqp_url = ['amqp://u:se/secret@h']",
        "amqp_url = 'amqp://u:12/secret@h/'",
        "amqp_url = [['amqp://u:secret@h']]",
        "amqp_urll = 'amqp://u:secret@h'",
        "callback = 'amqp://u:secret@h'",
        "body = 'amqp://u:secret@h'",
        "monitoring = {port = 0, address = 'u:secret@h'}",
        "tls = {certfile = 'u:secret@h'}",
        "queues.q = {}\nbindings = [{queue = 'u:secret@h', exchange = 'e', routing_keys = []}]",
        "queues = {'u:secret@h' = {durable = 1}}",
        "'amqp://u:secret@h' = 1",
    ],
)
def test_check_config_never_shows_a_password(text: str) -> None:
    """A password is in no part of the error, its causes included."""
    with pytest.raises(ConfigurationException) as caught:
        load(text)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


# -- AMQP URLs


def test_check_config_url_files_untouched() -> None:
    """Files that a URL names are not read by loading: an encrypted key would ask for a password."""
    options = "{'ca_certs': 'not/there', 'certfile': 'not/there', 'keyfile': 'not/there'}"
    url = f"amqps://u:p@h/?ssl_options={options}&heartbeat=5"
    with mock.patch.object(ssl.SSLContext, "load_cert_chain", side_effect=AssertionError):
        assert load(f'amqp_url = "{url}"')["amqp_url"] == url


@pytest.mark.parametrize("options", ["{", "5", "[" * 500, "{'a':1}&heartbeat=often"])
def test_check_config_url_options_malformed(options: str) -> None:
    """TLS settings in a URL that mean nothing are a problem of the URL."""
    with pytest.raises(ConfigurationException, match="amqp_url: found "):
        load(f'amqp_url = "amqps://h/?ssl_options={options}"')
