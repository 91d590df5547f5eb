"""Which JSON schemas an answer can be held to: all that can be said of one before there is a tokenizer.

A schema comes from outside. What the library (llguidance) can't enforce it refuses by name, so that an answer under a
schema is always valid under all of it. What the library would compile for ever, and what no answer of any length could
fulfil, is refused here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from vstream_ros.errors import InvalidRequestError

LIBRARY = "llguidance>=1.9,<2"
MAX_MULTIPLE = 1_000
"""Greatest least common multiple of all ``multipleOf``. The library builds an automaton of as many states and knows no
limit for it: 100,000 take a second, a million 8 s and 400 MB. Zeros at the end, and decimal places, cost nothing."""
MAX_REASON = 300
"""Characters of the library's reason that are passed on; it may quote the schema."""
COMPACT: Any = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
"""Options of the library, which a schema's own ``x-guidance`` does not change. No blanks: a small model could spend all
of its tokens on them. Not lenient: no keyword is passed over."""


def check_schema(schema: str) -> None:
    """Raise ``InvalidRequestError`` with the reason where no answer can be held to ``schema``, a JSON text.

    Any thread. It takes a millisecond; the worst that was found of 16 KiB takes 40.
    """
    schema_grammar(schema)


def schema_grammar(schema: str) -> str:
    """``schema`` in the library's own form; raises as ``check_schema`` does."""
    if importlib.util.find_spec("llguidance") is None:
        raise InvalidRequestError(
            f"json_schema needs the package llguidance, which is not installed here: pip install '{LIBRARY}'"
        )
    grammar, reason = _judge(schema)
    if reason:
        raise InvalidRequestError(reason)
    return grammar


@functools.lru_cache(maxsize=32)
def _judge(schema: str) -> tuple[str, str]:
    """(grammar, "") or ("", why not). Cached, since a planner asks with the same schema again and again."""
    try:
        return _translate(schema), ""
    except InvalidRequestError as error:
        return "", str(error)


def _translate(schema: str) -> str:
    # Here, where a schema is at hand: the package is optional.
    from llguidance import LLMatcher

    try:
        parsed = json.loads(schema, parse_float=Decimal, parse_constant=_refuse_constant)
        if not isinstance(parsed, dict):
            raise InvalidRequestError(
                'json_schema must be a JSON object such as {"type": "object", "properties": {...}}'
            )
        grammar: str = LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
    except InvalidRequestError:
        raise
    except RecursionError:
        raise InvalidRequestError("json_schema is nested too deeply; put its parts into $defs") from None
    except ValueError as error:
        raise InvalidRequestError(f"json_schema can't be read as JSON: {one_line(error)}") from None
    _check_multiples(parsed)
    _check_recursion(parsed)
    failed, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise InvalidRequestError(f"json_schema can't be enforced: {one_line(reasons[0])}")
    return grammar


def one_line(reason: object) -> str:
    """What the library says, in one line of bounded length."""
    return " ".join(str(reason).split())[:MAX_REASON]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _objects(value: Any, pointer: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in ``value`` with its JSON pointer, innermost first. Each of them may be a schema: a ``$ref`` may
    point anywhere."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _objects(item, f"{pointer}/{key}")
        yield pointer, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _objects(item, f"{pointer}/{index}")


def _check_multiples(schema: dict[str, Any]) -> None:
    multiple = 1
    for _, node in _objects(schema):
        value = node.get("multipleOf")
        if isinstance(value, int | Decimal) and not isinstance(value, bool):
            digits = "".join(map(str, Decimal(value).as_tuple().digits)).rstrip("0")
            multiple = math.lcm(multiple, int(digits or "1"))
        if multiple > MAX_MULTIPLE:
            raise InvalidRequestError(
                f"json_schema can't be enforced: its multipleOf have a least common multiple beyond {MAX_MULTIPLE}"
            )


def _check_recursion(schema: dict[str, Any]) -> None:
    """Raise where a part can't be fulfilled by anything finite, as an object that requires another of its kind.

    The least fixed point of "this part has a finite value". It sees each part for itself: an endless one that only two
    parts of an ``allOf`` make together is not found, and ends with ``max_new_tokens``.
    """
    waiting = {id(node): (pointer, node) for pointer, node in _objects(schema)}
    while ended := [key for key, (_, node) in waiting.items() if _has_finite_value(node, schema, waiting)]:
        for key in ended:
            del waiting[key]
    if waiting:
        pointer, _ = next(iter(waiting.values()))
        raise InvalidRequestError(
            f"json_schema is recursive without end at {pointer[:MAX_REASON]}: a value of it holds another one, and "
            "so on; make that property optional, or allow null or an empty array there"
        )


def _has_finite_value(node: dict[str, Any], root: dict[str, Any], waiting: Mapping[int, Any]) -> bool:
    """Whether it is known that ``node`` is no endless schema; ``waiting``: those of which it isn't known, by id.

    What is no schema (a map of properties is an object too), or not one that can be judged here, is no endless one.
    """

    def finite(part: Any) -> bool:
        return id(part) not in waiting

    def parts(key: str) -> list[Any]:
        value = node.get(key)
        return value if isinstance(value, list) else []

    if "const" in node or parts("enum"):
        return True
    if not (finite(_resolve(node.get("$ref"), root)) and all(map(finite, parts("allOf")))):
        return False
    if any(parts(key) and not any(map(finite, parts(key))) for key in ("anyOf", "oneOf")):
        return False
    named = node.get("type")
    types = {named} if isinstance(named, str) else {name for name in parts("type") if isinstance(name, str)}
    if not types or not types <= {"object", "array"}:
        return True
    return ("object" in types and all(map(finite, _required(node)))) or (
        "array" in types and all(map(finite, _least_items(node)))
    )


def _resolve(ref: Any, root: dict[str, Any]) -> Any:
    """What a ``$ref`` within the schema points at; None for every other one, which the library judges."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    part: Any = root
    for step in unquote(ref).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and step.isdecimal() and int(step) < len(part):
            part = part[int(step)]
        elif isinstance(part, dict):
            part = part.get(step)
        else:
            return None
    return part


def _required(node: dict[str, Any]) -> Iterator[Any]:
    """The schemas of what an object must hold."""
    properties, names = node.get("properties"), node.get("required")
    known = properties if isinstance(properties, dict) else {}
    others = None if "patternProperties" in node else node.get("additionalProperties")
    for name in names if isinstance(names, list) else []:
        yield known.get(name, others) if isinstance(name, str) else None


def _least_items(node: dict[str, Any]) -> Iterator[Any]:
    """The schemas of what an array must hold."""
    least, first = node.get("minItems"), node.get("prefixItems")
    prefix = first if isinstance(first, list) else []
    if isinstance(least, int):
        yield from prefix[:least]
        if least > len(prefix):
            yield node.get("items")
