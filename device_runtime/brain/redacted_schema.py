"""The schema of an answer without what is withheld.

What it says to a reader is cleaned like any text. What it demands of an answer cannot be, or the answer would be held
to something else. A field that is withheld may still be asked for; what the schema says of its values is withheld.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_runtime.brain.redaction import Redactor
from device_runtime.engine.schema.rules import AS_ONE, BY_NAME
from device_runtime.errors import CannotRedactError

__all__ = ["schema_for_far_side", "schema_for_record", "secrets_of"]

# What holds schemas, as one or in a list (JSON Schema 2020-12, sections 10 and 11).
_AS_ONE = (*AS_ONE, "not", "propertyNames", "unevaluatedProperties")
_IN_LIST = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_VALUES = ("const", "enum", "pattern")  # say what a field may hold
_BOUNDS = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum")
_DEMANDS = (
    *_VALUES, "$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "dependentRequired", "format",
    "required", "type",
)  # fmt: skip
_COUNTS = ("maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength",
           "minProperties", "multipleOf", "uniqueItems")  # fmt: skip
_KNOWN = (*BY_NAME, *_AS_ONE, *_IN_LIST, *_BOUNDS, *_DEMANDS, *_COUNTS)  # the others are remarks
_LEAST_BOUND = 3  # characters of a number, as for a text that comes again


def schema_for_far_side(
    redactor: Redactor, schema: Mapping[str, Any] | None, secrets: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """A schema that asks for the same answers, and says nothing of what is withheld.

    Args:
        secrets: of the question, see `Redactor.secrets`.

    Raises:
        CannotRedactError: there is none: it demands something that is withheld.
    """
    return _cleaned(redactor, schema, secrets, strict=True)


def schema_for_record(
    redactor: Redactor, schema: Mapping[str, Any] | None, secrets: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """A schema to look at: what it demands is replaced as well."""
    return _cleaned(redactor, schema, secrets, strict=False)


def secrets_of(
    redactor: Redactor, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None
) -> dict[str, str]:
    """What is withheld of a question that somebody has written, and of its schema; see `Redactor.secrets`."""
    return {**redactor.secrets_of(messages), **_secrets_in(redactor, schema)}


def _secrets_in(redactor: Redactor, schema: Any) -> dict[str, str]:
    """The texts of withheld fields in a schema's examples and defaults."""
    found: dict[str, str] = {}
    for name, value in _examples(schema, ""):
        found |= redactor.secrets({name: value} if name in redactor.names else value)
    return found


def _cleaned(
    redactor: Redactor, schema: Mapping[str, Any] | None, secrets: Mapping[str, str], *, strict: bool
) -> Mapping[str, Any] | None:
    if schema is None or not redactor:
        return schema
    known = {**secrets, **_secrets_in(redactor, schema)}
    found: Mapping[str, Any] = _Cleaner(redactor, known, strict).node(schema)
    return found


@dataclass(frozen=True)
class _Cleaner:
    redactor: Redactor
    secrets: Mapping[str, str]
    strict: bool  # refuse what cannot be withheld without another meaning

    def node(self, node: Any, instead: str | None = None) -> Any:
        """A schema.

        Args:
            instead: what takes the place of values of its field; None: they are not withheld.
        """
        if not isinstance(node, Mapping):
            return self.demand(node)
        found = {}
        for key, value in node.items():
            if key in _KNOWN:
                found[key] = self.part(key, value, instead)
            elif instead is None:  # else what is said of the field is withheld with it
                found[self.redactor.text(key, self.secrets)] = self.redactor.value(value, self.secrets)
        return found

    def part(self, key: str, value: Any, instead: str | None) -> Any:
        """One keyword's."""
        if key in BY_NAME and isinstance(value, Mapping):
            of = self.redactor.instead_of if key == "properties" else lambda name: None
            return {self.demand(name): self.node(inner, of(name) or instead) for name, inner in value.items()}
        if key in _AS_ONE and isinstance(value, Mapping):
            return self.node(value, instead)
        if key in _IN_LIST and isinstance(value, list):
            return [self.node(inner, instead) for inner in value]
        if key in _COUNTS or isinstance(value, bool):
            return value
        if key in _BOUNDS and len(json.dumps(value)) < _LEAST_BOUND:
            return value
        return self.demand(value, instead if key in _VALUES else None)

    def demand(self, value: Any, instead: str | None = None) -> Any:
        """What an answer is held to."""
        if isinstance(value, list):
            return [self.demand(inner, instead) for inner in value]
        if instead is not None:
            left: Any = value if value is None else instead
        elif isinstance(value, int | float) and str(value) in self.secrets:
            left = self.secrets[str(value)]
        else:
            left = self.redactor.value(value, self.secrets)
        if self.strict and left != value:
            raise CannotRedactError("the answer's schema demands something that is to be withheld")
        return left


def _examples(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each `default`, and all `examples`, with the name of the field that they are for."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key in BY_NAME and isinstance(value, Mapping):
            for inner_name, inner in value.items():
                yield from _examples(inner, inner_name if key == "properties" else name)
        elif key in _AS_ONE and isinstance(value, Mapping):
            yield from _examples(value, name)
        elif key in _IN_LIST and isinstance(value, list):
            for inner in value:
                yield from _examples(inner, name)
        elif key in ("default", "examples"):
            yield name, value
