"""TLS against a real broker: who is trusted, who is refused, and what the operator reads."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
import trustme

from fmconsume import Message, publish, publisher
from fmconsume.publisher import Publisher
from tests.unit.fakes import restored_configuration
from tests.waiting import PATIENCE, wait_until

from .broker import Broker, free_port
from .command import Command
from .running import configured, write_config

pytestmark = pytest.mark.long
HOUR = datetime.timedelta(hours=1)


class Party(NamedTuple):
    """A certificate with its key, as files."""

    certfile: Path
    keyfile: Path


class Tls(NamedTuple):
    """A broker that listens with TLS, and those who may or may not talk to it."""

    broker: Broker
    port: int
    folder: Path
    authority: trustme.CA

    def url(self, host: str = "localhost", user: str = "guest:guest@") -> str:
        """Give the address of the TLS listener."""
        return f"amqps://{user}{host}:{self.port}/%2F"

    def issue(self, name: str, authority: trustme.CA | None = None, **options: Any) -> Party:
        """Make a client certificate."""
        cert = (authority or self.authority).issue_cert(
            f"{name}@example.org", common_name=name, **options
        )
        return _write(cert, self.folder / name)

    def present(self, server: trustme.LeafCert) -> None:
        """Let the broker show another certificate from the next connection on."""
        _write(server, self.folder / "server")
        self.broker.eval("ssl:clear_pem_cache().")

    @property
    def ca_cert(self) -> Path:
        """The file of the authority that everybody here trusts."""
        return self.folder / "ca.pem"


def _write(cert: trustme.LeafCert, stem: Path) -> Party:
    party = Party(stem.with_suffix(".pem"), stem.with_suffix(".key"))
    cert.cert_chain_pems[0].write_to_path(party.certfile)
    cert.private_key_pem.write_to_path(party.keyfile)
    return party


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    """A broker whose certificate is good for localhost."""
    folder, authority, port = tmp_path_factory.mktemp("tls"), trustme.CA(), free_port()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    _write(authority.issue_cert("localhost"), folder / "server")
    config = f"""
        listeners.ssl.default = 127.0.0.1:{port}
        ssl_options.cacertfile = {folder}/ca.pem
        ssl_options.certfile = {folder}/server.pem
        ssl_options.keyfile = {folder}/server.key
        ssl_options.verify = verify_peer
        ssl_options.fail_if_no_peer_cert = false
        auth_mechanisms.1 = PLAIN
        auth_mechanisms.2 = EXTERNAL
        ssl_cert_login_from = common_name
    """
    lines = "\n".join(line.strip() for line in config.splitlines())
    with Broker(folder, lines, plugins=["rabbitmq_auth_mechanism_ssl"]) as broker:
        broker.ctl("add_user", "mallory", "unused")
        broker.ctl("add_user", "alice", "unused")
        broker.ctl("set_permissions", "alice", ".*", ".*", ".*")
        broker.ctl("clear_password", "alice")
        broker.ctl("add_user", "bob", "unused")
        broker.ctl("set_permissions", "bob", ".*", ".*", ".*")
        broker.ctl("add_vhost", "open")
        broker.ctl("set_permissions", "-p", "open", "mallory", ".*", ".*", ".*")
        yield Tls(broker, port, folder, authority)


@pytest.fixture
def publishers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no connection that publishes outlive the test, or come from another."""
    made: dict[int, Publisher] = {}
    monkeypatch.setattr(publisher, "_publishers", made)
    yield
    for each in list(made.values()):
        each.close()


@pytest.fixture
def consume(run_command: Callable[..., Command], tmp_path: Path) -> Callable[..., Command]:
    """Start the command with an address and the keys of [tls]."""

    def start(url: str, **tls: Any) -> Command:
        config = tmp_path / "config.toml"
        keys = "\n".join(f"{key} = {json.dumps(str(value))}" for key, value in tls.items())
        config.write_text(f"amqp_url = {json.dumps(url)}\n[tls]\n{keys}\n")
        return run_command("--config", config, "--callback", "fmconsume.example:printer")

    return start


