"""The task file, checked like a fleet file."""

from collections.abc import Mapping
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.file import load, loads
from device_runtime.tasks.rules import Truth

EXAMPLES = Path(__file__).parents[3] / "examples"
GOOD = """
task: 1
name: pump
input:
  fields: {bar: {from: 0, to: 9, step: 0.1}, state: {one_of: [idle, running]}}
answer:
  type: object
  required: [level]
  properties: {level: {enum: [none, warn]}}
truth:
  - {when: bar > 5 and state == 'running', answer: {level: warn}}
  - {answer: {level: none}}
"""


BOILER = load(EXAMPLES / "boiler-advisor")
TRUTH = Truth(BOILER)


def faults(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loads(text)
    return str(caught.value)


@pytest.mark.parametrize("name", ["boiler-advisor", "fall-alert", "home-commands", "log-triage"])
def test_the_examples_have_no_faults(name: str) -> None:
    task = load(EXAMPLES / name)
    assert task.name == name and task.none


def test_a_good_file_is_read() -> None:
    task = loads(GOOD)
    assert task.fields == {"level": ["none", "warn"]}
    assert Truth(task).answer({"bar": 5.1, "state": "Running"}) == {"level": "warn"}
    assert Truth(task).answer({"bar": 5, "state": "running"}) == {"level": "none"}
    assert Truth(task).answer({"state": "running"}) is None


def test_all_faults_come_at_once_with_their_places() -> None:
    text = GOOD.replace("bar > 5 and", "bra > 5 and").replace("answer: {level: warn}", "answer: {level: wran}")
    text = text.replace("name: pump", "name: Pump!\nknid: tiny")
    told = faults(text)
    assert "has 2 faults" in told and "task.yaml:3:7: name" in told and "did you mean 'kind'?" in told
    told = faults(text.replace("name: Pump!\nknid: tiny", "name: pump"))
    assert "has 2 faults" in told
    assert "uses 'bra', which does not come in; did you mean 'bar'?" in told
    assert "level is \"wran\"; did you mean 'warn'?" in told


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("  - {answer: {level: none}}\n", "", "the last rule has a `when`"),
        ("required: [level]", "required: []", "'level' is not in `required`"),
        ("{enum: [none, warn]}", "{type: integer}", "has no field with an `enum`"),
        ("from: 0, to: 9", "from: 9, to: 0", "expected the smaller one first"),
        ("{from: 0, to: 9, step: 0.1}", "{unit: bar}", "needs `from` and `to`"),
        (
            "from: 0, to: 9",
            "from: -9.95, to: 9",
            "bar's `from` is -9.95, which lies between two steps of 0.1 and would be read as -10, outside of the "
            "range; expected a multiple of the step: -10 or -9.9",
        ),
        (
            "state: {one_of: [idle, running]}}",
            "state: {one_of: [idle]}}\n  features: {low: {value: bar - 9, from: -9.5, to: 0}}",
            "low's `from` is -9.5, which lies between two steps of 1",
        ),
        (
            "from: 0, to: 9",
            "from: 0, to: 9, usual: [20, 50]",
            "usual: 20 to 50 is not within the field's range; expected two numbers from 0 to 9",
        ),
        ("one_of: [idle, running]", "one_of: [idle, running], usual: [1, 2]", "this field has words; leave it out"),
        ("input:\n", "input:\n  text: 80\n", "expected either `fields`, or `text`"),
        ("task: 1", "task: 2", "a whole number from 1 to 1"),
        ("task: 1", "task: 1\nnone: {lvl: none}", "'lvl' is no field; did you mean 'level'?"),
        ("task: 1", "task: 1\nnetwork: {width: 100, heads: 3}", "does not divide into 3 even heads"),
        ("task: 1", "task: 1\nexamples: [cases.txt]", "a .jsonl or .csv file"),
        ("answer: {level: warn}", "answer: {}", "'level' is missing"),
        ("when: bar > 5", "when: bar = 5", "equality is =="),
    ],
)
def test_a_fault_says_what_was_found_and_what_is_expected(old: str, new: str, fault: str) -> None:
    assert fault in faults(GOOD.replace(old, new, 1))


def clamped(low: float, high: float, value: float) -> float:
    return min(max(value, low), high)


def readings() -> st.SearchStrategy[dict[str, Any]]:
    """Of the boiler: at the numbers that its rules compare with, at the ends of the ranges, and beside them."""
    borders = {"temp_c": (-99.9, -20, 85, 95, 150, 500, 999.9), "bar": (-9.99, 0, 1, 2.5, 3, 10, 99.99)}
    borders["flow_l_min"] = (-99.9, 0, 2, 60, 999.9)
    beside = st.sampled_from([0, 0.1, -0.1, 0.01, -0.01, 0.004, -0.004, 0.0999, 1e-9, -1e-9])
    fields = {
        name: st.builds(add, st.sampled_from(ends), beside).map(partial(clamped, min(ends), max(ends)))
        for name, ends in borders.items()
    }
    earlier = st.lists(st.fixed_dictionaries({"temp_c": fields["temp_c"]}), max_size=2)
    return st.fixed_dictionaries({**fields, "window": earlier})


@given(readings())
def test_rules_decide_on_what_the_model_reads(given: dict[str, Any]) -> None:
    """Whatever has the same prompt has the same truth: 60.01 was a broken sensor by the rules, and is read as 60."""
    inputs = BOILER.inputs

    def read(reading: Mapping[str, Any]) -> dict[str, float]:
        words = inputs.prompt({"temp_c": 0, "bar": 0, "flow_l_min": 0, **reading}).text.split()
        return {name: float(text) for name, text in zip(words[::2], words[1::2], strict=True) if name in reading}

    as_read = {**read(given), "window": [read(earlier) for earlier in given["window"]]}
    assert inputs.prompt(as_read) == inputs.prompt(given)
    assert TRUTH.answer(as_read) == TRUTH.answer(given)


def test_a_task_that_says_nothing_of_what_is_true_is_refused() -> None:
    assert "says nothing of what is true" in faults(GOOD[: GOOD.index("truth:")])


def test_a_rule_that_fails_on_an_input_is_named() -> None:
    task = loads(GOOD.replace("bar > 5 and state == 'running'", "bar / (bar - bar) > 1"))
    with pytest.raises(ConfigurationError, match="The rule `bar / \\(bar - bar\\) > 1` of pump fails for"):
        Truth(task).answer({"bar": 1, "state": "idle"})
    task = loads(GOOD.replace("bar > 5 and state == 'running'", "bar > '5'"))
    with pytest.raises(ConfigurationError, match=r"in the link\. Write it so"):  # two sentences, and no full stop twice
        Truth(task).answer({"bar": 1, "state": "idle"})
