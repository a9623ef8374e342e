"""A JSON schema as the table that holds an answer on a board.

docs/explained/schema-table.md describes the table; device_runtime/micro/schema/ reads it. What the reader cannot hold
is refused here, by its name.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from device_runtime.engine.schema.identity import schema_identity
from device_runtime.engine.schema.rules import closed
from device_runtime.errors import SchemaError

__all__ = ["schema_section"]

FORMAT = 1
DEPTH = 12  # SC_SCHEMA_DEPTH
_NO_LIMIT = 0xFFFFFFFF
_GREATEST = 10**18  # of a bound's digits
_ENTRY = struct.Struct("<QII")  # identity, offset, bytes
_HEADER = struct.Struct("<6I")  # nodes, properties, items, literals, bytes of their text, 0
_NODE = struct.Struct("<4I2Q")
assert (_ENTRY.size, _HEADER.size, _NODE.size) == (16, 24, 32)

_REMARKS = {"$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples",
            "readOnly", "title", "writeOnly"}  # fmt: skip
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
_LITERAL_TYPES = {"boolean": ["false", "true"], "null": ["null"]}


class _Kind(enum.IntEnum):
    LITERALS = 1
    TEXT = 2
    INTEGER = 3
    NUMBER = 4
    LIST = 5
    OBJECT = 6
    CHOICE = 7


def schema_section(schemas: Sequence[Mapping[str, Any]]) -> bytes:
    """The section of a model image with these schemas.

    Raises:
        SchemaError: one has something that a board cannot hold an answer to; the message names it.
    """
    tables = [_Table(closed(schema)).pack() for schema in schemas]
    at = 12 + _ENTRY.size * len(tables)
    entries = b""
    for schema, table in zip(schemas, tables, strict=True):
        entries += _ENTRY.pack(schema_identity(schema), at, len(table))
        at += len(table)
    return struct.pack("<4sII", b"SCSC", FORMAT, len(tables)) + entries + b"".join(tables)


class _Table:
    """The nodes of one schema, each before its children."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._nodes: list[bytes] = []
        self._properties: list[tuple[int, int, bool]] = []
        self._items: list[int] = []
        self._literals: list[bytes] = []
        self._add(schema, "#", DEPTH, ())

    def pack(self) -> bytes:
        """The table's bytes, a multiple of four."""
        starts = [0]
        for literal in self._literals:
            starts.append(starts[-1] + len(literal))
        text = b"".join(self._literals)
        if max(len(self._nodes), len(self._literals)) > 65535:
            raise SchemaError("The schema is too large for a board: more than 65,535 values or texts; simplify it.")
        header = _HEADER.pack(
            len(self._nodes), len(self._properties), len(self._items), len(self._literals), len(text), 0
        )
        body = b"".join(self._nodes)
        body += b"".join(struct.pack("<II", key, node | need << 31) for key, node, need in self._properties)
        body += struct.pack(f"<{len(self._items)}I", *self._items) + struct.pack(f"<{len(starts)}I", *starts) + text
        return header + body + bytes(-len(header + body) % 4)

    def _node(self, kind: _Kind, a: int = 0, b: int = 0, c: int = 0, bounds: tuple[int, int] = (0, 0)) -> int:
        self._nodes.append(_NODE.pack(kind, a, b, c, *bounds))
        return len(self._nodes) - 1

    def _fill(self, node: int, kind: _Kind, a: int, b: int, c: int = 0) -> int:
        self._nodes[node] = _NODE.pack(kind, a, b, c, 0, 0)
        return node

    def _add(self, schema: Any, where: str, depth: int, references: tuple[str, ...]) -> int:
        """Add the node of a schema and those below it; its number."""
        alternatives = list(self._alternatives(schema, where, references))
        literals = [text for kind, text in alternatives if kind == "literal"]
        others = [(kind, value) for kind, value in alternatives if kind != "literal"]
        first_bytes = [_first_bytes(kind) for kind, _ in others] + ([{t[0] for t in literals}] if literals else [])
        if sum(map(len, first_bytes)) > len(set[str]().union(*first_bytes)):
            raise _refuse(where, "two alternatives that begin alike", "alternatives that differ in their first byte")
        if not first_bytes:
            raise _refuse(where, "a schema that nothing fits", "one that has an answer")
        if len(first_bytes) == 1:
            return self._add_literals(literals) if literals else self._add_one(*others[0], where, depth, references)
        choice = self._node(_Kind.CHOICE)
        nodes = [self._add_one(kind, value, where, depth, references) for kind, value in others]
        nodes += [self._add_literals(literals)] if literals else []
        first = len(self._items)
        self._items += nodes
        return self._fill(choice, _Kind.CHOICE, first, len(nodes))

    def _alternatives(self, schema: Any, where: str, references: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
        """What a schema offers: ("literal", JSON text), or (a type, schema)."""
        if not isinstance(schema, Mapping):
            raise _refuse(where, f"{schema!r}", "a schema that says its type")
        words = schema.keys() - _REMARKS
        if "$ref" in words:
            yield from self._alternatives(self._referred(schema, where, references), where, references)
            return
        for word in ("anyOf", "oneOf"):
            if word in words:
                if words != {word}:
                    raise _refuse(where, f"{word} beside {', '.join(sorted(words - {word}))}", f"{word} alone")
                for i, part in enumerate(schema[word]):
                    yield from self._alternatives(part, f"{where}/{word}/{i}", references)
                return
        types = schema.get("type")
        named = list(types) if isinstance(types, list) else [types] if types is not None else []
        if "const" in words or "enum" in words:
            if extra := words - {"const", "enum", "type"}:
                raise _refuse(where, f"{min(extra)} beside an enum", "an enum or a const alone")
            values = [schema["const"]] if "const" in words else schema["enum"]
            yield from (("literal", text) for text in _literals(values, named, where))
            return
        if not named:
            raise _refuse(where, "no type", "type, enum, const, anyOf or $ref")
        known = set[str]().union(*(_KEYWORDS.get(name, set()) for name in named)) | {"type"}
        if extra := words - known:
            raise _refuse(where, min(extra), "what docs/explained/schema-table.md lists")
        for name in named:
            if name not in _KEYWORDS:
                raise _refuse(where, f"the type {name!r}", ", ".join(_KEYWORDS))
            if name in _LITERAL_TYPES:
                yield from (("literal", text) for text in _LITERAL_TYPES[name])
            else:
                yield name, schema

    def _referred(self, schema: Mapping[str, Any], where: str, references: tuple[str, ...]) -> Any:
        reference = schema["$ref"]
        if not isinstance(reference, str) or not reference.startswith("#/") or schema.keys() - _REMARKS != {"$ref"}:
            raise _refuse(where, f"the reference {reference!r}", "one inside of the schema, alone")
        found: Any = self._root
        for step in reference[2:].split("/"):
            if not isinstance(found, Mapping) or step not in found:
                raise _refuse(where, f"the reference {reference!r}, which leads nowhere", "one inside of the schema")
            found = found[step]
        return found

    def _add_one(self, kind: str, schema: Mapping[str, Any], where: str, depth: int, refs: tuple[str, ...]) -> int:
        if kind == "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength", _NO_LIMIT)
            _check_range(least, most, where, "minLength")
            return self._node(_Kind.TEXT, least, most)
        if kind in ("integer", "number"):
            return self._add_number(kind, schema, where)
        if depth == 0:
            raise _refuse(where, f"more than {DEPTH} objects and lists inside of each other", "fewer")
        if kind == "array":
            if not isinstance(schema.get("items"), Mapping):
                raise _refuse(where, "an array without items", "items: a schema")
            least, most = schema.get("minItems", 0), schema.get("maxItems", _NO_LIMIT)
            _check_range(least, most, where, "minItems")
            node = self._node(_Kind.LIST)
            return self._fill(
                node, _Kind.LIST, self._add(schema["items"], f"{where}/items", depth - 1, refs), least, most
            )
        if schema.get("additionalProperties") is not False:
            raise _refuse(where, "an open object", "additionalProperties: false")
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        node = self._node(_Kind.OBJECT)
        entries = []
        for name, value in properties.items():
            key = len(self._literals)
            self._literals.append(_text(name).encode() + b": ")
            entries.append((key, self._add(value, f"{where}/properties/{name}", depth - 1, refs), name in required))
        first = len(self._properties)
        self._properties += entries
        return self._fill(node, _Kind.OBJECT, first, len(entries))

    def _add_literals(self, texts: Iterable[str]) -> int:
        ordered = sorted({text.encode() for text in texts})
        first = len(self._literals)
        self._literals += ordered
        return self._node(_Kind.LITERALS, first, len(ordered))

    def _add_number(self, kind: str, schema: Mapping[str, Any], where: str) -> int:
        bounds: list[Decimal | None] = []
        flags = 0
        for bit, word, exclusive, sign in (
            (1, "minimum", "exclusiveMinimum", 1),
            (2, "maximum", "exclusiveMaximum", -1),
        ):
            found = [(Decimal(str(schema[w])) * sign, w == exclusive) for w in (word, exclusive) if w in schema]
            if not found:
                bounds.append(None)
                continue
            value, is_open = max(found)  # the stricter one
            if kind == "integer":  # the next whole number inside
                whole = value.to_integral_value("ROUND_CEILING")
                value, is_open = whole + (is_open and whole == value), False
            bounds.append(value * sign)
            flags |= bit | (bit << 2 if is_open else 0)
        given = [bound for bound in bounds if bound is not None]
        low, high = bounds
        if low is not None and high is not None and (low > high or (low == high and flags & 12)):
            raise _refuse(where, f"no {kind} between {low} and {high}", "bounds with something between them")
        decimals = max([0, *(-int(bound.normalize().as_tuple().exponent) for bound in given)])
        magnitudes = [0 if bound is None else int(abs(bound).scaleb(decimals)) for bound in bounds]
        if decimals > 15 or max(magnitudes) >= _GREATEST:
            raise _refuse(where, f"a bound of more than 18 digits ({max(map(abs, given))})", "shorter bounds")
        negative = sum(1 << i for i, bound in enumerate(bounds) if bound is not None and bound < 0)
        node_kind = _Kind.INTEGER if kind == "integer" else _Kind.NUMBER
        return self._node(node_kind, flags, decimals, negative, (magnitudes[0], magnitudes[1]))