def _refused(command: Command, code: int, *words: str) -> None:
    """Check the exit code, and that one line says what is wrong."""
    assert command.wait(PATIENCE) == code, command.logged()
    complaints = [line for line in command.logged().splitlines() if line.startswith("fmconsume:")]
    assert len(complaints) == 1, command.logged()
    for word in words:
        assert word.lower() in complaints[0].lower(), complaints[0]
    assert "Traceback" not in command.logged()


def test_tls_authority_trusted(tls: Tls, consume: Callable[..., Command]) -> None:
    """With the broker's authority in ca_cert, consuming works over TLS 1.2 or later."""
    consume(tls.url(), ca_cert=tls.ca_cert).wait_for("consuming from")
    versions = set(tls.broker.ctl("list_connections", "ssl_protocol").split())
    assert versions & {"tlsv1.2", "tlsv1.3"}


def test_tls_client_certificate(tls: Tls, consume: Callable[..., Command]) -> None:
    """With certfile and keyfile, the user is the certificate's name and no password is asked."""
    alice = tls.issue("alice")
    command = consume(tls.url(user=""), ca_cert=tls.ca_cert, **alice._asdict())
    command.wait_for("consuming from")
    wait_until(lambda: "alice" in tls.broker.ctl("list_connections", "user"))


def test_tls_unknown_authority(tls: Tls, consume: Callable[..., Command]) -> None:
    """A broker whose authority is not trusted is refused: exit 14."""
    other = tls.folder / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(other)
    _refused(consume(tls.url(), ca_cert=other), 14, "certificate verify failed", "localhost")


def test_tls_wrong_host(tls: Tls, consume: Callable[..., Command]) -> None:
    """A broker whose certificate is for another host is refused: exit 14."""
    _refused(consume(tls.url(host="127.0.0.1"), ca_cert=tls.ca_cert), 14, "127.0.0.1", "mismatch")


def test_tls_server_certificate_expired(tls: Tls, consume: Callable[..., Command]) -> None:
    """A broker whose certificate has expired is refused: exit 14."""
    past = datetime.datetime.now(datetime.timezone.utc) - HOUR
    tls.present(tls.authority.issue_cert("localhost", not_after=past))
    try:
        _refused(consume(tls.url(), ca_cert=tls.ca_cert), 14, "certificate has expired")
    finally:
        tls.present(tls.authority.issue_cert("localhost"))


def test_tls_client_certificate_expired(tls: Tls, consume: Callable[..., Command]) -> None:
    """A client certificate that has expired is named before anything connects: exit 2."""
    past = datetime.datetime.now(datetime.timezone.utc) - HOUR
    old = tls.issue("late", not_after=past)
    command = consume(tls.url(user=""), ca_cert=tls.ca_cert, **old._asdict())
    _refused(command, 14, "late.pem", "expired")


def test_tls_client_of_unknown_authority(tls: Tls, consume: Callable[..., Command]) -> None:
    """A client certificate that the broker does not trust is refused: exit 14."""
    mallory = tls.issue("mallory", trustme.CA())
    command = consume(tls.url(user=""), ca_cert=tls.ca_cert, **mallory._asdict())
    _refused(command, 14, "localhost", "unknown ca")


def test_tls_user_without_permission(tls: Tls, consume: Callable[..., Command]) -> None:
    """A client certificate whose user may not enter the virtual host is refused: exit 14."""
    mallory = tls.issue("mallory")
    command = consume(tls.url(user=""), ca_cert=tls.ca_cert, **mallory._asdict())
    _refused(command, 14, "mallory", "refused")


@pytest.mark.parametrize("key", ["ca_cert", "certfile", "keyfile"])
def test_tls_file_missing(tls: Tls, consume: Callable[..., Command], key: str) -> None:
    """A certificate file that cannot be read is a mistake in the configuration: exit 2."""
    alice = tls.issue("alice")
    files = {"ca_cert": tls.ca_cert, **alice._asdict(), key: "/no/such/file.pem"}
    _refused(consume(tls.url(), **files), 2, key, "/no/such/file.pem")


