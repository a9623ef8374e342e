"""A sentence encoder that was tuned for a task, on a board: it answers the task as any trained bundle does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.errors import ConfigurationError, SchemaError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.purpose import Purpose
from tests.support.tuned_encoder import PURPOSE, tuned_encoder
from toolkit.cli import main

ROOT = Path(__file__).parents[2]
TEXTS = ["The pump is HOT", "valveClosed (pressure:low)", "pump pump pump 2026-01-02", "alarm"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_encoder(tmp_path_factory.mktemp("tuned") / "bundle")


STRANGE = "most of its words are none that the model was trained on"


def examples(folder: Path, texts: list[str], answer: dict[str, Any]) -> Path:
    file = folder / "held.jsonl"
    file.write_text("\n".join(json.dumps({"input": {"text": t}, "answer": answer}) for t in texts) + "\n")
    return file


def test_it_answers_every_field_with_its_confidence_however_it_is_asked(bundle: Path) -> None:
    answerer = Answerer.open(bundle)
    with EncoderModel.open(bundle) as model:
        for text in TEXTS:
            typed = answerer.answer({"text": text})
            asked = model.generate([{"role": "user", "content": text}])
            assert json.loads("".join(asked)) == typed.answer
            assert asked.result.confidence == pytest.approx(typed.confidence) and typed.confidence.keys() == {
                "state", "soon",
            }  # fmt: skip
            assert sum(asked.result.probabilities["state"].values()) == pytest.approx(1)
            assert answerer.shares(typed, "soon") == pytest.approx(list(asked.result.probabilities["soon"].values()))
            assert model.classify(text).answer == typed.answer
    answerer.close()


def test_it_reads_a_text_as_its_task_says(bundle: Path) -> None:
    """Small letters, words apart, long numbers as 0; a classifier that others trained reads the text as it is."""
    with EncoderModel.open(bundle) as model:
        assert model.asked("diskFull at 2026-01-02").text.strip() == "disk full at 0"
        one, other = (model.classify(text) for text in ("pumpHot (valve:low)", "pump hot ( valve : low )"))
        assert one.probabilities == other.probabilities


def test_its_confidence_is_softened_by_the_temperatures_of_its_manifest(bundle: Path) -> None:
    answerer = Answerer.open(bundle)
    typed = answerer.answer({"text": "pump"})
    (choice,) = typed.choices["state"]
    assert typed.confidence["state"] == pytest.approx(float(choice.shares(2.0)[choice.chosen]))
    assert typed.confidence["state"] < float(choice.shares(1.0)[choice.chosen])
    answerer.close()


def test_a_text_that_is_not_there_is_not_answered_and_one_of_strange_words_is_unfamiliar(bundle: Path) -> None:
    answerer = Answerer.open(bundle)
    assert answerer.answer({"text": "  "}).to_json()["reason"] == "there is no text"
    strange = answerer.answer({"text": "zqxj kwvz qqzx xjzk"})
    assert strange.answer is not None and "none that the model was trained on" in strange.unfamiliar[0]
    with EncoderModel.open(bundle) as model:
        nothing = model.generate("  ")
        assert "".join(nothing) == "null" and nothing.result.unfamiliar == ("there is no text",)
        asked = model.generate("zqxj kwvz qqzx xjzk")
        list(asked)
        assert asked.result.unfamiliar == strange.unfamiliar
        assert model.classify("the pump is hot").unfamiliar == ()
    answerer.close()


def test_a_text_beyond_the_tasks_length_is_cut_and_said_to_be_unfamiliar(bundle: Path) -> None:
    answerer = Answerer.open(bundle)
    found = answerer.answer({"text": "pump " * 40})
    assert found.answer is not None and "trained for at most 60" in found.unfamiliar[0]
    answerer.close()


def test_more_tokens_than_the_bundle_reads_are_not_answered_and_the_reason_has_both_numbers(tmp_path: Path) -> None:
    small = tuned_encoder(tmp_path / "small", context=16)
    answerer = Answerer.open(small)
    found = answerer.answer({"text": "e " * 15}).to_json()
    assert found["answer"] is None and found["reason"].endswith("it has 17 tokens; the model has room for 16")
    answerer.close()


def test_a_links_schema_is_held_against_the_tasks_answer(bundle: Path) -> None:
    with EncoderModel.open(bundle) as model:
        model.check_schema(dict(PURPOSE.answer))
        with pytest.raises(SchemaError, match="'level' is none of its fields"):
            model.check_schema({"type": "object", "properties": {"level": {"enum": ["a"]}}})


def test_run_classify_and_eval_speak_of_the_task(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(bundle), "the pump is hot", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    answer = json.loads(found["text"])
    assert answer.keys() == {"state", "soon"} and found["confidence"].keys() == {"state", "soon"}
    assert main(["classify", str(bundle), "the pump is hot"]) == 0
    assert answer["state"] in capsys.readouterr().out
    assert capsys.readouterr().err == ""
    for command in ("run", "classify"):
        assert main([command, str(bundle), "zqxj kwvz qqzx xjzk"]) == 0
        assert capsys.readouterr().err == f"unfamiliar: {STRANGE}\n"
    assert main(["classify", str(bundle), "the pump is hot", "zqxj kwvz qqzx xjzk"]) == 0
    assert capsys.readouterr().err == f"unfamiliar: 'zqxj kwvz qqzx xjzk': {STRANGE}\n"
    held = examples(tmp_path, ["the pump is hot", "THE PUMP IS HOT"], answer)
    assert main(["eval", str(bundle), "--examples", str(held), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["accuracy"] == 1.0 and [a["answer"]["state"] for a in scored["answers"]] == [answer["state"]] * 2


def test_a_trial_asks_for_the_tasks_score(bundle: Path, tmp_path: Path) -> None:
    from device_runtime.update.probe import measure
    from toolkit.signing.bundles import demanded_score

    answerer = Answerer.open(bundle)
    answer = dict(answerer.answer({"text": "the pump is hot"}).answer or {})
    answerer.close()
    held = examples(tmp_path, ["the pump is hot"], answer)
    assert demanded_score(bundle, held, 1.0)["trial_score"]["at_least"] == 1.0
    other = examples(tmp_path, ["the pump is hot"], {**answer, "soon": not answer["soon"]})
    with pytest.raises(ConfigurationError, match="50"):
        demanded_score(bundle, other, 0.9)
    assert measure(bundle).as_expected


def test_eval_of_it_needs_the_base_install_only(bundle: Path, tmp_path: Path) -> None:
    """Without what the extras bring, and without the converter, as on a board."""
    held = examples(tmp_path, TEXTS, {"state": "calm", "soon": True})
    blocked = ("jax", "optax", "sklearn", "safetensors", "gguf", "flatbuffers", "tqdm", "matplotlib", "converters")
    command = ["eval", str(bundle), "--examples", str(held), "--json"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"from toolkit.cli import main; sys.exit(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["answers"]) == 4


def test_what_the_manifest_says_is_read_back(bundle: Path) -> None:
    found = Purpose.of_manifest(Bundle.open(bundle).manifest)
    assert found == replace(PURPOSE, at_once=True)  # an encoder decides each field by itself
