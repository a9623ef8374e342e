"""Tuning a sentence encoder for a task: its network in JAX, the loop that can be interrupted, the bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

import jax.numpy as jnp

from converters.encoders.checkpoint import EncoderCheckpoint, open_encoder
from converters.encoders.network import EncoderConfig
from converters.encoders.ops_numpy import reference_sentence
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task, load
from device_runtime.tasks.purpose import Purpose
from toolkit.cli import main
from toolkit.train.arrays import write_state
from toolkit.train.tune.encoder import optimize
from toolkit.train.tune.encoder.network import LOOKING, logits, parts_of, with_heads
from toolkit.train.tune.encoder.optimize import Plan, mean_of, tune_encoder
from toolkit.train.tune.encoder.pipeline import EncoderSettings, tune_encoder_bundle, tuned_checkpoint
from toolkit.train.tune.encoder.texts import Texts, batches_of, texts_of
from toolkit.train.tune.steps import earlier
from toolkit.train.weights import TRAINED, begin, work_folder

ROOT = Path(__file__).parents[3]
ENCODERS = ROOT / "tests/data/encoders"
TASK = """
task: 1
name: pump-notes
about: Says how a pump is.
input: {text: 40}
answer:
  type: object
  additionalProperties: false
  required: [state, soon]
  properties: {state: {enum: [none, calm, alarm]}, soon: {enum: ["yes", "no"]}}
