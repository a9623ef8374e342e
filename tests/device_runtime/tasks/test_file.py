"""The task file, checked like a fleet file."""

from pathlib import Path

import pytest

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


def test_a_task_that_says_nothing_of_what_is_true_is_refused() -> None:
    assert "says nothing of what is true" in faults(GOOD[: GOOD.index("truth:")])


def test_a_rule_that_fails_on_an_input_is_named() -> None:
    task = loads(GOOD.replace("bar > 5 and state == 'running'", "bar / (bar - bar) > 1"))
    with pytest.raises(ConfigurationError, match="The rule `bar / \\(bar - bar\\) > 1` of pump fails for"):
        Truth(task).answer({"bar": 1, "state": "idle"})
