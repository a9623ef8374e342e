"""Which JSON schemas fit the answers of heads: they choose among the values of their training, and nothing else holds
them to a schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from device_runtime.errors import SchemaError
from device_runtime.tasks.examples import answer_faults

__all__ = ["constants", "require_fit"]

_NEXT = "It chooses among these by itself: allow them, or leave the schema out."


def constants(fields: Mapping[str, Sequence[Any] | None], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a schema gives to fields, as that of a link with `decide` does: no head chooses those."""
    properties = schema.get("properties", {})
    properties = properties if isinstance(properties, Mapping) else {}
    return {
        name: properties[name]["const"]
        for name in fields
        if isinstance(properties.get(name), Mapping) and "const" in properties[name]
    }


def require_fit(name: str, fields: Mapping[str, Sequence[Any] | None], schema: Mapping[str, Any]) -> None:
    """Raise a `SchemaError` unless all answers have the fields that `schema` wants, with values that it allows.

    Args:
        name: of the bundle.
        fields: what it answers with, and the values of each.
    """
    has = ", ".join(map(repr, fields))
    properties = schema.get("properties", {})
    properties, given = properties if isinstance(properties, Mapping) else {}, constants(fields, schema)
    for field in dict.fromkeys((*properties, *schema.get("required", ()))):
        if field not in fields:
            raise SchemaError(f"{name} answers with {has}; {field!r} is none of its fields. {_NEXT}")
        wanted = properties.get(field)
        if field in given:
            if given[field] not in (fields[field] or ()):
                raise SchemaError(f"{name} never answers {field} {given[field]!r}, which the schema asks for. {_NEXT}")
            continue
        for value in fields[field] or () if isinstance(wanted, Mapping) else ():
            if answer_faults({field: value}, {"properties": {field: wanted}}, whole=False):
                raise SchemaError(f"{name} may answer {field} {value!r}, which the schema does not allow. {_NEXT}")
    if schema.get("additionalProperties") is False and (more := [field for field in fields if field not in properties]):
        raise SchemaError(f"{name} answers with {has}, and the schema does not allow {more[0]!r}. {_NEXT}")
