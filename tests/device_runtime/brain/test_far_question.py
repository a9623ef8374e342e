"""What a larger model is asked: of one that was tuned on the task, what it was asked in its training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_runtime.brain.question import far_question
from device_runtime.brain.redaction import Redactor
from device_runtime.engine.schema.rules import closed
from device_runtime.tasks.file import load, typed_fields
from device_runtime.tasks.opened import OpenedTask
from device_runtime.tasks.purpose import Purpose
from device_runtime.update.active import open_bundle

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("log-triage", {"text": "kernel: eth3: Link is Down"}),
        ("home-commands", {"text": "Blinds down, please"}),
        ("boiler-advisor", {"temp_c": 99, "bar": 1.4, "flow_l_min": 12, "window": [{"temp_c": 90}]}),
        ("fall-alert", {"peak_g": 5, "posture_after": "lying", "still_s": 400, "heart_bpm": 90}),
    ],
)
def test_a_model_that_was_tuned_on_the_task_is_asked_as_in_its_training(task: str, asked: dict[str, Any]) -> None:
    small = Purpose.of_manifest(open_bundle(EXAMPLES / task / "bundle").manifest)
    assert small is not None
    tuned = replace(Purpose.of_task(load(EXAMPLES / task)), kind="tune")
    content = asked["text"] if small.inputs.text is not None else json.dumps(asked)
    message = {"role": "user", "content": content}
    question = far_question([message], None, system=None, purpose=small, redactor=Redactor(()), secrets={})
    assert question.schema is not None and typed_fields(closed(question.schema)) == tuned.fields  # it finds the task
    there = OpenedTask(tuned, None)  # type: ignore[arg-type]
    assert there.asked(there.read(question.messages)) == tuned.conversation((), tuned.inputs.prompt(asked).text)
