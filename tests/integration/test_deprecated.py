"""A kind of queue that RabbitMQ no longer permits ends a consumer with one line and its cure."""

from __future__ import annotations

import pytest

from .broker import Broker
from .running import write_config

#: RabbitMQ's default from 4.3 on; packages may have another one.
_NOT_PERMITTED = "deprecated_features.permit.transient_nonexcl_queues = false\n"


@pytest.fixture
def strict_broker(broker, tmp_path):
    """A broker that does not permit it, or any one where it knows no such setting."""
    if broker.version < (4, 0):
        yield broker
    else:
        folder = tmp_path / "broker"
        folder.mkdir()
        with Broker(folder, _NOT_PERMITTED) as strict:
            yield strict


def test_transient_queue(strict_broker, tmp_path, run_command):
    """The declaration and the check are refused; a durable queue in its place is not."""
    may_be_declared = strict_broker.version < (4, 0)
    url, callback = strict_broker.url(), tmp_path / "callback.py"
    callback.write_text("def callback(message):\n    pass\n")
    for durable, code in ((False, 0 if may_be_declared else 10), (True, 0)):
        queue = {"durable": durable, "auto_delete": False, "exclusive": False}
        config = write_config(tmp_path / "config.toml", url, {f"transient-{durable}": queue})
        options = ("--config", config, "--callback-file", f"{callback}:callback")
        checked = run_command(*options, "--check")
        assert checked.wait() == code, checked.printed()
        ended = run_command(*options, "--drain")
        assert ended.wait() == code, ended.logged()
        if code:
            assert "set durable = true, or exclusive = true" in checked.printed()
            *_, last = ended.logged().splitlines()
            assert last.startswith("fmconsume: cannot declare queue 'transient-False'")
            assert last.endswith("any more: set durable = true, or exclusive = true")
