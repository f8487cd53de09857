"""What --check says about a real broker, and that it leaves no trace there."""

from __future__ import annotations

import uuid

import pytest

from tests.waiting import PATIENCE

from .broker import Depth
from .running import write_config

_PASSWORD = "Sesame-17-open"


@pytest.fixture
def check(tmp_path, run_command):
    """Run --check with a configuration; return the exit status and the rows of the table.

    A row is found by its kind and its name.
    """

    def run(url, queues=None, tables="", *args, **settings):
        config = write_config(tmp_path / "config.toml", url, queues, tables, **settings)
        callback = ("--callback", "fmconsume.example:printer")
        command = run_command("--config", config, "--check", *callback, *args)
        status = command.wait(PATIENCE)
        assert "Traceback" not in command.logged()
        lines = [line[2:].split(None, 2) for line in command.printed().splitlines()]
        return status, {(line[0], line[1]): line[2] for line in lines}

    return run


@pytest.fixture
def new_name(broker):
    """A name for an exchange or a queue that does not exist, and must not exist in the end."""
    name = f"new-{uuid.uuid4().hex[:8]}"
    yield name
    assert name not in broker.ctl("list_queues", "name")
    assert name not in broker.ctl("list_exchanges", "name")


@pytest.fixture
def exchange(broker, queue):
    """A fanout exchange of this test's own."""
    name = f"{queue}-exchange"
    with broker.channel() as channel:
        channel.exchange_declare(name, "fanout", durable=True)
    yield name
    with broker.channel() as channel:
        channel.exchange_delete(name)


@pytest.fixture
def user(broker):
    """A user without any permission."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    broker.ctl("add_user", name, _PASSWORD)
    broker.ctl("set_permissions", name, "^$", "^$", "^$")
    yield name
    broker.ctl("delete_user", name)


def _bound(queue, exchange="amq.topic"):
    return f'[[bindings]]\nqueue = "{queue}"\nexchange = "{exchange}"\nrouting_keys = ["a.#"]'


def test_check_all_is_well(broker, queue, check):
    """What exists is shown with its counts, and the status is 0; nothing is consumed or bound."""
    broker.publish(queue, [{"n": 1}, {"n": 2}])
    status, rows = check(broker.url(), queue, _bound(queue))
    assert status == 0
    assert rows["callback", "printer"] == "imported"
    assert rows["exchange", "amq.topic"] == "is RabbitMQ's own"
    assert rows["queue", queue] == "exists, 2 messages, 0 consumers"
    assert rows["binding", "amq.topic"].endswith("would be made: a.#")
    assert broker.depth(queue) == Depth(2, 0)
    assert not any(each.method.redelivered for each in broker.drain(queue))
    assert "a.#" not in broker.ctl("list_bindings", "source_name", "routing_key")


def test_check_keeps_binding(broker, queue, check):
    """A binding that exists is still there afterwards."""
    broker.bind(queue, "amq.topic", "a.#")
    assert check(broker.url(), queue, _bound(queue))[0] == 0
    broker.publish("a.b", [{"n": 1}], exchange="amq.topic")
    assert broker.ready(queue) == 1


def test_check_would_be_declared(broker, check, new_name):
    """What does not exist would be declared, and is not."""
    tables = f'[exchanges.{new_name}]\ntype = "topic"\n{_bound(new_name, new_name)}'
    status, rows = check(broker.url(), new_name, tables)
    assert status == 0
    assert rows["exchange", new_name] == "would be declared"
    assert rows["queue", new_name] == "would be declared"
    assert rows["binding", new_name].endswith("would be made: a.#")


def test_check_binding_to_nothing(broker, check, queue, new_name):
    """An exchange that neither exists nor would be declared is told."""
    status, rows = check(broker.url(), queue, _bound(queue, new_name))
    assert status == 10
    assert f"but 404 NOT_FOUND - no exchange '{new_name}'" in rows["binding", new_name]


def test_check_binding_of_the_nameless_queue_to_nothing(broker, check, new_name):
    """It is told for a queue that the broker names, too."""
    tables = f"[queues.'']\nexclusive = true\n{_bound('', new_name)}"
    status, rows = check(broker.url(), None, tables)
    assert status == 10
    assert "but 404 NOT_FOUND" in rows["binding", new_name]


def test_check_only_looked_for(broker, queue, check, new_name):
    """With passive_declares what does not exist is an error, and what exists may differ."""
    other = {queue: {"durable": False}}
    status, rows = check(broker.url(), other, passive_declares=True)
    assert status == 0
    assert rows["queue", queue] == "exists, 0 messages, 0 consumers"
    status, rows = check(broker.url(), new_name, passive_declares=True)
    assert status == 10
    assert rows["queue", new_name] == "does not exist, and is not to be declared"


def test_check_contradiction(broker, queue, exchange, check):
    """Every contradiction is told in the broker's words, and the status is 10."""
    tables = f'[exchanges.{exchange}]\ntype = "topic"'
    status, rows = check(broker.url(), {queue: {"durable": False}}, tables)
    assert status == 10
    assert "inequivalent arg 'type'" in rows["exchange", exchange]
    assert "inequivalent arg 'durable'" in rows["queue", queue]


