"""From task files and a checkpoint to a bundle: cases, the layers below, tuning, merging, conversion, test.

What each step leaves is kept in a folder beside the bundle, as in toolkit/train/weights.py, and the same command goes
on from there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converters.checkpoints import Checkpoint, finite_weights, open_checkpoint
from converters.convert import Options, convert
from converters.network.decoder import require_support
from converters.network.weights import CanonicalWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.engine.tokenizer import Tokenizer, read_tokenizer
from device_runtime.errors import ConfigurationError
from device_runtime.records.printable import counted
from device_runtime.tasks.file import Task
from device_runtime.tasks.purpose import Purpose
from toolkit.train.pipeline import Measures, measured, purpose_of, require_measures, write_purpose
from toolkit.train.tune import layers
from toolkit.train.tune.conversations import Conversation, conversations
from toolkit.train.tune.layers import Adapter, Run
from toolkit.train.tune.ops_jax import JaxOps
from toolkit.train.tune.optimize import Plan, below, tune
from toolkit.train.tune.steps import Earlier, earlier, shown
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

__all__ = ["TuneSettings", "merge", "tune_bundle"]

_HELD = 0.1  # share of the cases to calibrate on, and of those to test on: there are few
_FEWEST = 200  # that are generated
_CALIBRATED, _TESTED = 100, 100  # asked, at most; an answer takes some tenths of a second
_CONTEXT = 512  # positions of the bundle, unless a case is longer
_ROOM = 64  # positions beyond the longest case
_WINDOW, _WINDOWS = 256, 16  # tokens that the converter reads of the task's own text
_REPORT_WINDOWS = 2


@dataclass(frozen=True)
class TuneSettings:
    """What a user may decide about tuning."""

    checkpoint: Path
    seed: int = 0
    cases: int = 500  # of each task, to train on, at most
    cases_of: Mapping[str, int] = field(default_factory=dict)  # of a task by its name, where it is another number
    epochs: int = 6
    batch: int = 16  # cases a step
    layers: int | None = None  # how many of the upper ones; None: a third
    rank: int = 16  # of the factors; 0: all weights of those layers
    rate: float | None = None  # learning rate; None: the usual one
    profile: Literal["micro", "pi"] = "pi"
    baseline: Path | None = None  # a bundle that the report compares with
    further: Path | None = None  # a bundle tuned before from the same checkpoint, whose training this one goes on from

    def cases_for(self, task: Task) -> int:
        """How many cases of a task are trained on, at most."""
        return self.cases_of.get(task.name, self.cases)


def tune_bundle(
    tasks: Sequence[Task], folder: Path, settings: TuneSettings, progress: Progress = silent, *, afresh: bool = False
) -> Bundle:
    """Tune, merge, convert, calibrate and test; the bundle appears at `folder`.

    Args:
        afresh: throw away what an earlier training left there, also an unfinished one of other settings.

    Raises:
        ConfigurationError: a task has too few examples, its generator fails, the checkpoint has no chat template,
            `folder` is something else, or there is an unfinished training of other settings.
        CheckpointError, ArchitectureError: the checkpoint cannot be read, or not be tuned.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigurationError("Two of the tasks have the same name; a bundle knows its tasks by their names.")
    require_measures(tasks, settings.baseline)
    checkpoint = finite_weights(open_checkpoint(settings.checkpoint))
    plan = _plan(checkpoint, settings)
    work = work_folder(folder)
    before = earlier(settings.further, folder, checkpoint.sha256)
    if before is not None and [before.made_with.get(n) for n in ("layers", "rank")] != [plan.layers, settings.rank]:
        raise before.other_weights()
    with begin(work, _shown(tasks, checkpoint, settings, plan, before), afresh=afresh) as begun:
        for task in tasks:
            expected = max(_FEWEST, round(settings.cases_for(task) / (1 - 2 * _HELD) * 1.1))
            made_of = {**described(task, network=False), "cases": settings.cases_for(task), "seed": settings.seed}
            begun.make_cases(task, expected, settings.seed, progress, _HELD, made_of)
    tokenizer = _tokenizer(checkpoint)
    cases = _conversations(tasks, "train", checkpoint, tokenizer, work, settings)
    longest = max(len(case.tokens) for case in cases)
    context = min(checkpoint.config.max_context, max(_CONTEXT, longest + _ROOM))
    if longest + 1 > context:
        raise ConfigurationError(
            f"A case has {longest} tokens, and {checkpoint.name} was trained for {context} positions; leave it out."
        )
    checkpoint = replace(checkpoint, config=checkpoint.config.for_context(context))
    runs, trained = _tuned(checkpoint, cases, len(tasks), plan, settings.seed, work, before, progress)
    merged = merge(checkpoint, runs, trained, plan.adapter, "+".join(task.name for task in tasks))
    _convert(merged, folder, tasks, tokenizer, work, cases, context, settings, progress)
    found: list[dict[str, Any]] = []
    for task in tasks:
        own = sum(case.task == len(found) for case in cases)
        shown = {name: value for name, value in asdict(settings).items() if value is not None}
        shown |= {"layers": plan.layers, "tasks": len(tasks), "checkpoint": checkpoint.name}
        measures = Measures(settings.baseline, own, shown, _CALIBRATED, _TESTED)
        found.append(
            measured(task, "tune", folder, tokenizer.encode_inside, work / task.name, measures, progress).to_json()
        )
    bundle = write_purpose(folder, _together(found))
    finish(work)
    return bundle


