"""Tuning a checkpoint: its network in JAX, the cases, the loop that can be interrupted, the bundle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

import jax.numpy as jnp

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from converters.network.config import Attention, Block, Embedding, FeedForward, Head, NetworkConfig, Norm, Rope
from converters.network.weights import CanonicalWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task, load
from device_runtime.tasks.purpose import Purpose, purposes_of
from tests.support.random_checkpoint import CHECKPOINTS, checkpoint_of, float_logits
from toolkit.bench import cost_of_an_answer
from toolkit.cli import main
from toolkit.examples.sources import all_examples
from toolkit.train.pipeline import train as train_bundle
from toolkit.train.report import write_report
from toolkit.train.tune import layers, optimize
from toolkit.train.tune.conversations import Conversation, batches_of, conversations, prefixes_of
from toolkit.train.tune.layers import Adapter
from toolkit.train.tune.ops_jax import Sequences
from toolkit.train.tune.optimize import Plan, below, tune
from toolkit.train.tune.pipeline import TuneSettings, _tokenizer, merge, tune_bundle
from toolkit.train.weights import Settings, begin, described, work_folder

ROOT = Path(__file__).parents[3]
SMOLLM2 = os.environ.get("STONECHAT_SMOLLM2")
TASK = """
task: 1
name: {name}
about: Says whether a lamp is meant.
input: {{text: 40}}
answer:
  type: object
  additionalProperties: false
  required: [{name}, level]
  properties: {{{name}: {{enum: ["on", "no", up]}}, level: {{type: integer, minimum: 0, maximum: 99}}}}
none: {{{name}: up}}
examples: examples.jsonl
"""
WORDS = {
    "lamp go": ("on", 10),
    "lamp no": ("no", 20),
    "day day": ("up", 77),
    "lampgo!": ("on", 10),
}  # of one length: one shape to compile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama checkpoint with a chat template, and tasks with examples."""
    place = tmp_path_factory.mktemp("tuning")
    shutil.copytree(CHECKPOINTS / "gqa-tied", place / "checkpoint")
    config = json.loads((place / "checkpoint/config.json").read_text())
    config["max_position_embeddings"] = 700
    (place / "checkpoint/config.json").write_text(json.dumps(config))
    for name in ("lamp", "fan"):
        (place / name).mkdir()
        (place / name / "task.yaml").write_text(TASK.format(name=name))
        lines = [
            {"input": {"text": f"{text} {'abcdefghij'[i % 10]}{i // 10}"}, "answer": {name: label, "level": level}}
            for i in range(40)
            for text, (label, level) in WORDS.items()
        ]
        (place / name / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    return load(folder / "lamp")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder / "checkpoint")