def test_check_unknown_exchange_type(broker, exchange, check):
    """A request at which the broker closes the connection ends the check, not the command.

    From 4.0 on RabbitMQ closes the channel only, and the exchange is used as it is.
    """
    tables = f'[exchanges.{exchange}]\ntype = "no-such-type"'
    status, rows = check(broker.url(), None, tables)
    assert status == (10 if broker.version < (4, 0) else 0)
    assert "no-such-type" in rows["exchange", exchange]


def test_check_exclusive_queue_in_use(broker, check):
    """A queue that another connection has for itself is told."""
    with broker.channel() as channel:
        name = channel.queue_declare("", exclusive=True).method.queue
        status, rows = check(broker.url(), {name: {"exclusive": True}})
        channel.queue_delete(name)
    assert status == 10
    assert "RESOURCE_LOCKED - it is exclusive to another connection" in rows["queue", name]


def test_check_exclusive_contradiction(broker, queue, check):
    """A queue that is there, and not exclusive, is told from one that another connection has."""
    status, rows = check(broker.url(), {queue: {"durable": True, "exclusive": True}})
    assert status == 10
    assert "RESOURCE_LOCKED - it is there, and not exclusive" in rows["queue", queue]


@pytest.mark.parametrize(
    ("permissions", "row", "code"),
    [
        (("amq.topic", ".*", ".*"), "queue", 10),
        ((".*", ".*", "amq.topic"), "queue", 15),
        ((".*", "^$", ".*"), "binding", 10),
    ],
    ids=["configure queue", "read queue", "write queue"],
)
def test_check_permission_lacks(
    broker, queue, check, user, permissions, row, code, tmp_path, run_command
):
    """The first permission that lacks is named, and the status is that of a consumer."""
    broker.ctl("set_permissions", user, *permissions)
    url = broker.url(user=user, password=_PASSWORD)
    status, rows = check(url, queue, _bound(queue))
    assert status == code
    config = write_config(tmp_path / "config.toml", url, queue, _bound(queue))
    command = run_command("--config", config, "--callback", "fmconsume.example:printer")
    assert command.wait(PATIENCE) == code, command.logged()
    first = next(key for key, text in rows.items() if "ACCESS_REFUSED" in text)
    assert first[0] == row


def test_check_permission_to_declare_lacks(broker, check, user, new_name):
    """Whether something may be declared is known without declaring it.

    From 4.3 on RabbitMQ tells nobody without a permission whether it exists.
    """
    url = broker.url(user=user, password=_PASSWORD)
    tables = f'[exchanges.{new_name}]\ntype = "topic"'
    status, rows = check(url, new_name, tables)
    assert status == 10
    for kind in ("exchange", "queue"):
        text = rows[kind, new_name]
        assert text.startswith(("would be declared, but 403", "may exist, but 403"))
        assert "ACCESS_REFUSED" in text


