"""A program for tests: send and receive a message of each class that a schema package has.

    python schema_classes.py PACKAGE AMQP_URL QUEUE

It does so under the name of fedora_messaging, and prints how many classes there were.
"""

from __future__ import annotations

import sys
import warnings
from functools import reduce
from importlib import metadata
from operator import getitem
from typing import Any

from fmconsume import compat

compat.install()

from fedora_messaging import api, config, message  # noqa: E402


def main(package: str, url: str, queue: str) -> None:
    """Send, receive and compare."""
    config.conf["amqp_url"] = url
    sent = [make_message(cls, queue) for cls in find_classes(package)]
    for each in sent:
        api.publish(each, exchange="")
    received: list[message.Message] = []
    queues = {queue: {"durable": True}}
    api.Consumer(received.append, [], queues, limit=len(sent)).run()
    for ours, theirs in zip(sent, received):
        theirs.validate()
        assert type(theirs) is type(ours), (theirs, ours)
        assert theirs == ours
        assert theirs.id == ours.id
    assert len(received) == len(sent)
    assert not {"twisted", "crochet"} & {name.partition(".")[0] for name in sys.modules}
    print(len(sent))


def find_classes(package: str) -> list[type[message.Message]]:
    """Find a package's classes, but for those whose name another package has taken."""
    points = metadata.distribution(package).entry_points
    loaded = {each.name: each.load() for each in points if each.group == "fedora.messages"}
    return [cls for name, cls in loaded.items() if message.get_class(name) is cls]


def make_message(cls: type[message.Message], topic: str) -> message.Message:
    """Make the smallest message that fits the schema of its class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the class
        return cls(body=sample(cls.body_schema, cls.body_schema), topic=topic)


def sample(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Make up something that fits a JSON schema of the kind that such packages have."""
    if "$ref" in schema:
        return sample(reduce(getitem, schema["$ref"].strip("#/").split("/"), root), root)
    if "oneOf" in schema:
        return sample(schema["oneOf"][0], root)
    if "enum" in schema:
        return next(value for value in schema["enum"] if value is not None)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    if kind == "object":
        known = schema.get("properties", {})
        return {key: sample(known.get(key, {}), root) for key in schema.get("required", [])}
    if kind == "array":
        return [sample(schema.get("items", {}), root)]
    return {"string": "text", "integer": 1, "number": 1, "boolean": True, "null": None}[kind]


if __name__ == "__main__":
    main(*sys.argv[1:])
