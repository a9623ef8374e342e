"""A schema's shortest answer, where the search by tokens cannot see that the answer gets nearer to its end."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.schema.sample import matching, sample
from device_runtime.engine.structured import SchemaCompiler, check_schema
from device_runtime.errors import SchemaError
from tests.device_runtime.engine.test_structured import bundle, of, schemas

__all__ = ["bundle"]

SEARCHED = [
    r"error", r"(warn|alarm)$", r"^[^@]+@[^@]+\.[a-z]{2,}$", r"\w+@\w+", r"^.*\d.*\d.*$", r"^[^a]*a[^a]*a[^a]*$",
    r"^.*@.*\..*$", r"[.!?]$",
]  # fmt: skip  # what is needed was allowed from the first character on
ANCHORED = [
    r"^\S+ \S+$",
    r"^(GET|POST) /\S*$",
    r"^v\d+\.\d+(-rc\d+)?$",
    r"^[a-f0-9]{64}$",
    r"^(ab){2,}$",
    r"^[^\s/]+/x$",
]


@pytest.mark.parametrize("after", [{"type": "integer"}, {"type": "string", "format": "uuid"}, {"enum": ["on", "off"]}])
@pytest.mark.parametrize("pattern", SEARCHED)
def test_a_pattern_that_may_hold_anything_else_is_no_reason_to_refuse_a_schema(
    bundle: Bundle, pattern: str, after: dict[str, Any]
) -> None:
    SchemaCompiler(bundle).check(of(first={"type": "string", "pattern": pattern}, second=after), 120)


@pytest.mark.parametrize("pattern", SEARCHED + ANCHORED)
@pytest.mark.parametrize("least", [0, 5])
def test_a_text_is_found_in_which_a_pattern_is_found(pattern: str, least: int) -> None:
    text = matching(pattern, least)
    if text is None:  # nothing in it repeats for ever: only a text of its own length fits
        assert least and "$" in pattern and not re.search(r"[+*]|,\}", pattern)
    else:
        assert re.search(pattern, text) and len(text) >= least


@pytest.mark.parametrize("pattern", [r"(a)\1", r"\p{L}", r"(?=a)b", r"(", r"x{3000}"])
def test_where_no_text_is_known_there_is_none(pattern: str) -> None:
    assert matching(pattern) is None


@given(schemas())
def test_what_is_proposed_for_a_schema_fits_it(schema: dict[str, Any]) -> None:
    proposed = sample(schema)
    assert proposed is not None
    jsonschema.validate(json.loads(proposed), schema)


@pytest.mark.parametrize(
    ("number", "shortest"),
    [
        ({"minimum": 20}, 2),
        ({"minimum": 36.6, "maximum": 36.9}, 4),
        ({"exclusiveMinimum": 9, "exclusiveMaximum": 11, "type": "integer"}, 2),
        ({"minimum": 17, "multipleOf": 5}, 2),
        ({"maximum": -7.5, "type": "integer"}, 2),
    ],
)
def test_a_number_within_its_bounds_is_as_short_as_can_be(number: dict[str, Any], shortest: int) -> None:
    proposed = sample({"type": "number", **number})
    assert proposed is not None and len(proposed) == shortest
    jsonschema.validate(json.loads(proposed), {"type": "number", **number})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda some: (
            st.lists(some)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "$ref",
                        "allOf",
                        "anyOf",
                        "pattern",
                        "minItems",
                        "minLength",
                        "required",
                        "properties",
                        "multipleOf",
                        "minimum",
                        "items",
                        "enum",
                    ]
                ),
                some,
            )
        ),
    )
)
def test_what_is_no_schema_has_no_sample_and_no_traceback(anything: Any) -> None:
    sample({"type": ["object", "array", "string", "number"], **(anything if isinstance(anything, dict) else {})})


def test_what_the_grammar_library_lacks_is_said_in_our_words() -> None:
    with pytest.raises(SchemaError, match=r"^The schema cannot be used: oneOf is taken only where .* Write anyOf, or"):
        check_schema(of(a={"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}))
    with pytest.raises(SchemaError, match=r"look-around.* A pattern may have no \(\?=…\)"):
        check_schema(of(a={"type": "string", "pattern": "(?!a)b"}))