@pytest.mark.parametrize(
    ("permissions", "row", "code"),
    [
        (("^{}$", ".*", "amq.topic"), "queue", 15),
        (("^{}$", "^$", ".*"), "binding", 10),
        (("^{}$", ".*", "^{}$"), "binding", 10),
    ],
    ids=["read queue", "write queue", "read exchange"],
)
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "nameless"])
def test_check_permission_lacks_for_what_is_new(
    broker, check, user, new_name, permissions, row, code, is_named, tmp_path, run_command
):
    """A permission is asked for although the queue, or the exchange, does not exist yet.

    The status is that of a consumer.
    """
    pattern = new_name if is_named else "amq.gen-.*"
    broker.ctl("set_permissions", user, *(each.format(pattern) for each in permissions))
    url, name = broker.url(user=user, password=_PASSWORD), new_name if is_named else ""
    queues = {name: {"exclusive": True}}
    status, rows = check(url, queues, _bound(name))
    assert status == code
    first = next(key for key, text in rows.items() if "ACCESS_REFUSED" in text)
    assert first[0] == row
    config = write_config(tmp_path / "config.toml", url, queues, _bound(name))
    command = run_command("--config", config, "--callback", "fmconsume.example:printer")
    assert command.wait(PATIENCE) == code, command.logged()


def test_check_binding_to_new_exchange_forbidden(broker, check, user, new_name):
    """Whether one may bind to an exchange that does not exist yet is known."""
    broker.ctl("set_permissions", user, ".*", ".*", "^queue-")
    url = broker.url(user=user, password=_PASSWORD)
    queue = f"queue-{new_name}"
    tables = f'[exchanges.{new_name}]\ntype = "topic"\n{_bound(queue, new_name)}'
    status, rows = check(url, queue, tables)
    assert status == 10
    assert rows["exchange", new_name] == rows["queue", queue] == "would be declared"
    assert "ACCESS_REFUSED" in rows["binding", new_name]


@pytest.mark.parametrize("is_permitted", [True, False])
def test_check_exchange_of_others(
    broker, queue, exchange, check, user, is_permitted, tmp_path, run_command
):
    """An exchange that cannot be declared as configured is used as it is; a consumer starts."""
    configure = ".*" if is_permitted else f"^{queue}$"
    broker.ctl("set_permissions", user, configure, ".*", ".*")
    url = broker.url(user=user, password=_PASSWORD)
    tables = f'[exchanges.{exchange}]\ntype = "topic"\n{_bound(queue, exchange)}'
    status, rows = check(url, queue, tables)
    assert status == 0
    assert rows["exchange", exchange].endswith("; it is used as it is")
    config = write_config(tmp_path / "config.toml", url, queue, tables)
    command = run_command("--config", config, "--callback", "fmconsume.example:printer", "--drain")
    assert command.wait(PATIENCE) == 0, command.logged()
    assert command.logged().count(f"exchange '{exchange}' is used as it is: ") == 1


def test_check_binding_with_arguments(broker, queue, check):
    """A binding may have arguments, which are shown; nothing is bound."""
    tables = f"""
        [[bindings]]
        queue = "{queue}"
        exchange = "amq.headers"
        routing_keys = ["a"]
        arguments = {{x-match = "all", colour = "red"}}
    """
    status, rows = check(broker.url(), queue, tables)
    assert status == 0
    text = "would be made: a, arguments {'x-match': 'all', 'colour': 'red'}"
    assert rows["binding", "amq.headers"].endswith(text)
    assert "colour" not in broker.ctl("list_bindings", "source_name", "arguments")


@pytest.mark.parametrize(
    ("key", "arguments", "complaint"),
    [
        ("a", "{day = 1979-05-27}", "AMQP has no value like datetime.date(1979, 5, 27)"),
        ("a", "{n = 99999999999999999999999}", "AMQP has no such value: "),
        ("a" * 256, "{}", "a name in it is longer than 255 bytes"),
    ],
    ids=["type", "number", "length"],
)
@pytest.mark.parametrize("option", ["--check", "--drain"])
def test_check_what_amqp_cannot_carry(
    broker, queue, tmp_path, run_command, option, key, arguments, complaint
):
    """What no broker can be sent has status 10, with --check and without; it is no bug."""
    tables = f"""
        [[bindings]]
        queue = "{queue}"
        exchange = "amq.topic"
        routing_keys = ["{key}"]
        arguments = {arguments}
    """
    config = write_config(tmp_path / "config.toml", broker.url(), queue, tables)
    command = run_command("--config", config, "--callback", "fmconsume.example:printer", option)
    assert command.wait(PATIENCE) == 10, command.logged()
    assert "Traceback" not in command.logged()
    assert (f"cannot be declared: {complaint}" in command.printed()) == (option == "--check")


