"""The trial of a bundle that a microcontroller runs: golden prompt, speed and examples, asked over the line."""

from __future__ import annotations

import json

from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import TrialScore
from device_runtime.errors import IncompleteError
from device_runtime.tasks.answering import TypedAnswer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.purpose import Purpose
from device_runtime.tasks.score import score
from device_runtime.update.probe import Measured, any_prompt

__all__ = ["measure_board"]

_MAX_NEW = 16  # for a bundle that has no golden prompt: it has to say anything at all
_SHOWN = 500  # characters of an answer


def measure_board(model: SerialModel, bundle: Bundle) -> Measured:
    """Ask a board that runs `bundle`. Its memory is its arena and kv_cache, which are all that a model takes there.

    Raises:
        StonechatError: it does not answer.
    """
    manifest = bundle.manifest
    golden = manifest.trial
    prompt = golden.prompt if golden else any_prompt(manifest)
    answer = model.generate(
        prompt if manifest.chat_template is None else [{"role": "user", "content": prompt}],
        max_new=golden.max_new if golden else _MAX_NEW,
    )
    text = "".join(answer)
    rate, memory = answer.result.tokens_per_s, model.health()["arena_bytes"] or 0
    wanted = manifest.trial_score
    found = _score(model, bundle, wanted) if wanted is not None else None
    return Measured(text[:_SHOWN], golden is None or golden.expect in text, rate, memory / 1e6, found)


def _score(model: SerialModel, bundle: Bundle, wanted: TrialScore) -> float | None:
    """The share of the typed fields of these examples that the board gets right; 0 of none."""
    purpose = Purpose.of_manifest(bundle.manifest)
    if purpose is None:
        return None
    examples = [Example(row["input"], row["answer"]) for row in wanted.examples]
    said = [_answer(model, purpose.asked(example.input)) for example in examples]
    return score(purpose, examples, said).accuracy or 0.0


def _answer(model: SerialModel, asked: str) -> TypedAnswer:
    """As `Answerer.answer`, by the board: the bridge's side reads the input, and abstains where it lacks something."""
    answer = model.generate(asked)
    try:
        text = "".join(answer)
        found = json.loads(text)
    except (IncompleteError, ValueError):
        return TypedAnswer(None, {}, ())
    return TypedAnswer(found, answer.result.confidence or {}, answer.result.unfamiliar, text)