def test_tls_file_garbage(tls: Tls, consume: Callable[..., Command]) -> None:
    """A certificate file that holds no certificate is a mistake in the configuration: exit 2."""
    garbage = tls.folder / "garbage.pem"
    garbage.write_text("no certificate")
    _refused(consume(tls.url(), ca_cert=garbage), 2, "ca_cert", "garbage.pem")


def _rename(old: Party, new: Party) -> None:
    """Put another certificate where one was, in two steps, as an operator does."""
    new.certfile.replace(old.certfile)
    new.keyfile.replace(old.keyfile)


def _users(tls: Tls) -> set[str]:
    """Tell who is connected."""
    return set(tls.broker.ctl("list_connections", "user").split())


def test_tls_rotation(tls: Tls, consume: Callable[..., Command]) -> None:
    """A new certificate counts for the next connection; until it is there, the old is missed."""
    alice, bob = tls.issue("alice"), tls.issue("bob")
    command = consume(tls.url(user=""), ca_cert=tls.ca_cert, **alice._asdict())
    command.wait_for("consuming from")
    bob.certfile.replace(alice.certfile)  # The certificate is the new one, the key still the old.
    tls.broker.close_connections("alice")
    command.wait_for(f"cannot use {alice.keyfile}: it is not the key of the certificate")
    bob.keyfile.replace(alice.keyfile)
    wait_until(lambda: "bob" in _users(tls))
    command.terminate()
    assert command.wait(PATIENCE) == 0


def test_tls_rotation_expired(tls: Tls, consume: Callable[..., Command]) -> None:
    """A certificate that has expired by the next connection is waited for, not the end."""
    alice, renewed = tls.issue("alice"), tls.issue("bob")
    past = datetime.datetime.now(datetime.timezone.utc) - HOUR
    command = consume(tls.url(user=""), ca_cert=tls.ca_cert, **alice._asdict())
    command.wait_for("consuming from")
    _rename(alice, tls.issue("late", not_after=past))
    tls.broker.close_connections("alice")
    command.wait_for(f"{alice.certfile} expired on")
    _rename(alice, renewed)
    wait_until(lambda: "bob" in _users(tls))


def test_tls_rotation_publishing(tls: Tls, publishers: None) -> None:
    """A new certificate counts for the next connection that publishes, too."""
    alice, bob = tls.issue("alice"), tls.issue("bob")
    files = {"ca_cert": tls.ca_cert, **alice._asdict()}
    paths = {key: str(path) for key, path in files.items()}
    with configured(amqp_url=tls.url(user=""), tls=paths):
        publish(Message())
        assert "alice" in _users(tls)
        _rename(alice, bob)
        tls.broker.close_connections("alice")
        publish(Message())
        assert "bob" in _users(tls)


def test_tls_password_changed(
    tls: Tls, run_command: Callable[..., Command], tmp_path: Path, publishers: None
) -> None:
    """A password that has changed in the file counts for the next connection, also to publish."""

    def write(password: str) -> Path:
        tls.broker.ctl("change_password", "mallory", password)
        url = f"amqps://mallory:{password}@localhost:{tls.port}/open"
        tables = f"[tls]\nca_cert = {json.dumps(str(tls.ca_cert))}"
        return write_config(tmp_path / "config.toml", url, tables=tables)

    config = write("Sesame")
    command = run_command("--config", config, "--callback", "fmconsume.example:printer")
    command.wait_for("consuming from")
    with restored_configuration() as conf:
        conf.load_config(str(config))
        publish(Message())
        write("Barley-two")
        tls.broker.close_connections("mallory")
        publish(Message())
    wait_until(lambda: command.logged().count("] consuming from") == 2)
    assert "Sesame" not in command.logged()
    assert "Barley" not in command.logged()


def test_tls_plain_port(tls: Tls, consume: Callable[..., Command]) -> None:
    """A listener that speaks no TLS is told apart from one that is not there: exit 14."""
    url = f"amqps://guest:guest@localhost:{tls.broker.port}/"
    _refused(consume(url, ca_cert=tls.ca_cert), 14, "localhost")