none: {state: none}
examples: examples.jsonl
"""
WORDS = {"pump": ("calm", "no"), "valve": ("alarm", "yes"), "here": ("none", "no")}
SIZES = (3, 2)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("pump-notes")
    (folder / "task.yaml").write_text(TASK)
    rows = []
    for number in range(240):
        (word, said), place = list(WORDS.items())[number % 3], number // 3
        text = f"{word} is {('hot', 'open', 'low', 'normal')[place % 4]} {place}"
        rows.append({"input": {"text": text}, "answer": dict(zip(("state", "soon"), said, strict=True))})
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return load(folder)


def checkpoint_of(name: str = "bert-embed") -> EncoderCheckpoint:
    found = open_encoder(ENCODERS / name)
    assert found is not None
    return found


def few(task: Task, count: int = 24) -> list[Example]:
    lines = (task.folder / "examples.jsonl").read_text().splitlines()[:count]
    return [Example(row["input"], row["answer"]) for row in map(json.loads, lines)]


def tuned_on(texts: Texts, folder: Path, plan: Plan, layers: int = 2, log: Any = lambda *_: None) -> dict[str, Any]:
    checkpoint = checkpoint_of()
    assert isinstance(checkpoint.config, EncoderConfig)
    config = with_heads(checkpoint.config, SIZES)
    parts = parts_of(config, checkpoint.read, layers, 0)
    return tune_encoder(config, parts, SIZES, texts, plan, 0, folder / "trained.npz", log)


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[Any, Any]:
    tokens = np.zeros((len(rows), length), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return jnp.asarray(tokens), jnp.asarray([len(row) for row in rows], jnp.int32)


@pytest.mark.parametrize("name", ["bert-embed", "xlm-roberta", "mpnet"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_network_in_jax_is_that_of_the_converter(name: str, layers: int, task: Task) -> None:
    """Texts of different lengths side by side, each as the float reference has it alone."""
    checkpoint = checkpoint_of(name)
    assert isinstance(checkpoint.config, EncoderConfig)
    config = with_heads(checkpoint.config, SIZES)
    parts = parts_of(config, checkpoint.read, layers, 0)
    for name in LOOKING:
        parts.trained[name] = jnp.asarray(np.random.default_rng(1).normal(0, 0.5, parts.trained[name].shape))
    rows = texts_of(task, few(task, 3), checkpoint.tokenizer, 90).tokens
    rows = [rows[0][:4], rows[1], [*rows[2], *rows[2]]]
    found = logits(config, parts.fixed, parts.below, parts.trained, *padded(rows, 64))
    tuned = tuned_checkpoint(task, checkpoint, config, {n: np.asarray(v) for n, v in parts.trained.items()})
    for row, values in zip(rows, np.asarray(found), strict=True):
        np.testing.assert_allclose(values, reference_sentence(config, tuned.read, row), atol=2e-4)


def test_fields_begin_with_the_mean_of_all_rows_and_learn_what_to_look_at(task: Task, tmp_path: Path) -> None:
    checkpoint = checkpoint_of()
    assert isinstance(checkpoint.config, EncoderConfig)
    config = with_heads(checkpoint.config, SIZES)
    trained = {n: np.asarray(v) for n, v in parts_of(config, checkpoint.read, 1, 0).trained.items()}
    read = tuned_checkpoint(task, checkpoint, config, trained).read
    mean = replace(config, head=replace(config.head, fields=()))
    row = texts_of(task, few(task, 1), checkpoint.tokenizer, 90).tokens[0]
    np.testing.assert_allclose(reference_sentence(config, read, row), reference_sentence(mean, read, row), atol=1e-5)
    texts = texts_of(task, few(task), checkpoint.tokenizer, 90)
    learnt = tuned_on(texts, tmp_path, Plan(2, 8, 5e-3))
    assert all(np.abs(learnt[name]).max() > 1e-3 for name in LOOKING)


def test_what_is_tuned_is_the_upper_layers_and_the_heads(task: Task, tmp_path: Path) -> None:
    checkpoint = checkpoint_of()
    assert isinstance(checkpoint.config, EncoderConfig)
    texts = texts_of(task, few(task), checkpoint.tokenizer, 90)
    trained = tuned_on(texts, tmp_path, Plan(1, 8), layers=1)
    config = with_heads(checkpoint.config, SIZES)
    tuned = tuned_checkpoint(task, checkpoint, config, trained)
    for name in (
        "embed.weight",
        "encoder.positions.weight",
        "encoder.layers.0.q.weight",
        "encoder.layers.0.ffn_norm.bias",
    ):
        np.testing.assert_array_equal(tuned.read(name), checkpoint.read(name))
    for name in ("encoder.layers.1.q.weight", "encoder.layers.1.down.bias", "encoder.layers.1.ffn_norm.weight"):
        assert not np.array_equal(tuned.read(name), checkpoint.read(name))
    assert tuned.sha256 != checkpoint.sha256 and tuned.name == "bert-embed+pump-notes" and tuned.task == "classify"


def test_each_case_is_in_one_batch_of_an_epoch_and_what_fills_up_counts_nothing(task: Task) -> None:
    texts = texts_of(task, few(task, 21), checkpoint_of().tokenizer, 90)
    batches = batches_of(texts, 4, np.random.default_rng(0))
    found = [tuple(b.tokens[i, : b.lengths[i]]) for b in batches for i in range(4) if b.weights[i]]
    assert sorted(found) == sorted(tuple(tokens) for tokens in texts.tokens)
    assert len({b.tokens.shape[1] for b in batches}) <= 4


@pytest.mark.slow  # 5 s of CPU
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, plan = texts_of(task, few(task), checkpoint_of().tokenizer, 90), Plan(3, 8)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = tuned_on(texts, tmp_path / "whole", plan)
    monkeypatch.setattr(optimize, "_SAVE_S", 0.0)
    taken: list[int] = []

    def interrupt(step: int, steps: int, loss: float) -> None:
        taken.append(step)
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned_on(texts, tmp_path / "cut", plan, log=interrupt)
    cut = tuned_on(texts, tmp_path / "cut", plan, log=lambda step, _, __: taken.append(step))
    assert taken[:5] == [1, 2, 3, 4, 4]  # step 4 was not saved yet: it is taken again
    assert whole.keys() == cut.keys() and all(np.array_equal(whole[name], cut[name]) for name in whole)


@pytest.fixture(scope="module")
def bundle(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tuned until it knows its three words."""
    folder = tmp_path_factory.mktemp("tuned") / "bundle"
    settings = EncoderSettings(cases=240, epochs=3, batch=16, rate=5e-3)
    tune_encoder_bundle(task, checkpoint_of(), folder, settings)
    return folder


