"""Examples in files, and how answers are scored."""

import json
from pathlib import Path

import numpy as np
import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Choice, TypedAnswer, confidence_of
from device_runtime.tasks.examples import Example, answer_faults, read_examples
from device_runtime.tasks.inputs import InputField, Inputs
from device_runtime.tasks.purpose import Purpose
from device_runtime.tasks.score import calibration_error, interval, score

SCHEMA = {
    "type": "object",
    "properties": {
        "level": {"enum": ["none", "warn"]},
        "value": {"type": ["integer", "null"], "maximum": 9},
        "advice": {"type": "string", "maxLength": 5},
    },
}
READING = Inputs(fields={"bar": InputField(low=0, high=9)})
PURPOSE = Purpose("t", READING, SCHEMA, none={"level": "none"})


def read(path: Path, text: str, *, need_answers: bool = True, suffix: str = "jsonl") -> list[Example]:
    file = path / f"cases.{suffix}"
    file.write_text(text, encoding="utf-8")
    return read_examples(file, READING, SCHEMA, need_answers=need_answers)


def test_lines_are_read_with_their_answers(tmp_path: Path) -> None:
    answer = {"level": "warn", "value": None, "advice": "stop"}
    line = json.dumps({"input": {"bar": 1}, "answer": answer})
    assert read(tmp_path, f"\ufeff{line}\n\n{line}\n") == [Example({"bar": 1}, answer)] * 2


def test_a_file_that_is_not_there_says_what_belongs_into_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'cases\.jsonl is not there; expected .*"answer".* Write it, or name'):
        read_examples(tmp_path / "cases.jsonl", READING, SCHEMA)


def test_an_answer_may_be_missing_or_in_part_where_only_questions_are_asked(tmp_path: Path) -> None:
    text = '{"input": {"bar": 1}}\n{"input": {"bar": 1}, "answer": {"level": "warn"}}\n'
    assert [e.answer for e in read(tmp_path, text, need_answers=False)] == [None, {"level": "warn"}]
    with pytest.raises(ConfigurationError, match=r'cases.jsonl:1: "answer" is missing\n.*:2: .value. is missing'):
        read(tmp_path, text)


def test_each_faulty_line_is_named(tmp_path: Path) -> None:
    text = '{"input": 3}\nnot json\n{"input": {}, "answer": {"level": "x", "value": null, "advice": ""}}\n'
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    told = str(caught.value)
    assert (
        ":1: found" in told
        and ":2: the line is not JSON" in told
        and ':3: level is "x"; expected one of none, warn' in told
    )


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    rows = read(tmp_path, "bar,level,value,advice\n2.5,warn,7,stop\n3,none,,ok\n", suffix="csv")
    assert rows[0] == Example({"bar": 2.5}, {"level": "warn", "value": 7, "advice": "stop"})
    assert rows[1].answer == {"level": "none", "value": None, "advice": "ok"}
    with pytest.raises(ConfigurationError, match="no column 'bar'"):
        read(tmp_path, "bra,level\n1,warn\n", suffix="csv")


@pytest.mark.parametrize("inside", ["\u0085", "\u2028", "\u2029"])
def test_a_line_ends_where_editors_end_it(tmp_path: Path, inside: str) -> None:
    """`str.splitlines` ends one at more characters, which JSON lets stand in a string."""
    line = json.dumps({"input": {"bar": 1, "note": f"a{inside}b"}}, ensure_ascii=False)
    assert read(tmp_path, f"{line}\r\n", need_answers=False) == [Example({"bar": 1, "note": f"a{inside}b"})]


@pytest.mark.parametrize(
    ("number", "told"), [("NaN", "holds NaN"), ("1e999", "holds a number beyond the range of a double")]
)
def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path, number: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cases\.jsonl:2: the line {told}"):
        read(tmp_path, f'{{"input": {{"bar": 1}}}}\n{{"input": {{"bar": {number}}}}}\n', need_answers=False)


def test_a_quotation_mark_that_nothing_closes_is_named_by_the_line_of_its_row(tmp_path: Path) -> None:
    """Else the rest of the table would be one text, and its rows would be missing without a word."""
    with pytest.raises(ConfigurationError, match=r"cases\.csv:3: not CSV: unexpected end of data"):
        read(tmp_path, 'bar,level\n1,none\n"2,warn\n3,none\n', need_answers=False, suffix="csv")
    with pytest.raises(ConfigurationError, match=r"cases\.csv:1: not CSV"):
        read(tmp_path, '"bar,level\n1,none\n', need_answers=False, suffix="csv")


