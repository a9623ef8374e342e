"""Why a JSON schema is refused: which of its fields is at fault and what would be taken, before the grammar library's
own words, which name neither."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from device_runtime.engine.schema.rules import AS_ONE, BY_NAME
from device_runtime.records.printable import shown
from device_runtime.records.typed_json import shortened

__all__ = ["explained"]

_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
_SAID_WITH = (
    "type, enum, const, anyOf, allOf, properties, required, items, the limits of numbers, lengths and counts, "
    "multipleOf, pattern, format and references to $defs"
)
_KINDS = {"f64": "a number", "positive integer": "a whole number of at least 0", "array": "a list", "string": "a text"}
_IS: Mapping[str, Callable[[Any], bool]] = {
    "f64": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "positive integer": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
}
_IN_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_PAIRS = (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems"))
_ROOT = "the answer itself"
_MOST_NAMED = 3
_LONGEST_NAME = 40  # characters of a property's name

Node = Mapping[str, Any]
Rule = Callable[[re.Match[str], Node], str | None]  # what is wrong with a node, to be read after the field's name


def explained(schema: Node, said: str) -> str:
    """What is wrong with a schema, by what the library says of it, without a full stop."""
    if "coerce_one_of" in said:
        found = [path or _ROOT for path, node in _nodes("", schema) if "oneOf" in node]
        where = f", unlike those of {', '.join(found[:_MOST_NAMED])}" if found else ""
        return f"oneOf is taken only where no answer can fit two alternatives{where}"
    for pattern, rule in _RULES:
        if match := re.search(pattern, said):
            for path, node in _nodes("", schema):
                if wrong := rule(match, node):
                    return f"{path or _ROOT} {wrong} (the library says: {said})"
    return said


def _nodes(path: str, node: Any) -> Iterator[tuple[str, Node]]:
    """Every schema within a schema, with the field that it is of."""
    rest = [(path, node)]
    while rest:
        path, node = rest.pop(0)
        if not isinstance(node, Mapping):
            continue
        yield path, node
        rest += [(f"{path}[]" if key in ("items", "contains") else path, node[key]) for key in AS_ONE if key in node]
        for key in _IN_LISTS:
            if isinstance(node.get(key), list):
                rest += [(f"{path}[]" if key in ("items", "prefixItems") else path, part) for part in node[key]]
        for key in BY_NAME:
            if isinstance(node.get(key), Mapping):
                where = f"{key}." if key in ("$defs", "definitions") else f"{path}." if path else ""
                rest += [(f"{where}{shown(name, _LONGEST_NAME)}", part) for name, part in node[key].items()]


def _keyword(match: re.Match[str], node: Node) -> str | None:
    names = [repr(name) for name in json.loads(match[1]) if name in node]
    return f"has {', '.join(names)}, which no answer can be held to; say it with {_SAID_WITH}" if names else None


def _type(match: re.Match[str], node: Node) -> str | None:
    found = node.get("type")
    names = found if isinstance(found, list) else [found]
    strange = [name for name in names if name is not None and name not in _TYPES]
    if not strange:
        return None
    near = get_close_matches(str(strange[0]), _TYPES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"has the type {shortened(strange[0])}; expected one of {', '.join(_TYPES)}{hint}"


def _format(match: re.Match[str], node: Node) -> str | None:
    if node.get("format") != match[1]:
        return None
    return f"has the format {shortened(match[1])}; expected one of {', '.join(_FORMATS)}, or a `pattern`"


def _pattern(match: re.Match[str], node: Node) -> str | None:
    names = node.get("patternProperties")
    for text in (node.get("pattern"), *(names if isinstance(names, Mapping) else ())):
        if isinstance(text, str) and match[1].startswith(" ".join(text.split())):
            return f"has the pattern {shortened(text)}; expected a regular expression without look-around"
    return None


def _value(match: re.Match[str], node: Node) -> str | None:
    key, kind = match["key"], match["kind"]
    if key not in node:
        return None
    found, of_list = node[key], " item" in match[0]
    if all(map(_IS[kind], found)) if of_list and isinstance(found, list) else _IS[kind](found):
        return None
    return f"has {key} {shortened(found)}; expected {'a list, each of it ' if of_list else ''}{_KINDS[kind]}"


def _part(match: re.Match[str], node: Node) -> str | None:
    parts = [(key, node[key]) for key in AS_ONE if key in node and not isinstance(node[key], list)]
    parts += [(name, part) for key in BY_NAME if isinstance(node.get(key), Mapping) for name, part in node[key].items()]
    parts += [(key, part) for key in _IN_LISTS if isinstance(node.get(key), list) for part in node[key]]
    for name, part in parts:
        if not isinstance(part, Mapping | bool):
            return f"has {shortened(part)} as {shown(name, _LONGEST_NAME)}; expected a schema, such as {{type: string}}"
    return None


def _reference(match: re.Match[str], node: Node) -> str | None:
    for key, expected in (("$ref", "a part of this schema, such as #/$defs/name"), ("$schema", "a JSON Schema's own")):
        found = node.get(key)
        if isinstance(found, str) and match["to"].removeprefix("json-schema:///") in found:
            return f"refers to {shortened(found)} ({key}), which is not there; expected {expected}"
    return None


def _contradiction(match: re.Match[str], node: Node) -> str | None:
    for low, high in _PAIRS if "type" in node else ():  # without one, values of other types fit
        least, most = node.get(low), node.get(high)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            return f"has {low} {least} and {high} {most}, so nothing fits it; make one of them wider"
    if node.get("enum") == []:
        return "has an enum of no value, so nothing fits it; name some"
    return None


def _unfilled(match: re.Match[str], node: Node) -> str | None:
    name, fields = match[1], node.get("properties")
    if not isinstance(fields, Mapping) or name not in fields or name not in (node.get("required") or ()):
        return None
    return f"requires {shortened(name)}, and nothing fits what is said of that; its limits, type or values contradict"


def _counted(match: re.Match[str], node: Node) -> str | None:
    found = [key for key in ("minProperties", "maxProperties") if key in node]
    return f"has {', '.join(found)}; that needs each of its properties under `required`" if found else None


_RULES: tuple[tuple[str, Rule], ...] = (
    (r"Unimplemented keys: (\[.*\])", _keyword),
    (r"Invalid type: |type must be a string or array of strings", _type),
    (r"Unknown format: (.*)", _format),
    (r"regex parse error: (.*)", _pattern),
    (rf"Expected (?P<kind>{'|'.join(_KINDS)}) for '(?P<key>.+?)'(?: item)?, got", _value),
    (r"(?P<key>\S+) must be an (?P<kind>array)", _value),
    (r"(?P<key>\S+) must be a (?P<kind>string), got", _value),
    (r"schema must be an object or boolean", _part),
    (r"(?:Pointer|Resource) '(?P<to>.*?)'", _reference),
    (r"Unsatisfiable schema", _contradiction),
    (r"required property '(.*)' is unsatisfiable", _unfilled),
    (r"min/maxProperties only supported", _counted),
)