def test_a_tuned_encoder_has_learnt_its_task(bundle: Path, task: Task) -> None:
    manifest = Bundle.open(bundle).manifest
    purpose = Purpose.of_manifest(manifest)
    assert purpose is not None and manifest.task == "classify" and purpose.kind == "tune"
    assert purpose.fields == task.fields and purpose.none == {"state": "none"}
    assert purpose.temperatures.keys() == {"state", "soon"} and purpose.longest_pieces is not None
    assert manifest.context == 42  # the task's 40 characters, and the frame
    test = purpose.report["test"]
    assert test["well_formed"] == 1.0 and test["fields"]["state"]["accuracy"] > 0.9
    assert purpose.report["baselines"]["commonest answer"]["state"] < 0.6
    assert (bundle.with_name("bundle.training") / "finished").is_file()
    assert manifest.quality["text"] == "pump-notes" and manifest.quality["same_label"] > 0.9
    answerer = Answerer.open(bundle)
    assert answerer.answer({"text": "VALVE is hot"}).answer == {"state": "alarm", "soon": "yes"}
    answerer.close()


def leaves_of(bundle: Path) -> list[Any]:
    with np.load(work_folder(bundle) / "trained.npz") as arrays:
        return [arrays[name] for name in sorted(arrays.files) if name != "step"]


def last(leaves: list[Any]) -> list[Any]:
    """The weights of the last step."""
    config = checkpoint_of().config
    assert isinstance(config, EncoderConfig)
    return leaves[: len(parts_of(with_heads(config, SIZES), checkpoint_of().read, 2, 0).trained)]


def averaged(leaves: list[Any]) -> list[Any]:
    """Those that the bundle has."""
    count = len(last(leaves))
    return leaves[count : 2 * count]


