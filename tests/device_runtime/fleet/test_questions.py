"""What a link asks: its examples, what it decides, and what becomes of answers that are unsure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from device_runtime.fleet.link_faults import faults, judged_numbers
from device_runtime.fleet.links import Link, LinkError, Wakeup, Windows, read
from device_runtime.fleet.questions import LinkExample, Unsure, answer_fields, typed_names

ANSWER = {
    "type": "object",
    "properties": {"advice": {"type": "string", "maxLength": 9}, "severity": {"enum": ["ok", "alarm"]}},
    "required": ["advice", "severity"],
}
DECIDE = {"severity": "'alarm' if bar > 3 else 'ok'"}
EXAMPLES = (
    LinkExample({"advice": "Vent it."}, {"bar": 4}),
    LinkExample({"advice": "Wait.", "severity": "ok"}, None, "?"),
)


def link(**fields: Any) -> Link:
    made = {"name": "b", "source": "plant/+/boiler", "prompt": "Boiler {{ topic[1] }}: {{ bar }} bar.", "to": "x"}
    return Link(**(made | {"answer": ANSWER} | fields))  # type: ignore[arg-type]


def woken(entry: Link, **reading: Any) -> Wakeup:
    found = Windows(entry).consider(read("plant/3/boiler", json.dumps(reading).encode(), 0.0))
    assert found is not None
    return found


class TestQuestions:
    def test_examples_are_turns_before_the_reading(self) -> None:
        question = woken(link(system="Be brief.", decide=DECIDE, examples=EXAMPLES), bar=2).question
        assert [message["role"] for message in question.messages] == ["system", *["user", "assistant"] * 2, "user"]
        assert [message["content"] for message in question.messages] == [
            "Be brief.",
            "Boiler example: 4 bar.",
            '{"severity": "alarm", "advice": "Vent it."}',
            "?",
            '{"advice": "Wait.", "severity": "ok"}',
            "Boiler 3: 2 bar.",
        ]

    def test_what_is_decided_comes_first_and_cannot_be_otherwise(self) -> None:
        found = woken(link(decide=DECIDE, prompt="{{ decided.severity }}: {{ bar }}"), bar=3.5)
        assert found.decided == {"severity": "alarm"} and found.prompt == "alarm: 3.5"
        assert next(iter(found.question.schema["properties"].items())) == ("severity", {"const": "alarm"})  # type: ignore

    def test_a_decision_that_does_not_fit_the_answer_is_an_unusable_reading(self) -> None:
        with pytest.raises(LinkError, match="severity is 7; expected one of ok, alarm"):
            woken(link(decide={"severity": "bar"}), bar=7)

    @pytest.mark.parametrize(
        ("prompt", "head", "nothing"),
        [
            ("Boiler {{ bar }} bar", "Boiler ", "Boiler N/A bar"),
            ("{{ bar }}", "", "N/A"),
            ("Mean {{ (bar / 3) | round }}", "Mean ", "Mean N/A"),  # a sum that nothing does not go through
            ("Always", "Always", "Always"),
        ],
    )
    def test_the_fixed_beginning_and_the_reading_that_says_nothing(self, prompt: str, head: str, nothing: str) -> None:
        question = woken(link(prompt=prompt), bar=1).question
        assert (question.head, question.nothing) == (head, nothing)


class TestUnsure:
    TEXT = '{"severity": "ok", "advice": "Wait."}'

    def said(self, policy: Unsure | None, sure: float, strange: str = "") -> tuple[dict[str, Any], bool]:
        return answer_fields(link(unsure=policy), self.TEXT, {"severity": sure}, strange)

    def test_an_answer_is_in_the_order_of_its_schema(self) -> None:
        fields, held_back = self.said(None, 0.4)
        assert list(fields["answer"]) == ["advice", "severity"] and not held_back
        assert fields["confidence"] == {"severity": 0.4} and "unsure" not in fields

    def test_flag_says_so_and_skip_holds_it_back(self) -> None:
        fields, held_back = self.said(Unsure(0.8, "flag"), 0.7)
        assert fields["unsure"] and fields["answer"] and not held_back
        assert fields["reason"] == "the confidence in severity is 0.70, below 0.8"
        fields, held_back = self.said(Unsure(0.8, "skip"), 0.7)
        assert fields["answer"] is None and fields["unsure"] and held_back
        assert self.said(Unsure(0.7, "skip"), 0.7) == self.said(None, 0.7)

    def test_an_unfamiliar_reading_is_unsure_whatever_the_confidence(self) -> None:
        fields, held_back = self.said(Unsure(0.8, "skip"), 1.0, "bar is 99")
        assert held_back and fields["unfamiliar"] and fields["reason"] == "bar is 99"
        fields, held_back = answer_fields(link(), "null", {}, "bar is not there")
        assert fields == {"answer": None, "unfamiliar": True, "reason": "bar is not there"} and not held_back


class TestFaults:
    @pytest.mark.parametrize(
        ("fields", "fault"),
        [
            ({"decide": {"cause": "1"}}, "'cause' is no property of `answer`, which has advice, severity"),
            ({"decide": {"severity": "'alrm' if bar > 3 else 'ok'"}}, 'is "alrm"; expected one of ok, alarm'),
            ({"decide": {"severity": "topic[4]"}}, "has topic\\[0\\] to \\[2\\]"),
            ({"decide": {"severity": "window"}}, "is empty without the field `window`"),
            ({"examples": (LinkExample({}, None, None),)}, "needs either `reading` or `prompt`"),
            ({"examples": (LinkExample({"advice": "x"}, None, "?"),)}, "'severity' is missing"),
            ({"examples": (LinkExample({"severity": "bad", "advice": ""}, {"bar": 1}),)}, "expected one of ok, alarm"),
            ({"examples": (LinkExample("text", None, "?"),)}, "has no fields in its answer"),
            ({"examples": (LinkExample({"severity": "ok", "advice": ""}, {"psi": 1}),)}, "'bar' is undefined"),
            ({"answer": None, "examples": (LinkExample({"a": 1}, None, "?"),)}, "the link asks for text"),
            ({"unsure": Unsure(), "decide": DECIDE}, "a field that the model chooses"),
        ],
    )  # fmt: skip
    def test_each_is_found_before_there_is_a_reading(self, fields: dict[str, Any], fault: str) -> None:
        found = faults(link(**fields))
        assert len(found) == 1
        with pytest.raises(AssertionError, match=fault):
            raise AssertionError(found[0][1])

    def test_a_good_link_has_none(self) -> None:
        assert faults(link(decide=DECIDE, examples=EXAMPLES)) == []
        assert faults(link(examples=EXAMPLES[1:], unsure=Unsure())) == []


class TestJudgedNumbers:
    @pytest.mark.parametrize(
        ("fields", "numbers"),
        [
            ({}, ["bar"]),  # a unit follows
            ({"prompt": "{{ note }} {{ bar | round(1) }}"}, ["bar"]),
            ({"prompt": "{{ note }} {{ bar }}", "when": "bar > 2"}, ["bar"]),
            ({"prompt": "{{ value }}", "parse": "number"}, ["value"]),
            ({"prompt": "{{ note }}"}, []),
            ({"decide": DECIDE}, []),  # the model writes the words alone
            ({"answer": None}, []),
        ],
    )
    def test_they_are_known_by_how_the_link_uses_them(self, fields: dict[str, Any], numbers: list[str]) -> None:
        assert judged_numbers(link(**fields)) == numbers


def test_fields_that_have_a_confidence() -> None:
    properties = {"a": {"enum": [1]}, "b": {"type": "number"}, "c": {"type": "boolean"}, "d": {"type": "string"}}
    assert typed_names({"type": "object", "properties": properties}) == ["a", "b", "c"]
    assert typed_names(None) == typed_names({"type": "array"}) == []
