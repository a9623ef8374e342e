"""Training itself: the network, the cases, the loop that can be interrupted, the bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

import jax.numpy as jnp
from sentencepiece import SentencePieceProcessor

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from converters.emit.c.bundle import calibration, write_bundle_image
from converters.emit.c.image import SectionKind, read_image
from converters.emit.c.schema import schema_section
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Network, load
from device_runtime.tasks.purpose import Purpose
from toolkit.examples.readings import generated
from toolkit.train import network
from toolkit.train.cases import Cases, calibration_rows, part_of, tokenized
from toolkit.train.checkpoint import write_folder
from toolkit.train.optimize import Schedule, _by_length, optimize
from toolkit.train.pipeline import purpose_of, write_purpose
from toolkit.train.vocabulary import answer_text, train_vocabulary

ROOT = Path(__file__).parents[3]
BOILER = load(ROOT / "examples/boiler-advisor")
SMALL = Network(layers=2, width=32, heads=2, ffn=64)


def boiler_cases(count: int) -> tuple[list[Example], bytes]:
    examples = [Example(case["input"], case["answer"]) for case in generated(BOILER, count, 0)]
    return examples, train_vocabulary(BOILER, (BOILER.inputs.prompt(e.input).text for e in examples))


def test_digits_and_decisions_are_tokens_of_their_own() -> None:
    examples, vocabulary = boiler_cases(60)
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    prompt = tokenizer.encode(BOILER.inputs.prompt(examples[0].input).text, out_type=str)
    assert all(len(piece) == 1 for piece in prompt if piece[0].isdigit())
    answer = answer_text({"severity": "warn", "cause": "overheat", "advice": BOILER.truth[5].answer["advice"]}, BOILER)
    pieces = tokenizer.encode(answer, out_type=str)
    assert len(pieces) == 7 and pieces[1] == '"warn"' and pieces[3] == '"overheat"'
    assert tokenizer.decode(tokenizer.encode(answer)) == answer


def test_the_same_texts_give_the_same_vocabulary() -> None:
    assert boiler_cases(60)[1] == boiler_cases(60)[1]


def test_readings_that_are_almost_the_same_are_never_on_both_sides() -> None:
    for bar in (1.51, 1.52, 1.58):
        assert part_of({"temp_c": 70.12, "bar": bar, "flow_l_min": 5}, BOILER) == part_of(
            {"temp_c": 70.15, "bar": 1.5, "flow_l_min": 5}, BOILER
        )
    home = load(ROOT / "examples/home-commands")
    assert part_of({"text": "Kitchen light on!"}, home) == part_of({"text": "on, kitchen light"}, home)
    parts = [part_of({"text": f"command {'ab' * i}"}, home) for i in range(300)]
    assert set(parts) == {"train", "calibrate", "test"}


def test_the_image_for_boards_holds_the_answers_schema_from_the_start(tmp_path: Path) -> None:
    """The conversion knows the task; when all has been measured, its calibration comes to it."""
    examples, vocabulary = boiler_cases(5)
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    weights = network.initial(SMALL, tokenizer.vocab_size(), 3)
    cases = tokenized(BOILER, examples, tokenizer)
    context = cases.tokens.shape[1] + 24
    write_folder(tmp_path / "hf", SMALL, {k: np.asarray(v) for k, v in weights.items()}, vocabulary, context)
    purpose = purpose_of(BOILER, "tiny").to_json()
    options = Options("micro", context, fast=True, windows=calibration_rows(cases), purpose=purpose)
    bundle = convert(open_checkpoint(tmp_path / "hf"), tmp_path / "bundle", options)
    image = (bundle.path / IMAGE).read_bytes()
    assert read_image(image)[SectionKind.SCHEMA] == schema_section([BOILER.answer])
    assert SectionKind.CALIBRATION not in read_image(image)
    measured = Bundle.open(write_purpose(bundle.path, {**purpose, "temperatures": {"severity": 2.0}}).path, verify=True)
    found = Purpose.of_manifest(measured.manifest)
    assert found is not None and found.temperatures == {"severity": 2.0} and found.fields == BOILER.fields
    calibrated = read_image((bundle.path / IMAGE).read_bytes())
    assert calibrated.pop(SectionKind.CALIBRATION) == calibration(measured.manifest) != b""
    assert calibrated == read_image(image)
    write_bundle_image(measured, path=tmp_path / "whole.image")  # from its graph, all at once
    assert (tmp_path / "whole.image").read_bytes() == (bundle.path / IMAGE).read_bytes()


def test_only_what_follows_the_prompt_is_learnt() -> None:
    examples, vocabulary = boiler_cases(5)
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    cases = tokenized(BOILER, examples, tokenizer)
    prompt = 1 + len(tokenizer.encode(BOILER.inputs.prompt(examples[0].input).text))
    assert not cases.learnt[0, : prompt - 1].any() and cases.learnt[0, prompt - 1 : prompt + 6].all()
    assert cases.learnt[0].max() == 1.0  # a decision; what the grammar forces weighs less


@pytest.mark.parametrize("tied", [False, True])
def test_the_network_is_the_converters_own(tmp_path: Path, tied: bool) -> None:
    """Float sums in another order: 1e-3 of logits around 1."""
    shape = replace(SMALL, tied=tied)
    examples, vocabulary = boiler_cases(5)
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    weights = network.initial(shape, tokenizer.vocab_size(), 3)
    tokens = tokenized(BOILER, examples, tokenizer).tokens[:2]
    ours = np.asarray(network.logits(weights, network.forward(weights, jnp.asarray(tokens), shape)))
    write_folder(tmp_path / "hf", shape, {k: np.asarray(v) for k, v in weights.items()}, vocabulary, 64)
    checkpoint = open_checkpoint(tmp_path / "hf")
    theirs = decoder(
        NumpyOps(checkpoint.config, CanonicalWeights(checkpoint.config, checkpoint.read), tokens), checkpoint.config
    )
    np.testing.assert_allclose(np.reshape(theirs, ours.shape), ours, atol=1e-3)


def test_every_case_is_in_a_part_that_is_long_enough_and_a_batch_has_its_share_of_each() -> None:
    rng = np.random.default_rng(1)
    lengths = np.concatenate([rng.integers(4, 10, 180), rng.integers(20, 40, 20)])
    learnt = (np.arange(39) < lengths[:, None] - 1).astype(np.float32)  # a case of n tokens predicts n - 1
    cases = Cases(np.full((200, 40), 2, np.int32), learnt)
    parts = _by_length(cases, 64)
    assert sorted(np.concatenate([part.rows for part in parts])) == list(range(200))
    assert [part.batch for part in parts] == [38, 20, 6] and parts[0].length < 10 < parts[2].length
    for part in parts:
        assert lengths[part.rows].max() == part.length
    assert [part.length for part in _by_length(Cases(cases.tokens, np.ones((200, 39), np.float32)), 64)] == [40]


def test_a_training_ends_early_where_held_cases_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases are the same: a look each 25 steps finds every decision right before long, and six are enough."""
    monkeypatch.setattr("toolkit.train.optimize._CHECK_STEPS", 25)
    cases = Cases(np.tile(np.array([[1, 5, 6, 7, 2]], np.int32), (32, 1)), np.ones((32, 4), np.float32))
    seen: list[int] = []
    schedule, checkpoint = Schedule(4000, 8, enough=0.99, average=0.9), tmp_path / "weights.npz"
    first = optimize(SMALL, 40, cases, schedule, 0, checkpoint, lambda step, loss: seen.append(step), cases)
    assert 150 <= seen[-1] < 4000
    steps = len(seen)
    again = optimize(SMALL, 40, cases, schedule, 0, checkpoint, lambda step, loss: seen.append(step), cases)
    assert len(seen) == steps  # nothing is left to train
    np.testing.assert_array_equal(first["embed"], again["embed"])


