"""What a JSON schema means here: an object has the properties that its schema names, unless the schema opens it.

In JSON Schema an object may have any further properties unless `additionalProperties` says otherwise, and a model that
is held to such a schema adds some. So `additionalProperties: false` is added wherever a schema says nothing of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from device_runtime.engine.schema.references import referenced
from device_runtime.errors import SchemaError
from device_runtime.records.typed_json import shortened

__all__ = ["AS_ONE", "BY_NAME", "closed"]

BY_NAME = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")  # hold schemas by name
AS_ONE = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "then", "unevaluatedItems")
_SAYS_OTHERS = ("additionalProperties", "unevaluatedProperties")
_COUNTS_OTHERS = (
    "maxProperties",
    "minProperties",
    "propertyNames",
)  # without `properties`, they mean names of any kind
_NUMBERS = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum")
_KEYWORDS = (
    *BY_NAME, *AS_ONE, *_SAYS_OTHERS, *_COUNTS_OTHERS, *_NUMBERS, "allOf", "anyOf", "const", "enum", "format",
    "maxItems", "maxLength", "minItems", "minLength", "multipleOf", "oneOf", "pattern", "prefixItems", "required",
    "type",
)  # fmt: skip
_MOST = 20_000  # schemas within a schema, once references in `allOf` are written out


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, with every object closed that it does not open.

    Raises:
        SchemaError: it is nested too deeply, its references write out to too much, or a part of it would be ignored.
    """
    try:
        _require_sense(schema)
        result: dict[str, Any] = _Closer(schema).close(schema)
    except RecursionError:
        raise SchemaError("The schema cannot be used: it is nested too deeply; give it fewer levels.") from None
    return result


def _require_sense(root: Mapping[str, Any]) -> None:
    """Refuse what the grammar library takes and ignores: the answer would not be what the schema's author means."""
    rest: list[Any] = [root]
    count = 0
    while rest:
        node = rest.pop()
        count += 1
        if count > _MOST:
            raise SchemaError(f"The schema cannot be used: it has more than {_MOST} parts; simplify it.")
        for key, value in node.items():
            if key in BY_NAME:
                if not isinstance(value, Mapping):
                    raise _nonsense(key, value, "an object, from names to schemas")
                rest += [part for part in value.values() if isinstance(part, Mapping)]
            elif key in AS_ONE and isinstance(value, Mapping):
                rest.append(value)
            elif key in ("allOf", "anyOf", "items", "oneOf", "prefixItems") and isinstance(value, list):
                rest += [part for part in value if isinstance(part, Mapping)]
            elif key in _NUMBERS and isinstance(value, bool):  # as JSON Schema had it until draft 4
                raise _nonsense(key, value, "a number, the bound itself")
            elif isinstance(value, float) and not math.isfinite(value):  # which YAML and Python have, and JSON does not
                raise _nonsense(key, value, "a finite number")
            elif key == "multipleOf" and isinstance(value, int | float) and value <= 0:
                raise _nonsense(key, value, "a number above 0")
            elif key not in _KEYWORDS and (near := get_close_matches(key, _KEYWORDS, n=1, cutoff=0.8)):
                raise SchemaError(
                    f"The schema cannot be used: it has no keyword {shortened(key)}; did you mean {near[0]!r}?"
                )


def _nonsense(key: str, value: Any, expected: str) -> SchemaError:
    return SchemaError(f"The schema cannot be used: {key} is {shortened(value)}; expected {expected}.")


