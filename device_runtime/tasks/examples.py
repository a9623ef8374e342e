"""Examples: inputs and their right answers, one JSON object a line.

    {"input": {"temp_c": 71.5, "bar": 1.4, "flow_l_min": 12, "window": [{"temp_c": 70.9, …}]}, "answer": {…}}
    {"input": {"text": "kitchen light on please"}, "answer": {…}}

In a CSV file a column is named after the input's field or the answer's.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigurationError, MessageError
from device_runtime.mqtt.strict_json import parse_line
from device_runtime.records.printable import counted
from device_runtime.records.text_file import lines_in, read_text
from device_runtime.tasks.inputs import Inputs

__all__ = ["Example", "answer_faults", "parse_examples", "read_examples"]

_SHOWN_FAULTS = 10
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_LONGEST_INTEGER = 300  # characters; of more Python makes no int


@dataclass(frozen=True)
class Example:
    """An input, and what is right for it; None where that is not known."""

    input: Mapping[str, Any]
    answer: Mapping[str, Any] | None = None


def read_examples(path: Path, inputs: Inputs, schema: Mapping[str, Any], *, need_answers: bool = True) -> list[Example]:
    """Read a .jsonl or .csv file.

    Raises:
        ConfigurationError: lists its first faults, each with its line.
    """
    if not path.exists():
        raise ConfigurationError(
            f'{path} is not there; expected a file of lines such as {{"input": {{…}}, "answer": {{…}}}}. '
            "Write it, or name another one."
        )
    text = read_text(path)
    rows = _csv_rows(text, inputs, schema) if path.suffix.lower() == ".csv" else _json_rows(text)
    return _checked(rows, str(path), schema, need_answers)


def parse_examples(text: str, name: str, schema: Mapping[str, Any]) -> list[Example]:
    """Read JSON lines that are no file; `name` is what a message calls them."""
    return _checked(_json_rows(text), name, schema, need_answers=True)


def _checked(
    rows: Iterator[tuple[int, Any, str]], name: str, schema: Mapping[str, Any], need_answers: bool
) -> list[Example]:
    examples, faults = [], []
    for line, row, fault in rows:
        fault = fault or _fault(row, schema, need_answers)
        if fault:
            faults.append(f"{name}:{line}: {fault}")
        else:
            examples.append(Example(row["input"], row.get("answer")))
    if faults:
        more = f"\n… and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise ConfigurationError("\n".join(faults[:_SHOWN_FAULTS]) + more)
    if not examples:
        raise ConfigurationError(f'{name} holds no examples; a line is {{"input": {{…}}, "answer": {{…}}}}.')
    return examples


def answer_faults(answer: Mapping[str, Any], schema: Mapping[str, Any], *, whole: bool = True) -> list[str]:
    """What is wrong with an answer: fields that are missing, unknown, or hold what the schema does not allow.

    Args:
        whole: False lets fields be missing: those whose truth is not known.
    """
    fields = schema.get("properties", {})
    faults = [f"{name!r} is missing" for name in fields if whole and name not in answer]
    known = (
        f"one of the answer's fields, {', '.join(fields)}" if fields else "known: the answer's schema names no fields"
    )
    faults += [f"{name!r} is not {known}" for name in answer if name not in fields]
    for name, value in answer.items():
        if name in fields and (fault := _value_fault(value, fields[name])):
            written = json.dumps(value, ensure_ascii=False)
            faults.append(f"{name} is {written if len(written) <= 60 else written[:59] + '…'}; expected {fault}")
    return faults


def _value_fault(value: Any, schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "" if value in schema["enum"] else f"one of {', '.join(map(str, schema['enum']))}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if kinds and not any(_is(value, kind) for kind in kinds):
        return " or ".join(kinds)
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        return f"at most {counted(schema['maxLength'], 'character')}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"a number from {schema.get('minimum', '…')} to {schema.get('maximum', '…')}"
    return ""


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        right = int if kind == "integer" else (int, float)
        return isinstance(value, right) and not isinstance(value, bool)
    types: dict[str, Any] = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return isinstance(value, types.get(kind, object))


def _fault(row: Any, schema: Mapping[str, Any], need_answers: bool) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("input"), dict):
        return f'found {json.dumps(row, ensure_ascii=False):.60}; expected {{"input": {{…}}, "answer": {{…}}}}'
    answer = row.get("answer")
    if answer is None:
        return '"answer" is missing' if need_answers else ""
    if not isinstance(answer, dict):
        return f"the answer is {json.dumps(answer):.60}; expected an object"
    return "; ".join(answer_faults(answer, schema, whole=need_answers))


def _json_rows(text: str) -> Iterator[tuple[int, Any, str]]:
    for number, line in enumerate(lines_in(text), 1):
        if not line.strip():
            continue
        try:
            yield number, parse_line(line), ""
        except MessageError as error:
            yield number, None, str(error).rstrip(".")


def _csv_rows(text: str, inputs: Inputs, schema: Mapping[str, Any]) -> Iterator[tuple[int, Any, str]]:
    answers: Mapping[str, Any] = schema.get("properties", {})
    given = ["text"] if inputs.text is not None else list(inputs.fields or {})
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # whether a text is too long, the task says
    # strict: else a quotation mark that nothing closes takes the rest of the file for one text.
    reader = csv.DictReader(io.StringIO(text), strict=True)
    begins = 1  # the line of a row, which may have several
    try:
        if missing := [name for name in given if name not in (reader.fieldnames or [])]:
            yield 1, None, f"the first line has no column {missing[0]!r}; expected {', '.join([*given, *answers])}"
            return
        begins = reader.line_num + 1
        for row in reader:
            if None in row:
                yield begins, None, "more cells than the first line has; a text with a comma needs quotation marks"
            else:
                answer = {name: _of_cell(row[name], answers[name]) for name in answers if row.get(name) is not None}
                yield begins, {"input": {n: _number(row[n]) for n in given}, "answer": answer or None}, ""
            begins = reader.line_num + 1
    except csv.Error as error:
        yield begins, None, f"not CSV: {error}; a text in quotation marks ends with one, and doubles those within"


def _of_cell(cell: str, schema: Mapping[str, Any]) -> Any:
    kinds: Sequence[str] = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if cell == "" and "null" in kinds:
        return None
    if "integer" in kinds or "number" in kinds:
        return _number(cell)
    return next((value for value in schema.get("enum", []) if str(value) == cell), cell)


def _number(cell: str) -> Any:
    """A number as JSON writes it, or a text: Python's `float` reads nan and 1_000, too."""
    if not _NUMBER.fullmatch(cell.strip()):
        return cell
    number = float(cell) if any(letter in cell for letter in ".eE") or len(cell) > _LONGEST_INTEGER else int(cell)
    return number if math.isfinite(number) else cell
