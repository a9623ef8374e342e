"""From a task file to a bundle: weights, conversion, confidence, test."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from converters.emit.c.bundle import renew_image
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, MANIFEST, Manifest
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import read_examples
from device_runtime.tasks.file import Task
from device_runtime.tasks.purpose import Purpose
from device_runtime.tasks.score import reliability, score
from toolkit.train.baselines import MOST, MOST_ASKED, SHOWN, baselines, general_baseline
from toolkit.train.calibrate import fit_temperatures, longest_pieces
from toolkit.train.cases import calibration_rows, tokenized
from toolkit.train.checkpoint import write_folder
from toolkit.train.weights import Progress, Settings, read_cases, silent, train_weights, work_folder

__all__ = ["Measures", "measured", "train", "write_purpose"]

_CALIBRATED = 1200  # cases that temperatures are fitted on, at most
_TESTED = 1000  # cases that the report is measured on, at most
_RANGES = 400  # cases that the converter chooses its ranges on
_MEASURED = 32  # cases that the conversion's own report reads
_FAMILIAR = 20_000  # cases that say what a familiar text looks like
_POSITIONS = 24  # beyond the longest case: the engine wants room for the longest way to end an answer


def train(task: Task, folder: Path, settings: Settings, progress: Progress = silent) -> Bundle:
    """Train, convert, calibrate and test; the bundle appears at `folder`, and `work_folder(folder)` stays beside it.

    Raises:
        ConfigurationError: the task has too few examples, its generator fails, or `folder` is something else.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    work = work_folder(folder)
    trained = train_weights(task, work, settings, progress)
    tokenizer = SentencePieceProcessor(model_proto=trained.vocabulary)
    context = trained.longest + _POSITIONS
    write_folder(work / task.name, task.network, trained.weights, trained.vocabulary, context)
    shown = tokenized(task, read_cases(work, "train", _RANGES), tokenizer)
    held = tokenized(task, read_cases(work, "calibrate", _MEASURED), tokenizer)
    options = Options(
        settings.profile, context, windows=calibration_rows(shown), heldout={task.name: calibration_rows(held)}
    )
    convert(open_checkpoint(work / task.name), folder, options, progress)
    measures = Measures(settings.baseline, trained.cases, asdict(settings))
    purpose = measured(task, task.kind, folder, tokenizer.encode, work, measures, progress)
    return write_purpose(folder, purpose.to_json())


@dataclass(frozen=True)
class Measures:
    """What the report of a training says, and how much it asks."""

    baseline: Path | None  # an untrained general model
    trained_on: int  # cases
    settings: Mapping[str, Any]
    calibrated: int = _CALIBRATED  # cases at most
    tested: int = _TESTED


def measured(
    task: Task,
    kind: Literal["tiny", "classify", "tune"],
    folder: Path,
    encode: Callable[[str], Sequence[int]],
    work: Path,
    measures: Measures,
    progress: Progress,
) -> Purpose:
    """Fit confidence on one part of the cases, and measure on another.

    Args:
        folder: the bundle, which says nothing of the task yet, or of others.
        encode: tokens of a prompt's text.
        work: where the cases are.
    """
    purpose = replace(Purpose.of_task(task), kind=kind)
    if task.inputs.text is not None:
        texts = [task.inputs.prompt(example.input).text for example in read_cases(work, "train", _FAMILIAR)]
        purpose = replace(purpose, longest_pieces=longest_pieces(encode, texts))
    answerer = Answerer(Bundle.open(folder), purpose)
    examples = [e for name in task.calibrate for e in read_examples(task.folder / name, task.inputs, task.answer)]
    examples = (examples or read_cases(work, "calibrate", measures.calibrated))[: measures.calibrated]
    answers = []
    for number, example in enumerate(examples):
        answers.append(answerer.answer(example.input))
        progress("calibrating confidence", (number + 1) / len(examples))
    purpose = replace(purpose, temperatures=fit_temperatures(purpose, examples, answers))
    answerer.purpose = purpose
    examples, answers = read_cases(work, "test", measures.tested), []
    for number, example in enumerate(examples):
        answers.append(answerer.answer(example.input))
        progress("testing", (number + 1) / len(examples))
    answerer.close()
    progress("comparing", 0.0)
    simpler = baselines(task, read_cases(work, "train", MOST), examples)
    if measures.baseline is not None:
        asked = examples[:MOST_ASKED]
        shown = read_cases(work, "train", SHOWN)
        simpler |= general_baseline(task, measures.baseline, shown, asked, lambda s: progress("asking the baseline", s))
    report: dict[str, Any] = {
        "test": score(purpose, examples, answers).to_json(),
        "baselines": simpler,
        "reliability": reliability(examples, answers),
        "cases": {"train": measures.trained_on},
        "training": {name: str(v) if isinstance(v, Path) else v for name, v in measures.settings.items()},
    }
    return replace(purpose, report=report)


def write_purpose(folder: Path, purpose: dict[str, Any]) -> Bundle:
    """Write what a bundle was trained for into its manifest, and the answer's schema into its image for boards."""
    manifest = replace(Bundle.open(folder).manifest, purpose=purpose)
    _replace_manifest(folder, manifest)
    if IMAGE in manifest.files:
        _replace_manifest(folder, renew_image(Bundle.open(folder)))
    return Bundle.open(folder)


def _replace_manifest(folder: Path, manifest: Manifest) -> None:
    part = folder / f".{MANIFEST}.part"
    part.write_text(manifest.to_json(), encoding="utf-8")
    part.replace(folder / MANIFEST)
