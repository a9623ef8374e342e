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
from toolkit.cli import main
from toolkit.examples.readings import Borders, generated, never_met
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


FALLING = """task: 1
name: tank
input:
  fields: {litres: {from: 0, to: 500, step: 1, usual: [100, 400]}}
  window: 4
  features: {lost: {value: "window[0].litres - litres if window else null", from: -500, to: 500, step: 1}}
answer: {type: object, additionalProperties: false, required: [leak], properties: {leak: {enum: ["no", "yes"]}}}
none: {leak: "no"}
truth:
  - {when: window and lost >= 90, answer: {leak: "yes"}}
  - {answer: {leak: "no"}}
"""


def test_a_rule_about_a_loss_has_its_cases_as_one_about_a_gain_has(tmp_path: Path) -> None:
    """Earlier readings came from below alone: of 8,000 cases none had lost as much as the rule asks for."""
    (tmp_path / "task.yaml").write_text(FALLING, encoding="utf-8")
    task = load(tmp_path)
    leaks = sum(case["answer"]["leak"] == "yes" for case in generated(task, 400, 0))
    assert leaks >= 0.2 * 400
    assert never_met(task) == []


def test_a_rule_that_no_case_can_meet_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.yaml").write_text(FALLING.replace("lost >= 90", "litres > 900"), encoding="utf-8")
    assert main(["task", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "warning: no generated case meets the rule `window and litres > 900`, so no model learns it" in out


class TestCheckOfExamples:
    TASK = """task: 1
name: pump
input: {fields: {bar: {from: 0, to: 9, unit: bar}, state: {one_of: [idle, running]}}}
answer: {type: object, additionalProperties: false, required: [level], properties: {level: {enum: [ok, alarm]}}}
none: {level: ok}
truth: [{when: bar > 5, answer: {level: alarm}}, {answer: {level: ok}}]
examples: cases.jsonl
"""

    def check(self, folder: Path, capsys: pytest.CaptureFixture[str], *cases: tuple[object, str, str]) -> list[str]:
        (folder / "task.yaml").write_text(self.TASK, encoding="utf-8")
        lines = [{"input": {"bar": bar, "state": state}, "answer": {"level": level}} for bar, state, level in cases]
        (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        assert main(["task", "check", str(folder)]) == 0
        return capsys.readouterr().out.splitlines()

    def test_files_to_calibrate_on_are_checked_too(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(tmp_path, capsys, (6, "idle", "alarm"))
        (tmp_path / "task.yaml").write_text(self.TASK + "calibrate: held.jsonl\n", encoding="utf-8")
        assert main(["task", "check", str(tmp_path)]) == 2
        assert "held.jsonl is not there" in capsys.readouterr().err
        (tmp_path / "held.jsonl").write_bytes((tmp_path / "cases.jsonl").read_bytes())
        assert main(["task", "check", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "pump: no faults, 2 rules, 1 example, 1 to calibrate on\n"

    def test_slips_are_shown_with_what_was_expected(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        good = (6, "idle", "alarm")
        assert self.check(tmp_path, capsys, good) == ["pump: no faults, 2 rules, 1 example"]
        found = self.check(tmp_path, capsys, good, (6, "idel", "alarm"), (99, "idle", "alarm"), (6, "running", "ok"))
        assert found[1:] == [
            'warning: cases.jsonl: state is \'idel\'; expected one of idle, running, in {"bar": 6, "state": "idel"}',
            'warning: cases.jsonl: bar is 99; the model was trained for 0 to 9, in {"bar": 99, "state": "idle"}',
            'warning: cases.jsonl: says {"level": "ok"} of {"bar": 6, "state": "running"}, '
            'and the rules {"level": "alarm"}',
        ]

    def test_a_number_with_more_digits_than_its_step_is_shown_as_it_is_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.check(tmp_path, capsys, (5.5, "idle", "ok"), (5.5, "idle", "alarm"))[1:] == [
            'warning: cases.jsonl: says {"level": "alarm"} of {"bar": 5.5, "state": "idle"}, '
            'and the rules {"level": "ok"}; bar is read as 5, to its step'
        ]

    def test_of_many_ten_are_shown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = self.check(tmp_path, capsys, *[(6, "running", "ok")] * 13)
        assert len(found) == 12 and found[-1] == "warning: 3 more; --json lists them all"


def test_digits_are_drawn_beside_zeros_in_all_places() -> None:
    """Peaks from 20 to 21 g were 8 of 20,000 cases, temperatures of 500 none: models had both wrong, surely."""
    peaks = [case["input"]["peak_g"] for case in generated(load(EXAMPLES / "fall-alert"), 4000, 4)]
    assert all(sum(tens <= peak < tens + 1 for peak in peaks) >= 3 for tens in range(10, 100, 10))
    temperatures = [case["input"]["temp_c"] for case in generated(BOILER, 2000, 4)]
    assert sum(value in range(160, 1000, 10) for value in temperatures) >= 5
