"""Which answers can be written field by field: objects whose properties are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FieldForm", "field_forms", "free_texts", "shortest_answer"]

_MOST_LABELS = 64  # of a field whose labels are scored
# Words of a schema whose values are all known; others restrict them further, which is left to the grammar.
_PLAIN = {"type", "enum", "const", "title", "description", "default", "examples", "$comment", "deprecated"}
_OTHERS = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "dependentSchemas", "dependentRequired")


@dataclass(frozen=True)
class FieldForm:
    """One property of an answer."""

    name: str
    labels: tuple[str, ...] | None  # its values as JSON, to be scored; one is decided; None: the model writes it
    values: tuple[Any, ...] = ()  # the same, not as JSON
    free_text: bool = False  # its value is a text of the model's own


def field_forms(schema: Mapping[str, Any]) -> list[FieldForm]:
    """The properties in order; none where which of them there are depends on the answer.

    Properties that are not required are given as well.
    """
    properties = schema.get("properties")
    if schema.get("type", "object") != "object" or not isinstance(properties, Mapping) or not properties:
        return []
    if any(word in schema for word in _OTHERS) or set(schema.get("required", ())) - set(properties):
        return []
    return [_form(name, inner) for name, inner in properties.items()]


def shortest_answer(fields: Sequence[FieldForm]) -> str:
    """Of an answer whose fields all have labels, as it is written."""
    return (
        "{"
        + ", ".join(f"{json.dumps(f.name, ensure_ascii=False)}: {min(f.labels or [''], key=len)}" for f in fields)
        + "}"
    )


def free_texts(schema: Mapping[str, Any]) -> set[str]:
    """The properties whose values are texts of the model's own."""
    properties = schema.get("properties")
    found = properties.items() if isinstance(properties, Mapping) else ()
    return {name for name, inner in found if _form(name, inner).free_text}


def _form(name: str, schema: Any) -> FieldForm:
    values = _values(schema)
    if values is None or len(values) > _MOST_LABELS or any(isinstance(value, Mapping | list) for value in values):
        return FieldForm(name, None, free_text="string" in _kinds(schema))
    return FieldForm(name, tuple(json.dumps(value, ensure_ascii=False) for value in values), tuple(values))


def _values(schema: Any) -> Sequence[Any] | None:
    if not isinstance(schema, Mapping) or schema.keys() - _PLAIN:
        return None
    kinds = _kinds(schema)
    if "const" in schema or "enum" in schema:
        found = [schema["const"]] if "const" in schema else list(schema["enum"])
        fitting = [value for value in found if not kinds or any(_is(value, kind) for kind in kinds)]
        return fitting or None
    return [True, False] if kinds == ["boolean"] else None


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    types: dict[str, type] = {"string": str, "boolean": bool, "null": type(None)}
    return kind in types and isinstance(value, types[kind])


def _kinds(schema: Any) -> Sequence[str]:
    kinds = schema.get("type", ()) if isinstance(schema, Mapping) else ()
    return [kinds] if isinstance(kinds, str) else list(kinds)
