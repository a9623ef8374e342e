"""What a training keeps beside its bundle is not thrown away by another one without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("jax", reason="needs the extra [train]")

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.file import load
from toolkit.cli import main
from toolkit.train.weights import begin, finish, silent

TASK = """\
task: 1
name: pump
kind: classify
about: Says whether a pump needs somebody.
input: {fields: {bar: {from: 0, to: 9, step: 0.01}, celsius: {from: 0, to: 900, step: 0.1}}}
answer: {type: object, additionalProperties: false, required: [level], properties: {level: {enum: [none, alarm]}}}
network: {layers: 1, width: 32, heads: 2, ffn: 64}
"""
RULES = """\
truth:
  - {when: bar > 5, answer: {level: alarm}}
  - {answer: {level: none}}
"""
SHORT = ["--steps", "2", "--batch", "8", "--cases", "600"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pump.yaml").write_text(TASK + RULES)
    (tmp_path / "few.yaml").write_text(TASK.replace("pump", "few") + "examples: few.jsonl\n")
    (tmp_path / "few.jsonl").write_text(
        json.dumps({"input": {"bar": 1, "celsius": 20}, "answer": {"level": "none"}}) + "\n"
    )
    (tmp_path / "program.yaml").write_text(TASK + "generate: {program: fails.py}\n")
    (tmp_path / "fails.py").write_text("raise SystemExit('no cases today')\n")
    (tmp_path / "words.yaml").write_text(
        TASK.replace(
            "{fields: {bar: {from: 0, to: 9, step: 0.01}, celsius: {from: 0, to: 900, step: 0.1}}}",
            "{text: 60, words: apart}",
        ).replace("ffn: 64", "ffn: 64, tied: true, embeddings: nowhere")
        + "examples: few.jsonl\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_refusal_changes_what_an_unfinished_training_has_kept(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "pump.yaml", "-o", "made", *SHORT, "--weights-only"]) == 0
    kept = contents(here / "made.training")
    assert "weights.npz" in kept
    other = ["--steps", "3", "--batch", "8", "--cases", "600"]
    for words, said in [
        (["missing.yaml"], "missing.yaml"),
        (["pump.yaml", "--rank", "3"], "--rank: only with --kind tune"),
        (["pump.yaml", "--keep", "0.5"], "--keep: only with --kind tune; --keep needs --further BUNDLE"),
        (["few.yaml"], "unfinished training of other settings"),
        (["few.yaml", "--afresh"], "few has "),
        (["program.yaml", "--afresh"], "no cases today"),
        (["words.yaml", "--afresh"], "nowhere"),
        (["pump.yaml", *other], "unfinished training of other settings (steps 2, now 3), whose work would be lost"),
        (["pump.yaml", *other], "Give its settings to go on with it, choose another folder with -o, or throw it away"),
    ]:
        assert main(["train", *words, "-o", "made"]) != 0
        assert said in capsys.readouterr().err
        assert contents(here / "made.training") == kept, words
    assert main(["train", "pump.yaml", "-o", "made", *SHORT, "--weights-only"]) == 0
    assert contents(here / "made.training") == kept
    assert main(["train", "pump.yaml", "-o", "made", *other, "--weights-only", "--afresh"]) == 0
    assert contents(here / "made.training")["weights.npz"] != kept["weights.npz"]
    assert json.loads((here / "made.training/settings.json").read_text())["steps"] == 3


def test_an_encoder_that_is_not_there_is_named_where_there_is_no_folder_yet(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "words.yaml", "-o", "new/made"]) != 0
    assert "nowhere" in capsys.readouterr().err and not (here / "new").exists()


def test_after_a_bundle_is_made_another_training_says_that_it_begins_afresh(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "pump.yaml", "-o", "made", *SHORT, "--weights-only", "--json"]) == 0
    said, progress = capsys.readouterr()
    assert json.loads(said) == {"training": "made.training"} and "begins afresh" not in progress
    finish(here / "made.training")  # as each training does once its bundle is there
    (here / "pump.yaml").write_text((TASK + RULES).replace("bar > 5", "bar > 6"))
    assert main(["train", "pump.yaml", "-o", "made", *SHORT, "--seed", "1", "--weights-only"]) == 0
    said = capsys.readouterr().err
    assert "made.training is of a training of other settings (the task file, seed 0, now 1)" in said
    assert "this one begins afresh" in said
    assert main(["train", "pump.yaml", "-o", "made", *SHORT, "--weights-only"]) == 2  # that one has no bundle yet


@pytest.mark.parametrize("name", ["lines.csv", "phrases.yaml", "words.txt", "helper.py", "units.JSON"])
def test_a_file_that_a_generator_may_read_is_one_of_a_training_s_settings(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows = [{"input": {"bar": i / 70, "celsius": 20}, "answer": {"level": "none"}} for i in range(600)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "fails.py").write_text(
        "import pathlib\nprint(pathlib.Path(__file__).with_name('rows.jsonl').read_text(), end='')\n"
    )
    (here / name).write_text("1\n")
    assert main(["train", "program.yaml", "-o", "made", *SHORT, "--weights-only"]) == 0
    (here / "new.jsonl").write_text("")  # what came meanwhile, as by `task harvest`, is not
    assert main(["train", "program.yaml", "-o", "made", *SHORT, "--weights-only"]) == 0
    (here / name).write_text("2\n")
    capsys.readouterr()
    assert main(["train", "program.yaml", "-o", "made", *SHORT, "--weights-only"]) == 2
    assert f"unfinished training of other settings ({name}" in capsys.readouterr().err


def test_a_task_that_is_refused_leaves_its_folder_as_it_was_and_that_of_the_task_before_it(here: Path) -> None:
    pump, few, work = load(here / "pump.yaml"), load(here / "few.yaml"), here / "made.training"
    with begin(work, {"seed": 0}) as begun:
        begun.make_cases(pump, 600, 0, silent, own={"seed": 0})
    finish(work)
    kept = contents(work)
    assert {"settings.json", "pump/settings.json", "pump/train.jsonl"} < kept.keys()
    with pytest.raises(ConfigurationError, match="few has"), begin(work, {"seed": 1}) as begun:
        begun.make_cases(pump, 600, 1, silent, own={"seed": 1})
        begun.make_cases(few, 600, 1, silent, own={"seed": 1})
    assert contents(work) == kept and not (work / "few").exists()


@pytest.mark.parametrize("damaged", ["", "[1, 2]", '"settings"', "{}"])
def test_settings_that_cannot_be_read_are_those_of_another_training(
    damaged: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = here / "made.training"
    work.mkdir()
    (work / "settings.json").write_text(damaged)
    (work / "weights.npz").write_bytes(b"hours")
    with pytest.raises(ConfigurationError, match="unfinished training of other settings"), begin(work, {"seed": 0}):
        raise AssertionError("begun")
    assert (work / "weights.npz").read_bytes() == b"hours"
