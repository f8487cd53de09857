"""The installed command with keys of the configuration in its environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import pytest

from tests.unit.test_environment import KUBERNETES
from tests.waiting import PATIENCE, wait_until

from .broker import Broker, Depth
from .command import Command
from .running import numbered, write_config

Run = Callable[..., Command]

PRINTER = ("--callback", "fmconsume.example:printer")

WAITING = """
import threading

def wait(message):
    threading.Event().wait()
"""


@pytest.fixture
def user(broker: Broker) -> Iterator[str]:
    """A user whose password the test sets."""
    name = "rotating"
    broker.ctl("add_user", name, "unused")
    broker.ctl("set_permissions", name, ".*", ".*", ".*")
    yield name
    broker.ctl("delete_user", name)


def test_environment_precedence(
    broker: Broker, queue: str, run_command: Run, tmp_path: Path
) -> None:
    """An option goes before the environment, and that before the file."""
    (tmp_path / "callbacks.py").write_text(WAITING)
    qos = "[qos]\nprefetch_count = 2"
    config = write_config(tmp_path / "config.toml", broker.url(), queue, qos, workers=1)
    broker.publish(queue, numbered(10))
    env = {"FMCONSUME_QOS__PREFETCH_COUNT": "4", "FMCONSUME_WORKERS": "1"}
    options = ("--config", config, "--callback", "callbacks:wait", "--workers", 8)
    run_command(*options, cwd=tmp_path, env=env)
    wait_until(lambda: broker.depth(queue) == Depth(6, 4))


def test_environment_alone(broker: Broker, queue: str, run_command: Run) -> None:
    """Without any file the environment has all that a consumer needs; Kubernetes' does no harm."""
    broker.publish(queue, numbered(1))
    env = {
        **KUBERNETES,
        "FMCONSUME_CONF": os.devnull,
        "FMCONSUME_AMQP_URL": broker.url(),
        "FMCONSUME_QUEUES": f'{{"{queue}" = {{durable = true}}}}',
        "FMCONSUME_CALLBACK": "fmconsume.example:printer",
        "FMCONSUME_LOG_CONFIG__ROOT__LEVEL": "WARNING",
        "FMCONSUME_WORKERS": "",
    }
    command = run_command("--limit", 1, env=env)
    assert command.wait(PATIENCE) == 0, command.logged()
    assert '"n": 0' in command.printed()
    assert "] consuming from" in command.logged()


def test_environment_unknown(run_command: Run) -> None:
    """All that is wrong in the environment is told at once, with a hint: exit 2."""
    env = {
        "FMCONSUME_CONF": os.devnull,
        "FMCONSUME_QOS_PREFETCH_COUNT": "4",
        "FMCONSUME_WORKERS": "many",
    }
    command = run_command(*PRINTER, env=env)
    assert command.wait(PATIENCE) == 2
    title, *lines = command.logged().splitlines()
    assert title == "fmconsume: the environment cannot be used:"
    assert lines[0].endswith("; did you mean $FMCONSUME_QOS__PREFETCH_COUNT?")
    assert lines[1:] == ["$FMCONSUME_WORKERS: found 'many', expected an integer of 1 or more"]


def test_environment_secret_rotated(
    broker: Broker, queue: str, user: str, run_command: Run, tmp_path: Path
) -> None:
    """A password in a file counts for the next connection, although there is no configuration."""
    secret = tmp_path / "url"

    def write(password: str) -> None:
        broker.ctl("change_password", user, password)
        (tmp_path / "new").write_text(f"{broker.url(user=user, password=password)}\n")
        (tmp_path / "new").replace(secret)

    write("Sesame")
    queues = f'{{"{queue}" = {{durable = true}}}}'
    env = {
        "FMCONSUME_CONF": os.devnull,
        "FMCONSUME_AMQP_URL_FILE": str(secret),
        "FMCONSUME_QUEUES": queues,
    }
    command = run_command(*PRINTER, env=env)
    command.wait_for("] consuming from")
    write("Barley-two")
    broker.close_connections(user)
    wait_until(lambda: command.logged().count("] consuming from") == 2)
    secret.write_text("")
    broker.close_connections(user)
    command.wait_for(f"$FMCONSUME_AMQP_URL_FILE: {secret} is empty")
    wait_until(lambda: command.logged().count("] consuming from") == 3)
    command.terminate()
    assert command.wait(PATIENCE) == 0
    assert "Sesame" not in command.logged()
    assert "Barley" not in command.logged()