@pytest.mark.parametrize("is_quorum", [True, False])
def test_check_quorum_queue(broker, check, new_name, is_quorum):
    """The broker's version is shown; what it means for a quorum queue stands in the advice."""
    quorum = f'[queues.{new_name}.arguments]\nx-queue-type = "quorum"\nx-delivery-limit = 5'
    queues = {new_name: {"durable": True}}
    status, rows = check(broker.url(), queues, quorum if is_quorum else "")
    assert status == 0
    (text,) = [text for key, text in rows.items() if key[0] == "broker"]
    version = ".".join(map(str, broker.version))
    assert f"connected, RabbitMQ {version}." in text
    advice = [f"{name} {text}" for (kind, name), text in rows.items() if kind == "advice:"]
    assert len(advice) == is_quorum
    assert not is_quorum or "after more than 5 returns" in advice[0]


def test_check_topic_permission(broker, queue, check, user, new_name):
    """A user restricted to some topics of an exchange may bind for these."""
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    broker.ctl("set_topic_permissions", user, "amq.topic", "^$", "^a[.]")
    url = broker.url(user=user, password=_PASSWORD)
    assert check(url, queue, _bound(queue))[0] == 0
    assert check(url, new_name, _bound(new_name))[0] == 0
    assert check(url, {"": {"exclusive": True}}, _bound(""))[0] == 0


def test_check_topic_permission_lacks(broker, queue, check, user, new_name, tmp_path, run_command):
    """A topic that the user may not bind is named, as a start does; what is bound stays."""
    broker.bind(queue, "amq.topic", "a.#")
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    broker.ctl("set_topic_permissions", user, "amq.topic", "^$", "^b[.]")
    url = broker.url(user=user, password=_PASSWORD)
    status, rows = check(url, queue, _bound(queue))
    assert status == 10
    assert "access to topic 'a.#'" in rows["binding", "amq.topic"]
    two = _bound(new_name).replace('["a.#"]', '["b.#", "a.#"]')
    assert check(url, new_name, two)[0] == 10
    config = write_config(tmp_path / "config.toml", url, queue, _bound(queue))
    command = run_command("--config", config, "--callback", "fmconsume.example:printer")
    assert command.wait(PATIENCE) == 10, command.logged()
    assert f"{queue}\ta.#" in broker.ctl("list_bindings", "destination_name", "routing_key")


def test_check_login_refused(broker, check):
    """A refused login has status 14, and the password is not shown."""
    status, rows = check(broker.url(password=_PASSWORD))
    (text,) = [text for key, text in rows.items() if key[0] == "broker"]
    assert status == 14
    assert "ACCESS_REFUSED" in text
    assert _PASSWORD not in str(rows)


def test_check_configuration_unusable(broker, check):
    """What is wrong with the configuration has status 2, and nothing is printed."""
    assert check(broker.url(), workers=0) == (2, {})


def test_check_callback_missing(broker, run_command, tmp_path):
    """A callback that cannot be imported has status 2."""
    config = write_config(tmp_path / "config.toml", broker.url())
    command = run_command("--config", config, "--check", "--callback", "no_such_module:f")
    assert command.wait(PATIENCE) == 2
    assert "no module named 'no_such_module'" in command.logged()


def test_check_options_count(broker, queue, check):
    """--queue-name and its like count as they would for the consumer."""
    status, rows = check(broker.url(), {queue: {"durable": True}}, "", "--queue-name", queue)
    assert status == 0
    assert [name for kind, name in rows if kind == "queue"] == [queue]
