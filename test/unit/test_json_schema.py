"""Which schemas an answer can be held to, and what is said of the others."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from support.json_answers import EVENTS, SIGHTING, TREE
from vstream_ros.errors import InvalidRequestError
from vstream_ros.models.json_schema import MAX_REASON, _check_recursion, _judge, check_schema

LIST = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["value", "next"],
}


@pytest.mark.parametrize(
    "schema",
    [
        SIGHTING, EVENTS, TREE, LIST, {}, {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"},
        {"enum": ["yes", 1, None]},
        {"type": "integer", "multipleOf": 997}, {"type": "number", "multipleOf": 0.01},
        {"type": "integer", "multipleOf": 5_000_000},
        {"allOf": [{"type": "integer", "multipleOf": 100}, {"multipleOf": 99}]},
        {"type": "object", "properties": {"multipleOf": {"const": 7}, "$ref": {"type": "null"}}, "required": ["$ref"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "additionalProperties": {"$ref": "#"}},
        {"$defs": {"a/b": {"const": 1}}, "$ref": "#/$defs/a~1b"},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)  # fmt: skip
def test_what_can_be_enforced_passes(schema: dict[str, Any]) -> None:
    check_schema(json.dumps(schema))


BAD = [
    ("{", "JSON"), ("nonsense", "JSON"), ("[]", "object"), ("true", "object"), ('"x"', "object"), ("7", "object"),
    ('{"const": NaN}', "NaN"), ('{"minimum": -Infinity}', "Infinity"), ('{"const": "\\ud800"}', "JSON"),
    ('{"type": "strin"}', "strin"), ('{"type": 5}', "type"), ('{"$ref": "#/$defs/none"}', "/$defs/none"),
    ('{"$ref": "https://example.org/schema"}', "example.org"), ('{"$ref": "file:///etc/passwd"}', "passwd"),
    ('{"type": "array", "contains": {"const": 1}}', "contains"), ('{"not": {"type": "null"}}', "not"),
    ('{"if": {"type": "null"}, "then": {}}', "if"), ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ('{"type": "string", "format": "colour"}', "colour"), ('{"type": "string", "pattern": "(a"}', "unclosed"),
    ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
    ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
    ('{"type": "string", "minLength": 3, "maxLength": 2}', "Unsatisfiable"),
    ('{"x-guidance": {"lenient": true}, "type": "array", "contains": {"const": 1}}', "contains"),
    ("[" * 100_000, "nested"), ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested"),
    ('{"allOf":[' * 70 + '{"type":"null"}' + "]}" * 70, "recursion limit"),
    ('{"const": ' + "9" * 5_000 + "}", "JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "says"), BAD, ids=[text[:40] for text, _ in BAD])
def test_the_reason_names_what_is_wrong_in_one_line(schema: str, says: str) -> None:
    for _ in range(2):  # the second from the cache
        with pytest.raises(InvalidRequestError) as refused:
            check_schema(schema)
        reason = str(refused.value)
        assert reason.startswith("json_schema")
        assert says in reason
        assert "\n" not in reason
        assert len(reason) < MAX_REASON + 200


ENDLESS: list[tuple[dict[str, Any], str]] = [
    ({"$ref": "#"}, "#"),
    ({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, "#"),
    ({"type": "object", "required": ["next"], "additionalProperties": {"$ref": "#"}}, "#"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#"),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2}, "#"),
    ({"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]}, "#"),
    # A branch that a model could enter and never leave.
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
      "anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}, "#/$defs/a"),
    ({"type": "object", "properties": {"x": {"allOf": [{"$ref": "#/properties/x"}]}}}, "#/properties/x"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "where"), ENDLESS, ids=lambda value: json.dumps(value)[:50])
def test_recursion_without_end_is_refused_at_its_place(schema: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequestError, match="recursive without end at") as refused:
        check_schema(json.dumps(schema))
    assert f" at {where}" in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999_983},
        {"type": "integer", "multipleOf": 12_345.678},
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]},
        {"examples": [{"type": "integer", "multipleOf": 999_983}], "$ref": "#/examples/0"},
    ],
    ids=json.dumps,
)
def test_what_would_compile_for_ever_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="multiple"):
        check_schema(json.dumps(schema))


def test_a_chain_of_references_is_no_recursion_however_it_is_ordered() -> None:
    names = [f"d{k}" for k in range(300)]
    chain: dict[str, Any] = {f"d{k}": {"$ref": f"#/$defs/d{k + 1}"} for k in range(299)} | {"d299": {"const": 1}}
    for order in (names, names[::-1]):
        _check_recursion({"$defs": {name: chain[name] for name in order}, "$ref": "#/$defs/d0"})


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    hidden = {"llguidance"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else found(name, *rest))
    with pytest.raises(InvalidRequestError, match=r"pip install 'llguidance"):
        check_schema("{}")


def test_a_schema_that_was_judged_is_not_judged_again() -> None:
    """What 500 clients send at once is looked at once: in the executor's thread."""
    schema = json.dumps({"const": "judged once"})
    before = _judge.cache_info().misses
    for _ in range(100):
        check_schema(schema)
    assert _judge.cache_info().misses == before + 1
