"""Tests of JSON Schema validation, with the real jsonschema-rs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jsonschema
import jsonschema_rs
import pytest

from fmconsume import schema
from fmconsume.exceptions import ConfigurationException, ValidationError
from fmconsume.schema import check

DRAFT_3 = "http://json-schema.org/draft-03/schema#"
DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"


class Update:
    """Stands for a message class."""


@pytest.fixture(autouse=True)
def _forget_validators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_compiled", {})


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """List the schemas that get compiled."""
    compiled = []
    compile_schema = schema._compile

    def record(rules: Any) -> Any:
        compiled.append(rules)
        return compile_schema(rules)

    monkeypatch.setattr(schema, "_compile", record)
    return compiled


def test_check_valid() -> None:
    """What fits its schema passes."""
    check(Update, "body", {"properties": {"id": {"type": "integer"}}}, {"id": 1})


@pytest.mark.parametrize(
    ("rules", "body", "message"),
    [
        ({"type": "object"}, [], 'Update body: $: [] is not of type "object"'),
        ({"required": ["id"]}, {}, 'Update body: $: "id" is a required property'),
        (
            {"properties": {"builds": {"items": {"properties": {"nvr": {"type": "string"}}}}}},
            {"builds": [{"nvr": "a-1-1"}, {"nvr": 5}]},
            'Update body: $.builds[1].nvr: 5 is not of type "string"',
        ),
    ],
)
def test_check_invalid(rules: Any, body: Any, message: str) -> None:
    """The error names the class, the part, the place and the reason."""
    with pytest.raises(ValidationError) as raised:
        check(Update, "body", rules, body)
    assert str(raised.value) == raised.value.summary == message


@pytest.mark.parametrize("body", [{"id": "x\n" * 1_000_000}, {"\ud800": 1}, {"id": b"bytes"}])
def test_check_odd_value(body: Any) -> None:
    """A huge value, half a character or a type unknown to JSON is a short ValidationError."""
    with pytest.raises(ValidationError) as raised:
        check(Update, "body", {"properties": {"id": {"type": "integer"}}}, body)
    assert len(str(raised.value)) <= 300
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rules", "is_valid"),
    [
        ({"const": 1}, False),
        ({"$schema": DRAFT_4, "const": 1}, True),
        ({"$schema": DRAFT_2019, "const": 1}, False),
        ({"$schema": DRAFT_4, "minimum": 5, "exclusiveMinimum": True}, False),
        ({"$schema": DRAFT_3, "divisibleBy": 2}, False),
        ({"$schema": "http://example.com/unknown", "const": 5}, True),
        ({"$schema": "http://example.com/unknown", "const": 1}, False),
    ],
)
def test_check_draft(rules: Any, is_valid: bool) -> None:
    """A schema is of the draft that it names, and of the latest if it names none or another."""
    if is_valid:
        check(Update, "body", rules, 5)
    else:
        with pytest.raises(ValidationError):
            check(Update, "body", rules, 5)


def test_check_format() -> None:
    """A format alone makes no message invalid, as in fedora-messaging."""
    check(Update, "body", {"format": "date-time"}, "yesterday")


def test_check_local_reference() -> None:
    """A reference into the same schema is followed."""
    rules = {"definitions": {"name": {"type": "string"}}, "items": {"$ref": "#/definitions/name"}}
    check(Update, "body", rules, ["x"])
    with pytest.raises(ValidationError, match=r"\$\[0\]"):
        check(Update, "body", rules, [1])


@pytest.mark.parametrize(
    "rules",
    [
        {"type": "nonsense"},
        {"type": 5},
        {"$ref": "#/definitions/missing"},
        {"pattern": "("},
        5,
    ],
)
def test_check_invalid_schema(rules: Any) -> None:
    """An invalid schema is an error of the configuration that names the class."""
    with pytest.raises(
        ConfigurationException, match=r"body schema of .*test_schema\.Update is inv"
    ):
        check(Update, "body", rules, {})


@pytest.mark.parametrize("reference", ["http://127.0.0.1:9/schema", "file:///etc/hostname"])
def test_check_remote_reference(monkeypatch: pytest.MonkeyPatch, reference: str) -> None:
    """A reference to another document is refused, not fetched."""
    with pytest.raises(ConfigurationException, match=f"invalid: Unresolvable: {reference}"):
        check(Update, "headers", {"$ref": reference}, {})
    monkeypatch.setattr(schema, "_compiled", {})
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigurationException, match="is not fetched"):
        check(Update, "headers", {"$ref": reference}, {})


def test_check_without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any validator the error says what to install."""
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigurationException, match=r"pip install 'fmconsume\[schema\]'"):
        check(Update, "body", {"type": "object"}, {})


PYTHONS_OWN = [r"^NVR\Z", "^(N)?(?(1)VR|TR)"]


@pytest.mark.parametrize("pattern", PYTHONS_OWN)
def test_check_expression_of_python(pattern: str) -> None:
    """What the fast validator cannot compile is validated by the other one."""
    check(Update, "body", {"pattern": pattern}, "NVR")
    with pytest.raises(ValidationError, match=r"^Update body: \$: 'RPM' does not match"):
        check(Update, "body", {"pattern": pattern}, "RPM")


@pytest.mark.parametrize("pattern", PYTHONS_OWN)
def test_check_expression_of_python_alone(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """Where the other one is not installed, the error says so."""
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigurationException, match="jsonschema, which is not installed"):
        check(Update, "body", {"pattern": pattern}, "NVR")


@pytest.mark.parametrize("missing", ["", "jsonschema_rs", "jsonschema_specifications"])
@pytest.mark.filterwarnings("ignore:.*RefResolver is deprecated:DeprecationWarning")
def test_check_error_of_jsonschema(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Who catches jsonschema's error catches ours, whichever validates."""
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    pattern = "(?i)^nvr" if missing == "jsonschema_specifications" else "^NVR"
    rules = {"properties": {"nvr": {"pattern": pattern}}}
    with pytest.raises(jsonschema.ValidationError) as raised:
        check(Update, "body", rules, {"nvr": "RPM"})
    assert isinstance(raised.value, ValidationError)
    assert list(raised.value.path) == ["nvr"]
    assert "does not match" in raised.value.message
    assert str(raised.value).startswith("Update body: $.nvr: ")
    assert raised.value.summary == str(raised.value)


def test_check_compiles_once(compilations: list[Any]) -> None:
    """A schema is compiled once, even if the class makes it anew for each message."""
    for _ in range(3):
        check(Update, "body", {"type": "object"}, {})
    assert compilations == [{"type": "object"}]


def test_check_changed_schema(compilations: list[Any]) -> None:
    """A schema that differs from message to message is the one that counts, and is not kept."""
    for kind in ("integer", "number", "integer"):
        check(Update, "body", {"type": kind}, 1)
    with pytest.raises(ValidationError):
        check(Update, "body", {"type": "string"}, 1)
    assert len(compilations) == 4
    assert len(schema._compiled) == 1


def test_check_keeps_parts_and_classes_apart() -> None:
    """Each class has its own schema for each part."""

    class Other:
        pass

    check(Update, "body", {"type": "object"}, {})
    check(Update, "headers", {"type": "array"}, [])
    check(Other, "body", {"type": "string"}, "")
    assert len(schema._compiled) == 3


def test_import_is_light() -> None:
    """jsonschema-rs is not imported before a schema is used."""
    code = "import fmconsume, sys; sys.exit('jsonschema_rs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert jsonschema_rs.__name__ in sys.modules