def test_a_text_of_a_table_may_be_longer_than_pythons_csv_reads_by_itself(tmp_path: Path) -> None:
    rows = read(tmp_path, f"bar,level\n{'x' * 200_000},none\n", need_answers=False, suffix="csv")
    assert rows[0].input == {"bar": "x" * 200_000}


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cases\.csv:3: more cells than the first line has"):
        read(tmp_path, "bar,level\n1,none\n2,warn,5\n", need_answers=False, suffix="csv")


@pytest.mark.parametrize("cell", ["nan", "inf", "1e999", "1_000", "٣", "9" * 400])
def test_a_cell_is_a_number_where_json_has_it(tmp_path: Path, cell: str) -> None:
    assert read(tmp_path, f"bar,level\n{cell},none\n", need_answers=False, suffix="csv")[0].input == {"bar": cell}


def test_a_table_is_known_by_its_name_in_capitals_too(tmp_path: Path) -> None:
    assert read(tmp_path, "bar,level\n 1 ,none\n", need_answers=False, suffix="CSV")[0].input == {"bar": 1}


def test_a_file_without_examples_says_what_a_line_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no examples"):
        read(tmp_path, "\n")


def test_faults_of_an_answer() -> None:
    assert answer_faults({"level": "warn", "value": 3, "advice": "stop"}, SCHEMA) == []
    told = answer_faults({"level": 1, "value": 10, "advice": "too long", "more": 1}, SCHEMA)
    assert [fault.partition(" ")[0] for fault in told] == ["'more'", "level", "value", "advice"]
    assert answer_faults({"value": True}, SCHEMA, whole=False) == ["value is true; expected integer or null"]


def test_a_confidence_is_the_share_of_what_was_chosen() -> None:
    even = Choice(np.zeros(4, np.float32), 0)
    assert confidence_of([even], 1.0) == pytest.approx(0.25)
    assert confidence_of([even, even], 3.0) == pytest.approx(0.0625)
    sure = Choice(np.array([5.0, 0.0], np.float32), 0)
    assert confidence_of([sure], 1.0) > confidence_of([sure], 4.0) > 0.5
    assert confidence_of([], 1.0) == 1.0


def test_scores_count_each_typed_field_and_leave_texts_out() -> None:
    examples = [
        Example({}, {"level": "none", "value": 1, "advice": "x"}),
        Example({}, {"level": "warn", "value": None}),
    ]
    answers = [
        TypedAnswer({"level": "none", "value": 2, "advice": "y"}, {"level": 0.9, "value": 0.6}, ()),
        TypedAnswer(None, {}, ("why",)),
    ]
    found = score(PURPOSE, examples, answers)
    assert list(found.fields) == ["level", "value"]
    assert (found.typed_right, found.typed_count, found.well_formed, found.unfamiliar) == (1, 4, 1, 1)
    assert (found.none_asked, found.none_recognized) == (1, 1)
    assert found.fields["level"].confusion == {"none": {"none": 1}, "warn": {"(no answer)": 1}}
    assert found.fields["value"].calibration_error == pytest.approx(0.6)


def test_wilsons_interval_and_the_calibration_error() -> None:
    # Wilson 1927, n = 10, 8 right, z = 1.96
    assert interval(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert interval(0, 0) == (0.0, 1.0)
    assert calibration_error([(0.9, True)] * 9 + [(0.9, False)]) == pytest.approx(0.0)
    assert calibration_error([(1.0, False), (1.0, True)]) == pytest.approx(0.5)
    assert calibration_error([]) is None


def test_a_field_whose_truth_is_in_no_example_has_no_score() -> None:
    answer = TypedAnswer({"level": "none", "value": 2, "advice": "y"}, {"level": 0.9}, ())
    found = score(PURPOSE, [Example({}, {"level": "none"})], [answer])
    assert (found.accuracy, found.fields["value"].accuracy) == (1.0, None)
    assert found.fields["value"].calibration_error is None
    assert found.to_json()["calibration_error"] == pytest.approx(0.1)
    assert found.to_json()["fields"]["value"]["low"] is None
    without = score(PURPOSE, [Example({}, None)], [answer])
    assert (without.accuracy, without.to_json()["accuracy"], without.to_json()["calibration_error"]) == (None,) * 3


def test_fields_of_an_answer_and_what_is_said_of_it_are_apart() -> None:
    """fall-alert's answers have a `reason`; any name may be one."""
    fields = {"reason": "heart", "confidence": "high", "unfamiliar": "no", "answer": "yes"}
    assert TypedAnswer(fields, {"reason": 0.9}, ("peak_g is 99",)).to_json() == {
        "answer": fields, "confidence": {"reason": 0.9}, "unfamiliar": True, "reason": "peak_g is 99",
    }  # fmt: skip


def test_an_abstention_says_why() -> None:
    assert TypedAnswer(None, {}, ("bar is not there",)).to_json() == {
        "answer": None,
        "confidence": {},
        "unfamiliar": True,
        "reason": "bar is not there",
    }
