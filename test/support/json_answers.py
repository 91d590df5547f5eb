"""Schemas that a planner might send, and an independent judge of the answers."""

from __future__ import annotations

import json

import jsonschema

SIGHTING = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue", "yellow", "purple", "cyan"]},
        "shape": {"enum": ["circle", "square", "triangle", "cross"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "shape", "count"],
    "additionalProperties": False,
}
"""Closed: no answer under it takes more than 60 tokens."""
EVENTS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "what": {"type": "string", "minLength": 1, "maxLength": 12, "pattern": "^[a-z ]+$"},
            "where": {"type": ["string", "null"], "enum": ["left", "right", "above", "below", None]},
            "sure": {"type": "boolean"},
        },
        "required": ["what", "sure"],
        "additionalProperties": False,
    },
    "minItems": 1,
    "maxItems": 3,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 4},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
                "speed": {"type": "number", "minimum": -1.5, "maximum": 1.5, "multipleOf": 0.25},
            },
            "required": ["name", "speed"],
            "additionalProperties": False,
        },
        "leaf": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "$ref": "#/$defs/node",
}
"""Recursive, with an end."""


def fault(answer: str, schema: dict) -> str:
    """Why ``answer`` is no compact JSON that is valid under ``schema``; "" where it is."""
    try:
        value = json.loads(answer)
        jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{str(error).splitlines()[0]}: {answer!r}"
    blanks = answer.lstrip() != answer or answer.rstrip() != answer or _outside_strings(answer) & set(" \t\r\n")
    return f"not compact: {answer!r}" if blanks else ""


def _outside_strings(text: str) -> set[str]:
    found, inside, escaped = set(), False, False
    for character in text:
        if inside:
            inside, escaped = escaped or character != '"', character == "\\" and not escaped
        elif character == '"':
            inside = True
        else:
            found.add(character)
    return found
