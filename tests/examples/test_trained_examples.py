"""The committed bundles do their jobs, on inputs that their generators did not make."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer, TypedAnswer
from device_runtime.tasks.examples import Example, read_examples
from device_runtime.tasks.file import load
from device_runtime.tasks.rules import Truth
from device_runtime.tasks.score import Score, score
from tests.support.heldout_readings import HELD_OUT
from toolkit.cli import main
from toolkit.examples.sources import generated_examples
from toolkit.train.tune.encoder.labels import with_labels

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMERIC, TEXTS = ("boiler-advisor", "fall-alert"), ("home-commands", "log-triage")
LATEST = {"home-commands": "heldout-5", "log-triage": "heldout-8"}  # written after all that was trained on
CASES = 250  # of the numeric ones: half a minute on a slow machine


@cache
def answerer(name: str) -> Answerer:
    return Answerer.open(EXAMPLES / name / "bundle")


@cache
def scored(name: str) -> Score:
    examples = heldout(name)
    answers = [answerer(name).answer(example.input) for example in examples]
    return score(answerer(name).purpose, examples, answers)


def heldout(name: str) -> list[Example]:
    if name in HELD_OUT:
        return [Example(case["input"], case["answer"]) for case in HELD_OUT[name](CASES, 4711)]
    task = load(EXAMPLES / name)
    return read_examples(EXAMPLES / name / f"{LATEST[name]}.jsonl", task.inputs, task.answer)


def ask(name: str, **given: Any) -> TypedAnswer:
    return answerer(name).answer(given)


@pytest.mark.parametrize("name", [*NUMERIC, *TEXTS])
def test_a_committed_bundle_is_small_and_of_its_task(name: str) -> None:
    bundle = Bundle.open(EXAMPLES / name / "bundle", verify=True)
    assert sum(entry.size_bytes for entry in bundle.manifest.files.values()) <= 1_500_000
    assert {"model.tflite", "model.image"} <= set(bundle.manifest.files) and set(bundle.manifest.counts) >= {"micro"}
    task, purpose = load(EXAMPLES / name), answerer(name).purpose
    assert purpose.name == task.name and purpose.fields == task.fields and purpose.report["test"]["count"] >= 500
    for example in heldout(name)[:20]:
        assert purpose.inputs.prompt(example.input) == task.inputs.prompt(example.input)


@pytest.mark.parametrize("name", NUMERIC)
def test_typed_fields_of_unseen_readings_are_right(name: str) -> None:
    found = scored(name)
    assert found.accuracy >= 0.97 and found.well_formed == found.count
    assert found.none_recognized >= 0.95 * found.none_asked
    assert max(field.calibration_error for field in found.fields.values()) <= 0.05


@pytest.mark.parametrize("name", TEXTS)
def test_typed_fields_of_texts_that_no_generator_made_are_right(name: str) -> None:
    found = scored(name)
    assert found.accuracy >= 0.95 and found.well_formed == found.count
    assert found.none_recognized >= 0.95 * found.none_asked
    assert max(field.calibration_error for field in found.fields.values()) <= 0.05


@pytest.mark.parametrize(
    ("name", "file", "share"),
    [
        ("home-commands", "heldout-2", 0.95),
        ("home-commands", "heldout-3", 0.95),
        ("home-commands", "heldout-4", 0.97),
        ("log-triage", "heldout-2", 0.93),
        ("log-triage", "heldout-3", 0.89),
        ("log-triage", "heldout-4", 0.97),
        ("log-triage", "heldout-5", 0.93),
        ("log-triage", "heldout-6", 0.97),
        ("log-triage", "heldout-7", 0.94),
    ],
)
def test_texts_of_a_harder_kind_are_not_forgotten(name: str, file: str, share: float) -> None:
    """Less than two of them below what the README says. Some authors call a line normal that others call low."""
    task = load(EXAMPLES / name)
    examples = read_examples(EXAMPLES / name / f"{file}.jsonl", task.inputs, task.answer)
    found = score(answerer(name).purpose, examples, [answerer(name).answer(e.input) for e in examples])
    assert found.accuracy >= share and found.well_formed == found.count
    assert found.none_recognized >= 0.8 * found.none_asked


def test_questions_and_wishes_about_other_things_are_no_commands() -> None:
    none = {"action": "none", "device": "none", "room": "none", "value": None}
    for text in ("Is the light on?", "Why is the fan running?", "open the window", "play some music", "good morning"):
        assert ask("home-commands", text=text).answer == none
    assert ask("home-commands", text="  Kitchen LIGHT on ").answer == {**none, "action": "on", "device": "light",
                                                                      "room": "kitchen"}  # fmt: skip


def test_all_fields_of_a_log_line_are_decided_in_one_run_and_alike_in_a_request() -> None:
    line = "kernel: eth0: Link is Down"
    expected = {"category": "network", "priority": "high"}
    assert ask("log-triage", text=line).answer == expected
    with LanguageModel.open(EXAMPLES / "log-triage/bundle") as model:
        assert json.loads("".join(model.generate([{"role": "user", "content": line}]))) == expected


@pytest.mark.parametrize("name", ["later", "later-2"])
def test_the_lines_that_came_later_are_of_the_same_task_and_none_is_a_held_out_one(name: str) -> None:
    first, later = load(EXAMPLES / "log-triage"), load(EXAMPLES / "log-triage" / f"{name}.yaml")
    assert replace(later, generate=first.generate, network=first.network) == first
    assert list(generated_examples(later, 50, 0)) != list(generated_examples(first, 50, 0))
    held = {e.input["text"] for f in first.folder.glob("*.jsonl") for e in read_examples(f, first.inputs, first.answer)}
    lines = {
        file: {row["text"] for row in csv.DictReader((first.folder / file).read_text(encoding="utf-8").splitlines())}
        for file in ("written.csv", "later.csv", "later-2.csv")
    }
    own = lines.pop(f"{name}.csv")
    assert len(own) == {"later": 7913, "later-2": 5539}[name]
    assert own.isdisjoint(held.union(*lines.values()))


def test_the_sentences_that_somebody_wrote_are_of_the_same_task_and_none_is_a_held_out_one() -> None:
    first, later = load(EXAMPLES / "home-commands"), load(EXAMPLES / "home-commands" / "later.yaml")
    assert replace(later, generate=first.generate, network=first.network) == first

    def sentences(name: str) -> set[str]:
        return {e.input["text"] for e in read_examples(first.folder / name, first.inputs, first.answer)}

    written, came_first = sentences("written.jsonl"), sentences("later.jsonl")
    assert (len(came_first), len(written)) == (2954, 2994) and written.isdisjoint(came_first)
    held = set[str]().union(*(sentences(file.name) for file in first.folder.glob("[hc]*.jsonl")))
    assert len(held) > 600 and (written | came_first).isdisjoint(held)
    made = {e.input["text"] for e in generated_examples(later, 400, 0)}
    assert len(made & came_first) > 100  # half of the cases, most of them as they were written


def test_the_task_for_an_encoder_is_the_same_with_a_range_that_it_can_list() -> None:
    first, other = load(EXAMPLES / "home-commands"), load(EXAMPLES / "home-commands" / "encoder.yaml")
    with pytest.raises(ConfigurationError, match="value, a whole number from 0 to 9999"):
        with_labels(first)
    assert with_labels(other).fields == {**first.fields, "value": [None, *range(101)]}
    assert replace(other, answer=first.answer, generate=first.generate, network=first.network) == first
    for file in first.folder.glob("*.jsonl"):
        read_examples(file, other.inputs, other.answer)  # or it names the line whose value is not in the range


def test_readers_who_knew_the_rule_alone_agree_with_the_authors_of_the_held_out_lines() -> None:
    """What a model has wrong of them is wrong, and seldom a matter of taste: docs/guides/escalation.md says so."""
    task = load(EXAMPLES / "log-triage")
    lines = {f.name: read_examples(f, task.inputs, task.answer) for f in task.folder.glob("heldout-*.jsonl")}
    with (task.folder / "second-labels.csv").open(encoding="utf-8") as labels:
        rows = list(csv.DictReader(labels))
    assert len(rows) == sum(map(len, lines.values())) == 826
    agreed = {"category": 0, "priority": 0}
    for row in rows:
        author = lines[row["file"]][int(row["line"]) - 1].answer or {}
        for place, field in enumerate(agreed):
            agreed[field] += {row[who].split()[place] for who in ("first", "second", "third")} == {author[field]}
    assert agreed == {"category": 817, "priority": 805}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_too_long_for_the_model_is_not_answered_and_stops_nothing(name: str) -> None:
    found = ask(name, text="x~" * 2000)  # each character is a token
    assert found.answer is None and "tokens; the model has room for" in found.unfamiliar[-1]
    assert found.to_json()["answer"] is None and found.to_json()["unfamiliar"]
    for odd in ("", "   ", "🔥🔥🔥", "\0\7 kernel", "Тревога", "5" * 200, "link is down\n\nlink is up"):
        answer = ask(name, text=odd).answer
        assert answer is None or answer.keys() == answerer(name).purpose.fields.keys()


@pytest.mark.parametrize("name", NUMERIC)
def test_both_ends_of_every_range_are_answered_as_the_rules_say(name: str) -> None:
    """And one step inside of them, and one beyond, which is read as the end or is unfamiliar."""
    task = load(EXAMPLES / name)
    truth, fields = Truth(task), task.inputs.fields or {}
    usual = {"temp_c": 60, "bar": 1.5, "flow_l_min": 8, "peak_g": 1, "posture_after": "lying", "still_s": 10}
    usual = {field: ({**usual, "heart_bpm": 80})[field] for field in fields}
    for field, kind in fields.items():
        if kind.low is None or kind.high is None:
            continue
        for end, inside in ((kind.low, kind.step), (kind.high, -kind.step)):
            for value in (end, round(end + inside, 6)):
                found = ask(name, **{**usual, field: value})
                assert found.answer == truth.answer({**usual, field: value}), (field, value)
                assert not found.unfamiliar
            beyond = ask(name, **{**usual, field: round(end - inside, 6)})
            assert beyond.answer == ask(name, **{**usual, field: end}).answer
            assert bool(beyond.unfamiliar) == (kind.beyond == "unfamiliar")


def test_digits_beyond_a_sensors_step_decide_nothing() -> None:
    """A flow of 60.01 was a broken sensor by the rules, and 60.0 by what the model reads of it."""
    for given in ({"flow_l_min": 60.01}, {"temp_c": 150.04}, {"bar": 2.999}, {"flow_l_min": -0.01}):
        given = {"temp_c": 60, "bar": 1.5, "flow_l_min": 8, **given}
        assert ask("boiler-advisor", **given).answer == Truth(load(EXAMPLES / "boiler-advisor")).answer(given)


def test_a_broken_sensor_is_answered_and_not_unfamiliar() -> None:
    for broken in ({"temp_c": 999}, {"bar": -3}, {"flow_l_min": 1e6}):
        found = ask("boiler-advisor", **{"temp_c": 60, "bar": 1.5, "flow_l_min": 8, **broken})
        assert found.answer is not None and found.answer["cause"] == "sensor_fault" and not found.unfamiliar


def test_earlier_readings_may_be_far_from_the_present_one() -> None:
    """A rise beyond 40 K is read as 40 K: the network has seen few of them, and none decides otherwise."""
    wrong = []
    for number, case in enumerate(HELD_OUT["boiler-advisor"](60, 99)):
        then = (-15.0, 145.0, 20.0, 119.9)[number % 4]
        given = {**case["input"], "window": [{"temp_c": then, "bar": 1.5, "flow_l_min": 5}]}
        expected = Truth(load(EXAMPLES / "boiler-advisor")).answer(given)
        if answerer("boiler-advisor").answer(given).answer != expected:
            wrong.append(given)
    assert not wrong


def test_a_heart_rate_without_contact_is_unfamiliar() -> None:
    found = ask("fall-alert", peak_g=3.4, posture_after="lying", still_s=75, heart_bpm=0)
    assert found.unfamiliar == ("heart_bpm is 0; the model was trained for 1 to 300",)
    assert not ask("fall-alert", peak_g=3.4, posture_after="lying", still_s=75, heart_bpm=1).unfamiliar


def test_the_advice_is_of_the_cause_and_short() -> None:
    task = load(EXAMPLES / "boiler-advisor")
    advice = {(r.answer["severity"], r.answer["cause"]): r.answer["advice"] for r in task.truth}
    for example in heldout("boiler-advisor")[:40]:
        found = answerer("boiler-advisor").answer(example.input).answer
        assert found is not None and len(found["advice"]) <= 120
        assert found["advice"] == advice[found["severity"], found["cause"]]


def test_a_reading_that_lacks_a_field_is_not_answered() -> None:
    found = ask("boiler-advisor", temp_c=70, bar=1.5)
    assert found.answer is None and found.unfamiliar == ("flow_l_min is not there; expected a number of l/min",)


def test_the_score_comes_as_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cases.jsonl"
    cases = list(HELD_OUT["boiler-advisor"](5, 1))
    file.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    bundle, task = EXAMPLES / "boiler-advisor/bundle", EXAMPLES / "boiler-advisor/task.yaml"
    assert main(["eval", str(bundle), "--task", str(task), "--examples", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 5 and found["well_formed"] == 1.0
    for case, answer in zip(cases, found["answers"], strict=True):
        assert set(answer) == {"answer", "confidence", "unfamiliar"}
        assert list(answer["answer"]) == ["severity", "cause", "advice"]
        assert answer["answer"]["cause"] == case["answer"]["cause"]
        assert set(answer["confidence"]) == {"severity", "cause"}


def test_a_bundle_of_another_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = EXAMPLES / "boiler-advisor/bundle"
    assert main(["eval", str(bundle), "--task", str(EXAMPLES / "fall-alert"), "--examples", "x.jsonl"]) == 2
    assert "was trained for boiler-advisor" in capsys.readouterr().err
    assert main(["eval", str(bundle), "--task", str(EXAMPLES / "boiler-advisor")]) == 2
    assert "There are no examples to ask" in capsys.readouterr().err


def test_a_link_or_a_request_asks_a_trained_bundle_with_the_reading_alone() -> None:
    case = next(HELD_OUT["boiler-advisor"](1, 7))
    with LanguageModel.open(EXAMPLES / "boiler-advisor/bundle") as model:
        question = json.dumps(case["input"])
        expected = answerer("boiler-advisor").answer(case["input"]).answer
        assert json.loads("".join(model.generate(question))) == expected
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        assert json.loads("".join(model.generate(messages))) == expected
        generation = model.generate(question)
        assert json.loads("".join(generation)) == expected
        assert set(generation.result.confidence or {}) == {"severity", "cause"}
        silent = model.generate('{"temp_c": 20, "flow_l_min": 3}')
        assert "".join(silent) == "null" and "bar is not there" in silent.result.unfamiliar[0]
        with pytest.raises(ConfigurationError, match="expected a JSON object with temp_c, bar, flow_l_min, window"):
            model.generate("How is the boiler?")
    with LanguageModel.open(EXAMPLES / "fall-alert/bundle") as model:
        reading = {"peak_g": 1, "posture_after": "lying", "still_s": 10, "heart_bpm": 0}  # the strap has no contact
        odd = model.generate(json.dumps(reading))
        assert "level" in json.loads("".join(odd)) and "heart_bpm is 0" in odd.result.unfamiliar[0]


def test_of_answers_whose_truth_nobody_knows_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No share of none is zero, and no error."""
    (tmp_path / "c.jsonl").write_text('{"input": {"text": "eth0: link down"}}\n')
    command = ["eval", str(EXAMPLES / "log-triage" / "bundle"), "--examples", str(tmp_path / "c.jsonl")]
    assert main(command) == 0
    counted, *lines = capsys.readouterr().out.splitlines()
    assert "1 answer, 0 of them with a known truth" in counted
    assert [line.split("  ")[0] for line in lines] == ["well-formed"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for figures in (found, *found["fields"].values()):
        assert [figures[name] for name in ("accuracy", "low", "high", "calibration_error")] == [None] * 4
    assert found["none_recognized"] is None and found["well_formed"] == 1.0
