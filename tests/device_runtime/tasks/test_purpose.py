"""What a bundle's manifest says of its task."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from device_runtime.bundle.manifest import Manifest
from device_runtime.errors import BundleError
from device_runtime.tasks.file import load
from device_runtime.tasks.purpose import Purpose

EXAMPLES = Path(__file__).parents[3] / "examples"
MANIFEST = Manifest.from_json((EXAMPLES / "boiler-advisor/bundle/manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["boiler-advisor", "fall-alert", "home-commands", "log-triage"])
def test_a_purpose_comes_back_from_a_manifest_in_its_own_order(name: str) -> None:
    task = load(EXAMPLES / name)
    purpose = Purpose(
        task.name, task.inputs, task.answer, "tiny", task.about, task.none, {next(iter(task.fields)): 1.5}, 0.5
    )
    sorted_by_another_tool = json.loads(json.dumps(purpose.to_json(), sort_keys=True))
    found = Purpose.of_manifest(replace(MANIFEST, purpose=sorted_by_another_tool))
    assert found is not None
    assert list(found.fields) == list(task.fields)
    assert list(found.inputs.fields or {}) == list(task.inputs.fields or {})
    usual = {name: replace(field, usual=()) for name, field in (task.inputs.fields or {}).items()}
    assert found.inputs == replace(task.inputs, fields=usual or None)
    assert found.temperatures == purpose.temperatures and found.none == task.none


@pytest.mark.parametrize("name", ["boiler-advisor", "fall-alert", "home-commands", "log-triage"])
def test_what_is_asked_for_an_input_is_read_as_that_input(name: str) -> None:
    """A task that reads a text is asked the text, not JSON with the text in it."""
    manifest = Manifest.from_json((EXAMPLES / name / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    purpose = Purpose.of_manifest(manifest)
    assert purpose is not None
    names = purpose.inputs.fields
    given = {"text": 'a "door"'} if names is None else {f: k.one_of[0] if k.one_of else 7.5 for f, k in names.items()}
    assert purpose.prompt(purpose.asked(given)) == purpose.inputs.prompt(given)


def test_the_input_of_an_example_is_read_as_the_text_in_it_and_other_json_as_text() -> None:
    manifest = Manifest.from_json((EXAMPLES / "log-triage/bundle/manifest.json").read_text(encoding="utf-8"))
    purpose = Purpose.of_manifest(manifest)
    assert purpose is not None
    line = "kernel: eth3: Link is Down"
    assert purpose.prompt(json.dumps({"text": line})) == purpose.prompt(line)
    assert purpose.prompt([{"role": "user", "content": json.dumps({"text": line})}]) == purpose.prompt(line)
    for text in ('{"level": "error", "text": "eth3 down"}', '{"text": 5}', '["text"]', "{", '{"text": "a"'):
        assert purpose.prompt(text) == purpose.inputs.prompt({"text": text})
    nested = {"text": json.dumps({"text": line})}  # an example that is such JSON itself
    assert purpose.prompt(purpose.asked(nested)) == purpose.inputs.prompt(nested)


def test_a_bundle_without_a_task_has_none() -> None:
    assert Purpose.of_manifest(replace(MANIFEST, purpose=None)) is None


def test_a_purpose_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(BundleError, match="purpose that cannot be read"):
        Purpose.of_manifest(replace(MANIFEST, purpose={"name": "x"}))
