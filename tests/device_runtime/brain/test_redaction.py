"""What is named by `redact` is in nothing that leaves the device or is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.brain.redaction import Redactor
from device_runtime.errors import CannotRedactError
from device_runtime.fleet.policies.escalation import Redaction

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


def test_a_withheld_field_is_left_out_at_any_depth() -> None:
    found = Redactor((Redaction("badge"),)).value({"badge": "B-77", "crew": [{"badge": "B-78", "shift": 2}], "n": 1})
    assert found == {"crew": [{"shift": 2}], "n": 1}


def test_a_replaced_one_keeps_its_name() -> None:
    assert Redactor((Redaction("badge", replace="X"),)).value({"badge": "B-77"}) == {"badge": "X"}


def test_what_it_said_is_not_said_elsewhere() -> None:
    found = Redactor((Redaction("badge"),)).value({"badge": "B-77", "note": "B-77 called", "B-77": 1, "w": ["to B-77"]})
    assert found == {"note": "[withheld] called", "[withheld]": 1, "w": ["to [withheld]"]}


def test_a_pattern_is_replaced_in_every_text() -> None:
    redactor = Redactor((Redaction(pattern=r"\d+\.\d+\.\d+\.\d+", replace="<ip>"),))
    assert redactor.messages(said("lost 10.0.0.7 again")) == said("lost <ip> again")
    assert redactor.value({"a": ["10.0.0.7"]}) == {"a": ["<ip>"]}


def test_a_topic_is_a_field() -> None:
    names = {"topic": ["plant", "ann"], "value": 1}
    assert Redactor((Redaction("topic"),)).names_of(names)["topic"] == ["[withheld]", "[withheld]"]


def test_a_prompt_that_is_no_object_stays_here() -> None:
    with pytest.raises(CannotRedactError, match="badge cannot be found in it"):
        Redactor((Redaction("badge"),)).messages(said("my badge is B-77"))
    with pytest.raises(CannotRedactError):
        Redactor((Redaction("badge"),)).messages(said('"badge B-77"'))


def test_one_message_does_not_say_what_another_withholds() -> None:
    found = Redactor((Redaction("badge"),)).messages(said('{"badge": "B-77", "n": 1}', '{"note": "B-77 called"}'))
    assert found == said('{"n": 1}', '{"note": "[withheld] called"}')


def test_a_pattern_finds_numbers() -> None:
    redactor = Redactor((Redaction(pattern=r"\d{9,}", replace="<phone>"),))
    assert redactor.value({"call": 491701234567, "bar": 1.5, "on": True}) == {"call": "<phone>", "bar": 1.5, "on": True}
    assert redactor.messages(said('{"call": [491701234567]}')) == said('{"call": ["<phone>"]}')


def test_an_answer_may_write_a_text_with_escapes() -> None:
    redactor = Redactor((Redaction("who"),))
    secrets = redactor.secrets({"who": 'Ann "A"'})
    assert redactor.answer(json.dumps({"note": 'by Ann "A"', "who": "x"}), secrets) == '{"note": "by [withheld]"}'
    assert redactor.answer('{"note":  "fine"}', secrets) == '{"note":  "fine"}'  # as it was written


def test_a_remark_that_names_the_field_is_withheld() -> None:
    redactor = Redactor((Redaction("bar"),))
    assert redactor.remark("bar is 7, from 0 to 5 were trained", {}) == "[withheld]"  # 7 is too short to look for
    assert redactor.remark("fever of 39.4", {"39.4": "[withheld]"}) == "fever of [withheld]"


def test_two_policies_together() -> None:
    both = Redactor((Redaction("a"),)).joined(Redactor((Redaction("b"), Redaction(pattern="x+", replace="y"))))
    assert both.value({"a": "1", "b": "2", "c": "xx"}) == {"c": "y"}


@given(JSON, st.text(alphabet="§$%&", min_size=3, max_size=6))
def test_a_secret_is_never_in_the_result(value: Any, secret: str) -> None:
    given_ = {"badge": {"name": secret}, "rest": value, "again": f"so {secret} is", "list": [{"badge": secret}]}
    found = json.dumps(Redactor((Redaction("badge"),)).value(given_), ensure_ascii=False)
    assert secret not in found