def test_environment_secret_missing(run_command: Run, tmp_path: Path) -> None:
    """A secret that is not there may be mounted later: exit 1, in a line that names both."""
    env = {"FMCONSUME_CONF": os.devnull, "FMCONSUME_AMQP_URL_FILE": str(tmp_path / "url")}
    command = run_command(*PRINTER, env=env)
    assert command.wait(PATIENCE) == 1
    told = f"$FMCONSUME_AMQP_URL_FILE: cannot read {tmp_path}/url: No such file or directory"
    assert command.logged().splitlines()[1:] == [told]


def test_environment_as_fedora_messaging(
    broker: Broker, queue: str, run_command: Run, tmp_path: Path
) -> None:
    """The command line of fedora-messaging reads the same variables."""
    broker.publish(queue, numbered(1))
    secret = tmp_path / "url"
    secret.write_text(broker.url())
    env = {
        "FEDORA_MESSAGING_CONF": str(write_config(tmp_path / "a.toml", "amqp://127.0.0.1:1")),
        "FMCONSUME_AMQP_URL_FILE": str(secret),
        "FMCONSUME_QUEUES": f'{{"{queue}" = {{durable = true}}}}',
    }
    command = run_command("consume", *PRINTER, module="fmconsume.compat", env=env)
    wait_until(lambda: '"n": 0' in command.printed() or command.poll() is not None)
    assert '"n": 0' in command.printed(), command.logged()


@pytest.mark.parametrize("options", [(), ("--check",)])
def test_environment_check_and_exposed_file(
    broker: Broker, queue: str, user: str, run_command: Run, options: tuple[str, ...]
) -> None:
    """A file whose password everybody may read is told once; --check also names the variables."""
    broker.ctl("change_password", user, "Sesame")
    with TemporaryDirectory(prefix="fmconsume-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        url = broker.url(user=user, password="Sesame")
        config = write_config(Path(folder, "config.toml"), url, queue)
        config.chmod(0o644)
        broker.publish(queue, numbered(1))
        command = run_command(
            *("--config", config, *PRINTER, *(options or ("--limit", 1))),
            env={"FMCONSUME_QOS__PREFETCH_COUNT": "4"},
        )
        assert command.wait(PATIENCE) == 0, command.logged()
    told = command.printed() if options else command.logged()
    assert told.count(f"{config} holds a password, in amqp_url") == 1
    assert "Sesame" not in command.printed() + command.logged()
    if options:
        (row,) = [line for line in told.splitlines() if "environment" in line]
        assert row.split()[1:] == ["$FMCONSUME_QOS__PREFETCH_COUNT", "sets", "qos.prefetch_count"]


@pytest.mark.parametrize("content", [None, "", "amqp://[garbage"])
def test_secret_of_no_use_while_the_old_one_is_refused(
    broker: Broker, queue: str, user: str, tmp_path: Path, run_command: Run, content: str | None
) -> None:
    """Where the old password is refused and the new one cannot be read yet, the consumer waits."""
    secret = tmp_path / "url"
    broker.ctl("change_password", user, "old")

    def url(password: str) -> str:
        return broker.url().replace("guest:guest", f"{user}:{password}")

    secret.write_text(url("old"))
    config = write_config(tmp_path / "config.toml", broker.url(), queue)
    config.write_text(config.read_text().replace(f'amqp_url = "{broker.url()}"', ""))
    command = run_command(
        *("--config", config, *PRINTER),
        env={"FMCONSUME_AMQP_URL_FILE": str(secret)},
    )
    command.wait_for("consuming from")
    if content is None:
        secret.unlink()
    else:
        secret.write_text(content)
    broker.ctl("change_password", user, "new")
    broker.close_connections(user)
    command.wait_for("what has replaced the URL and [tls] cannot be read yet")
    secret.write_text(url("new"))
    broker.publish(queue, [{"n": 0}])
    wait_until(lambda: broker.depth(queue) == (0, 0))
    command.terminate()
    assert command.wait(PATIENCE) == 0
