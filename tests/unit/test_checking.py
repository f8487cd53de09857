"""Tests of what --check says without a broker: certificates, addresses that fail, advice."""

from __future__ import annotations

import asyncio
import datetime
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme

from fmconsume import checking
from fmconsume.broker.topology import Topology
from fmconsume.checking import Row, advise, check, examine
from fmconsume.config import DEFAULTS, LazyConfig
from fmconsume.delivery import ACK
from fmconsume.exceptions import ConfigurationException, ExitCode
from fmconsume.state.notes import Notes
from fmconsume.wiring import topology

from .fakes import make_delivery, restored_configuration
from .messages import UPDATE, Install

_NO_TLS = {"ca_cert": None, "certfile": None, "keyfile": None}


@pytest.fixture(autouse=True)
def conf() -> Iterator[LazyConfig]:
    """The defaults, and an address where nobody listens."""
    with restored_configuration() as conf:
        conf.loaded = True
        conf.update({**DEFAULTS, "amqp_url": "amqp://guest:Sesame@127.0.0.1:1"})
        yield conf


def make_topology(prefetch_count: int = 10, **queue: Any) -> Topology:
    """Make a topology with one queue, named fruit."""
    settings = {"durable": True, "exclusive": False, "auto_delete": False, "arguments": {}, **queue}
    return Topology({}, {"fruit": settings}, [], False, prefetch_count, 0)


# -- The table -------------------------------------------------------------------------


def test_examine_unreachable() -> None:
    """A broker that does not answer is named, without the password, and with the reason."""
    (row,) = examine(make_topology(), _NO_TLS)
    assert row.kind == "broker"
    assert row.name == "amqp://guest@127.0.0.1:1 (virtual host '/')"
    assert "refused" in row.status
    assert row.exit_code is ExitCode.HANDSHAKE
    assert "Sesame" not in str(row)


def test_check_hostile_names(
    conf: LazyConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is one line, whatever is in it."""
    row = Row("queue", "a\nb\x1b[2J", "exists, but 404 c\r\u202ed", ExitCode.DECLARATION)
    monkeypatch.setattr(checking, "examine", lambda *args: [row])
    assert check(print, make_topology(), 1) == ExitCode.DECLARATION
    lines = capsys.readouterr().out.split("\n")
    words = [r"a\nb\x1b[2J", "exists,", "but", "404", r"c\r\u202ed"]
    assert lines[2].split() == ["!", "queue", *words]


def test_examine_several_unreachable(conf: LazyConfig) -> None:
    """Each address that was tried has its row."""
    conf["amqp_url"] = ["amqp://127.0.0.1:1", "amqp://127.0.0.1:2"]
    rows = list(examine(make_topology(), _NO_TLS))
    assert [row.name[:21] for row in rows] == ["amqp://guest@127.0.0.", "amqp://guest@127.0.0."]
    assert [row.exit_code for row in rows] == [ExitCode.HANDSHAKE] * 2


@pytest.fixture
def make_certificate(tmp_path: Path) -> Any:
    """Make a client certificate that is valid so many days from now; return its path."""

    def make(days: float) -> str:
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
        issued = trustme.CA().issue_cert("client", not_after=end)
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
        return str(tmp_path / "client.pem")

    return make


def test_examine_certificate_valid(make_certificate: Any) -> None:
    """A certificate's last day is shown."""
    path = make_certificate(5)
    row = next(examine(make_topology(), {**_NO_TLS, "certfile": path}))
    day = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=5)
    assert row[:2] == ("certfile", path)
    assert row.status.startswith(f"valid until {day:%Y-%m-%d}")
    assert row.exit_code is ExitCode.OK


def test_examine_certificate_expired(conf: LazyConfig, make_certificate: Any) -> None:
    """A client certificate that has expired ends the check, which says when that was."""
    path = make_certificate(-1)
    conf["amqp_url"] = "amqps://127.0.0.1:1"
    conf["tls"] = {"ca_cert": None, "certfile": path, "keyfile": path}
    (row,) = examine(make_topology(), conf["tls"])
    assert row.status.startswith("expired on ")
    assert row.exit_code is ExitCode.HANDSHAKE


