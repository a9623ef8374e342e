"""Fields that name no values, as an encoder answers them: truth values and whole numbers of a range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

from converters.encoders.checkpoint import open_encoder
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.errors import ConfigurationError, SchemaError
from device_runtime.tasks.file import Task, load, loads
from device_runtime.tasks.purpose import Purpose
from toolkit.cli import main
from toolkit.train.tune.encoder.labels import with_labels
from toolkit.train.tune.encoder.pipeline import EncoderSettings, tune_encoder_bundle

BERT = Path(__file__).parents[2] / "data/encoders/bert-embed"
TASK = """
task: 1
name: pump-level
about: Says what level a pump is to run at.
input: {text: 40}
answer:
  type: object
  additionalProperties: false
  required: [state, level, soon]
  properties:
    state: {enum: [none, set]}
    level: {type: [integer, "null"], minimum: 0, maximum: 3, description: of the pump}
    soon: {type: boolean}
none: {state: none}
examples: examples.jsonl
"""
LEVELS = ("zero", "one", "two", "three")


def with_field(schema: Mapping[str, Any]) -> Task:
    task = loads(TASK)
    return replace(task, answer={**task.answer, "properties": {"state": {"enum": ["a", "b"]}, "level": schema}})


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"enum": [4, "x", None]}, [4, "x", None]),
        ({"type": "boolean"}, [False, True]),
        ({"type": ["boolean", "null"], "title": "whether it is open"}, [None, False, True]),
        ({"type": "integer", "minimum": -1, "maximum": 2}, [-1, 0, 1, 2]),
        ({"type": ["integer", "null"], "minimum": 0.5, "maximum": 2.5}, [None, 1, 2]),
        ({"type": "integer", "minimum": 0, "maximum": 255}, list(range(256))),
    ],
)
def test_the_values_of_a_field_are_listed(schema: dict[str, Any], values: list[Any]) -> None:
    task = with_labels(with_field(schema))
    assert task.fields == {"state": ["a", "b"], "level": values}
    kept = task.answer["properties"]["level"]
    assert {name: kept[name] for name in schema} == schema  # what the task says of it is still said


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer"}, "level, which has no labels to choose from"),
        ({"type": "integer", "minimum": 0}, "or a whole number with `minimum` and `maximum`"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no labels to choose from"),
        ({"type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 3}, "no labels to choose from"),
        ({"type": "integer", "minimum": 3, "maximum": 3}, "no labels to choose from"),  # nothing to choose
        ({"type": "integer", "minimum": 1, "maximum": 300}, "level, a whole number from 1 to 300.*at most 256 numbers"),
        ({"type": "number", "minimum": 0, "maximum": 9}, "no labels to choose from"),
        ({"type": ["boolean", "string"]}, "no labels to choose from"),
        ({"type": "string"}, "no labels to choose from"),
        ({}, "no labels to choose from"),
    ],
)
def test_what_cannot_be_listed_is_refused_with_what_could_be(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        with_labels(with_field(schema))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("pump-level")
    (folder / "task.yaml").write_text(TASK)
    rows = []
    for number in range(240):
        level, soon = number % 5, number % 2 == 0
        said = "pump" if level == 4 else f"pump {LEVELS[level]}"
        answer = {"state": "none" if level == 4 else "set", "level": None if level == 4 else level, "soon": soon}
        rows.append({"input": {"text": f"{said} {'now' if soon else 'later'} {number // 10}"}, "answer": answer})
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return load(folder)


@pytest.fixture(scope="module")
def bundle(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tuned until it knows its words."""
    checkpoint = open_encoder(BERT)
    assert checkpoint is not None
    folder = tmp_path_factory.mktemp("tuned") / "bundle"
    tune_encoder_bundle(task, checkpoint, folder, EncoderSettings(cases=240, epochs=6, batch=16, rate=5e-3))
    return folder


def test_an_encoder_learns_numbers_and_truth_values(bundle: Path) -> None:
    with EncoderModel.open(bundle) as model:
        found = model.classify("pump two now 3")
        nothing = model.classify("pump later 3")
    assert dict(found.answer) == {"state": "set", "level": 2, "soon": True}
    assert dict(nothing.answer) == {"state": "none", "level": None, "soon": False}
    assert set(found.probabilities["level"]) == {"null", "0", "1", "2", "3"}
    assert set(found.confidence) == {"state", "level", "soon"}


def test_it_is_evaluated_with_the_task_that_lists_none(
    bundle: Path, task: Task, capfd: pytest.CaptureFixture[str]
) -> None:
    held = str(task.folder / "examples.jsonl")
    assert main(["eval", str(bundle), "--task", str(task.folder), "--examples", held, "--json"]) == 0
    fields = json.loads(capfd.readouterr().out)["fields"]
    assert fields["level"]["count"] == 240 and fields["level"]["accuracy"] > 0.9


def test_another_range_is_another_task(
    bundle: Path, task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.yaml").write_text(TASK.replace("maximum: 3", "maximum: 2"))
    held = str(task.folder / "examples.jsonl")
    assert main(["eval", str(bundle), "--task", str(tmp_path), "--examples", held]) == 2
    assert "give the task file that it was trained with" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("schema", "right"),
    [
        ({"type": ["integer", "null"], "minimum": 0, "maximum": 9999}, True),
        ({"type": ["integer", "null"]}, True),
        ({}, True),
        ({"type": ["integer", "null"], "minimum": 0, "maximum": 2}, False),
        ({"type": "integer"}, False),
        ({"enum": [None, 0, 1]}, False),
    ],
)
def test_a_question_whose_schema_has_no_room_for_an_answer_is_refused(
    schema: dict[str, Any], right: bool, bundle: Path
) -> None:
    asked = {"type": "object", "properties": {"level": schema}, "required": ["level"]}
    with EncoderModel.open(bundle) as model:
        if right:
            model.check_schema(asked)
            return
        with pytest.raises(SchemaError, match=r"may answer level (None|2|3), which the schema does not allow"):
            model.check_schema(asked)


def test_its_answers_are_those_of_the_task(bundle: Path, task: Task) -> None:
    with EncoderModel.open(bundle) as model:
        purpose = Purpose.of_manifest(model.manifest)
    assert purpose is not None and purpose.answers_as(task)
    assert not purpose.answers_as(loads(TASK.replace("level", "speed")))
    assert not Purpose.of_task(task).answers_as(with_labels(task))  # it may write what these do not list
