"""A short text that fits a JSON schema, made from the schema's words.

The search for the shortest end sees which tokens may follow and nothing else, so it cannot see that a pattern such as
`error` or `[^@]+@[^@]+` needs a sign that was allowed all along. What is made here is a proposal: its user lets
the grammar check it. So what is rare (a bound beside a step, references that never end) may be missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as patterns  # type: ignore[attr-defined]
from typing import Any

from device_runtime.engine.schema.references import referenced

__all__ = ["matching", "sample"]

_DEEPEST = 40  # references and levels
_LONGEST = 2000  # characters of a text; and repeats
_PREFERRED = "a0 Ab1-_.:/@"  # for a sign that may be any of many
_OTHERS = "".join(chr(code) for code in (*range(0x20, 0x7F), *range(0xA1, 0x180), *range(0x3041, 0x3097), 9, 10))
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "time": "00:00:00Z",
    "uri": "a:",
    "uuid": "00000000-0000-0000-0000-000000000000",
}


def sample(schema: Mapping[str, Any]) -> str | None:
    """JSON that probably fits the schema, and is short; None if none was found.

    Args:
        schema: with every object closed that is to be closed.
    """
    try:
        return _Sampler(schema).text(schema, 0)
    except (RecursionError, ArithmeticError, TypeError, ValueError):  # bounds that are texts, and the like
        return None


def matching(pattern: str, least: int = 0) -> str | None:
    """A short text of at least `least` characters in which the pattern is found; None where there is none, or Python
    reads the pattern otherwise."""
    try:
        parsed = patterns.parse(pattern)
        text = _of_pattern(parsed, 0)
        if len(text) < least:  # what may be repeated without end takes the rest
            text = _of_pattern(parsed, least - len(text))
        return text if len(text) >= least and re.search(pattern, text) else None
    except (re.error, RecursionError, OverflowError, _NoText):
        return None


class _NoText(Exception):
    """There is no text for a part of a pattern, or it is not known."""


class _Sampler:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def text(self, node: Any, depth: int) -> str | None:
        if depth > _DEEPEST or node is False:
            return None
        if not isinstance(node, Mapping):
            return "0"
        if "$ref" in node:
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return self.text(_both(referenced(self._root, node["$ref"]), rest), depth + 1)
        if parts := node.get("allOf"):
            whole = {key: value for key, value in node.items() if key != "allOf"}
            for part in parts:
                if isinstance(part, Mapping) and "$ref" in part:
                    part = referenced(self._root, part["$ref"])
                whole = _both(whole, part)
            return self.text(whole, depth + 1)
        for key in ("anyOf", "oneOf"):
            if isinstance(node.get(key), list):
                rest = {name: value for name, value in node.items() if name != key}
                return _shortest(self.text(_both(rest, part), depth + 1) for part in node[key])
        if "const" in node:
            return _json(node["const"])
        if isinstance(node.get("enum"), list):
            return _shortest(map(_json, node["enum"]))
        kinds = node.get("type", _kind_of(node))
        return _shortest(self._of_type(kind, node, depth) for kind in (kinds if isinstance(kinds, list) else [kinds]))

    def _of_type(self, kind: Any, node: Mapping[str, Any], depth: int) -> str | None:
        match kind:
            case "null":
                return "null"
            case "boolean":
                return "true"
            case "integer" | "number":
                return _number(node, kind == "integer")
            case "string":
                return _string(node)
            case "array":
                return self._array(node, depth)
            case "object":
                return self._object(node, depth)
        return None

    def _array(self, node: Mapping[str, Any], depth: int) -> str | None:
        first = node.get("prefixItems", [])
        count = int(node.get("minItems", 0))
        if count > _LONGEST:
            return None
        items = [self.text(first[place] if place < len(first) else node.get("items", {}), depth + 1)
                 for place in range(min(count, len(first)))]  # fmt: skip
        if count > len(first):
            items += [self.text(node.get("items", {}), depth + 1)] * (count - len(first))
        return None if None in items else f"[{', '.join(map(str, items))}]"

    def _object(self, node: Mapping[str, Any], depth: int) -> str | None:
        properties, required = node.get("properties", {}), node.get("required", [])
        names = [name for name in properties if name in required]
        names += [name for name in required if name not in properties]
        values = {
            name: self.text(properties.get(name, node.get("additionalProperties", {})), depth + 1) for name in names
        }
        if None in values.values():
            return None
        return "{" + ", ".join(f"{_json(name)}: {value}" for name, value in values.items()) + "}"


def _both(one: Any, other: Any) -> Any:
    """One schema of two that hold together."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return other if one in (True, None) or one == {} else one
    joined = {**one, **other}
    if "properties" in one and "properties" in other:
        joined["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        joined["required"] = list(dict.fromkeys([*one["required"], *other["required"]]))
    return joined


def _kind_of(node: Mapping[str, Any]) -> str:
    for kind, keys in {"object": ("properties", "required"), "array": ("items", "prefixItems", "minItems"),
                       "string": ("pattern", "format", "minLength", "maxLength")}.items():  # fmt: skip
        if any(key in node for key in keys):
            return kind
    return "number"


def _number(node: Mapping[str, Any], whole: bool) -> str | None:
    low = max(node.get("minimum", -math.inf), node.get("exclusiveMinimum", -math.inf))
    high = min(node.get("maximum", math.inf), node.get("exclusiveMaximum", math.inf))
    step = node.get("multipleOf")
    middle = low + (high - low) / 2 if math.isfinite(low) and math.isfinite(high) else None
    tried: list[float] = [*range(10), -1]
    for bound in (low, high, middle):
        if bound is not None and math.isfinite(bound):
            floor = math.floor(bound)
            tried += [bound, *range(floor - 1, floor + 3)]
            tried += (
                [count * step for count in range(math.floor(bound / step) - 1, math.floor(bound / step) + 3)]
                if step
                else []
            )
    fitting = {
        int(value) if float(value).is_integer() else value
        for value in tried
        if low <= value <= high
        and value not in (node.get("exclusiveMinimum"), node.get("exclusiveMaximum"))
        and (not whole or float(value).is_integer())
        and (not step or float(value / step).is_integer())
    }
    return min((_json(value) for value in fitting), key=len, default=None)


def _string(node: Mapping[str, Any]) -> str | None:
    least = int(node.get("minLength", 0))
    if least > _LONGEST:
        return None
    text: str | None = "a" * least
    if "pattern" in node:
        text = matching(node["pattern"], least)
    elif node.get("format") in _FORMATS:
        text = _FORMATS[node["format"]]
    return None if text is None or not least <= len(text) <= node.get("maxLength", math.inf) else _json(text)


def _of_pattern(parts: Any, more: int) -> str:
    """The shortest text of a parsed pattern; `more`: characters more in its first part without an end."""
    written: list[str] = []
    for code, value in parts:
        if code is codes.LITERAL:
            written.append(chr(value))
        elif code in (codes.IN, codes.NOT_LITERAL, codes.ANY):
            written.append(_sign(code, value))
        elif code is codes.SUBPATTERN:
            written.append(_of_pattern(value[-1], 0))
        elif code is codes.BRANCH:
            written.append(min((_of_pattern(branch, 0) for branch in value[1]), key=len))
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, repeated = value
            count = least
            if more and (most is codes.MAXREPEAT or most >= least + more):
                count, more = least + more, 0
            if count > _LONGEST:
                raise _NoText
            written.append(_of_pattern(repeated, 0) * count if count else "")
        elif code is not codes.AT:  # look-around, references to groups: no grammar has them either
            raise _NoText
    return "".join(written)


def _sign(code: Any, value: Any) -> str:
    """A character of a set."""
    if code is codes.ANY:
        return _PREFERRED[0]
    negated = code is codes.NOT_LITERAL
    items = [(codes.LITERAL, value)] if negated else list(value)
    if items and items[0][0] is codes.NEGATE:
        negated, items = True, items[1:]
    for character in _PREFERRED + _OTHERS:
        if any(_holds(item, character) for item in items) != negated:
            return character
    if not negated:  # a set of characters that are none of these
        for kind, content in items:
            if kind in (codes.LITERAL, codes.RANGE):
                return chr(content if kind is codes.LITERAL else content[0])
    raise _NoText


def _holds(item: tuple[Any, Any], character: str) -> bool:
    kind, content = item
    if kind is codes.LITERAL:
        return bool(ord(character) == content)
    if kind is codes.RANGE:
        return bool(content[0] <= ord(character) <= content[1])
    signs = {"DIGIT": r"\d", "WORD": r"\w", "SPACE": r"\s"}
    name = str(content).removeprefix("CATEGORY_")
    found = re.fullmatch(signs[name.removeprefix("NOT_")], character, re.ASCII) is not None
    return found != name.startswith("NOT_")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shortest(texts: Iterable[str | None]) -> str | None:
    return min((text for text in texts if text is not None), key=len, default=None)
