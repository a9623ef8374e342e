"""Cases that are generated from a task's rules and programs."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import answer_faults
from device_runtime.tasks.file import Generate, load, loads
from device_runtime.tasks.rules import Truth
from toolkit.examples.readings import Borders, generated
from toolkit.examples.sources import generated_examples

EXAMPLES = Path(__file__).parents[3] / "examples"
BOILER = load(EXAMPLES / "boiler-advisor")


def test_borders_are_the_numbers_that_rules_compare_with() -> None:
    borders = Borders.of(BOILER)
    assert borders.of_fields["bar"] == (0.0, 1.0, 2.5, 3.0, 10.0)
    assert borders.of_fields["temp_c"] == (-20.0, 85.0, 95.0, 150.0)
    assert borders.others == (2.0,)  # of temp_c - window[0].temp_c


def test_a_seed_gives_the_same_cases_and_another_seed_others() -> None:
    first, again, other = (list(generated(BOILER, 40, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_every_rule_gets_cases_and_its_own_answer() -> None:
    cases, truth = list(generated(BOILER, 400, 3)), Truth(BOILER)
    rules = Counter(truth.rule(case["input"]) for case in cases)
    assert set(rules) == set(range(len(BOILER.truth)))
    assert min(rules.values()) >= 400 * 0.5 / len(BOILER.truth) * 0.8
    for case in cases:
        assert case["answer"] == truth.answer(case["input"])


def test_many_readings_lie_near_a_border_on_both_sides() -> None:
    values = [case["input"]["bar"] for case in generated(BOILER, 400, 4)]
    assert sum(2.9 <= bar < 3 for bar in values) > 5 and sum(3 <= bar <= 3.1 for bar in values) > 5


def test_familiar_readings_are_generated_only() -> None:
    fall = load(EXAMPLES / "fall-alert")
    for case in generated(fall, 200, 5):
        assert fall.inputs.prompt(case["input"]).unfamiliar == ()


def test_rounding_to_whole_numbers_does_not_leave_the_familiar_range() -> None:
    """Half of these ranges rounds to 0 and 3, which are outside."""
    task = loads(
        """{task: 1, name: narrow, input: {fields: {x: {from: 0.4, to: 2.6, step: 0.1}}},
        answer: {type: object, additionalProperties: false, required: [y], properties: {y: {enum: [a, b]}}},
        truth: [{when: x > 1, answer: {y: a}}, {answer: {y: b}}]}"""
    )
    values = [case["input"]["x"] for case in generated(task, 300, 8)]
    assert min(values) == 0.4 and max(values) == 2.6
    assert all(value == round(value, 1) for value in values)


@pytest.mark.parametrize("name", ["home-commands", "log-triage"])
def test_a_program_prints_the_same_cases_for_the_same_seed(name: str) -> None:
    task = load(EXAMPLES / name)
    first, again = (list(generated_examples(task, 200, 6)) for _ in range(2))
    assert first == again
    assert all(example.answer and answer_faults(example.answer, task.answer) == [] for example in first)
    none = sum(all((e.answer or {}).get(k) == v for k, v in task.none.items()) for e in first)
    assert 0.2 < none / len(first) < 0.6


def test_a_program_that_fails_says_with_what(tmp_path: Path) -> None:
    (tmp_path / "g.py").write_text("raise SystemExit('no phrases')", encoding="utf-8")
    task = replace(load(EXAMPLES / "home-commands"), folder=tmp_path, generate=Generate(100, 0.5, "g.py"))
    with pytest.raises(ConfigurationError, match=r"g\.py failed with exit code 1: no phrases"):
        list(generated_examples(task, 1, 0))
    (tmp_path / "g.py").write_text(f"print({json.dumps(json.dumps({'input': {}, 'answer': {}}))})", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"the output of g.py:1: 'action' is missing"):
        list(generated_examples(task, 1, 0))
