"""The fields of an answer as an encoder gives them, which writes nothing: each with the values to choose among."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.file import Task

__all__ = ["MOST_NUMBERS", "with_labels"]

MOST_NUMBERS = 256  # of a field: each is a row of the head, which learns it from the cases that have it
_READ = {"type", "minimum", "maximum"}  # what a field's values are read from
_SAID = {"$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}


def with_labels(task: Task) -> Task:
    """The same task with all values of each field listed: of a truth value both, of a whole number its range.

    Raises:
        ConfigurationError: a field has more values than `MOST_NUMBERS`, or any.
    """
    fields = {name: _listed(task.name, name, inner) for name, inner in task.answer["properties"].items()}
    return replace(task, answer={**task.answer, "properties": fields})


def _listed(task: str, name: str, schema: Any) -> Any:
    if isinstance(schema, Mapping) and schema.get("enum"):
        return schema
    kinds = schema.get("type", []) if isinstance(schema, Mapping) and set(schema) <= _READ | _SAID else []
    kinds = [kinds] if isinstance(kinds, str) else kinds
    values: list[Any] = [None] if "null" in kinds else []
    values += [False, True] if "boolean" in kinds else []
    numbers = range(0)
    if "integer" in kinds and "minimum" in schema and "maximum" in schema:
        numbers = range(math.ceil(schema["minimum"]), math.floor(schema["maximum"]) + 1)
    if len(numbers) > MOST_NUMBERS:
        raise ConfigurationError(
            f"{task} answers with {name}, a whole number from {numbers[0]} to {numbers[-1]}, and an encoder writes "
            f"nothing: it chooses among at most {MOST_NUMBERS} numbers. Narrow `minimum` and `maximum`, or train this "
            "task with --kind tiny, or --kind tune from a checkpoint that writes."
        )
    values += numbers
    if len(values) < 2 or set(kinds) - {"null", "boolean", *(["integer"] if numbers else [])}:
        raise ConfigurationError(
            f"{task} answers with {name}, which has no labels to choose from, and an encoder writes nothing; make it "
            "an enum, or a whole number with `minimum` and `maximum`, or train this task with --kind tiny, or --kind "
            "tune from a checkpoint that writes."
        )
    return {**schema, "enum": values}
