"""A bundle of a task may demand a score of its trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.update.probe import Measured
from device_runtime.update.state import TrialLimits
from device_runtime.update.trial import judge, try_bundle
from toolkit.cli import main

FALL = Path(__file__).parents[3] / "examples/fall-alert/bundle"


def example(level: str, reason: str, **fields: Any) -> dict[str, Any]:
    given = {"peak_g": 1.0, "posture_after": "standing", "still_s": 5, "heart_bpm": 70} | fields
    return {"input": given, "answer": {"level": level, "reason": reason}}


RIGHT = [example("none", "none"), example("check", "impact", peak_g=4.5)]
WRONG = [example("call_help", "heart")]


@pytest.mark.parametrize(("examples", "score"), [(RIGHT, 1.0), (RIGHT + WRONG, 4 / 6)])
def test_a_device_asks_the_examples_before_it_keeps_the_bundle(
    changed: Callable[..., Path], examples: list[dict[str, Any]], score: float
) -> None:
    path = changed(FALL, trial_score={"at_least": 0.9, "examples": examples})
    found = try_bundle(path, TrialLimits())
    assert isinstance(found, Measured) and found.score == pytest.approx(score)
    fault = judge(found, TrialLimits(), Bundle.open(path))
    assert fault == (None if score == 1.0 else "it got 66.7% of its 3 examples right; the floor is 90.0%")


def pack(tmp_path: Path, *flags: str, rows: list[dict[str, Any]], bundle: Path = FALL) -> int:
    (tmp_path / "cases.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ("--trial-examples", str(tmp_path / "cases.jsonl"), *flags)
    return main(["bundle", "pack", str(bundle), "-o", str(tmp_path / "x.zip"), *flags])


def test_pack_puts_them_into_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(tmp_path, "--trial-score", "0.9", rows=RIGHT) == 0
    assert "90.0% of 2 examples have to be right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "rows", "said"),
    [
        (("--trial-score", "0.9"), RIGHT + WRONG, "gets 66.7% of 3 examples right here, less than --trial-score 0.9"),
        ((), RIGHT, "belong together"),
        (("--trial-score", "1"), [{"input": {}, "answer": {"level": "loud", "reason": "none"}}], "level is"),
        (("--trial-score", "1"), RIGHT * 251, "at most 500"),
    ],
)
def test_what_no_device_would_pass_is_not_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], rows: list[dict[str, Any]], said: str
) -> None:
    assert pack(tmp_path, *flags, rows=rows) != 0
    assert said in capsys.readouterr().err and not (tmp_path / "x.zip").exists()


def test_a_bundle_of_no_task_has_no_score(tmp_path: Path, pi_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(tmp_path, "--trial-score", "1", rows=RIGHT, bundle=pi_bundle) == 2
    assert "was trained for no task" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fall-alert", "log-triage"])
def test_a_bundle_of_a_task_passes_a_trial_without_a_golden_prompt(name: str) -> None:
    """It was asked "Hello", which one that reads fields refuses: no device ever kept it."""
    path = FALL.parents[1] / name / "bundle"
    found = try_bundle(path, TrialLimits())
    assert isinstance(found, Measured) and json.loads(found.text)
    assert judge(found, TrialLimits(), Bundle.open(path)) is None
