"""Tests of broker addresses."""

from __future__ import annotations

import shutil
import ssl
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pika
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from fmconsume.broker.addresses import Address, parse_address
from fmconsume.broker.errors import SessionLost, make_parameters
from fmconsume.exceptions import ConnectionException

NO_TLS: dict[str, str | None] = {"ca_cert": None, "certfile": None, "keyfile": None}


def parse(url: str, tls: dict[str, str | None] | None = None, **properties: Any) -> Address:
    """Parse with nothing special."""
    return parse_address(url, tls or NO_TLS, properties)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Make a certificate authority and a client certificate."""
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    client = authority.issue_cert("client.example")
    paths = {key: str(folder / f"{key}.pem") for key in NO_TLS}
    authority.cert_pem.write_to_path(paths["ca_cert"])
    client.cert_chain_pems[0].write_to_path(paths["certfile"])
    client.private_key_pem.write_to_path(paths["keyfile"])
    return dict(paths)


def test_parse_address_plain() -> None:
    """Host, port, virtual host and credentials come from the URL."""
    parameters = parse("amqp://ann:secret@rabbit.example:5673/%2Fpub").parameters()
    assert (parameters.host, parameters.port) == ("rabbit.example", 5673)
    assert parameters.virtual_host == "/pub"
    assert parameters.credentials == pika.PlainCredentials("ann", "secret")
    assert parameters.ssl_options is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("amqp://ann:s3cret@h:1/v", "amqp://ann@h:1 (virtual host 'v')"),
        ("amqps://ann:s3cret@h/%2F", "amqps://ann@h:5671 (virtual host '/')"),
    ],
)
def test_parse_address_name(url: str, name: str) -> None:
    """The name tells where it is, and never the password."""
    assert parse(url).name == name


def test_parse_address_one_attempt() -> None:
    """pika itself never tries again, whatever the URL says."""
    url = "amqp://h?connection_attempts=3&retry_delay=5"
    assert parse(url).parameters().connection_attempts == 1


def test_parse_address_parameters() -> None:
    """Other parameters of the URL are obeyed."""
    assert parse("amqp://h?heartbeat=7").parameters().heartbeat == 7


def test_parse_address_client_properties() -> None:
    """Client properties are copied, so that one address cannot change those of another."""
    given = {"app": "fruit"}
    address = parse_address("amqp://h", NO_TLS, given)
    given["app"] = "changed"
    assert address.parameters().client_properties == {"app": "fruit"}


@pytest.mark.parametrize(
    "url",
    ["amqp://a:secret@h:port/", "amqp://a:secret@h?heartbeat=often", "amqp://a:secret@h?wrong=1"],
)
def test_parse_address_malformed(url: str) -> None:
    """A URL that does not parse is a ValueError, without a password in it."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["amqp://a:se/cret@h", "amqp://a:12/cret@h", "amqp://a:[cret@h"])
def test_parse_address_unquoted_password(url: str) -> None:
    """A password that is not quoted is told as such, and no part of it is shown as a port."""
    with pytest.raises(ValueError, match="must be quoted") as caught:
        parse(url)
    assert "cret" not in "".join(traceback.format_exception(None, caught.value, None))


def test_parse_address_user_without_password() -> None:
    """A user without a password is told as such."""
    with pytest.raises(ValueError, match="no password"):
        parse("amqp://ann@h")


def test_parse_address_tls(files: dict[str, str | None]) -> None:
    """amqps checks certificate and host name, from TLS 1.2 on, with the given authority."""
    address = parse("amqps://a:b@rabbit.example", {**NO_TLS, "ca_cert": files["ca_cert"]})
    parameters = address.parameters()
    options = parameters.ssl_options
    assert options.server_hostname == "rabbit.example"
    assert options.context.verify_mode is ssl.CERT_REQUIRED
    assert options.context.check_hostname
    assert options.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(options.context.get_ca_certs()) == 1
    assert isinstance(parameters.credentials, pika.PlainCredentials)


