"""The JSON schema of a link's answer, as it is in a fleet file.

JSON Schema takes a word that it does not know for a remark, so that a misspelt `properties` would hold an answer to
nothing at all, and so would the fields of an answer without `properties` around them. Here both are faults with their
places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import yaml

from device_runtime.engine.structured import check_schema
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.yaml_schema import MAX_HINTS, Plain, Report

__all__ = ["Answer"]

_ONE = frozenset({
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_SEVERAL = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_WORDS = sorted(_ONE | _SEVERAL | _NAMED | {
    "$anchor", "$comment", "$id", "$ref", "$schema", "const", "default", "dependentRequired", "deprecated",
    "description", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "maxContains", "maxItems",
    "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
    "multipleOf", "pattern", "readOnly", "required", "title", "type", "uniqueItems", "writeOnly",
})  # fmt: skip

_KNOWN = frozenset(_WORDS)
_EXPECTED = "a JSON schema, a mapping such as {type: object, …}"

Path_ = tuple[str | int, ...]


class Answer:
    """Reads a schema; a `yaml_schema.Reader`."""

    def read(self, node: yaml.Node, path: Path_, report: Report) -> Mapping[str, Any]:
        """The schema."""
        before = len(report.faults)
        for schema, where in _schemas(node, path, set()):
            _check_words(schema, where, report)

        def check(schema: Any) -> Any:
            if not isinstance(schema, dict):
                raise ConfigurationError(_EXPECTED)
            if len(report.faults) == before:  # or the library would stumble over what is reported already
                check_schema(schema)
            return schema

        found: Mapping[str, Any] = Plain(_EXPECTED, check).read(node, path, report)
        return found


def _check_words(schema: yaml.MappingNode, path: Path_, report: Report) -> None:
    fields = {key.value: value for key, value in schema.value if isinstance(key, yaml.ScalarNode)}
    before = len(report.faults)
    for key, _ in schema.value:
        word = str(key.value)
        if word in _KNOWN or len(report.faults) > MAX_HINTS:
            continue
        if near := get_close_matches(word[:100], [w for w in _WORDS if w not in fields], n=1, cutoff=0.75):
            report.add(key, path, f"unknown keyword {word!r}; did you mean {near[0]!r}?")
    if fields and not _KNOWN & set(fields) and len(report.faults) == before:  # any answer would fit it
        report.add(schema, path, f"{', '.join(map(str, fields))[:80]}: no keyword of JSON Schema; expected {_EXPECTED}")
    properties, required = fields.get("properties"), fields.get("required")
    if isinstance(properties, yaml.MappingNode) and isinstance(required, yaml.SequenceNode):
        names = {str(key.value): None for key, _ in properties.value}
        for item in required.value:
            if str(item.value) in names or len(report.faults) > MAX_HINTS:
                continue
            if near := get_close_matches(str(item.value), names, n=1):
                text = f"{item.value!r} is none of the properties; did you mean {near[0]!r}?"
                report.add(item, (*path, "required"), text)


def _schemas(node: yaml.Node, path: Path_, seen: set[int]) -> Iterator[tuple[yaml.MappingNode, Path_]]:
    """The schema and those in it. Through an anchor, one may be in several places."""
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    yield node, path
    for key, value in node.value:
        name = str(key.value)
        if name in _ONE:
            yield from _schemas(value, (*path, name), seen)
        if name in _SEVERAL and isinstance(value, yaml.SequenceNode):
            for number, item in enumerate(value.value):
                yield from _schemas(item, (*path, name, number), seen)
        if name in _NAMED and isinstance(value, yaml.MappingNode):
            for inner, item in value.value:
                yield from _schemas(item, (*path, name, str(inner.value)), seen)
