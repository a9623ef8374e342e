"""The audit: what should not matter does not, what matters does, on a committed bundle and on answerers that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_runtime.tasks.answering import TypedAnswer
from device_runtime.tasks.file import load
from device_runtime.tasks.rules import Truth
from toolkit.examples.readings import generated
from toolkit.train.audit import audit, changes_of

ROOT = Path(__file__).parents[3]
FALL, HOME = load(ROOT / "examples/fall-alert"), load(ROOT / "examples/home-commands")
READINGS = [case["input"] for case in generated(FALL, 12, 7)]


class Rules:
    """Answers as the rules do, but for what `spoilt` changes of an input."""

    def __init__(self, spoilt: str = "") -> None:
        self.spoilt, self.truth = spoilt, Truth(FALL)

    def answer(self, given: Mapping[str, Any]) -> TypedAnswer:
        if self.spoilt == "order" and next(iter(given)) == "heart_bpm":
            return TypedAnswer({"level": "none", "reason": "heart"}, {}, ())
        if self.spoilt == "deaf":
            return TypedAnswer({"level": "none", "reason": "none"}, {}, ())
        return TypedAnswer(self.truth.answer(given), {}, ())


def of_name(results: list[Any]) -> dict[str, Any]:
    return {result.name: result for result in results}


def test_rules_themselves_pass() -> None:
    results = of_name(audit(FALL, Rules(), READINGS, 0))
    assert set(results) == {
        "order of fields",
        "units written out",
        "numbers as text",
        "a field that is not read",
        "another truth",
    }
    assert all(result.asked == 12 and result.wrong == 0 for result in results.values())


def test_an_answer_that_hangs_on_the_order_of_fields_is_a_flip_with_its_example() -> None:
    result = of_name(audit(FALL, Rules("order"), READINGS, 0))["order of fields"]
    assert result.share == 1.0
    assert list(result.flips[0]["changed"]) == list(reversed(result.flips[0]["input"]))
    assert result.flips[0]["after"] == {"level": "none", "reason": "heart"}


def test_answers_that_never_change_fail_where_the_truth_does() -> None:
    results = of_name(audit(FALL, Rules("deaf"), READINGS, 0))
    assert results["numbers as text"].wrong == 0
    assert results["another truth"].wrong > 0


def test_names_that_the_task_lists_are_exchanged_and_polite_words_added() -> None:
    names = [change.name for change in changes_of(HOME)]
    assert {"CAPITALS", "spaces", "full stop", "polite: please {}"} <= set(names)


def test_a_committed_bundle_keeps_its_answers_when_what_should_not_matter_changes() -> None:
    """40 readings in five ways. No flip for what is read alike; of other truths at most one in twenty."""
    command = [sys.executable, "-m", "toolkit", "audit", str(ROOT / "examples/fall-alert/bundle")]
    command += ["--task", str(ROOT / "examples/fall-alert"), "--cases", "40", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    changes = {change["change"]: change for change in json.loads(done.stdout)["changes"]}
    for name in ("order of fields", "units written out", "numbers as text", "a field that is not read"):
        assert changes[name]["asked"] == 40 and changes[name]["wrong"] == 0
    assert changes["another truth"]["wrong"] <= 2
