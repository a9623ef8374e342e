"""From a task file and a sentence encoder to a bundle: cases, tuning, conversion, confidence, test.

What each step leaves is kept in a folder beside the bundle, as in toolkit/train/weights.py, and the same command goes
on from there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from converters.encoders.checkpoint import EncoderCheckpoint
from converters.encoders.convert import SHORTEST_CONTEXT, EncoderOptions, convert_encoder
from converters.encoders.network import EncoderConfig
from converters.encoders.quality import kept
from converters.encoders.settings import SentenceSettings
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.file import Task
from toolkit.train.pipeline import Measures, measured, purpose_of, require_measures, write_purpose
from toolkit.train.tune.encoder.labels import with_labels
from toolkit.train.tune.encoder.network import parts_of, tensor_of, with_heads
from toolkit.train.tune.encoder.optimize import LOOKS, Plan, mean_of, tune_encoder
from toolkit.train.tune.encoder.texts import Texts, encoder_of, texts_of
from toolkit.train.tune.steps import earlier, shown
from toolkit.train.weights import (
    TRAINED,
    Progress,
    begin,
    described,
    finish,
    read_cases,
    silent,
    work_folder,
)

__all__ = ["EncoderSettings", "tune_encoder_bundle", "tuned_checkpoint"]

Array = npt.NDArray[np.float32]
_CASES = 12_000
_FEW, _HELD = 2000, 0.1  # cases, and the share of fewer to calibrate on, and of those to test on
_ROOM = 8  # tokens beyond the longest case, in the profile micro, which computes all of them for each text
_SHOWN = 64  # prompts that the converter chooses its ranges on
_MEASURED = 100  # prompts that the conversion's own report reads


@dataclass(frozen=True)
class EncoderSettings:
    """What a user may decide about tuning an encoder."""

    seed: int = 0
    cases: int | None = None  # None: what the task file says, 12,000 at most
    epochs: int = Plan.epochs
    batch: int = Plan.batch  # cases a step
    layers: int | None = None  # how many of the upper ones; None: all
    rate: float = Plan.peak  # learning rate
    profile: Literal["micro", "pi"] = "pi"
    baseline: Path | None = None  # a bundle that the report compares with
    further: Path | None = None  # a bundle tuned before from the same checkpoint, whose training this one goes on from
    keep: float | None = None  # of `further`: the share of its weights in those of the new bundle; None: 0


def tune_encoder_bundle(
    task: Task,
    checkpoint: EncoderCheckpoint,
    folder: Path,
    settings: EncoderSettings,
    progress: Progress = silent,
    *,
    afresh: bool = False,
) -> Bundle:
    """Tune, convert, calibrate and test; the bundle appears at `folder`.

    Args:
        afresh: throw away what an earlier training left there, also an unfinished one of other settings.

    Raises:
        ConfigurationError: the task reads no text, or has a field whose values cannot be listed; it has too few
            examples, or its generator fails; the checkpoint is no sentence encoder; `folder` is something else; or
            there is an unfinished training of other settings.
        CheckpointError: the checkpoint cannot be read.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    encoder, layers = _checked(task, checkpoint, settings)
    task = with_labels(task)
    require_measures([task], settings.baseline)
    sizes = [len(values or []) for values in task.fields.values()]
    work = work_folder(folder)
    before = earlier(settings.further, folder, checkpoint.sha256)
    same = {n: v for n, v in asdict(settings).items() if n not in ("profile", "baseline", "further", "keep")}
    same |= {"layers": layers, LOOKS: True} | ({"further": before.sha256} if before is not None else {})
    keep = settings.keep or 0.0 if before is not None else 0.0
    same |= {"keep": keep} if keep else {}
    config = with_heads(encoder, sizes)
    expected = settings.cases or min(_CASES, task.generate.cases)
    made_with = {"checkpoint": checkpoint.sha256, **described(task, network=False), **same}
    with begin(work, made_with, afresh=afresh) as begun:
        parts = parts_of(config, kept(checkpoint.read), layers, settings.seed)
        if before is not None:  # which may be refused, and leaves all as it was then
            parts = replace(parts, trained=mean_of(before, parts.trained))
        begun.make_cases(task, expected, settings.seed, progress, _HELD if expected < _FEW else None)
    texts = texts_of(task, read_cases(work, "train"), checkpoint.tokenizer, encoder.max_tokens)
    plan = Plan(settings.epochs, settings.batch, settings.rate, keep=keep)
    trained = tune_encoder(config, parts, sizes, texts, plan, settings.seed, work / TRAINED, shown(progress))
    tuned = tuned_checkpoint(task, checkpoint, config, trained)
    options = EncoderOptions(
        settings.profile,
        _context(task, checkpoint, texts, settings),
        purpose=purpose_of(task, "tune").to_json(),
        sentences=_prompts(task, work, "train", _SHOWN),
        heldout={task.name: _prompts(task, work, "calibrate", _MEASURED)},
    )
    convert_encoder(tuned, folder, options, progress)
    told = {name: value for name, value in asdict(settings).items() if value is not None}
    told |= {"layers": layers, "checkpoint": checkpoint.name}
    library = encoder_of(checkpoint.tokenizer)
    measures = Measures(settings.baseline, len(texts.tokens), told)
    purpose = measured(
        task,
        "tune",
        folder,
        lambda text: list(library.encode(text.strip(), add_special_tokens=False).ids),
        work,
        measures,
        progress,
    )
    bundle = write_purpose(folder, purpose.to_json())
    finish(work)
    return bundle