def test_parse_address_client_certificate(files: dict[str, str | None]) -> None:
    """A client certificate stands in for user and password."""
    address = parse("amqps://ann:s3cret@h/v", files)
    assert isinstance(address.parameters().credentials, pika.credentials.ExternalCredentials)
    assert address.name == "amqps://@h:5671 (virtual host 'v')"


def test_parse_address_tls_unused(files: dict[str, str | None]) -> None:
    """Without amqps certificates are not used, not even looked at."""
    tls = {**files, "certfile": "/nowhere/cert.pem"}
    address = parse("amqp://a:b@h", tls)
    assert address.parameters().ssl_options is None
    assert isinstance(address.parameters().credentials, pika.PlainCredentials)


@pytest.mark.parametrize("key", ["ca_cert", "certfile", "keyfile"])
@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "malformed"])
def test_parse_address_unusable_file(
    files: dict[str, str | None], tmp_path: Path, key: str, content: str | None
) -> None:
    """A certificate file that is missing or malformed is told with its key and its path."""
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"tls.{key}: cannot use ") as caught:
        parse("amqps://h", {**files, key: str(path)})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("validity", "reason"),
    [
        ({"not_after": datetime(2020, 1, 2, tzinfo=timezone.utc)}, "expired on 2020-01-02 00:00"),
        (
            {"not_before": datetime(2999, 1, 2, tzinfo=timezone.utc)},
            "is not valid before 2999-01-02 00:00",
        ),
    ],
    ids=["expired", "early"],
)
def test_parse_address_certificate_dates(
    tmp_path: Path, validity: dict[str, datetime], reason: str
) -> None:
    """A client certificate that no broker would take now is refused, with its date."""
    limits = {"not_before": datetime(2019, 1, 1, tzinfo=timezone.utc), **validity}
    limits.setdefault("not_after", datetime(3000, 1, 1, tzinfo=timezone.utc))
    client = trustme.CA().issue_cert("client.example", **limits)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    client.cert_chain_pems[0].write_to_path(str(certificate))
    client.private_key_pem.write_to_path(str(key))
    tls = {**NO_TLS, "certfile": str(certificate), "keyfile": str(key)}
    with pytest.raises(ConnectionException, match=reason):
        parse("amqps://h", tls)


def test_parse_address_tls_in_url(files: dict[str, str | None]) -> None:
    """TLS settings inside the URL go before ours."""
    url = f"amqps://a:b@h/?ssl_options={{'ca_certs':'{files['ca_cert']}'}}"
    address = parse(url, {**NO_TLS, "ca_cert": "/nowhere/ca.pem"})
    assert len(address.parameters().ssl_options.context.get_ca_certs()) == 1