def _first_bytes(kind: str) -> set[str]:
    return {"string": {'"'}, "object": {"{"}, "array": {"["}}.get(kind, set("-0123456789"))


def _literals(values: Iterable[Any], types: Sequence[str], where: str) -> Iterable[str]:
    """JSON texts of the values of an enum, those of another type left out."""
    for value in values:
        if types and not any(_is_of(value, name) for name in types):
            continue
        yield _text(value, where)


def _is_of(value: Any, name: str) -> bool:
    if name == "integer":
        return not isinstance(value, bool) and isinstance(value, int | float) and float(value).is_integer()
    kinds = {"number": (int, float), "string": str, "boolean": bool, "null": type(None), "object": dict, "array": list}
    kind = kinds.get(name, ())
    return isinstance(value, kind) and (name == "boolean" or not isinstance(value, bool))  # type: ignore[arg-type]


def _text(value: Any, where: str = "#") -> str:
    """JSON as the grammar writes it: with spaces after commas and colons, whole numbers without a point."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)}: {_text(v, where)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(item, where) for item in value) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and ("e" in text or "n" in text.lower()):
        raise _refuse(where, f"the number {text} in an enum", "numbers without an exponent")
    return text


def _check_range(least: int, most: int, where: str, word: str) -> None:
    if not 0 <= least <= most <= _NO_LIMIT:
        raise _refuse(where, f"{word} {least} with a greatest of {most}", "the least at most as much as the greatest")


def _refuse(where: str, found: str, expected: str) -> SchemaError:
    return SchemaError(f"The schema cannot hold an answer on a board: found {found} at {where}; expected {expected}.")
