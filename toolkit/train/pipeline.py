"""From a task file to a bundle: weights, conversion, confidence, test."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from converters.emit.c.bundle import add_calibration
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, MANIFEST
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from device_runtime.tasks.purpose import Purpose
from device_runtime.tasks.score import reliability, score
from device_runtime.update import durable
from toolkit.examples.sources import calibration_examples
from toolkit.train.baselines import MOST, MOST_ASKED, SHOWN, baselines, general_baseline, open_general
from toolkit.train.calibrate import fit_temperatures, longest_pieces
from toolkit.train.cases import calibration_rows, tokenized
from toolkit.train.checkpoint import write_folder
from toolkit.train.weights import Progress, Settings, finish, read_cases, silent, train_weights, work_folder

__all__ = ["Measures", "measured", "ordinary", "purpose_of", "require_measures", "train", "write_purpose"]

_CALIBRATED = 1200  # cases that temperatures are fitted on, at most
_TESTED = 1000  # cases that the report is measured on, at most
_RANGES = 400  # cases that the converter chooses its ranges on
_MEASURED = 32  # cases that the conversion's own report reads
_FAMILIAR = 20_000  # cases that say what a familiar text looks like
_POSITIONS = 24  # beyond the longest case: the engine wants room for the longest way to end an answer


def train(task: Task, folder: Path, settings: Settings, progress: Progress = silent, *, afresh: bool = False) -> Bundle:
    """Train, convert, calibrate and test; the bundle appears at `folder`, and `work_folder(folder)` stays beside it.

    Args:
        afresh: throw away what an earlier training left there, also an unfinished one of other settings.

    Raises:
        ConfigurationError: the task has too few examples, its generator fails, `folder` is something else, or there is
            an unfinished training of other settings.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    require_measures([task], settings.baseline)
    work = work_folder(folder)
    trained = train_weights(task, work, settings, progress, afresh=afresh)
    tokenizer = SentencePieceProcessor(model_proto=trained.vocabulary)
    context = trained.longest + _POSITIONS
    write_folder(work / task.name, task.network, trained.weights, trained.vocabulary, context)
    shown = tokenized(task, read_cases(work, "train", _RANGES), tokenizer)
    held = tokenized(task, read_cases(work, "calibrate", _MEASURED), tokenizer)
    options = Options(
        settings.profile,
        context,
        windows=calibration_rows(shown),
        heldout={task.name: calibration_rows(held)},
        one_kind_of_text=True,
        purpose=purpose_of(task, task.kind).to_json(),
    )
    convert(open_checkpoint(work / task.name), folder, options, progress)
    measures = Measures(settings.baseline, trained.cases, asdict(settings))
    purpose = measured(task, task.kind, folder, tokenizer.encode, work, measures, progress)
    bundle = write_purpose(folder, purpose.to_json())
    finish(work)
    return bundle


def require_measures(tasks: Sequence[Task], baseline: Path | None) -> None:
    """Name what a report cannot be made of before the work, which may take hours.

    Raises:
        ConfigurationError, BundleError: the baseline is no untrained general model, or examples have faults.
    """
    if baseline is not None:
        open_general(baseline)
    for task in tasks:
        calibration_examples(task)


@dataclass(frozen=True)
class Measures:
    """What the report of a training says, and how much it asks."""

    baseline: Path | None  # an untrained general model
    trained_on: int  # cases
    settings: Mapping[str, Any]
    calibrated: int = _CALIBRATED  # cases at most
    tested: int = _TESTED


Kind = Literal["tiny", "classify", "tune"]


def purpose_of(task: Task, kind: Kind) -> Purpose:
    """What a bundle is trained for, before anything is calibrated or measured."""
    return replace(Purpose.of_task(task), kind=kind)


def measured(
    task: Task,
    kind: Kind,
    folder: Path,
    encode: Callable[[str], Sequence[int]],
    work: Path,
    measures: Measures,
    progress: Progress,
) -> Purpose:
    """Fit confidence on one part of the cases, and measure on another.

    Args:
        folder: the bundle, which says no more of the task than `purpose_of`.
        encode: tokens of a prompt's text.
        work: where the cases are.
    """
    purpose = purpose_of(task, kind)
    purpose = replace(purpose, ordinary=ordinary(task, read_cases(work, "train", _FAMILIAR)))
    if task.inputs.text is not None:
        texts = [task.inputs.prompt(example.input).text for example in read_cases(work, "train", _FAMILIAR)]
        purpose = replace(purpose, longest_pieces=longest_pieces(encode, texts))
    answerer = Answerer(Bundle.open(folder), purpose)
    examples = calibration_examples(task) or read_cases(work, "calibrate", measures.calibrated)
    examples = examples[: measures.calibrated]
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


def ordinary(task: Task, examples: Sequence[Example]) -> dict[str, Any]:
    """A value of each field as ordinary readings have it: the median, of words the commonest.

    Ordinary are those with the answer `none`, where the task has one.
    """
    quiet = [example for example in examples if task.none and task.none.items() <= (example.answer or {}).items()]
    found: dict[str, Any] = {}
    for name, field in (task.inputs.fields or {}).items():
        values = [example.input[name] for example in quiet or examples if example.input.get(name) is not None]
        if field.one_of and values:
            found[name] = Counter(values).most_common(1)[0][0]
        elif numbers := sorted(value for value in values if isinstance(value, int | float)):
            found[name] = numbers[len(numbers) // 2]
    return found


def write_purpose(folder: Path, purpose: dict[str, Any]) -> Bundle:
    """Write what a bundle was trained for into its manifest, and its calibration into its image for boards, which has
    the answer's schema already."""
    bundle = Bundle.open(folder)
    bundle = replace(bundle, manifest=replace(bundle.manifest, purpose=purpose))
    manifest = add_calibration(bundle) if IMAGE in bundle.manifest.files else bundle.manifest
    durable.replace_file(folder / MANIFEST, manifest.to_json().encode())
    return Bundle.open(folder)
