"""Tries one bundle, as `python -m device_runtime.update.probe BUNDLE THREADS`, and prints what came of it.

A process of its own, so that a bundle that crashes, hangs or takes all memory takes nothing else with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.encoder.translator import Translator
from device_runtime.engine.opening import open_model
from device_runtime.machine.machine import peak_rss_mb

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest, TrialScore
    from device_runtime.engine.opening import OpenedModel

__all__ = ["Measured", "any_prompt", "measure", "task_score"]

_DEFAULT_PROMPT, _DEFAULT_MAX_NEW = "Hello", 16  # for a bundle that has no golden prompt: it has to say anything at all
_STEPS = 16  # of decoding that are timed; an answer may be too short to show it
_SHOWN = 500  # characters of an answer
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Measured:
    """What a bundle did."""

    text: str  # its answer to the golden prompt, shortened
    as_expected: bool  # the answer contains the golden text
    tokens_per_s: float
    peak_rss_mb: float
    score: float | None = None  # share of the typed fields that were right in the bundle's examples; None: it has none


def measure(path: Path, threads: int | None = None) -> Measured:
    """Open a bundle, check every byte, ask it the golden prompt, and time it.

    Raises:
        StonechatError: it does not open or does not answer.
    """
    with open_model(path, threads=threads, verify=True) as model:
        golden = model.manifest.trial
        prompt = golden.prompt if golden else any_prompt(model.manifest)
        plain = model.manifest.chat_template is None
        least = None if model.manifest.purpose is not None else _DEFAULT_MAX_NEW  # a task's answer ends by itself
        answer = model.generate(
            prompt if plain else [{"role": "user", "content": prompt}],
            max_new=golden.max_new if golden else least,
            **_language_of(model),
        )
        text = "".join(answer)
        rate, wanted = _tokens_per_s(model), model.manifest.trial_score
    score = task_score(path, wanted, threads) if wanted is not None else None
    return Measured(text[:_SHOWN], golden is None or golden.expect in text, rate, peak_rss_mb(), score)


def any_prompt(manifest: Manifest) -> str:
    """What a bundle without a golden prompt can be asked: one of a task that reads fields answers nothing else."""
    if manifest.purpose is None:
        return _DEFAULT_PROMPT
    from device_runtime.tasks.purpose import Purpose

    purpose = Purpose.of_manifest(manifest)
    fields = purpose.inputs.fields if purpose is not None else None
    if not fields:
        return _DEFAULT_PROMPT
    return json.dumps(
        {
            name: kind.one_of[0] if kind.one_of else ((kind.low or 0) + (kind.high or 0)) / 2
            for name, kind in fields.items()
        }
    )


def task_score(path: Path, wanted: TrialScore, threads: int | None = None) -> float:
    """The share of the typed fields of these examples that a bundle of a task gets right; 0 of none."""
    from device_runtime.tasks.answering import Answerer
    from device_runtime.tasks.examples import Example
    from device_runtime.tasks.score import score

    examples = [Example(row["input"], row["answer"]) for row in wanted.examples]
    answerer = Answerer.open(path, threads=threads)
    try:
        answers = [answerer.answer(example.input) for example in examples]
    finally:
        answerer.close()
    return score(answerer.purpose, examples, answers).accuracy or 0.0


def _language_of(model: OpenedModel) -> dict[str, Any]:
    """Of a translator that writes several languages, any one."""
    languages = model.vocabulary.languages if isinstance(model, Translator) else ()
    return {"to": languages[0][2:-2]} if len(languages) > 1 else {}


def _tokens_per_s(model: OpenedModel) -> float:
    """The rate of decoding, or of reading where nothing is written; a step costs the same whatever it says."""
    if isinstance(model, EncoderModel):
        done = model.measure(model.manifest.context)
        return done.prompt_tokens / (done.ttft_ms / 1e3)
    if isinstance(model, Translator):
        return model.measure(_STEPS, _STEPS).tokens_per_s
    room = model.manifest.context - len(model.manifest.prefix_tokens)
    return model.measure([model.manifest.graph.vocabulary // 2], max(2, min(_STEPS + 1, room))).tokens_per_s


def _main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no trial goes on when nobody waits for it
    with suppress(OSError):  # proc(5): where memory runs out, the trial is ended, and not what serves
        Path("/proc/self/oom_score_adj").write_text("1000")
    report = os.dup(1)
    os.dup2(2, 1)  # what native libraries print is not the report
    bundle, threads = sys.argv[1:]
    try:
        result = asdict(measure(Path(bundle), int(threads) or None))
    except Exception as error:  # whatever goes wrong in here is the bundle's fault, and the trial's result
        result = {"error": str(error) or type(error).__name__}
    os.write(report, json.dumps(result).encode())


if __name__ == "__main__":
    _main()