class _Closer:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._count = 0

    def close(self, node: Any, *, close: bool = True, known: tuple[str, ...] = (), inside: tuple[str, ...] = ()) -> Any:
        """A copy of the schema `node`.

        Args:
            close: False for a part of `allOf`: the whole is closed, over the names of all parts.
            known: names that the surrounding schema gives to the same object.
            inside: references that are being written out.
        """
        if not isinstance(node, Mapping):
            return node
        self._count += 1
        if self._count > _MOST:
            raise SchemaError(f"The schema cannot be used: it has more than {_MOST} parts; simplify it.")
        if not close and isinstance(node.get("$ref"), str) and node["$ref"] not in inside:
            target = referenced(self._root, node["$ref"])
            if isinstance(target, Mapping):
                rest = {key: value for key, value in node.items() if key != "$ref"}
                opened = self.close(target, close=False, inside=(*inside, node["$ref"]))
                return {**self.close(rest, close=False), "allOf": [opened]} if rest else opened
        if close and "$ref" in node and _is_object(node):  # a reference beside properties: both hold for one object
            rest = {key: value for key, value in node.items() if key != "$ref"}
            node = {**rest, "allOf": [*_list(rest.get("allOf")), {"$ref": node["$ref"]}]}
        names = tuple(dict.fromkeys([*known, *self._names(node)]))
        branches = [key for key in ("anyOf", "oneOf") if isinstance(node.get(key), list)]
        in_branches = close and bool(branches) and bool(names)  # each branch is closed over its own names and these
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key in BY_NAME and isinstance(value, Mapping):
                out[key] = {name: self.close(item) for name, item in value.items()}
            elif key in AS_ONE and isinstance(value, Mapping):
                out[key] = self.close(value)
            elif key in ("items", "prefixItems") and isinstance(value, list):
                out[key] = [self.close(item) for item in value]
            elif key == "allOf" and isinstance(value, list):
                out[key] = [self.close(item, close=False, inside=inside) for item in value]
            elif key in branches:
                out[key] = [self._branch(item, names if in_branches else (), close, inside) for item in value]
            else:
                out[key] = value
        if close and not in_branches and (known or self._is_open_object(node)):
            self._close_over(out, names)
        return out

    def _branch(self, node: Any, names: tuple[str, ...], close: bool, inside: tuple[str, ...]) -> Any:
        if names and isinstance(node, Mapping) and "$ref" in node:
            node = {"allOf": [node]}
        return self.close(node, close=close, known=names, inside=inside)

    @staticmethod
    def _close_over(out: dict[str, Any], names: tuple[str, ...]) -> None:
        properties = dict(out.get("properties") or {})
        out["properties"] = properties | {name: {} for name in names if name not in properties}
        out.setdefault("additionalProperties", False)

    def _is_open_object(self, node: Mapping[str, Any]) -> bool:
        """Whether it is an object's schema that says nothing of other names."""
        parts = [node, *map(self._target, _list(node.get("allOf")))]
        if not any(map(_is_object, parts)) or any(key in part for part in parts for key in _SAYS_OTHERS):
            return False
        return any("properties" in part for part in parts) or not any(key in node for key in _COUNTS_OTHERS)

    def _names(self, node: Any, depth: int = 0) -> Iterator[str]:
        """Names of properties that the schema gives to its object, those of `allOf` included."""
        self._count += 1
        if self._count > _MOST:
            raise SchemaError(f"The schema cannot be used: it has more than {_MOST} parts; simplify it.")
        if not isinstance(node, Mapping) or depth > 50:
            return
        if isinstance(node.get("properties"), Mapping):
            yield from node["properties"]
        yield from (name for name in _list(node.get("required")) if isinstance(name, str))
        for part in _list(node.get("allOf")):
            yield from self._names(self._target(part), depth + 1)
        if depth:  # what a part of allOf offers as a choice belongs to the object as well
            for key in ("anyOf", "oneOf"):
                for part in _list(node.get(key)):
                    yield from self._names(self._target(part), depth + 1)

    def _target(self, node: Any) -> Mapping[str, Any]:
        """What a reference refers to; any other schema as it is."""
        for _ in range(20):
            if not isinstance(node, Mapping) or not isinstance(node.get("$ref"), str):
                break
            node = referenced(self._root, node["$ref"])
        return node if isinstance(node, Mapping) else {}


def _is_object(node: Mapping[str, Any]) -> bool:
    kind = node.get("type")
    if kind is not None:
        return kind == "object" or (isinstance(kind, list) and "object" in kind)
    return "properties" in node or "required" in node or "patternProperties" in node


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
