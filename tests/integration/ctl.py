"""What rabbitmqctl does, in Erlang for the node itself: nothing starts a second Erlang machine.

A command of rabbitmqctl takes 0.4 s of processor time, the same in the node some milliseconds.
"""

from __future__ import annotations

import base64
import json
import re

__all__ = ["expression", "rows"]

_USERS = "rabbit_auth_backend_internal"
_CHANGES = {
    "add_user": f"{_USERS}:add_user",
    "add_vhost": "rabbit_vhost:add",
    "change_password": f"{_USERS}:change_password",
    "clear_password": f"{_USERS}:clear_password",
    "clear_permissions": f"{_USERS}:clear_permissions",
    "delete_user": f"{_USERS}:delete_user",
    "delete_vhost": "rabbit_vhost:delete",
    "set_permissions": f"{_USERS}:set_permissions",
    "set_topic_permissions": f"{_USERS}:set_topic_permissions",
}
#: Where a function wants to be told the columns, these are all that the tests ask for.
_LISTS = {
    "list_bindings": 'rabbit_binding:info_all(<<"/">>)',
    "list_connections": (
        "rabbit_networking:connection_info_all([user, ssl_protocol, client_properties])"
    ),
    "list_consumers": 'rabbit_amqqueue:consumers_all(<<"/">>)',
    "list_exchanges": 'rabbit_exchange:info_all(<<"/">>)',
    "list_queues": 'rabbit_amqqueue:info_all(<<"/">>, [name, consumers])',
}
#: The first is of RabbitMQ 4.
_JOIN = """
ok = case code:ensure_loaded(rabbit_db_cluster) of
    {{module, _}} -> rabbit_db_cluster:join('{0}', disc);
    _ -> rabbit_mnesia:join_cluster('{0}', disc)
end
"""
#: All rows in one text; in base64, since the answer escapes no quotes.
_ROWS = """
Text = fun ({{resource, _, _, Name}}) -> Name;
           (Value) when is_binary(Value) -> Value;
           (Value) when is_atom(Value) -> atom_to_list(Value);
           (Value) -> io_lib:format("~0p", [Value])
       end,
base64:encode_to_string(iolist_to_binary(lists:join($\\n, [
    lists:join($\\t, [Text(proplists:get_value(Item, Row)) || Item <- [{items}]])
    || Row <- {rows}])))
"""


def expression(command: str, *words: str) -> str | None:
    """Give the Erlang for a command of rabbitmqctl, or None where only rabbitmqctl can do it.

    A list is of the virtual host /, and its columns have to be named.
    """
    if command == "set_vm_memory_high_watermark":
        return f"vm_memory_monitor:{command}({float(words[0]):f})"
    if command == "join_cluster":
        return _JOIN.format(*words)
    if command in _LISTS:
        return _ROWS.format(items=", ".join(words), rows=_LISTS[command])
    if command in _CHANGES:
        if command.endswith("_permissions"):
            vhost, words = (words[1], words[2:]) if words[0] == "-p" else ("/", words)
            words = (words[0], vhost, *words[1:])
        arguments = ", ".join(_binary(word) for word in (*words, "test"))
        return f"{_CHANGES[command]}({arguments})"
    return None


def rows(answer: str) -> str:
    """Give what the node answered as rabbitmqctl would print it: tabs between the columns."""
    is_list = answer.startswith('"')
    return base64.b64decode(re.sub(r'["\s]', "", answer)).decode() if is_list else ""


def _binary(word: str) -> str:
    return f"<<{json.dumps(word, ensure_ascii=False)}/utf8>>"