def test_parameters_read_files_again(files: dict[str, str | None], tmp_path: Path) -> None:
    """Certificates are read for each connection: what is wrong now is told, and then forgotten."""
    tls = {key: str(shutil.copy(path or "", tmp_path)) for key, path in files.items()}
    address = parse("amqps://h", tls)
    other = trustme.CA().issue_cert("other.example")
    for key in NO_TLS:
        good = Path(str(tls[key])).read_bytes()
        for bad in (good[: len(good) // 2], b"", other.private_key_pem.bytes()):
            Path(str(tls[key])).write_bytes(bad)
            with pytest.raises(SessionLost, match=f"h:5671.*tls.(key|cert)?.*{tls[key]}"):
                make_parameters(address)
        Path(str(tls[key])).write_bytes(good)
        assert make_parameters(address).ssl_options


def test_parameters_expired_meanwhile(files: dict[str, str | None], tmp_path: Path) -> None:
    """A client certificate that has expired by the next connection is a loss that may pass."""
    tls = {**files, "certfile": str(shutil.copy(files["certfile"] or "", tmp_path))}
    address = parse("amqps://h", tls)
    past = datetime(2020, 1, 2, tzinfo=timezone.utc)
    old = trustme.CA().issue_cert("client.example", not_after=past, not_before=past.replace(2019))
    old.cert_chain_pems[0].write_to_path(tls["certfile"])
    with pytest.raises(SessionLost, match=r"certfile.*expired on 2020-01-02 00:00"):
        make_parameters(address)


def test_parameters_looked_up() -> None:
    """Each connection has the password of the day."""
    passwords = iter("12")
    address = parse_address(
        "amqp://a:0@h", NO_TLS, {}, lambda: (f"amqp://a:{next(passwords)}@h", NO_TLS)
    )
    found = [address.parameters().credentials.password for _ in "12"]
    assert found == ["1", "2"]


def test_parameters_in_url_read_again(files: dict[str, str | None], tmp_path: Path) -> None:
    """Files that the URL itself names are read for each connection, too."""
    authority = Path(shutil.copy(files["ca_cert"] or "", tmp_path))
    address = parse(f"amqps://a:b@h/?ssl_options={{'ca_certs':'{authority}'}}")
    trustme.CA().cert_pem.write_to_path(str(authority), append=True)
    assert len(address.parameters().ssl_options.context.get_ca_certs()) == 2
    authority.unlink()
    with pytest.raises(SessionLost, match=r"ssl_options cannot be used: .*No such file"):
        make_parameters(address)


@pytest.fixture
def encrypted(files: dict[str, str | None], tmp_path: Path) -> str:
    """Encrypt the client's key with the password "Sesame"; return its path."""
    key = load_pem_private_key(Path(str(files["keyfile"])).read_bytes(), None)
    path = tmp_path / "encrypted.pem"
    lock = BestAvailableEncryption(b"Sesame")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    return str(path)


def test_parse_address_encrypted_key(files: dict[str, str | None], encrypted: str) -> None:
    """An encrypted key is named as such, and nobody is asked for its password."""
    with pytest.raises(ValueError, match=f"tls.keyfile: cannot use {encrypted}: it is encrypted"):
        parse("amqps://h", {**files, "keyfile": encrypted})


def test_parse_address_encrypted_key_in_url(files: dict[str, str | None], encrypted: str) -> None:
    """So is one that the URL names, unless it gives the password, which is not shown."""
    named = f"'ca_certs':'{files['ca_cert']}','certfile':'{files['certfile']}'"
    url = f"amqps://h/?ssl_options={{{named},'keyfile':'{encrypted}'"
    with pytest.raises(ValueError, match=f"ssl_options: cannot use {encrypted}: it is encrypted"):
        parse(f"{url}}}")
    assert parse(f"{url},'password':'Sesame'}}").parameters().ssl_options
    with pytest.raises(ValueError, match="ssl_options cannot be used") as caught:
        parse(f"{url},'password':'Barley'}}")
    assert "Barley" not in str(caught.value)


@pytest.mark.parametrize("options", ["{", "5", "{'certfile':None}", "{'ca_certs':5}", "[" * 500])
def test_parse_address_malformed_tls_in_url(options: str) -> None:
    """TLS settings in the URL that mean nothing are a ValueError that names them."""
    with pytest.raises(ValueError, match="ssl_options"):
        parse(f"amqps://a:b@h/?ssl_options={options}")


@pytest.mark.parametrize("key", list(NO_TLS))
@pytest.mark.parametrize("url", ["amqp://user:secret@host", "user:se cret@host"])
def test_parse_address_url_as_file(files: dict[str, str | None], key: str, url: str) -> None:
    """A URL that stands where a file should is shown without its password, also in its cause."""
    with pytest.raises(ValueError, match=r"user:\*\*\*@host") as caught:
        parse("amqps://h", {**files, key: url})
    assert "cret" not in "".join(traceback.format_exception(None, caught.value, None))