def few(task: Task, checkpoint: Checkpoint, count: int = 8) -> list[Conversation]:
    rows = list(WORDS.items()) * (count // len(WORDS))
    examples = [
        Example({"text": f"{text} {i}"}, {task.name: label, "level": level})
        for i, (text, (label, level)) in enumerate(rows)
    ]
    return conversations(0, task, examples, checkpoint.tokenizer, _tokenizer(checkpoint), 0)


def trained_on(
    checkpoint: Checkpoint, cases: list[Conversation], work: Path, plan: Plan
) -> tuple[Any, Any, list[float]]:
    weights, losses = CanonicalWeights(checkpoint.config, checkpoint.read), []
    work.mkdir(exist_ok=True)
    states = below(weights, cases, checkpoint.config.layers - plan.layers, 1, work / "below.npz", lambda share: None)
    log = lambda step, steps, loss: losses.append(loss)  # noqa: E731
    runs, trained = tune(weights, cases, states, plan, 0, work / "trained.npz", log)
    return runs, trained, losses


NORM = Norm(1e-5)
GEMMA = Block(
    Attention(4, 2, 8, Rope((1.0, 0.3, 0.1, 0.03)), qk_norm=NORM, scale=0.4, window=5, softcap=20.0),
    FeedForward(48, "gelu_tanh"), NORM, NORM, NORM, NORM,
)  # fmt: skip
LAYER = Norm(1e-5, "layer", bias=True)
GPT = Block(
    Attention(4, 4, 8, None, bias=True, output_bias=True), FeedForward(48, "gelu", gated=False, bias=True), LAYER, LAYER
)
PHI = replace(GPT, attention=replace(GPT.attention, rope=Rope((1.0, 0.1), 1.1)), ffn_norm=None, parallel=True,
              residual_scale=0.7)  # fmt: skip
KINDS = {
    "Gemma": NetworkConfig(
        96, 32, (GEMMA, replace(GEMMA, attention=replace(GEMMA.attention, window=None)), GEMMA),
        Head(True, NORM, softcap=9.0), 64, Embedding(scale=5.6),
    ),
    "GPT": NetworkConfig(96, 32, (GPT, GPT, GPT), Head(True, LAYER), 64, Embedding(positions=64)),
    "Phi": NetworkConfig(96, 32, (PHI, PHI, GPT), Head(False, LAYER, bias=True, scale=0.5), 64),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_converters_own_for_every_kind_of_block(kind: str) -> None:
    """The same layers, with the prefix there once: float sums in another order, 1e-3 of logits around 1."""
    checkpoint = checkpoint_of(KINDS[kind])
    config, weights = checkpoint.config, CanonicalWeights(checkpoint.config, checkpoint.read)
    rng = np.random.default_rng(0)
    prefix, tokens = rng.integers(0, 96, 6), rng.integers(0, 96, (3, 9)).astype(np.int32)
    ((of_prefix, of_cases),) = layers.read_below(weights, 1, [(prefix.tolist(), tokens)], lambda share: None)
    runs = layers.runs_of(config, 1)
    own = [layers.stacked(weights, run) for run in runs]
    padded = np.concatenate([of_prefix, np.ones((2, 32), np.float32)])  # rows of the prefix that are empty
    x = jnp.asarray(np.concatenate([padded, of_cases.reshape(-1, 32)]))
    rows = Sequences(8, 3, 9, 6)
    hidden = layers.above(config, runs, own, [{} for _ in runs], Adapter(4), rows, x)
    found = np.asarray(layers.logits(config, layers.head_weights(weights), hidden[8:])).reshape(3, 9, -1)
    for case, said in zip(tokens, found, strict=True):
        np.testing.assert_allclose(said, float_logits(checkpoint, prefix.tolist(), case.tolist()), atol=1e-3)


def test_layers_that_are_alike_are_one_run() -> None:
    assert [(run.first, run.count) for run in layers.runs_of(KINDS["Gemma"], 0)] == [(0, 1), (1, 1), (2, 1)]
    assert [(run.first, run.count) for run in layers.runs_of(KINDS["Phi"], 0)] == [(0, 2), (2, 1)]


def test_what_is_learnt_is_the_answer_and_its_decisions_most(task: Task, checkpoint: Checkpoint) -> None:
    case = few(task, checkpoint)[0]
    tokenizer = _tokenizer(checkpoint)
    full = "".join(tokenizer.decode([case.tokens[i]]) for i, weight in case.learnt.items() if weight == 1.0)
    assert "on" in full and "10" in full
    assert len(case.learnt) < len(case.tokens) / 2 and min(case.learnt.values()) < 1
    text = tokenizer.decode(case.tokens)
    assert text.index("Answer in JSON: lamp is one of on, no, up.") < text.index("lamp go 0")
    assert text.rstrip().endswith('{"lamp": "on", "level": 10}')


def test_what_all_cases_begin_with_is_their_prefix(task: Task, checkpoint: Checkpoint) -> None:
    cases = few(task, checkpoint)
    (prefix,) = prefixes_of(cases, 1)
    assert all(case.tokens[: len(prefix)] == prefix for case in cases)
    assert "up." in _tokenizer(checkpoint).decode(prefix)
    batches = batches_of(cases, [prefix], 3, np.random.default_rng(0))
    assert sorted(i for _, rows in batches for i in rows) == list(range(8))
    for batch, rows in batches:
        for row, i in enumerate(rows):
            for slot, (place, weight) in enumerate(cases[i].learnt.items()):
                assert batch.weights[row, slot] == np.float32(weight)
                assert batch.targets[row, slot] == cases[i].tokens[place]
                assert batch.tokens[row, batch.slots[row, slot]] == cases[i].tokens[place - 1]


@pytest.mark.parametrize("rank", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_the_loss_falls_and_merged_weights_compute_what_was_trained(
    rank: int, task: Task, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Factors beside a weight, and their product in it: float sums in another order, 2e-3 of logits around 3."""
    cases = few(task, checkpoint)
    plan = Plan(1, Adapter(rank), epochs=12, batch=4, peak=2e-2 if rank else 5e-3)
    runs, trained, losses = trained_on(checkpoint, cases, tmp_path, plan)
    assert losses[-1] < 0.6 * losses[0]
    merged = merge(checkpoint, runs, trained, plan.adapter, "lamp")
    assert merged.sha256 != checkpoint.sha256 and merged.name == f"{checkpoint.name}+lamp"
    tokens = list(cases[0].tokens)
    weights = CanonicalWeights(checkpoint.config, checkpoint.read)
    ((_, x),) = layers.read_below(weights, 1, [((), np.array([tokens], np.int32))], lambda share: None)
    own = [layers.stacked(weights, run) for run in runs]
    more = [{name: jnp.asarray(value) for name, value in part.items()} for part in trained]
    hidden = layers.above(
        checkpoint.config, runs, own, more, plan.adapter, Sequences(0, 1, len(tokens), 0), jnp.asarray(x[0])
    )
    with_factors = np.asarray(layers.logits(checkpoint.config, layers.head_weights(weights), hidden))
    in_weights = float_logits(merged, [], tokens)
    np.testing.assert_allclose(in_weights, with_factors, atol=2e-3)
    assert np.abs(in_weights - float_logits(checkpoint, [], tokens)).max() > 0.1


@pytest.mark.slow  # 5 s of CPU
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    task: Task, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, plan = few(task, checkpoint), Plan(1, Adapter(4), epochs=3, batch=4)
    _, whole, _ = trained_on(checkpoint, cases, tmp_path / "whole", plan)
    monkeypatch.setattr(optimize, "_SAVE_S", 0.0)
    taken: list[int] = []

    def interrupt(step: int, steps: int, loss: float) -> None:
        taken.append(step)
        if step == 4:
            raise KeyboardInterrupt

    weights = CanonicalWeights(checkpoint.config, checkpoint.read)
    (tmp_path / "cut").mkdir()
    states = below(weights, cases, 1, 1, tmp_path / "cut/below.npz", lambda share: None)
    with pytest.raises(KeyboardInterrupt):
        tune(weights, cases, states, plan, 0, tmp_path / "cut/trained.npz", interrupt)
    again = below(weights, cases, 1, 1, tmp_path / "cut/below.npz", lambda share: pytest.fail("computed again"))
    _, cut = tune(weights, cases, again, plan, 0, tmp_path / "cut/trained.npz", lambda s, _, __: taken.append(s))
    assert taken[:4] == [1, 2, 3, 4] and taken[4] == 4 and taken[-1] == 6  # step 4 was not saved yet: it is taken again
    for one, other in zip(whole, cut, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_base_model_without_a_chat_template_is_refused(task: Task, checkpoint: Checkpoint) -> None:
    bare = replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, chat_template=None))
    with pytest.raises(ConfigurationError, match=r"no chat template.*Instruct"):
        few(task, bare)


def test_more_layers_than_there_are_are_refused(folder: Path, task: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--layers is 3; .* has 2"):
        tune_bundle([task], tmp_path / "bundle", TuneSettings(folder / "checkpoint", layers=3))


@pytest.fixture(scope="module")
def bundles(folder: Path) -> dict[str, Path]:
    """One of a single task, and one of two, each tuned for a moment; and the checkpoint as it came."""
    settings = TuneSettings(folder / "checkpoint", cases=16, epochs=1, layers=1, rank=2)
    tasks = [load(folder / name) for name in ("lamp", "fan")]
    convert(open_checkpoint(folder / "checkpoint"), folder / "general", Options("pi", 700, fast=True))
    tune_bundle(tasks[:1], folder / "one", replace(settings, baseline=folder / "general"))
    tune_bundle(tasks, folder / "two", replace(settings, cases_of={"fan": 24}))
    return {name: folder / name for name in ("general", "one", "two")}


def test_a_tuning_that_ended_with_its_bundle_keeps_no_other_away(
    bundles: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = work_folder(bundles["one"])
    with pytest.raises(KeyboardInterrupt), begin(work, {"seed": 1}):
        said = capsys.readouterr().err
        assert "is of a training of other settings (another kind of training); this one begins afresh" in said
        raise KeyboardInterrupt
    kept = {path.name for path in work.iterdir()}
    assert {"settings.json", "below.npz", "trained.npz", "finished"} <= kept


def test_a_tuning_that_goes_further_begins_with_the_weights_of_another(
    bundles: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """At a rate that moves nothing: what float32 keeps of a step of 1e-12 is the weight itself."""
    settings = TuneSettings(folder / "checkpoint", seed=1, cases=16, epochs=1, layers=1, rank=2, further=bundles["two"])
    task = load(folder / "lamp")  # of one of its two tasks
    tune_bundle([task], tmp_path / "further", replace(settings, rate=1e-12))
    states = []
    for bundle in (bundles["two"], tmp_path / "further"):
        with np.load(work_folder(bundle) / "trained.npz") as arrays:
            states.append({name: arrays[name] for name in arrays.files if name != "step"})
    factors = [name for name, value in states[0].items() if 2 in value.shape][:14]  # A and B of seven matrices
    for name in factors:
        np.testing.assert_allclose(states[1][name], states[0][name], atol=1e-6)
    with pytest.raises(ConfigurationError, match="give its --layers 1, --rank 2, and"):
        tune_bundle([task], tmp_path / "other", replace(settings, rank=4))
    assert {path.name for path in tmp_path.iterdir()} == {"further", "further.training"}


def test_a_task_may_have_its_own_number_of_cases(bundles: dict[str, Path]) -> None:
    trained = {p.name: p.report["cases"]["train"] for p in purposes_of(Bundle.open(bundles["two"]).manifest)}
    assert trained == {"lamp": 16, "fan": 24}


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--cases", "fam=20"], "--cases fam=20: there is no such task; expected one of lamp, fan"),
        (["--cases", "fan=0"], "'0' is not a whole number of at least 1"),
        (["--rate", "2"], "'2' is not a number above 0, at most 1"),
    ],
)
def test_flags_of_tuning_that_cannot_be_are_refused(
    flags: list[str], fault: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(folder / "lamp"), str(folder / "fan"), "--kind", "tune", "--from", "x", "-o"]
    with contextlib.suppress(SystemExit):
        assert main([*command, str(tmp_path / "b"), *flags]) == 2
    assert fault in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_ctrl_c_says_where_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    flags = ["--kind", "tune", "--from", folder / "checkpoint", "--cases", "32", "--epochs", "50", "--layers", "1"]
    command = [sys.executable, "-m", "toolkit", "train", folder / "lamp", *flags, "-o", tmp_path / "b"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until_s = time.monotonic() + 300
    while not (tmp_path / "b.training" / "below.npz").is_file():
        assert process.poll() is None and time.monotonic() < until_s
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and f"the same command goes on from {tmp_path / 'b'}.training" in said


def test_the_report_compares_with_the_untrained_model(bundles: dict[str, Path], task: Task) -> None:
    bundle = Bundle.open(bundles["one"])
    purpose = Purpose.of_manifest(bundle.manifest)
    assert purpose is not None
    (name,) = [name for name in purpose.report["baselines"] if "untrained" in name]
    asked = purpose.report["test"]["count"]
    assert name == f"{Bundle.open(bundles['general']).manifest.name}, untrained, 8 examples shown ({asked} asked)"
    assert set(purpose.report["baselines"][name]) == {"lamp"}  # what is an enum; a level has no labels to be scored
    page = write_report(bundle, task).read_text(encoding="utf-8")
    assert name in page and "No general model was asked" not in page and "an answer on the machine" not in page
    cost = cost_of_an_answer(bundles["one"], task.name, [e.input for e in all_examples(task, 2, 1)])
    assert cost["ms"] > 0
    page = write_report(bundle, task, {**cost, "j": 0.36, "mwh": 0.1, "how": "computed: 6 W"}).read_text(
        encoding="utf-8"
    )
    assert "an answer on the machine that trained" in page and "0.1 mWh (computed: 6 W)" in page


@pytest.mark.parametrize("name", ["one", "nothing"])
def test_what_is_no_untrained_model_is_refused_before_any_work(
    name: str, bundles: dict[str, Path], folder: Path, task: Task, tmp_path: Path
) -> None:
    baseline = folder / name
    with pytest.raises(ConfigurationError, match="was trained for a task" if name == "one" else "nothing"):
        tune_bundle([task], tmp_path / "tuned", TuneSettings(folder / "checkpoint", baseline=baseline))
    with pytest.raises(ConfigurationError, match="was trained for a task" if name == "one" else "nothing"):
        train_bundle(task, tmp_path / "tiny", Settings(baseline=baseline))
    assert not list(tmp_path.iterdir())


def test_a_file_to_calibrate_on_that_is_not_there_is_named_before_any_work(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"held\.jsonl is not there"):
        train_bundle(replace(task, calibrate=("held.jsonl",)), tmp_path / "tiny", Settings())
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_tuned_for_a_task_whose_own_network_has_words_that_are_not_here(task: Task) -> None:
    """A network of the task's own would need that encoder; a tuned checkpoint has words of its own."""
    strange = replace(task, network=replace(task.network, embeddings="not-here"))
    assert described(strange, network=False) == described(task, network=False)
    with pytest.raises(ConfigurationError, match="not-here"):
        described(strange)


def test_a_tuned_bundle_knows_its_task(bundles: dict[str, Path], task: Task) -> None:
    answerer = Answerer.open(bundles["one"])
    purpose = answerer.purpose
    assert purpose.kind == "tune" and purpose.fields == task.fields
    assert purpose.report["test"]["well_formed"] == 1.0 and purpose.temperatures.keys() == {"lamp", "level"}
    answer = answerer.answer({"text": "lamp on"})
    assert answer.answer is not None and answer.answer["lamp"] in ("on", "no", "up")
    assert sum(answer.choices["lamp"][0].shares()) == pytest.approx(1)
    assert 0 < answer.confidence["lamp"] <= 1
    answerer.close()
    with LanguageModel.open(bundles["one"]) as model:
        generation = model.generate("lamp on")
        assert json.loads("".join(generation)) == answer.answer
        assert generation.result.confidence == pytest.approx(answer.confidence, abs=1e-5)
        assert "".join(model.generate("  ")) == "null"


def test_a_bundle_of_several_tasks_is_asked_by_its_answers_fields(bundles: dict[str, Path], folder: Path) -> None:
    with LanguageModel.open(bundles["two"]) as model:
        assert [purpose.name for purpose in purposes_of(model.manifest)] == ["lamp", "fan"]
        assert Purpose.of_manifest(model.manifest) is None
        for name in ("lamp", "fan"):
            schema = load(folder / name).answer
            answer = json.loads("".join(model.generate([{"role": "user", "content": "lamp on"}], schema=schema)))
            answerer = Answerer.open(bundles["two"], Purpose.of_manifest(model.manifest, name))
            assert answerer.answer({"text": "lamp on"}).answer == answer
            answerer.close()
        talk = model.generate([{"role": "user", "content": "lamp on"}], max_new=3)
        assert len("".join(talk)) > 0 and talk.result.confidence is None  # without a schema it is asked no task


def train(folder: Path, checkpoint: Path, output: Path, kill_at: str | None = None) -> dict[str, Any]:
    """The real command; killed as soon as a file of its work folder is there, and then run again."""
    flags = ["--kind", "tune", "--from", checkpoint, "--cases", "32", "--epochs", "2", "--layers", "1", "--json"]
    command = [sys.executable, "-m", "toolkit", "train", folder / "lamp", *flags, "-o", output]
    if kill_at is not None:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + 300
        while not output.with_name(f"{output.name}.training").joinpath(kill_at).is_file():
            assert process.poll() is None and time.monotonic() < until_s
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "SmolLM2"])
def test_a_tuning_that_was_killed_ends_with_the_same_bundle(kind: str, folder: Path, tmp_path: Path) -> None:
    """A minute for the random network; SmolLM2-135M takes ten, most of them for its two conversions."""
    if kind == "SmolLM2" and SMOLLM2 is None:
        pytest.skip("set STONECHAT_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf (make test-slow does)")
    checkpoint = folder / "checkpoint" if kind == "random" else Path(str(SMOLLM2))
    whole = train(folder, checkpoint, tmp_path / "whole")
    cut = train(folder, checkpoint, tmp_path / "cut", kill_at="below.npz")
    assert whole["test"] == cut["test"] and whole["test"]["well_formed"] == 1.0
    one, other = ((tmp_path / name / "model.tflite").read_bytes() for name in ("whole", "cut"))
    assert one == other
    assert "No general model was asked" in (tmp_path / "whole.report.html").read_text(encoding="utf-8")
