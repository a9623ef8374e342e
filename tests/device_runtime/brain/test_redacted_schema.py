"""A schema that goes to a larger model, or into a record, says nothing of what is withheld."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.brain.redacted_schema import schema_for_far_side, schema_for_record, secrets_of
from device_runtime.brain.redaction import Redactor
from device_runtime.errors import CannotRedactError
from device_runtime.fleet.policies.escalation import Redaction

BADGE = Redactor((Redaction("badge"),))
PHONE = Redactor((Redaction(pattern=r"\d{9,}", replace="<phone>"),))
SECRETS = {"B-77": "[withheld]"}


def test_without_rules_a_schema_is_as_it_was() -> None:
    schema = {"type": "object", "x-note": "B-77"}
    assert schema_for_far_side(Redactor(()), schema, SECRETS) is schema
    assert schema_for_far_side(BADGE, None, SECRETS) is None


@pytest.mark.parametrize("remark", ["title", "description", "$comment", "x-note"])
def test_remarks_are_cleaned_wherever_they_are(remark: str) -> None:
    deep = {"items": {"anyOf": [{"type": "string", remark: "as B-77 has it, 491701234567"}]}}
    found = schema_for_far_side(BADGE.joined(PHONE), deep, SECRETS)
    assert found == {"items": {"anyOf": [{"type": "string", remark: "as [withheld] has it, <phone>"}]}}


def test_examples_and_defaults_lose_the_field_and_what_it_said() -> None:
    schema = {
        "examples": [{"badge": "B-99", "note": "B-99 called"}], "default": {"badge": 4711, "n": 1},
        "description": "B-99 or 4711",
    }  # fmt: skip
    found = schema_for_far_side(BADGE, schema, secrets_of(BADGE, [], schema))
    assert found == {
        "examples": [{"note": "[withheld] called"}], "default": {"n": 1}, "description": "[withheld] or [withheld]",
    }  # fmt: skip


def test_a_withheld_field_may_be_asked_for_but_nothing_is_said_of_it() -> None:
    schema = {
        "properties": {"badge": {"type": "string", "maxLength": 8, "default": "B-1", "description": "such as B-12"}}
    }
    assert schema_for_far_side(BADGE, schema, {}) == {"properties": {"badge": {"type": "string", "maxLength": 8}}}
    decided = {"properties": {"badge": {"const": "[withheld]"}}}  # as a link has it that decides the field
    assert schema_for_far_side(BADGE, decided, {}) == decided


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"who": {"enum": ["Ann", "B-77"]}}},
        {"properties": {"who": {"const": "B-77"}}},
        {"properties": {"who": {"pattern": "^B-77$"}}},
        {"properties": {"B-77": {"type": "string"}}},
        {"required": ["B-77"]},
        {"$defs": {"B-77": {}}, "$ref": "#/$defs/B-77"},
        {"properties": {"call": {"enum": [491701234567]}}},
        {"properties": {"call": {"minimum": 491701234567}}},
        {"properties": {"n": {"const": 4711}}},
        {"properties": {"badge": {"enum": ["B-1", "B-2"]}}},
        {"items": {"allOf": [{"properties": {"badge": {"anyOf": [{"const": "B-1"}]}}}]}},
    ],
)
def test_what_it_demands_cannot_be_withheld(schema: dict[str, Any]) -> None:
    both, secrets = BADGE.joined(PHONE), {**SECRETS, "4711": "[withheld]"}
    with pytest.raises(CannotRedactError, match="demands something"):
        schema_for_far_side(both, schema, secrets)
    shown = json.dumps(schema_for_record(both, schema, secrets))
    assert not any(secret in shown for secret in ("B-77", "4711", "491701234567", "B-1"))


def test_what_says_nothing_of_a_reading_stays() -> None:
    schema = {
        "type": "object", "properties": {"kind": {"enum": ["warn", "alarm", None]}, "n": {"minimum": 0, "maximum": 10}},
        "required": ["kind"], "maxProperties": 1234567890, "additionalProperties": False,
    }  # fmt: skip
    digits = Redactor((Redaction(pattern="[0-9]+", replace="<n>"), Redaction("badge")))
    assert schema_for_far_side(digits, schema, SECRETS) == schema


_JSON = st.recursive(
    st.sampled_from(["§§§", "a §§§ b", "§", 1, True, None]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["properties", "items", "enum", "const", "examples", "default", "title", "anyOf", "badge", "§§§", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["properties", "items", "anyOf", "default", "x", "enum", "$defs"]), _JSON))
def test_a_secret_is_in_no_schema_that_goes_out_or_is_kept(schema: dict[str, Any]) -> None:
    secrets = {"§§§": "[withheld]"}
    assert "§§§" not in json.dumps(schema_for_record(BADGE, schema, secrets), ensure_ascii=False)
    try:
        found = schema_for_far_side(BADGE, schema, secrets)
    except CannotRedactError:
        return
    assert "§§§" not in json.dumps(found, ensure_ascii=False)