def _together(purposes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return purposes[0] if len(purposes) == 1 else {"tasks": list(purposes)}


def _plan(checkpoint: Checkpoint, settings: TuneSettings) -> Plan:
    require_support(checkpoint.config, JaxOps.SUPPORTS, "Tuning")
    all_layers = checkpoint.config.layers
    upper = -(-all_layers // 3) if settings.layers is None else settings.layers
    if not 1 <= upper <= all_layers:
        raise ConfigurationError(f"--layers is {upper}; {checkpoint.name} has {all_layers}: tune 1 to {all_layers}.")
    usual = 1e-3 if settings.rank else 1e-4
    return Plan(upper, Adapter(settings.rank), settings.epochs, settings.batch, settings.rate or usual)


def _shown(
    tasks: Sequence[Task], checkpoint: Checkpoint, settings: TuneSettings, plan: Plan, before: Earlier | None
) -> dict[str, Any]:
    """All that the result depends on."""
    kept = {n: v for n, v in asdict(settings).items() if n not in ("profile", "baseline", "checkpoint", "further")}
    kept["layers"] = plan.layers
    kept |= {"further": before.sha256} if before is not None else {}
    return {"checkpoint": checkpoint.sha256, "tasks": [described(task, network=False) for task in tasks], **kept}


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    file = checkpoint.tokenizer
    with TemporaryDirectory() as folder:
        path = Path(folder) / file.file_name
        path.write_bytes(file.content)
        return read_tokenizer(path, file.chat_template, file.eos_ids, spaced=file.spaced, own_space=file.own_space)


def _conversations(
    tasks: Sequence[Task],
    part: Literal["train", "calibrate"],
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    work: Path,
    settings: TuneSettings,
) -> list[Conversation]:
    found: list[Conversation] = []
    for number, task in enumerate(tasks):
        examples = read_cases(work / task.name, part, settings.cases_for(task))
        found += conversations(number, task, examples, checkpoint.tokenizer, tokenizer, settings.seed)
    return found


def _tuned(
    checkpoint: Checkpoint,
    cases: Sequence[Conversation],
    tasks: int,
    plan: Plan,
    seed: int,
    work: Path,
    before: Earlier | None,
    progress: Progress,
) -> tuple[list[Run], list[dict[str, npt.NDArray[np.float32]]]]:
    weights = CanonicalWeights(checkpoint.config, checkpoint.read)
    lower = checkpoint.config.layers - plan.layers
    states = below(
        weights,
        cases,
        lower,
        tasks,
        work / "below.npz",
        lambda share: progress("reading", share, counted(lower, "layer")),
    )
    return tune(weights, cases, states, plan, seed, work / TRAINED, shown(progress), before)


def merge(
    checkpoint: Checkpoint,
    runs: Sequence[Run],
    trained: Sequence[Mapping[str, npt.NDArray[np.float32]]],
    adapter: Adapter,
    name: str,
) -> Checkpoint:
    """The checkpoint with what was trained in its weights, in float32."""
    digest = hashlib.sha256(checkpoint.sha256.encode())
    for part in trained:
        for key in sorted(part):
            digest.update(np.ascontiguousarray(part[key]).tobytes())

    def read(tensor: str) -> npt.NDArray[np.float32]:
        return layers.merged(runs, trained, adapter, tensor, checkpoint.read(tensor))

    return replace(checkpoint, name=f"{checkpoint.name}+{name}", sha256=digest.hexdigest(), read=read)


def _convert(
    merged: Checkpoint,
    folder: Path,
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    work: Path,
    cases: Sequence[Conversation],
    context: int,
    settings: TuneSettings,
    progress: Progress,
) -> None:
    """The ordinary converter, calibrated on the tasks' own text; of a single task, what it says first is baked in."""
    held = _conversations(tasks, "calibrate", merged, tokenizer, work, settings)
    rng = np.random.default_rng(settings.seed)
    options = Options(
        settings.profile,
        context,
        instruction=Purpose.of_task(tasks[0]).instruction if len(tasks) == 1 else None,
        windows=_windows([cases[i] for i in rng.permutation(len(cases))], _WINDOWS),
        heldout={"+".join(task.name for task in tasks): _windows(held, _REPORT_WINDOWS)},
        purpose=_together([purpose_of(task, "tune").to_json() for task in tasks]),
    )
    convert(merged, folder, options, progress)


def _windows(cases: Sequence[Conversation], most: int) -> npt.NDArray[np.int64]:
    """Conversations one after the other, cut into rows: (windows, length)."""
    tokens = [token for case in cases for token in case.tokens]
    length = min(_WINDOW, len(tokens))
    count = min(most, len(tokens) // length)
    return np.array(tokens[: count * length], np.int64).reshape(count, length)