def run(folder: Path, steps: int = 50, stop_at: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    cases = Cases(rng.integers(3, 40, (64, 12)).astype(np.int32), np.ones((64, 11), np.float32))

    def log(step: int, loss: float) -> None:
        if stop_at is not None and step >= stop_at:
            raise KeyboardInterrupt

    return optimize(SMALL, 40, cases, Schedule(steps, 16, drop=True), 5, folder / "weights.npz", log)


def test_the_same_seed_ends_with_the_same_weights_also_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.train.optimize._SAVE_S", 0.0)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=50)  # of which the first half was saved
    broken = run(tmp_path / "broken")
    for name, value in whole.items():
        np.testing.assert_array_equal(value, broken[name])


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_and_ends_with_the_same_bundle(tmp_path: Path) -> None:
    """The smallest example, trained shortly, twice: once in one go, once killed while it trains."""
    command = [sys.executable, "-m", "toolkit", "train", str(ROOT / "examples/fall-alert")]
    command += ["--steps", "400", "--batch", "32", "--cases", "3000", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "-o", str(tmp_path / "a")], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["test"]["well_formed"] == 1.0 and (tmp_path / "a.training/finished").is_file()
    running = subprocess.Popen([*command, "-o", str(tmp_path / "b")], env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "b.training/weights.npz").exists():
        assert running.poll() is None
        time.sleep(0.1)
    running.kill()
    running.wait()
    subprocess.run([*command, "-o", str(tmp_path / "b")], env=environment, capture_output=True, check=True)
    for name in ("model.tflite", "tokenizer.model", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
