"""The schema of an answer without what is withheld.

What it says to a reader is cleaned like any text. What it demands of an answer cannot be, or the answer would be held
to something else. A field that is withheld may still be asked for; what the schema says of its values is withheld.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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

    def note(key: str, value: Any, fields: tuple[str, ...]) -> Mapping[str, Any]:
        if key in ("default", "examples"):
            withheld = bool(fields) and fields[-1] in redactor.names
            found.update(redactor.secrets({fields[-1]: value} if withheld else value))
        return {}

    _made_again(schema, note, lambda value: value)
    return found


def _cleaned(
    redactor: Redactor, schema: Mapping[str, Any] | None, secrets: Mapping[str, str], *, strict: bool
) -> Mapping[str, Any] | None:
    if schema is None or not redactor:
        return schema
    known = {**secrets, **_secrets_in(redactor, schema)}
    found: Mapping[str, Any] = _Cleaner(redactor, known, strict).schema(schema)
    return found


@dataclass(frozen=True)
class _Cleaner:
    redactor: Redactor
    secrets: Mapping[str, str]
    strict: bool  # refuse what cannot be withheld without another meaning

    def schema(self, schema: Mapping[str, Any]) -> Any:
        """The whole of it."""
        return _made_again(schema, self.keyword, self.demand)

    def keyword(self, key: str, value: Any, fields: tuple[str, ...]) -> dict[str, Any]:
        """What becomes of a keyword, and under which name."""
        of = self.redactor.instead_of
        instead = next((text for name in reversed(fields) if (text := of(name)) is not None), None)
        if key not in _KNOWN:  # what is said of a field that is withheld is withheld with it
            return {} if instead else {self.redactor.text(key, self.secrets): self.redactor.value(value, self.secrets)}
        short = key in _BOUNDS and len(json.dumps(value)) < _LEAST_BOUND
        if key in _COUNTS or isinstance(value, bool) or short:
            return {key: value}
        return {key: self.demand(value, instead if key in _VALUES else None)}

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


def _made_again(
    node: Any,
    keyword: Callable[[str, Any, tuple[str, ...]], Mapping[str, Any]],
    other: Callable[[Any], Any],
    fields: tuple[str, ...] = (),
) -> Any:
    """A schema with each keyword that holds no schemas as `keyword` gives it.

    Args:
        keyword: gets its name, its value, and the properties that lead to it.
        other: makes the names by which schemas are listed, and what is no schema where one ought to be.
        fields: the properties that lead here.
    """
    if not isinstance(node, Mapping):
        return other(node)
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key in BY_NAME and isinstance(value, Mapping):
            found[key] = {
                other(name): _made_again(inner, keyword, other, (*fields, name) if key == "properties" else fields)
                for name, inner in value.items()
            }
        elif key in _AS_ONE and isinstance(value, Mapping):
            found[key] = _made_again(value, keyword, other, fields)
        elif key in _IN_LIST and isinstance(value, list):
            found[key] = [_made_again(inner, keyword, other, fields) for inner in value]
        else:
            found |= keyword(key, value, fields)
    return found
