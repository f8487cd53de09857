"""The messages that several unit tests receive, and the classes that some of them are of."""

from __future__ import annotations

from typing import Any, Callable

from hypothesis import strategies as st
from pika import BasicProperties

from fmconsume.delivery import Delivery
from fmconsume.message import SEVERITIES, WARNING

#: Installs a package, see the fixture of that name.
Install = Callable[..., str]

FEDORA_HEADERS = {
    "fedora_messaging_schema": "base.message",
    "fedora_messaging_severity": WARNING,
    "sent-at": "2024-06-10T06:13:20+00:00",
}

#: Defines class Update for the tests that need a message class from another package.
UPDATE = """
from fmconsume.message import DEBUG, Message

class Update(Message):
    severity = DEBUG
    topic = "update"
    body_schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"id": {"type": "integer"}},
        "required": ["id"],
    }

    @property
    def summary(self):
        return "Update %d" % self.body["id"]

class Named(Message):
    @property
    def usernames(self):
        return [self.body["name"], "admin"]

    @property
    def packages(self):
        return ["kernel"]
"""


def deliver(
    body: bytes = b"{}",
    headers: Any = FEDORA_HEADERS,
    routing_key: Any = "a.topic",
    redelivered: bool = False,
    **properties: Any,
) -> Delivery:
    """Make a delivery as the broker would."""
    headers = dict(headers) if isinstance(headers, dict) else headers
    properties = {"content_encoding": "utf-8", "message_id": "m-1", **properties}
    made = BasicProperties(headers=headers, **properties)
    return Delivery(1, 7, "a queue", routing_key, redelivered, made, body, made.message_id, 0.0)


def named(schema_name: Any, **headers: Any) -> dict[str, Any]:
    """Make the headers of a message of this schema."""
    return {**FEDORA_HEADERS, "fedora_messaging_schema": schema_name, **headers}


def any_headers() -> st.SearchStrategy[dict[Any, Any]]:
    """Draw tables of any type that AMQP has, under odd and under meaningful names."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.sampled_from(SEVERITIES)
        | st.floats()
        | st.decimals(allow_nan=False)
        | st.datetimes()
        | st.binary()
        | st.text()
    )
    names = st.text() | st.binary() | st.sampled_from(list(FEDORA_HEADERS))
    values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(names, v), max_leaves=5)
    return st.dictionaries(names, values, max_size=5)
