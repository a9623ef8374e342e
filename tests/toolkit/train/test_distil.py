"""Distillation: what a teacher says becomes soft targets, and a student learns them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason="needs the extra [train]")
pytest.importorskip("optax", reason="needs the extra [train]")

import jax.numpy as jnp
from sentencepiece import SentencePieceProcessor

from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Distil, Network, Task, load
from tests.support.tuned_encoder import PURPOSE, tuned_encoder
from toolkit.examples.readings import generated
from toolkit.train import network
from toolkit.train.cases import tokenized
from toolkit.train.distil import ask_teacher, described_teacher, softened
from toolkit.train.optimize import Schedule, optimize
from toolkit.train.vocabulary import train_vocabulary

ROOT = Path(__file__).parents[3]
SMALL = Network(layers=1, width=32, heads=2, ffn=32)


def distilled(name: str, **changes: object) -> Task:
    return replace(load(ROOT / "examples" / name), distil=Distil("bundle", **changes))  # type: ignore[arg-type]


BOILER, LOGS = distilled("boiler-advisor", soft=0.75), distilled("log-triage", cases=3)


def boiler(count: int) -> tuple[list[Example], SentencePieceProcessor]:
    examples = [Example(case["input"], case["answer"]) for case in generated(BOILER, count, 0)]
    vocabulary = train_vocabulary(BOILER, (BOILER.inputs.prompt(e.input).text for e in examples))
    return examples, SentencePieceProcessor(model_proto=vocabulary)


@pytest.mark.parametrize("task", [BOILER, LOGS], ids=["tiny", "classify"])
def test_a_bundle_says_how_likely_each_value_is_and_is_asked_once(task: Task, tmp_path: Path) -> None:
    """The committed bundles know their tasks: the right value is the likeliest."""
    if task is LOGS:
        texts = {"eth0: link is down": ("network", "high"), "disk sda1 is full": ("storage", "high")}
        examples = [Example({"text": t}, {"category": c, "priority": p}) for t, (c, p) in texts.items()]
    else:
        examples = boiler(3)[0]
    said = ask_teacher(task, examples, tmp_path / "teacher.jsonl", lambda step, share: None)
    enums = {name: values for name, values in task.fields.items() if values}
    for example, shares in zip(examples, said, strict=True):
        for (name, values), share in zip(enums.items(), shares, strict=True):
            assert share is not None and len(share) == len(values) and sum(share) == pytest.approx(1, abs=1e-3)
            assert values[int(np.argmax(share))] == (example.answer or {})[name]
    kept = tmp_path / "teacher.jsonl"
    kept.write_text(kept.read_text()[:-9])  # cut in the last line: only that one is asked again
    asked: list[float] = []
    assert ask_teacher(task, examples, kept, lambda step, share: asked.append(share)) == said and asked == [1.0]


def test_a_tuned_encoder_is_a_teacher_whose_fields_do_not_wait_for_each_other(tmp_path: Path) -> None:
    tuned_encoder(tmp_path / "bundle")
    task = replace(LOGS, name=PURPOSE.name, folder=tmp_path, inputs=PURPOSE.inputs, answer=PURPOSE.answer)
    answerer = Answerer.open(tmp_path / "bundle")
    said = answerer.answer({"text": "pump"})
    other = next(value for value in task.fields["state"] or [] if value != (said.answer or {})["state"])
    wrong = Example({"text": "pump"}, {"state": other, "soon": True})  # the first field is not what the teacher says
    (found,) = ask_teacher(task, [wrong], tmp_path / "teacher.jsonl", lambda step, share: None)
    assert found == [pytest.approx(answerer.shares(said, name), abs=1e-4) for name in ("state", "soon")]
    answerer.close()


def test_soft_targets_take_their_share_of_each_decision() -> None:
    examples, tokenizer = boiler(2)
    cases = tokenized(BOILER, examples, tokenizer)
    said = [[[0.25, 0.25, 0.5], None], [None, None]]
    lighter, soft = softened(BOILER, cases, examples, said, tokenizer)
    place = soft.places[0, 0]
    assert tokenizer.id_to_piece(int(cases.tokens[0, place + 1])) == f'"{(examples[0].answer or {})["severity"]}"'
    assert lighter.learnt[0, place] == 0.25 and soft.weights.tolist() == [[0.75, 0.0], [0.0, 0.0]]
    assert np.count_nonzero(lighter.learnt != cases.learnt) == 1
    assert soft.targets[0][0].tolist() == [0.25, 0.25, 0.5]
    assert [tokenizer.id_to_piece(token) for token in soft.heads[0]] == ['"ok"', '"warn"', '"alarm"']


@pytest.mark.parametrize("kind", [pytest.param("tiny", marks=pytest.mark.slow), "classify"])
def test_a_student_learns_the_teachers_doubt(kind: str, tmp_path: Path) -> None:
    """One case alone, all of whose decision is soft: the network's shares come to be the teacher's."""
    if kind == "tiny":
        task = replace(BOILER, distil=Distil("bundle", soft=1.0))
        examples, tokenizer = boiler(1)
        shares = [[0.2, 0.1, 0.7], None]
    else:
        task = replace(LOGS, distil=Distil("bundle", soft=1.0))
        examples = [Example({"text": "a b"}, {"category": "none", "priority": "low"})]
        vocabulary = train_vocabulary(task, ["a b", "b c"] * 20)
        tokenizer, shares = SentencePieceProcessor(model_proto=vocabulary), [None, [0.2, 0.1, 0.7]]
    cases = tokenized(task, examples * 8, tokenizer)
    cases, soft = softened(task, cases, examples * 8, [shares] * 8, tokenizer)
    schedule = Schedule(150, 8, peak=1e-2, average=0.9)
    weights = optimize(
        SMALL, tokenizer.vocab_size(), cases, schedule, 0, tmp_path / "weights.npz", lambda step, loss: None, soft=soft
    )
    field = 0 if kind == "tiny" else 1
    parameters = {name: jnp.asarray(value) for name, value in weights.items()}
    hidden = network.forward(parameters, jnp.asarray(cases.tokens[:1, :-1]), SMALL)
    of_values = np.asarray(network.logits(parameters, hidden[0, soft.places[0, field]], soft.heads[field]))
    found = np.exp(of_values - of_values.max())
    np.testing.assert_allclose(found / found.sum(), [0.2, 0.1, 0.7], atol=0.03)


def test_a_task_without_a_teacher_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"log-triage names no teacher.*distil: \{teacher: DIR\}"):
        described_teacher(replace(LOGS, distil=None))


def test_the_same_teacher_gives_the_same_description() -> None:
    found = described_teacher(BOILER)
    assert found == described_teacher(BOILER) and found["soft"] == 0.75 and len(found["sha256"]) == 64