def test_examine_authority_expired(make_certificate: Any) -> None:
    """An authority that has expired is shown; whether it matters the connection tells."""
    row = next(examine(make_topology(), {**_NO_TLS, "ca_cert": make_certificate(-1)}))
    assert row.kind == "ca_cert"
    assert row.status.startswith("expired on ")
    assert row.exit_code is ExitCode.OK


_CUT_OFF = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("content", [None, b"", b"no certificate", _CUT_OFF])
def test_examine_certificate_unreadable(tmp_path: Path, content: Any) -> None:
    """A file that is missing, or is no certificate, is told."""
    path = tmp_path / "client.pem"
    if content is not None:
        path.write_bytes(content)
    row = next(examine(make_topology(), {**_NO_TLS, "certfile": str(path)}))
    assert row.exit_code is ExitCode.HANDSHAKE
    assert row.status


def test_check_hides_passwords(conf: LazyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL that stands where a file or a name should is shown without its password."""
    conf["tls"] = {**_NO_TLS, "ca_cert": "amqp://u:secret@h"}
    topology = make_topology()._replace(queues={"u:secret@h": make_topology().queues["fruit"]})
    check(print, topology, workers=100)
    shown = capsys.readouterr().out
    assert "ca_cert        amqp://u:***@h" in shown
    assert "secret" not in shown


def test_check_prints_table(conf: LazyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows configuration and callback too, and marks what is wrong."""
    conf.path = __file__
    assert check(print, make_topology(100), workers=1) == ExitCode.HANDSHAKE
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["configuration", "callback", "!", "advice:"]
    assert rows[0].split() == ["configuration", __file__, "valid"]
    assert rows[1].split() == ["callback", "print", "imported"]


def test_check_looks_at_environment(
    conf: LazyConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Each variable has a row that names its key, and its file, but no value."""
    (tmp_path / "url").write_text("amqp://u:secret@127.0.0.1:1")
    monkeypatch.setenv("FMCONSUME_AMQP_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("FMCONSUME_QOS__PREFETCH_COUNT", "30")
    conf.load_config(os.devnull)
    check(print, make_topology(), workers=1)
    shown = capsys.readouterr().out
    rows = [" ".join(row.split()) for row in shown.splitlines() if "environment" in row]
    assert rows == [
        f"environment $FMCONSUME_AMQP_URL_FILE sets amqp_url from {tmp_path}/url",
        "environment $FMCONSUME_QOS__PREFETCH_COUNT sets qos.prefetch_count",
    ]
    assert "secret" not in shown


def test_check_tells_of_exposures(
    conf: LazyConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A password that everybody may read is told as advice, and is no error of its own."""
    monkeypatch.setattr(checking, "list_exposures", lambda: ["a.toml holds a password"])
    check(print, make_topology(), workers=1)
    assert "  advice: a.toml holds a password\n" in capsys.readouterr().out


def test_check_looks_at_failures(
    conf: LazyConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What [failures] names is made ready as at the start of a consumer."""
    (tmp_path / "file").touch()
    for name, status in (("folder", "can be written"), ("file", "File exists")):
        conf["failures"] = {**DEFAULTS["failures"], "keep_in": str(tmp_path / name)}
        code = check(print, make_topology(), workers=1)
        (row,) = [line for line in capsys.readouterr().out.splitlines() if "folder " in line]
        assert row.endswith(status)
        assert row.startswith("!") == (name == "file")
    assert code == ExitCode.TEMPORARY
    conf["failures"] = {**DEFAULTS["failures"], "nack_on": ["nowhere.Nope"]}
    with pytest.raises(ConfigurationException, match=r"nowhere\.Nope"):
        check(print, make_topology(), workers=1)


def test_check_looks_at_state(
    conf: LazyConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It says where the state is and how much it holds, and makes nothing."""

    def look(folder: Path) -> str:
        conf["state"] = str(folder)
        assert check(print, make_topology(), workers=1) == ExitCode.HANDSHAKE
        (row,) = [line for line in capsys.readouterr().out.splitlines() if "state " in line]
        assert not row.startswith("!")
        return row

    assert look(tmp_path / "new").endswith(f"{tmp_path}/new  would be made")
    assert not (tmp_path / "new").exists()
    desk = Notes(tmp_path / "new", 10).make_desk(0)
    for _ in range(2):
        desk.finish(make_delivery(), ACK)
    assert look(tmp_path / "new").endswith("knows 1 finished messages")
    (tmp_path / "new/seat-0").write_text("foreign")
    reason = "ValueError: seat-0 is no file of fmconsume's"
    assert look(tmp_path / "new").endswith(f"cannot be used: {reason}")


def test_check_defaults(conf: LazyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no advice on the defaults, and a file that is not there is not called valid."""
    conf.path = "/nowhere/config.toml"
    check(print, topology(), workers=1)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split(None, 2)[2] == "not there: the defaults hold"
    assert [row.split()[0] for row in rows] == ["configuration", "callback", "!"]


def test_check_without_validator(
    fresh_registry: None,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where classes are installed, and nothing that validates, the advice says what to install."""
    install(UPDATE, "update.v1 = {}:Update")
    for name, count in (("jsonschema_rs", 0), ("jsonschema", 1)):
        monkeypatch.setitem(sys.modules, name, None)
        checking.check(print, make_topology(), 1)
        assert capsys.readouterr().out.count("pip install 'fmconsume[schema]'") == count


def test_check_first_problem_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is that with which the consumer would end: of the first problem."""
    codes = [ExitCode.OK, ExitCode.DECLARATION, ExitCode.PERMISSION]
    rows = [Row("queue", "fruit", "", code) for code in codes]
    monkeypatch.setattr(checking, "examine", lambda *args: rows)
    assert check(print, make_topology(), workers=1) == ExitCode.DECLARATION
    monkeypatch.setattr(checking, "examine", lambda *args: rows[:1])
    assert check(print, make_topology(), workers=1) == ExitCode.OK


def test_check_callback_not_callable() -> None:
    """A callback that cannot be called is a usage error."""
    with pytest.raises(ValueError, match="callback: found 3"):
        check(3, make_topology(), workers=1)


class Picker:
    """A callback."""

    made: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self.loop = asyncio.get_event_loop()
        self.made.append(self)

    def __call__(self, message: Any) -> None:
        """Take a message."""


@pytest.mark.filterwarnings("error")
def test_check_class_constructed(capsys: pytest.CaptureFixture[str]) -> None:
    """A callback class is constructed, once, with a loop that is closed again."""
    Picker.made.clear()
    check(Picker, make_topology(), workers=1)
    assert capsys.readouterr().out.splitlines()[1].split() == ["callback", "Picker", "constructed"]
    (picker,) = Picker.made
    assert picker.loop.is_closed()
    check(picker, make_topology(), workers=1)
    assert capsys.readouterr().out.splitlines()[1].split() == ["callback", "Picker", "constructed"]
    assert Picker.made == [picker]


def test_check_class_cannot_be_constructed() -> None:
    """What a constructor raises ends a check as it would end a start."""

    class Unlucky(Picker):
        def __init__(self) -> None:
            raise ConnectionRefusedError("database")

    with pytest.raises(ConnectionRefusedError, match="database"):
        check(Unlucky, make_topology(), workers=1)


@pytest.mark.parametrize("callback", [lambda: None, lambda message: (yield)])
def test_check_callback_that_takes_no_message(callback: Any) -> None:
    """A callback that a consumer would refuse is refused."""
    with pytest.raises(ValueError, match=r"callback: .*lambda"):
        check(callback, make_topology(), workers=1)


def test_check_url_unusable(conf: LazyConfig) -> None:
    """A URL that cannot be used is a usage error."""
    conf["amqp_url"] = "amqp://user@host"
    with pytest.raises(ConfigurationException, match="no password"):
        check(print, make_topology(), workers=1)


# -- Advice ----------------------------------------------------------------------------


_QUORUM = {"x-queue-type": "quorum"}
_NO_POLICY = "unless a policy says otherwise, what is dropped is gone"
_ALL_COUNT = "(every return counts, a Nack and what was only prefetched on a lost connection too)"
_FAILURES_COUNT = "(failed callbacks and lost consumers count, a Nack does not)"


def test_advise_quorum_with_dead_letters() -> None:
    """A quorum queue that has somewhere to put dead letters is well."""
    arguments = {**_QUORUM, "x-dead-letter-exchange": "bin"}
    assert not list(advise(make_topology(arguments=arguments), 1, 10, 60, (4, 3)))


@pytest.mark.parametrize(
    ("limit", "version", "lost"),
    [
        (None, (), None),
        (None, (3, 13), None),
        (None, (4, 0), ("by default after 20 returns", _ALL_COUNT)),
        (None, (4, 2), ("by default after 20 returns", _ALL_COUNT)),
        (None, (4, 3), ("by default after 20 returns", _FAILURES_COUNT)),
        (None, (5, 0), ("by default after 20 returns", _FAILURES_COUNT)),
        (5, (3, 13), ("after more than 5 returns", _ALL_COUNT)),
        (5, (4, 3), ("after more than 5 returns", _FAILURES_COUNT)),
        (-1, (4, 3), None),
    ],
)
def test_advise_quorum_limit(limit: Any, version: tuple[int, ...], lost: Any) -> None:
    """Without dead letters it is said after how many returns a message is gone, and which count."""
    arguments = _QUORUM if limit is None else {**_QUORUM, "x-delivery-limit": limit}
    (advice,) = advise(make_topology(arguments=arguments), 1, 10, 60, version)
    assert advice.startswith("queue 'fruit' is a quorum queue without x-dead-letter-exchange: ")
    assert _NO_POLICY in advice
    assert advice.endswith(_NO_POLICY) == (lost is None)
    assert all(text in advice for text in lost or ())
    assert ("x-delivery-limit = -1" in advice) == (lost is not None and version >= (4, 0))


@pytest.mark.parametrize(
    ("durable", "exclusive", "version", "count"),
    [
        (False, False, (4, 3), 1),
        (False, False, (4, 2), 0),
        (True, False, (4, 3), 0),
        (False, True, (4, 3), 0),
    ],
)
def test_advise_transient_queue(
    durable: bool, exclusive: bool, version: tuple[int, ...], count: int
) -> None:
    """A kind of queue that this RabbitMQ may refuse is named, with what to set."""
    found = list(advise(make_topology(durable=durable, exclusive=exclusive), 1, 10, 60, version))
    assert len(found) == count
    assert all("'fruit' is neither durable nor exclusive" in advice for advice in found)
    looked_for = make_topology(durable=durable, exclusive=exclusive, passive=True)
    assert not list(advise(looked_for, 1, 10, 60, version))


@pytest.mark.parametrize(("nack_maximum", "count"), [(60.0, 0), (1800.0, 0), (3600.0, 1)])
def test_advise_nack_delay(nack_maximum: float, count: int) -> None:
    """A Nack that is held for longer than the broker waits is worth a word."""
    advice = list(advise(make_topology(), 1, 10, nack_maximum))
    assert [text.startswith("failures.delay.max = 3600: ") for text in advice] == [True] * count


def test_advise_exclusive_with_workers() -> None:
    """An exclusive queue and several workers do not want the same."""
    (advice,) = advise(make_topology(exclusive=True), 4, 10)
    assert advice.startswith("queue 'fruit' is exclusive: all 4 workers")
    assert not list(advise(make_topology(exclusive=True), 1, 10))
    assert not list(advise(make_topology(), 4, 10))


@pytest.mark.parametrize(
    ("prefetch_count", "workers", "timeout", "expected"),
    [
        (10, 1, None, None),
        (20, 2, None, None),
        (10, 1, 180, None),
        (10, 1, 181, "prefetch_count = 10 and workers = 1 leave each callback 180 s"),
        (10, 4, 600, None),
        (10, 4, 601, "prefetch_count = 10 and workers = 4 leave each callback 600 s"),
        (10, 10, 1800, None),
        (10, 10, 1801, "prefetch_count = 10 and workers = 10 leave each callback 1800 s"),
        (10, 50, 1800, "prefetch_count = 10: no more of the 50 workers can be busy"),
        (100, 1, None, "prefetch_count = 100 and workers = 1 leave each callback 18 s"),
        (2, 4, 10, "prefetch_count = 2: no more of the 4 workers can be busy"),
        (0, 1, 10, "prefetch_count = 0"),
    ],
)
def test_advise_prefetch(prefetch_count: int, workers: int, timeout: Any, expected: Any) -> None:
    """What waits here counts against the broker's acknowledgement timeout."""
    advice = list(advise(make_topology(prefetch_count), workers, timeout))
    assert len(advice) == (expected is not None)
    assert not advice or advice[0].startswith(expected)
