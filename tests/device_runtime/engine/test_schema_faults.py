"""A schema that is refused: which field is at fault and what would be taken, then the library's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from device_runtime.engine.structured import check_schema
from device_runtime.errors import SchemaError
from toolkit.cli import main

NAMES = "date-time, date, time, duration, email, hostname, ipv4, ipv6, uri, uuid"


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    ("schema", "ours", "theirs"),
    [
        (of(a={"type": "text"}), "a has the type 'text'; expected one of string, integer", "Invalid type: text"),
        (of(a={"type": "strin"}), "array, null; did you mean 'string'?", "Invalid type: strin"),
        (of(a={"type": 5}), "a has the type 5; expected one of string", "type must be a string"),
        (of(a=of(b={"not": {"const": 1}})), "a.b has 'not', which no answer can be held to; say it with", "Unimpl"),
        (of(n={"items": {"if": {}, "then": {}}}), "n[] has 'if', 'then', which no answer", 'keys: ["if", "then"]'),
        (of(a={"type": "string", "format": "color"}), f"the format 'color'; expected one of {NAMES}, or", "Unknown"),
        (of(a={"pattern": "(?=x)y"}), "a has the pattern '(?=x)y'; expected a regular", "regex parse error: (?=x)y"),
        (of(a={"patternProperties": {"[": {}}}), "a has the pattern '['; expected a regular", "unclosed character"),
        (of(a={"minimum": "5"}), "a has minimum '5'; expected a number", "Expected f64 for 'minimum', got"),
        (of(a={"maxLength": -1}), "a has maxLength -1; expected a whole number of at least 0", "Expected positive"),
        (of(a={"enum": "x"}), "a has enum 'x'; expected a list", "enum must be an array"),
        (of(a={"required": [5]}), "a has required [5]; expected a list, each of it a text", "'required' item, got 5"),
        (of(a=5), "the answer itself has 5 as a; expected a schema", "schema must be an object or boolean"),
        (of(a={"$ref": "#/$defs/x"}), "a refers to '#/$defs/x' ($ref), which is not there", "Pointer '/$defs/x'"),
        (of(a={"$ref": "http://x.y/z"}), "a refers to 'http://x.y/z' ($ref), which is not there", "Resource"),
        (of(a={"type": "number", "minimum": 5, "maximum": 2}), "a has minimum 5 and maximum 2, so nothing", "Unsatis"),
        (of(a={"enum": []}), "a has an enum of no value, so nothing fits it", "Unsatisfiable schema"),
        (of(a={"const": 1, "type": "string"}), "the answer itself requires 'a', and nothing fits", "Unsatisfiable"),
        ({**of(a={}), "minProperties": 3, "required": []}, "the answer itself has minProperties; that", "min/maxProp"),
        ({"$defs": {"t": {"format": "zzz"}}, **of(a={"$ref": "#/$defs/t"})}, "$defs.t has the format 'zzz'", "zzz"),
    ],
)
def test_our_words_name_the_field_and_come_first(schema: dict[str, Any], ours: str, theirs: str) -> None:
    with pytest.raises(SchemaError) as refused:
        check_schema(schema)
    before, library = str(refused.value).split(" (the library says: ")
    assert before.startswith("The schema cannot be used: ") and ours in before
    assert theirs in library


def test_a_property_that_is_called_like_a_keyword_is_not_at_fault() -> None:
    with pytest.raises(SchemaError, match=r"used: b has 'not', which"):
        check_schema(of(**{"not": {"type": "string"}, "b": {"not": {}}}))


def test_a_choice_that_is_not_exclusive_is_named() -> None:
    with pytest.raises(SchemaError, match=r"used: oneOf is taken only .*, unlike those of a\[\]\. Write anyOf, or"):
        check_schema(of(a={"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}))


def test_a_number_that_json_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(SchemaError, match="minimum is nan; expected a finite number"):
        check_schema(of(a={"type": "number", "minimum": float("nan")}))


def test_what_we_have_no_words_for_is_said_in_the_librarys() -> None:
    with pytest.raises(SchemaError, match=r"^The schema cannot be used: Unsatisfiable schema: incompatible types\.$"):
        check_schema({"allOf": [{"type": "string"}, {"type": "integer"}]})


@pytest.mark.parametrize(
    ("property_", "said"),
    [({"type": "objet"}, "level has the type 'objet'; expected one of"), ({"not": {}}, "level has 'not', which no")],
)
def test_a_model_refuses_it_in_the_same_words(
    property_: dict[str, Any], said: str, pi_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(of(level=property_)))
    assert main(["run", str(pi_bundle), "hello", "--schema", str(tmp_path / "schema.json")]) != 0
    assert f"stonechat: The schema cannot be used: {said}" in capsys.readouterr().err