def test_a_training_that_goes_further_begins_with_the_weights_of_another(
    bundle: Path, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate that moves nothing: what float32 keeps of a step of 1e-12 is the weight itself."""
    flags = ["--kind", "tune", "--from", str(ENCODERS / "bert-embed"), "--further", str(bundle), "--json"]
    command = ["train", str(task.folder), *flags, "--cases", "240", "--rate", "1e-12", "--seed", "1"]
    assert main([*command, "-o", str(tmp_path / "further")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["fields"]["state"]["accuracy"] > 0.9
    before, after = leaves_of(bundle), leaves_of(tmp_path / "further")
    for one, other in zip(averaged(before), last(after), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    assert not all(np.allclose(a, b, atol=1e-4) for a, b in zip(averaged(before), last(before), strict=True))
    purpose = Purpose.of_manifest(Bundle.open(tmp_path / "further").manifest)
    assert purpose is not None and purpose.report["training"]["further"] == str(bundle)


def test_a_training_of_before_fields_looked_for_themselves_goes_on_with_the_mean(
    bundle: Path, task: Task, tmp_path: Path
) -> None:
    old = shutil.copytree(bundle, tmp_path / "old")
    work = shutil.copytree(work_folder(bundle), work_folder(old))
    settings = json.loads((work / "settings.json").read_text())
    del settings["looks"]
    (work / "settings.json").write_text(json.dumps(settings))
    checkpoint = checkpoint_of()
    assert isinstance(checkpoint.config, EncoderConfig)
    trained = parts_of(with_heads(checkpoint.config, SIZES), checkpoint.read, 2, 0).trained
    names = [name for name in sorted(trained) if name not in LOOKING]  # as they lie in a state
    own = dict(zip(sorted(trained), averaged(leaves_of(bundle)), strict=True))
    write_state(work / TRAINED, [own[name] for name in names] * 4, step=1)
    before = earlier(old, tmp_path / "new", checkpoint.sha256)
    assert before is not None
    found = mean_of(before, trained)
    assert found.keys() == trained.keys() and not any(np.any(found[name]) for name in LOOKING)
    assert all(np.array_equal(found[name], own[name]) for name in names)
    made = tune_encoder_bundle(task, checkpoint, tmp_path / "new", EncoderSettings(further=old, cases=240, seed=1))
    purpose = Purpose.of_manifest(made.manifest)
    assert purpose is not None and purpose.report["test"]["fields"]["state"]["accuracy"] > 0.9


def test_what_an_earlier_training_had_learnt_is_kept_to_the_share_that_is_asked_for(
    bundle: Path, task: Task, tmp_path: Path
) -> None:
    settings, checkpoint = EncoderSettings(further=bundle, cases=240, seed=1), checkpoint_of()
    for name, keep in (("none", None), ("half", 0.5), ("half", 0.5)):  # once more, it is not halved again
        tune_encoder_bundle(task, checkpoint, tmp_path / name, replace(settings, keep=keep))
    before, without, half = (averaged(leaves_of(path)) for path in (bundle, tmp_path / "none", tmp_path / "half"))
    assert not all(np.allclose(a, b, atol=1e-3) for a, b in zip(before, without, strict=True))
    for was, now, found in zip(before, without, half, strict=True):
        np.testing.assert_allclose(found, (was + now) / 2, atol=1e-6)
    purpose = Purpose.of_manifest(Bundle.open(tmp_path / "half").manifest)
    assert purpose is not None and purpose.report["training"]["keep"] == 0.5


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("itself", "where -o puts the new bundle"),
        ("nothing", "has no steps of a tuning"),
        ("unfinished", "is not finished; go on with it first"),
        ("checkpoint", "was tuned from another checkpoint"),
        ("damaged", "cannot be read"),
        ("layers", "whose training had other weights; give its --layers 2, and a task with the same fields"),
        ("labels", "whose training had other weights"),
    ],
)
def test_what_a_training_cannot_go_on_from_is_refused_and_leaves_nothing(
    case: str, words: str, bundle: Path, task: Task, tmp_path: Path
) -> None:
    settings, output = EncoderSettings(further=bundle, cases=240), tmp_path / "new"
    if case == "itself":
        output = bundle
    elif case == "nothing":
        settings = replace(settings, further=tmp_path / "nothing")
    elif case == "unfinished":
        settings = replace(settings, further=tmp_path / "half")
        shutil.copytree(work_folder(bundle), tmp_path / "half.training")
        (tmp_path / "half.training" / "finished").unlink()
    elif case == "damaged":
        settings = replace(settings, further=tmp_path / "half")
        shutil.copytree(work_folder(bundle), tmp_path / "half.training")
        (tmp_path / "half.training" / "trained.npz").write_bytes(b"PK\3\4")
    elif case == "layers":
        settings = replace(settings, layers=1)
    elif case == "labels":
        more = {"state": {"enum": ["none", "calm", "alarm", "off"]}, "soon": {"enum": ["yes", "no"]}}
        task = replace(task, answer={**task.answer, "properties": more})
    before = sorted(tmp_path.iterdir()), leaves_of(bundle)
    with pytest.raises(ConfigurationError, match=words):
        tune_encoder_bundle(task, checkpoint_of("mpnet" if case == "checkpoint" else "bert-embed"), output, settings)
    assert sorted(tmp_path.iterdir()) == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], leaves_of(bundle), strict=True))


def test_an_unfinished_training_of_other_settings_is_refused_before_the_checkpoint_is_read(
    bundle: Path, task: Task, tmp_path: Path
) -> None:
    checkpoint, asked = checkpoint_of(), list[str]()
    output, work = tmp_path / "new", work_folder(tmp_path / "new")

    def read(name: str) -> Any:
        asked.append(name)
        return checkpoint.read(name)

    with begin(work, {"seed": 1}):
        pass
    (work / TRAINED).write_bytes(b"hours")
    watched, steps = replace(checkpoint, read=read), list[str]()
    settings = EncoderSettings(further=bundle, cases=240, layers=1)  # its training had 2
    with pytest.raises(ConfigurationError, match="unfinished training of other settings"):
        tune_encoder_bundle(task, watched, output, settings)
    assert not asked
    with pytest.raises(ConfigurationError, match="whose training had other weights"):
        tune_encoder_bundle(task, watched, output, settings, lambda step, *_: steps.append(step), afresh=True)
    assert asked and not steps  # before cases are made, which may take minutes
    assert (work / TRAINED).read_bytes() == b"hours"


def test_it_is_evaluated_and_audited_as_any_trained_bundle(
    bundle: Path, task: Task, capfd: pytest.CaptureFixture[str]
) -> None:
    held = str(task.folder / "examples.jsonl")
    assert main(["eval", str(bundle), "--task", str(task.folder), "--examples", held, "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["accuracy"] > 0.9 and "INFO:" not in said.err  # what LiteRT says when it is closed
    assert main(["audit", str(bundle), "--task", str(task.folder), "--examples", held, "--json"]) == 0
    said = capfd.readouterr()
    changes = {row["change"]: row for row in json.loads(said.out)["changes"]}
    assert "INFO:" not in said.err
    assert all(row["wrong"] == 0 for name, row in changes.items() if "case" in name or "space" in name)


def test_a_stop_text_is_refused_as_of_any_bundle_of_a_task(bundle: Path) -> None:
    with EncoderModel.open(bundle) as model, pytest.raises(ConfigurationError, match="which stop cannot end"):
        model.generate("valve is hot", stop=["x"])


def test_micro_gives_a_bundle_of_the_cases_length(task: Task, tmp_path: Path) -> None:
    settings = EncoderSettings(cases=240, batch=32, layers=1, profile="micro")
    made = tune_encoder_bundle(task, checkpoint_of(), tmp_path / "micro", settings)
    assert made.manifest.profile == "micro" and made.manifest.context < 42
    answerer = Answerer.open(tmp_path / "micro", backend="tflm")
    assert answerer.answer({"text": "valve is hot"}).answer is not None
    answerer.close()


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({}, "bert-classify", "is a model of the task classify; expected a sentence encoder"),
        ({}, "marian", "is a model of the task translate; expected a sentence encoder"),
        ({"properties": {"level": {"type": "integer"}}}, "bert-embed", "level, which has no labels to choose from"),
    ],
)
def test_what_cannot_be_tuned_so_is_refused_by_name(
    change: dict[str, Any], name: str, words: str, task: Task, tmp_path: Path
) -> None:
    other = replace(task, answer={**task.answer, **change})
    with pytest.raises(ConfigurationError, match=words):
        tune_encoder_bundle(other, checkpoint_of(name), tmp_path / "bundle", EncoderSettings())
    assert not list(tmp_path.iterdir())


def test_a_task_of_readings_is_refused_with_the_kinds_that_read_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"reads fields \(temp_c, .*--kind tiny or --kind classify"):
        tune_encoder_bundle(
            load(ROOT / "examples/boiler-advisor"), checkpoint_of(), tmp_path / "bundle", EncoderSettings()
        )


def test_more_layers_than_there_are_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--layers is 3; .* has 2"):
        tune_encoder_bundle(task, checkpoint_of(), tmp_path / "bundle", EncoderSettings(layers=3))


def test_the_command_refuses_what_only_decoders_have(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(task.folder), "--kind", "tune", "--from", str(ENCODERS / "bert-embed")]
    assert main([*command, "-o", str(tmp_path / "b"), "--rank", "4"]) == 2
    assert "--rank: " in capsys.readouterr().err
    assert main(["train", str(task.folder), *command[1:], "-o", str(tmp_path / "b")]) == 2
    assert "2 tasks: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_number_of_cases_may_name_the_only_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(ROOT / "examples/log-triage"), "--kind", "tune", "--from", str(ENCODERS / "bert-embed")]
    assert main([*command, "-o", str(tmp_path / "b"), "--cases", "400", "--cases", "log-triage=4"]) == 2
    assert re.search("log-triage has [1-4] cases to train with", capsys.readouterr().err)


def train(task: Task, output: Path, kill: bool = False) -> dict[str, Any]:
    """The real command; killed when it has kept its first step, and then run again."""
    flags = ["--kind", "tune", "--from", ENCODERS / "bert-embed", "--cases", "240", "--epochs", "20", "--json"]
    command = [sys.executable, "-m", "toolkit", "train", task.folder, *flags, "-o", output]
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # see conftest.py
    if kill:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + 300
        while not output.with_name(f"{output.name}.training").joinpath("trained.npz").is_file():
            assert process.poll() is None and time.monotonic() < until_s
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_tuning_that_was_killed_ends_with_the_same_bundle(task: Task, tmp_path: Path) -> None:
    whole, cut = train(task, tmp_path / "whole"), train(task, tmp_path / "cut", kill=True)
    assert whole["test"] == cut["test"] and whole["test"]["well_formed"] == 1.0
    one, other = ((tmp_path / name / "model.tflite").read_bytes() for name in ("whole", "cut"))
    assert one == other
    shutil.rmtree(tmp_path / "cut")
