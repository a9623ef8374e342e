"""By what a board's firmware calls a JSON schema: its model image holds the schemas that it can hold answers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from device_runtime.engine.schema.rules import closed

__all__ = ["canonical_schema", "schema_identity"]

_VALUES = ("const", "default", "enum", "examples")  # hold values, not schemas
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")  # hold schemas by name


def schema_identity(schema: Mapping[str, Any]) -> int:
    """64 bits of the SHA-256 of a schema, objects closed.

    The order of an object's properties counts, because an answer has it; that of a schema's own words does not.
    """
    return int.from_bytes(hashlib.sha256(canonical_schema(schema).encode()).digest()[:8], "little")


def canonical_schema(schema: Mapping[str, Any]) -> str:
    """A schema as its identity is made of it: a board by itself compares nothing else."""
    return json.dumps(_ordered(closed(schema)), ensure_ascii=False, separators=(",", ":"))


def _ordered(node: Any) -> Any:
    if isinstance(node, list):
        return [_ordered(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    out: dict[str, Any] = {}
    for word, value in sorted(node.items()):
        if word in _VALUES:
            out[word] = value
        elif word in _NAMED and isinstance(value, Mapping):
            out[word] = {name: _ordered(inner) for name, inner in value.items()}
        elif word == "required" and isinstance(value, list):
            out[word] = sorted(map(str, value))
        else:
            out[word] = _ordered(value)
    return out