def _checked(task: Task, checkpoint: EncoderCheckpoint, settings: EncoderSettings) -> tuple[EncoderConfig, int]:
    """The encoder, and how many of its layers are tuned."""
    config = checkpoint.config
    if checkpoint.task != "embed" or not isinstance(config, EncoderConfig):
        raise ConfigurationError(
            f"{checkpoint.name} is a model of the task {checkpoint.task}; expected a sentence encoder to tune, such as "
            "all-MiniLM-L6-v2 (stonechat get all-minilm-l6-v2)."
        )
    if task.inputs.text is None:
        raise ConfigurationError(
            f"{task.name} reads fields ({', '.join(task.inputs.fields or {})}), and {checkpoint.name} reads texts; "
            "train this task with --kind tiny or --kind classify."
        )
    layers = settings.layers or config.encoder.layers
    if layers > config.encoder.layers:
        raise ConfigurationError(
            f"--layers is {layers}; {checkpoint.name} has {config.encoder.layers}: tune 1 to {config.encoder.layers}."
        )
    return config, layers


def tuned_checkpoint(
    task: Task, checkpoint: EncoderCheckpoint, config: EncoderConfig, trained: Mapping[str, Array]
) -> EncoderCheckpoint:
    """The encoder with what was trained in its weights, as a classifier."""
    digest = hashlib.sha256(checkpoint.sha256.encode())
    for name in sorted(trained):
        digest.update(np.ascontiguousarray(trained[name]).tobytes())

    def read(name: str) -> Array:
        found = tensor_of(config, trained, name)
        return checkpoint.read(name) if found is None else found

    return replace(
        checkpoint,
        name=f"{checkpoint.name}+{task.name}",
        task="classify",
        config=config,
        settings=SentenceSettings(),  # no prompts: a text is read as it was in training
        answer=task.answer,
        sha256=digest.hexdigest(),
        read=read,
    )


def _prompts(task: Task, work: Path, part: Literal["train", "calibrate"], most: int) -> Sequence[str]:
    return [task.inputs.prompt(example.input).text.strip() for example in read_cases(work, part, most)]


def _context(task: Task, checkpoint: EncoderCheckpoint, texts: Texts, settings: EncoderSettings) -> int:
    """Tokens of the longest text: whatever the task lets in, or in micro what is like the cases."""
    if settings.profile == "micro":
        wanted = max(map(len, texts.tokens)) + _ROOM
    else:
        frame = len(checkpoint.tokenizer.start_ids) + len(checkpoint.tokenizer.end_ids)
        wanted = (task.inputs.text or 0) + frame  # a token of a word has a character at least
    return min(checkpoint.config.max_tokens, max(SHORTEST_CONTEXT, wanted))
